//! Cgroups of a lab: one for each node with its pods inside, one for what is not part of the cluster.
//!
//! The agent's socket hooks hang on its node's cgroup, so the cgroup decides what is translated. All processes of
//! a lab are in its tree, which also makes them easy to end together.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// Where the cgroup2 hierarchy is mounted.
pub fn mount_point() -> anyhow::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").context("read /proc/mounts")?;
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            Some((fields.next()?, fields.next()?))
        })
        .find(|(_, kind)| *kind == "cgroup2")
        .map(|(path, _)| PathBuf::from(path))
        .context("no cgroup2 is mounted; try: mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified")
}

/// Ends all processes in a cgroup and below it, waits for that, and removes the cgroups.
pub fn remove(cgroup: &Path) -> anyhow::Result<()> {
    if !cgroup.exists() {
        return Ok(());
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        // `cgroup.kill` came with Linux 5.14; before that, one by one until nobody new appears.
        if fs::write(cgroup.join("cgroup.kill"), "1").is_err() {
            for pid in pids(cgroup) {
                let pid = nix::unistd::Pid::from_raw(pid);
                _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
        }
        if remove_tree(cgroup).is_ok() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{} still has processes: {:?}", cgroup.display(), pids(cgroup));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Processes in a cgroup and below it.
pub fn pids(cgroup: &Path) -> Vec<i32> {
    let own = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<i32> = own.lines().filter_map(|line| line.parse().ok()).collect();
    for child in children(cgroup) {
        pids.extend(self::pids(&child));
    }
    pids
}

fn remove_tree(cgroup: &Path) -> std::io::Result<()> {
    for child in children(cgroup) {
        remove_tree(&child)?;
    }
    fs::remove_dir(cgroup)
}

fn children(cgroup: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(cgroup) else {
        return Vec::new();
    };
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect()
}
