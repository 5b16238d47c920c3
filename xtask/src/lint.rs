//! `cargo xtask lint`: everything that can be said about the code without running it.

use anyhow::Result;

use crate::{
    build, panics, process,
    setup::{self, Need},
};

/// Runs every check and stops at the first that fails.
///
/// # Errors
/// If a check fails; what it found has been shown then.
pub fn run() -> Result<()> {
    setup::ensure(&[Need::Build, Need::Lint])?;
    process::heading("Formatting");
    process::run(process::cargo().args(["fmt", "--all", "--check"]))?;
    process::heading("Licences and sources of crates");
    process::run(process::cargo().args(["deny", "check", "licenses", "bans", "sources"]))?;
    process::heading("The kernel object cannot panic");
    panics::check(&build::build(false)?.object)?;
    process::heading("Clippy");
    clippy(&["--workspace", "--exclude", "lb-ebpf", "--all-targets", "--all-features"])?;
    // There is no clippy for the BPF target: its code is looked at as code for the host, where a program without the
    // standard library must not unwind.
    clippy(&["--package", "lb-ebpf", "--config", "profile.dev.panic='abort'"])
}

fn clippy(targets: &[&str]) -> Result<()> {
    process::run(
        process::cargo()
            .arg("clippy")
            .args(targets)
            .args(["--", "--deny", "warnings"]),
    )
}
