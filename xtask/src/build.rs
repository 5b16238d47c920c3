//! `cargo xtask build`: the kernel object and the `fairway` binary that carries it.
//!
//! `lb-userspace/build.rs` compiles `lb-ebpf` for the kernel and embeds the object, so one cargo command makes both.

use std::{
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::Stdio,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde::Deserialize;

use crate::{
    process,
    setup::{self, Need},
};

/// How to build.
#[derive(Args, Clone, Copy)]
pub struct Options {
    /// Optimised, as it is deployed and measured. The kernel object is always optimised.
    #[arg(long)]
    release: bool,
}

/// The kernel object's name in the output folder of `lb-userspace/build.rs`.
const OBJECT: &str = "fairway_object";

/// What a build made.
pub struct Artifacts {
    /// The binary: `fairway`, unless another was asked for.
    pub fairway: PathBuf,
    /// The kernel object that is embedded in it.
    pub object: PathBuf,
}

/// Builds and tells where the results are.
///
/// # Errors
/// If something is missing or does not build.
pub fn run(options: &Options) -> Result<()> {
    setup::ensure(&[Need::Build])?;
    let artifacts = build(options.release)?;
    println!("{}", artifacts.fairway.display());
    println!("{}", artifacts.object.display());
    Ok(())
}

/// One line of cargo's messages, as far as it matters here.
#[derive(Deserialize)]
struct Message {
    reason: String,
    executable: Option<PathBuf>,
    out_dir: Option<PathBuf>,
    #[serde(default)]
    package_id: String,
}

/// Builds the binary with the object in it. [`Need::Build`] has been brought before.
///
/// # Errors
/// If it does not build; the compiler's messages have been shown then.
pub fn build(release: bool) -> Result<Artifacts> {
    build_binary("fairway", release)
}

/// As [`build`], another binary of the same package.
///
/// # Errors
/// As [`build`].
pub fn build_binary(name: &str, release: bool) -> Result<Artifacts> {
    let mut arguments = vec!["--bin", name];
    if release {
        arguments.push("--release");
    }
    let (executable, object) = cargo_build(&arguments)?;
    Ok(Artifacts {
        fairway: executable.with_context(|| format!("cargo built no `{name}` binary"))?,
        object: object.context("lb-userspace has no build script that makes the kernel object")?,
    })
}

/// Builds an example of the same package: a program for development, which may use what only tests have otherwise.
///
/// # Errors
/// As [`build`].
pub fn build_example(name: &str) -> Result<PathBuf> {
    let (executable, _) = cargo_build(&["--example", name])?;
    executable.with_context(|| format!("cargo built no `{name}` example"))
}

/// Builds one target of `lb-userspace`: its executable, and the kernel object.
fn cargo_build(arguments: &[&str]) -> Result<(Option<PathBuf>, Option<PathBuf>)> {
    let mut command = process::cargo();
    command
        .args(["build", "--package", "lb-userspace"])
        .args(arguments)
        .args(["--message-format", "json-render-diagnostics"]);
    let shown = process::show(&command);
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{shown}`"))?;
    let stdout = child.stdout.take().context("cargo has no output")?;
    let (mut executable, mut object) = (None, None);
    for line in BufReader::new(stdout).lines() {
        let line = line.context("cannot read cargo's messages")?;
        let Ok(message) = serde_json::from_str::<Message>(&line) else {
            continue;
        };
        if !message.package_id.contains("lb-userspace") {
            continue;
        }
        match message.reason.as_str() {
            "compiler-artifact" => executable = message.executable.or(executable),
            "build-script-executed" => object = message.out_dir.map(|folder| folder.join(OBJECT)),
            _ => {}
        }
    }
    let status = child.wait().with_context(|| format!("cannot wait for `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed ({status})");
    }
    Ok((executable, object))
}
