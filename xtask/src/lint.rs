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
    process::heading("Kernel object: builds without warnings, cannot panic");
    let artifacts = build::build(false)?;
    panics::check(&artifacts.object)?;
    process::heading("Clippy");
    process::run(process::cargo().args([
        "clippy",
        "--workspace",
        "--exclude",
        "lb-ebpf",
        "--all-targets",
        "--all-features",
        "--",
        "-D",
        "warnings",
    ]))?;
    process::heading("Licences, sources and duplicates of crates");
    process::run(process::cargo().args(["deny", "--all-features", "check", "licenses", "bans", "sources"]))
}
