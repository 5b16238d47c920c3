//! What the running kernel must offer, what must be mounted, and which privileges this user has.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    process,
    requirements::Check,
    setup::Need::{self, Kernel, Lab},
};

/// The mount point of the BPF filesystem, where pins are kept.
pub const BPFFS: &str = "/sys/fs/bpf";
/// The oldest kernel (major, minor) whose verifier and helpers the programs are written for.
const OLDEST: (u32, u32) = (6, 1);
/// The first kernel with TCX; the programs are attached through clsact on older ones.
const TCX: (u32, u32) = (6, 6);
/// Bits in the effective capabilities that loading and attaching need, by name.
const CAPABILITIES: [(u32, &str); 4] = [
    (12, "CAP_NET_ADMIN"),
    (21, "CAP_SYS_ADMIN"),
    (38, "CAP_PERFMON"),
    (39, "CAP_BPF"),
];

/// Everything that `need` needs from the kernel.
pub fn checks(need: Need) -> Vec<Check> {
    match need {
        Kernel => vec![version(), tcx(), btf(), jit(), bpffs(), cgroup2(), privileges()],
        Lab if process::is_root() => vec![devices()],
        _ => Vec::new(),
    }
}

fn running() -> Option<(u32, u32)> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

fn version() -> Check {
    let name = format!("kernel {}.{} or later", OLDEST.0, OLDEST.1);
    match running() {
        Some(version) if version >= OLDEST => Check::present(Kernel, name, release()),
        Some(_) => Check::missing(Kernel, name, release(), "boot a newer kernel"),
        None => Check::missing(Kernel, name, "no Linux kernel", "run it on Linux"),
    }
}

fn tcx() -> Check {
    let name = "TCX: several BPF programs on a device";
    match running() {
        Some(version) if version >= TCX => Check::present(Kernel, name, "there"),
        _ => Check::limited(
            Kernel,
            name,
            "kernel older than 6.6",
            "nothing to do: programs are attached through clsact; a newer kernel keeps them apart from a CNI's",
        ),
    }
}

fn btf() -> Check {
    let (name, path) = ("BTF: types of the kernel", "/sys/kernel/btf/vmlinux");
    if Path::new(path).exists() {
        Check::present(Kernel, name, path)
    } else {
        Check::limited(
            Kernel,
            name,
            "no /sys/kernel/btf/vmlinux",
            "boot a kernel with CONFIG_DEBUG_INFO_BTF=y",
        )
    }
}

fn jit() -> Check {
    let name = "JIT compiler for BPF";
    match fs::read_to_string("/proc/sys/net/core/bpf_jit_enable")
        .as_deref()
        .map(str::trim)
    {
        Ok("0") => Check::limited(Kernel, name, "switched off", "sysctl -w net.core.bpf_jit_enable=1"),
        Ok(_) => Check::present(Kernel, name, "on"),
        // Readable by root only, or compiled in as always on.
        Err(_) => Check::present(Kernel, name, "cannot be read by this user"),
    }
}

/// Mount points of filesystems of one type, in the order of mounting.
fn mounted(kind: &str) -> Vec<PathBuf> {
    mounts_of(kind, &fs::read_to_string("/proc/mounts").unwrap_or_default())
}

fn mounts_of(kind: &str, mounts: &str) -> Vec<PathBuf> {
    let of_kind = |line: &str| {
        let mut fields = line.split(' ');
        let (_source, folder, found) = (fields.next()?, fields.next()?, fields.next()?);
        // The kernel writes a space in a path as \040.
        (found == kind).then(|| PathBuf::from(folder.replace("\\040", " ")))
    };
    mounts.lines().filter_map(of_kind).collect()
}

/// Whether the BPF filesystem is mounted where pins are kept.
pub fn bpffs_is_mounted() -> bool {
    mounted("bpf").iter().any(|folder| folder == Path::new(BPFFS))
}

/// The mount point of the cgroup v2 hierarchy: `/sys/fs/cgroup`, or beside version 1 in the hybrid layout.
pub fn cgroup2_mount() -> Option<PathBuf> {
    mounted("cgroup2").into_iter().next()
}

fn bpffs() -> Check {
    let name = "BPF filesystem";
    if bpffs_is_mounted() {
        return Check::present(Kernel, name, BPFFS);
    }
    let sudo = if process::is_root() { "" } else { "sudo " };
    Check::missing(
        Kernel,
        name,
        format!("not mounted at {BPFFS}"),
        format!("{sudo}mount -t bpf bpf {BPFFS}"),
    )
}

fn cgroup2() -> Check {
    let name = "cgroup version 2";
    match cgroup2_mount() {
        Some(folder) => Check::present(Kernel, name, folder.display().to_string()),
        None => Check::missing(
            Kernel,
            name,
            "not mounted",
            "mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified",
        ),
    }
}

fn privileges() -> Check {
    let name = "privileges: loading BPF, making namespaces";
    if process::is_root() {
        let lacking = lacking_capabilities(&fs::read_to_string("/proc/self/status").unwrap_or_default());
        if lacking.is_empty() {
            return Check::present(Kernel, name, "root");
        }
        let found = format!("root without {}", lacking.join(", "));
        return Check::missing(
            Kernel,
            name,
            found,
            "run it outside the container, or in a privileged one",
        );
    }
    match process::find("sudo") {
        Some(_) => Check::present(Kernel, name, "an ordinary user, sudo for what needs root"),
        None => Check::missing(Kernel, name, "an ordinary user without sudo", "run it as root"),
    }
}

/// The capabilities out of [`CAPABILITIES`] that are not effective, by `/proc/self/status`.
fn lacking_capabilities(status: &str) -> Vec<&'static str> {
    let bits = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok())
        .unwrap_or_default();
    CAPABILITIES
        .iter()
        .filter(|(bit, _)| bits & (1 << bit) == 0)
        .map(|(_, name)| *name)
        .collect()
}

/// Tries to make the lab's kinds of devices in a network namespace that vanishes with the command.
fn devices() -> Check {
    let name = "network namespaces with veth, bridge and VXLAN";
    let script = "ip link add type veth && ip link add type bridge && ip link add type vxlan id 1 dstport 4789";
    match process::output(Command::new("unshare").args(["--net", "sh", "-c", script])) {
        Ok(_) => Check::present(Lab, name, "all can be made"),
        Err(error) => {
            let found = error.to_string().lines().last().unwrap_or_default().to_owned();
            Check::missing(
                Lab,
                name,
                found,
                "modprobe veth bridge vxlan, or boot a kernel that has them",
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup2_is_found_beside_version_1_in_the_hybrid_layout() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                      cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n";
        assert_eq!(mounts_of("cgroup2", mounts), [PathBuf::from("/sys/fs/cgroup/unified")]);
        assert_eq!(mounts_of("bpf", mounts), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_container_without_cap_bpf_is_told_so() {
        let everything = "CapEff:\t000001ffffffffff\n";
        assert!(lacking_capabilities(everything).is_empty());
        let without_bpf = "CapEff:\t0000007fffffffff\n";
        assert_eq!(lacking_capabilities(without_bpf), ["CAP_BPF"]);
    }
}
