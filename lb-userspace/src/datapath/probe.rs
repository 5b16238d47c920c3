//! What this machine offers, and what to do where it does not.

use std::path::{Path, PathBuf};

/// Something that the agent needs is not there. The text says what, and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// Not root, nor the capabilities.
    #[error(
        "loading BPF programs needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (or CAP_SYS_ADMIN): run as root, in Kubernetes as a privileged container"
    )]
    Privilege,
    /// No cgroup v2 anywhere.
    #[error(
        "no cgroup2 file system is mounted, and sockets cannot be translated without one: mount -t cgroup2 none /sys/fs/cgroup/unified, or name one with --cgroup, or do without: --cgroup none"
    )]
    Cgroup,
    /// `--cgroup` names something else.
    #[error("{} is not a directory of a cgroup2 file system: give --cgroup one below {}", path.display(), mount.display())]
    NotCgroup {
        /// What was given.
        path: PathBuf,
        /// Where cgroup2 is mounted.
        mount: PathBuf,
    },
}

/// Fails without the capabilities that loading and attaching need.
pub fn privilege() -> Result<(), Missing> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if privileged(&status) {
        Ok(())
    } else {
        Err(Missing::Privilege)
    }
}

fn privileged(status: &str) -> bool {
    const NET_ADMIN: u64 = 1 << 12;
    const SYS_ADMIN: u64 = 1 << 21;
    const PERFMON: u64 = 1 << 38;
    const BPF: u64 = 1 << 39;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    let has = |mask: u64| effective & mask == mask;
    has(NET_ADMIN) && (has(SYS_ADMIN) || has(BPF | PERFMON))
}

/// The cgroup to attach to: the one named, else the mount point of cgroup2. `None` for `--cgroup none`.
pub fn cgroup(named: Option<&Path>) -> Result<Option<PathBuf>, Missing> {
    if named.is_some_and(|path| path == Path::new("none")) {
        return Ok(None);
    }
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let mount = cgroup_mount(&mounts).ok_or(Missing::Cgroup)?;
    let Some(path) = named else { return Ok(Some(mount)) };
    let is_cgroup =
        nix::sys::statfs::statfs(path).is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::CGROUP2_SUPER_MAGIC);
    if is_cgroup {
        Ok(Some(path.to_owned()))
    } else {
        Err(Missing::NotCgroup {
            path: path.to_owned(),
            mount,
        })
    }
}

/// Whether the agent's network namespace, which has this cookie, is that of the process with the id 1: of the machine, or
/// of the container that plays one. Where that cannot be seen, as not even root may everywhere, whether it is the one
/// that the kernel began with.
pub fn network_is_the_machines(cookie: u64) -> bool {
    let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).ok();
    is_the_machines(namespace("1").as_deref(), namespace("self").as_deref(), cookie)
}

fn is_the_machines(first: Option<&Path>, own: Option<&Path>, cookie: u64) -> bool {
    /// The first cookie of a kernel before 6.18, where namespaces of all kinds came to share one count of them.
    const FIRST_COOKIE: u64 = 1;
    /// `NET_NS_INIT_INO` of `linux/nsfs.h`, since 6.18. No other namespace has such a number in any kernel.
    const INITIAL: &str = "net:[4026531833]";
    match (first, own) {
        (Some(first), Some(own)) => first == own,
        _ => cookie == FIRST_COOKIE || own == Some(Path::new(INITIAL)),
    }
}

fn cgroup_mount(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, path, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    })
}

/// The ports for source translation: the largest range free of `ip_local_port_range` (ports that the node's own
/// sockets take) and of Kubernetes's NodePorts.
pub fn snat_ports() -> (u16, u16) {
    let local = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut local = local.split_whitespace().filter_map(|n| n.parse::<u16>().ok());
    let local = (local.next().unwrap_or(32768), local.next().unwrap_or(60999));
    largest_free_range(&[local, (30000, 32767)])
}

/// The largest range within 1024..=65535 that meets none of the taken ones (inclusive); of equals, the highest.
fn largest_free_range(taken: &[(u16, u16)]) -> (u16, u16) {
    let mut taken: Vec<_> = taken.iter().filter(|(low, high)| low <= high).copied().collect();
    taken.sort_unstable();
    let mut best: Option<(u32, u32)> = None;
    let mut consider = |low: u32, high: u32| {
        if low < high && best.is_none_or(|(l, h)| high - low >= h - l) {
            best = Some((low, high));
        }
    };
    let mut next = 1024_u32;
    for (low, high) in taken {
        consider(next, u32::from(low).saturating_sub(1));
        next = next.max(u32::from(high) + 1);
    }
    consider(next, 65535);
    let (low, high) = best.unwrap_or((61000, 65535));
    (
        u16::try_from(low).unwrap_or(61000),
        u16::try_from(high).unwrap_or(u16::MAX),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_port_ranges_leave_the_low_ones_for_translation() {
        assert_eq!(largest_free_range(&[(32768, 60999), (30000, 32767)]), (1024, 29999));
    }

    #[test]
    fn a_low_local_port_range_leaves_the_high_ones() {
        assert_eq!(largest_free_range(&[(1024, 40000), (30000, 32767)]), (40001, 65535));
    }

    #[test]
    fn overlapping_ranges_are_taken_together() {
        assert_eq!(largest_free_range(&[(2000, 50000), (3000, 4000)]), (50001, 65535));
    }

    #[test]
    fn cgroup2_is_found_in_a_hybrid_layout() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(cgroup_mount(mounts), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(cgroup_mount("cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n"), None);
    }

    #[test]
    fn the_machines_network_is_that_of_process_1() {
        let (one, other) = (Some(Path::new("net:[4026532458]")), Some(Path::new("net:[4026532567]")));
        assert!(is_the_machines(one, one, 4382));
        assert!(!is_the_machines(other, one, 4382));
    }

    #[test]
    fn where_process_1_cannot_be_looked_at_the_machines_network_is_the_kernels_first() {
        let [initial, before, later] =
            ["net:[4026531833]", "net:[4026531840]", "net:[4026532458]"].map(|name| Some(Path::new(name)));
        assert!(is_the_machines(None, initial, 3));
        assert!(is_the_machines(None, before, 1));
        assert!(!is_the_machines(None, later, 4382));
        assert!(!is_the_machines(None, None, 4382));
    }

    #[test]
    fn root_and_the_bpf_capabilities_are_enough_and_a_user_is_not() {
        assert!(privileged("CapEff:\t000001ffffffffff\n"));
        assert!(privileged("CapEff:\t000000c000001000\n"));
        assert!(!privileged("CapEff:\t0000000000000000\n"));
        assert!(!privileged("CapEff:\t0000000000001000\n"));
    }
}
