//! `cargo xtask build-and-run` and `cargo xtask lab`: what has to be there before a lab is set up.
//!
//! An ordinary user builds as that user; then this program starts itself again through sudo.

use std::env;

use anyhow::Result;
use xtask::lab;

use crate::build;
use crate::process;
use crate::setup::{self, Need};

/// Names a `fairway` program to be used instead of building one; the program started by sudo gets it so.
const BUILT: &str = "FAIRWAY_BIN";

/// Builds, and runs the lab.
pub fn build_and_run(options: &lab::Options) -> Result<()> {
    let fairway = built()?;
    if !process::is_root() {
        return on_as_root(&fairway);
    }
    lab::build_and_run(options, &fairway, process::workspace())
}

/// Does what `cargo xtask lab` was asked for.
pub fn lab(options: lab::cli::Options) -> Result<()> {
    let fairway = if options.needs_fairway() {
        Some(built()?)
    } else {
        if options.makes_a_lab() {
            setup::ensure(&[Need::Lab])?;
        }
        None
    };
    if !process::is_root() {
        return on_as_root(&fairway.unwrap_or_default());
    }
    lab::cli::run(options, fairway, process::workspace())
}

fn built() -> Result<std::path::PathBuf> {
    if let Some(path) = env::var_os(BUILT) {
        return Ok(path.into());
    }
    setup::ensure(&[Need::Build, Need::Kernel, Need::Lab])?;
    process::heading("Build");
    Ok(build::build(false)?.fairway)
}

fn on_as_root(fairway: &std::path::Path) -> Result<()> {
    let fairway = format!("{BUILT}={}", fairway.display());
    process::go_on_as_root(&[fairway], env::args_os().skip(1))
}
