//! `cargo xtask build-and-run`, `lab`, `conformance` and `differential`: what has to be there before namespaces are set up.
//!
//! An ordinary user builds as that user; then this program starts itself again through sudo.

use std::env;

use anyhow::{Context as _, Result};
use xtask::conformance::{self, On};
use xtask::{differential, lab};

use crate::build;
use crate::kubernetes::{self, Component};
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

/// Names a built `lb-userspace/examples/conformance`, likewise.
const CONFORMANCE_BUILT: &str = "FAIRWAY_CONFORMANCE";

/// Builds, and tries cases.
pub fn conformance(options: &conformance::Options) -> Result<()> {
    // What is wrong with the file is told before anything is built.
    let cases = options.cases(process::workspace())?;
    let in_lab = options.places().contains(&On::Lab);
    let conformance = match env::var_os(CONFORMANCE_BUILT) {
        Some(path) => path.into(),
        None => {
            setup::ensure(&[Need::Build])?;
            build::build_example("conformance")?
        }
    };
    let fairway = if in_lab { built()? } else { conformance.clone() };
    if in_lab && !process::is_root() {
        let built = [(BUILT, &fairway), (CONFORMANCE_BUILT, &conformance)];
        let variables = built.map(|(name, path)| format!("{name}={}", path.display()));
        return process::go_on_as_root(&variables, env::args_os().skip(1));
    }
    let programs = conformance::Programs {
        fairway,
        conformance,
        xtask: env::current_exe().context("find this program's own file")?,
    };
    if !options.run(&cases, &programs)? {
        // The counts are the last thing that is said.
        std::process::exit(1);
    }
    Ok(())
}

/// Builds what is compared, and compares it.
pub fn differential(options: &differential::Options) -> Result<()> {
    let fairway = built()?;
    setup::ensure(&[Need::Kubernetes])?;
    let components = [Component::KubeApiserver, Component::Etcd, Component::KubeProxy];
    let kubernetes = kubernetes::ensure_components(&components)?;
    if !process::is_root() {
        return on_as_root(&fairway);
    }
    differential::run(options, &differential::Programs { kubernetes, fairway })
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
