//! Bringing what is missing, as part of the verb that needs it.
//!
//! Detection is cheap (files and `--version`), so a run where nothing is missing loses a tenth of a second. What is
//! missing is installed from the distribution's packages (apt) and from crates; where that cannot be done here, the
//! verb ends with the commands that a person has to run.

use std::{path::Path, process::Command};

use anyhow::{Result, bail};
use clap::ValueEnum;
use serde::Serialize;

use crate::{
    kernel, process,
    requirements::{self, Check, State},
};

/// A group of requirements. Each verb names those that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Need {
    /// Compiling the kernel object and the binary.
    Build,
    /// Loading and attaching programs: kernel, mounts, privileges.
    Kernel,
    /// Namespaces that stand for machines, and looking into them.
    Lab,
    /// The real API server for tests.
    Kubernetes,
    /// Licences and sources of crates.
    Lint,
    /// A load generator, and a proxy to compare with.
    Bench,
}

impl Need {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Build,
        Self::Kernel,
        Self::Lab,
        Self::Kubernetes,
        Self::Lint,
        Self::Bench,
    ];

    /// What it is, in the report.
    pub fn title(self) -> &'static str {
        match self {
            Self::Build => "build",
            Self::Kernel => "kernel",
            Self::Lab => "lab",
            Self::Kubernetes => "kubernetes",
            Self::Lint => "lint",
            Self::Bench => "bench",
        }
    }
}

/// How everything stands that these needs ask for.
pub fn checks(needs: &[Need]) -> Vec<Check> {
    needs
        .iter()
        .flat_map(|&need| requirements::checks(need).into_iter().chain(kernel::checks(need)))
        .collect()
}

fn missing(needs: &[Need]) -> Vec<Check> {
    checks(needs)
        .into_iter()
        .filter(|check| check.state == State::Missing)
        .collect()
}

/// Brings whatever of `needs` is missing.
///
/// # Errors
/// If something could not be brought, or cannot be by a program: each with its remedy.
pub fn ensure(needs: &[Need]) -> Result<()> {
    if missing(needs).is_empty() {
        return Ok(());
    }
    process::heading("Setting up what is missing (`cargo xtask doctor` shows it all)");
    // Without it, what an ordinary user can bring is brought, and the rest is told with its remedies.
    let can_be_root = process::root_prefix().is_ok();
    if can_be_root && requirements::has_apt() {
        if missing(needs).iter().any(|check| !check.packages.is_empty()) {
            // Only now is known which packages there are at all.
            apt("Refresh the package lists", &["update", "-qq"])?;
        }
        install_packages(&missing(needs))?;
    }
    if needs.contains(&Need::Build) {
        link_toolchain()?;
        install_linker()?;
    }
    if needs.contains(&Need::Lint) && process::find("cargo-deny").is_none() {
        let mut command = process::cargo();
        command.args(requirements::DENY_INSTALL);
        // It runs for a second: time spent on optimising it is lost.
        command.envs([
            ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1"),
            ("CARGO_PROFILE_RELEASE_LTO", "off"),
        ]);
        process::step("Build cargo-deny (a few minutes)", &mut command)?;
    }
    if needs.contains(&Need::Kernel) && can_be_root && !kernel::bpffs_is_mounted() {
        let mut mount = process::as_root("mount")?;
        process::step(
            "Mount the BPF filesystem",
            mount.args(["-t", "bpf", "bpf", kernel::BPFFS]),
        )?;
    }
    let left = missing(needs);
    if left.is_empty() {
        return Ok(());
    }
    let mut text = String::from("something is missing that has to be brought by hand:");
    for check in &left {
        let remedy = check.remedy.as_deref().unwrap_or("no remedy known");
        text += &format!("\n  {}: {}. Remedy: {remedy}", check.name, check.found);
    }
    bail!(text)
}

fn install_packages(missing: &[Check]) -> Result<()> {
    let mut packages: Vec<_> = missing
        .iter()
        .flat_map(|check| check.packages.iter().copied())
        .collect();
    packages.sort_unstable();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    let mut words = vec!["install", "-y", "-qq", "--no-install-recommends"];
    words.extend(packages);
    apt("Install packages of the distribution", &words)
}

fn apt(title: &str, words: &[&str]) -> Result<()> {
    let mut command = process::as_root("env")?;
    process::step(
        title,
        command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]).args(words),
    )
}

/// Makes the distribution's compiler known to rustup, so that `rustup run` finds it.
fn link_toolchain() -> Result<()> {
    if requirements::bpf_toolchain().is_some() || !requirements::has_distribution_core() {
        return Ok(());
    }
    let words = ["toolchain", "link", requirements::DISTRIBUTION_TOOLCHAIN, "/usr"];
    process::step(
        "Make the distribution's compiler known to rustup",
        Command::new("rustup").args(words),
    )
}

fn install_linker() -> Result<()> {
    if process::output(Command::new("bpf-linker").arg("--version")).is_ok() {
        return Ok(());
    }
    if !Path::new(requirements::LLVM_PREFIX).is_dir() {
        // Without the distribution's LLVM it depends on the machine what bpf-linker can be built with.
        return Ok(());
    }
    let words = requirements::linker_install();
    let mut command = process::cargo();
    command.args(words).env("LLVM_PREFIX", requirements::LLVM_PREFIX);
    process::step("Build bpf-linker (a minute)", &mut command)
}
