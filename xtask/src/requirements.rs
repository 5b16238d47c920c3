//! What the verbs need besides the kernel: programs, packages, and a toolchain that can compile for BPF.
//!
//! Rust code becomes BPF in one of two ways. Either one works; `lb-userspace/build.rs` chooses the first that is there:
//!
//! | way | compiler | core for bpfel-unknown-none | where |
//! | --- | --- | --- | --- |
//! | distribution | Debian's rustc-web, linked into rustup as toolchain `debian` | prebuilt package | Debian |
//! | nightly | rustup's nightly | built from the component rust-src | everywhere else |
//!
//! Both link with `bpf-linker`.

use std::{fs, path::Path, process::Command};

use serde::Serialize;

use crate::{kubernetes, process, setup::Need};

/// The version of bpf-linker that goes with the distribution's LLVM.
pub const BPF_LINKER_VERSION: &str = "0.13.0";
/// The arguments for cargo that install cargo-deny.
pub const DENY_INSTALL: [&str; 5] = ["install", "cargo-deny", "--version", "0.20.2", "--locked"];
/// The LLVM that bpf-linker is linked with: not older than the one in the compiler.
pub const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
/// Where Debian's compiler keeps what it needs for BPF.
const DISTRIBUTION_BPF_CORE: &str = "/usr/lib/rustlib/bpfel-unknown-none";
/// The name of the distribution's toolchain in rustup.
pub const DISTRIBUTION_TOOLCHAIN: &str = "debian";

/// Debian's packages of the compiler for BPF.
pub const COMPILER_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];
/// Debian's packages that bpf-linker is built from.
pub const LINKER_PACKAGES: [&str; 7] = [
    "llvm-22-dev",
    "libclang-22-dev",
    "libpolly-22-dev",
    "clang-22",
    "libzstd-dev",
    "zlib1g-dev",
    "libxml2-dev",
];

/// Programs that are in a package of Debian and Ubuntu: (program, package, for what, what it is used for).
const PROGRAMS: [(&str, &str, Need, &str); 11] = [
    ("cc", "build-essential", Need::Build, "C code of crates"),
    ("ip", "iproute2", Need::Lab, "network namespaces"),
    ("nsenter", "util-linux", Need::Lab, "running programs in them"),
    ("sysctl", "procps", Need::Lab, "forwarding and rp_filter"),
    ("nft", "nftables", Need::Lab, "the masquerade rule of a CNI"),
    ("iptables", "iptables", Need::Lab, "looking at other rule sets"),
    ("ethtool", "ethtool", Need::Lab, "offloads of veths"),
    ("tcpdump", "tcpdump", Need::Lab, "watching packets"),
    ("curl", "curl", Need::Lab, "playing in the lab"),
    ("wrk", "wrk", Need::Bench, "clients of the Ingress proxy"),
    (
        "nginx",
        "nginx-light",
        Need::Bench,
        "the proxy that it is compared with",
    ),
];

/// How a requirement stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// There and usable.
    Present,
    /// Works, with less than could be had.
    Limited,
    /// Not there; what needs it cannot run.
    Missing,
}

/// One line of the doctor's report.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// Which verbs need it.
    pub need: Need,
    /// What is looked for.
    pub name: String,
    /// How it stands.
    pub state: State,
    /// What was found.
    pub found: String,
    /// The command that brings it, or what to do.
    pub remedy: Option<String>,
    /// The package of Debian and Ubuntu that has it, where that is all it takes.
    #[serde(skip)]
    pub packages: Vec<&'static str>,
}

impl Check {
    /// Something that is there.
    pub fn present(need: Need, name: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            need,
            name: name.into(),
            state: State::Present,
            found: found.into(),
            remedy: None,
            packages: Vec::new(),
        }
    }

    /// Something that is missing, and what brings it.
    pub fn missing(need: Need, name: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            state: State::Missing,
            remedy: Some(remedy.into()),
            ..Self::present(need, name, found)
        }
    }

    /// Something that works, but not as well as it could.
    pub fn limited(need: Need, name: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            state: State::Limited,
            ..Self::missing(need, name, found, remedy)
        }
    }

    /// This check, brought by packages of Debian and Ubuntu.
    fn with_packages(mut self, packages: &[&'static str]) -> Self {
        self.packages = packages.to_vec();
        self
    }
}

