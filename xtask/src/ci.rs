//! `cargo xtask ci`: what continuous integration runs, from the one place that says it.

use std::process::Command;

use anyhow::Result;

use crate::process;

/// Runs `.ci/run` as CI does: skipped tests are failures, nothing is asked.
///
/// # Errors
/// If it fails.
pub fn run() -> Result<()> {
    process::run(Command::new(process::workspace().join(".ci/run")).env("CI", "true"))
}