/// Everything that `need` needs, kernel and privileges aside.
pub fn checks(need: Need) -> Vec<Check> {
    let mut checks: Vec<_> = PROGRAMS.iter().filter(|entry| entry.2 == need).map(program).collect();
    match need {
        Need::Build => {
            checks.push(rustup());
            checks.push(compiler());
            checks.push(linker());
        }
        Need::Kubernetes => checks.push(api_server()),
        Need::Lint => checks.push(cargo_deny()),
        Need::Lab | Need::Kernel | Need::Bench => {}
    }
    checks
}

fn program(&(program, package, need, used_for): &(&str, &'static str, Need, &str)) -> Check {
    let name = format!("{program}: {used_for}");
    match process::find(program) {
        Some(path) => Check::present(need, name, path.display().to_string()),
        None => Check::missing(need, name, "not found", install_command(&[package])).with_packages(&[package]),
    }
}

/// The command that installs packages here, as one would type it.
pub fn install_command(packages: &[&str]) -> String {
    let packages = packages.join(" ");
    if has_apt() {
        let sudo = if process::is_root() { "" } else { "sudo " };
        format!("{sudo}apt-get update && {sudo}apt-get install {packages}")
    } else {
        format!("your distribution's package of {packages}")
    }
}

/// Whether packages are installed with apt here.
pub fn has_apt() -> bool {
    Path::new("/etc/debian_version").exists() && process::find("apt-get").is_some()
}

/// First line of what a program says about its version.
fn version_of(program: impl AsRef<std::ffi::OsStr>, argument: &str) -> Option<String> {
    let text = process::output(Command::new(program).arg(argument)).ok()?;
    text.lines().next().map(str::to_owned)
}

fn rustup() -> Check {
    let name = "rustup: choosing the compiler for BPF";
    match version_of("rustup", "--version") {
        Some(version) => Check::present(Need::Build, name, version),
        None => Check::missing(
            Need::Build,
            name,
            "not found",
            "install Rust through rustup: https://rustup.rs",
        ),
    }
}

/// The compiler that a build would use for BPF now, described; the same choice as in `lb-userspace/build.rs`.
pub fn bpf_toolchain() -> Option<String> {
    if let Ok(name) = std::env::var("FAIRWAY_BPF_TOOLCHAIN") {
        return Some(format!("toolchain `{name}`, named by FAIRWAY_BPF_TOOLCHAIN"));
    }
    let list = process::output(Command::new("rustup").args(["toolchain", "list", "-v"])).ok()?;
    let path_of = |is_it: fn(&str) -> bool| {
        list.lines().find_map(|line| {
            let mut words = line.split_whitespace();
            is_it(words.next()?).then(|| words.next_back()).flatten()
        })
    };
    if path_of(|name| name == DISTRIBUTION_TOOLCHAIN).is_some() {
        return has_distribution_core().then(|| "the distribution's, toolchain `debian` in rustup".into());
    }
    let nightly = path_of(is_latest_nightly)?;
    let has_sources = Path::new(nightly).join("lib/rustlib/src/rust/library/core").is_dir();
    has_sources.then(|| "rustup's nightly with rust-src".into())
}

/// Whether `rustup run nightly` means this toolchain: one without a date in its name.
fn is_latest_nightly(name: &str) -> bool {
    let rest = name.strip_prefix("nightly");
    rest.is_some_and(|rest| !rest.trim_start_matches('-').starts_with(|c: char| c.is_ascii_digit()))
}

/// Whether Debian's compiler is installed with its core for BPF.
pub fn has_distribution_core() -> bool {
    let files = [DISTRIBUTION_BPF_CORE, "/usr/bin/rustc", "/usr/bin/cargo"];
    files.iter().all(|file| Path::new(file).exists())
}

/// The commands that bring a compiler for BPF by way of Debian's packages.
fn distribution_recipe() -> String {
    format!(
        "{} && rustup toolchain link {DISTRIBUTION_TOOLCHAIN} /usr",
        install_command(&COMPILER_PACKAGES)
    )
}

fn compiler() -> Check {
    let name = "Rust compiler for BPF";
    match bpf_toolchain() {
        Some(found) => Check::present(Need::Build, name, found),
        None if has_distribution_core() => Check::missing(
            Need::Build,
            name,
            "installed, unknown to rustup",
            format!("rustup toolchain link {DISTRIBUTION_TOOLCHAIN} /usr"),
        ),
        None if has_package(COMPILER_PACKAGES[2]) => {
            Check::missing(Need::Build, name, "not found", distribution_recipe()).with_packages(&COMPILER_PACKAGES)
        }
        None => Check::missing(
            Need::Build,
            name,
            "not found",
            "rustup toolchain install nightly --component rust-src",
        ),
    }
}

/// Whether apt has a package. A bare image of Debian has no lists before its first `apt-get update`, and is taken to
/// have it.
pub fn has_package(package: &str) -> bool {
    if !has_apt() {
        return false;
    }
    if !has_package_lists() {
        return os_release("ID").is_some_and(|id| id == "debian");
    }
    process::output(Command::new("apt-cache").args(["show", "--no-all-versions", package])).is_ok()
}

fn has_package_lists() -> bool {
    let Ok(files) = fs::read_dir("/var/lib/apt/lists") else {
        return false;
    };
    files
        .flatten()
        .any(|file| file.file_name().to_string_lossy().contains("_Packages"))
}

/// The arguments for cargo that install bpf-linker linked with Debian's LLVM.
pub fn linker_install() -> Vec<&'static str> {
    vec![
        "install",
        "bpf-linker",
        "--version",
        BPF_LINKER_VERSION,
        "--locked",
        "--force",
        "--no-default-features",
        "--features",
        "llvm-22",
    ]
}

fn linker() -> Check {
    let name = "bpf-linker";
    // Asking for its version also shows that the LLVM it was linked with is there.
    if let Some(version) = version_of(name, "--version") {
        return Check::present(Need::Build, name, version);
    }
    if !Path::new(LLVM_PREFIX).is_dir() && !has_package(LINKER_PACKAGES[0]) {
        let remedy = "cargo install bpf-linker (LLVM_PREFIX names an LLVM that is not older than the compiler's)";
        return Check::missing(Need::Build, name, "not found", remedy);
    }
    let recipe = format!(
        "{} && LLVM_PREFIX={LLVM_PREFIX} cargo {}",
        install_command(&LINKER_PACKAGES),
        linker_install().join(" ")
    );
    Check::missing(Need::Build, name, "not found", recipe).with_packages(&LINKER_PACKAGES)
}

fn cargo_deny() -> Check {
    let name = "cargo-deny: licences and sources of crates";
    match version_of("cargo-deny", "--version") {
        Some(version) => Check::present(Need::Lint, name, version),
        None => Check::missing(
            Need::Lint,
            name,
            "not found",
            format!("cargo {}", DENY_INSTALL.join(" ")),
        ),
    }
}

fn api_server() -> Check {
    let name = "kube-apiserver, its etcd and controllers, or Go to build them";
    let complete = |folder: &Path| {
        let mut programs = kubernetes::Component::FOR_TESTS.iter();
        programs.all(|component| folder.join(component.program()).is_file())
    };
    let folders = [
        std::env::var_os("KUBEBUILDER_ASSETS").map(Into::into),
        kubernetes::folder().ok(),
    ];
    if let Some(folder) = folders.iter().flatten().find(|folder| complete(folder)) {
        return Check::present(Need::Kubernetes, name, folder.display().to_string());
    }
    match version_of("go", "version") {
        Some(version) => Check::present(Need::Kubernetes, name, format!("{version}: will build them once")),
        None => Check::missing(
            Need::Kubernetes,
            name,
            "not found",
            "install Go 1.26 or later (https://go.dev/doc/install), or set KUBEBUILDER_ASSETS to a folder with them",
        ),
    }
}

/// One value of `/etc/os-release`.
fn os_release(key: &str) -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
    Some(value.trim_matches('"').to_owned())
}

/// The name and version of the system, for the report.
pub fn system() -> String {
    let name = os_release("PRETTY_NAME").unwrap_or_else(|| "unknown system".into());
    format!("{name}, {}", std::env::consts::ARCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dated_nightly_is_not_the_one_that_builds_use() {
        assert!(is_latest_nightly("nightly"));
        assert!(is_latest_nightly("nightly-x86_64-unknown-linux-gnu"));
        assert!(!is_latest_nightly("nightly-2026-01-31-x86_64-unknown-linux-gnu"));
        assert!(!is_latest_nightly("stable-x86_64-unknown-linux-gnu"));
    }
}
