//! Builds the kernel object and puts it where the binary embeds it from: `$OUT_DIR/fairway_object`.
//!
//! Two toolchains can build for the BPF target: Debian's packages, linked into rustup as `debian`, which bring
//! `core` prebuilt; and rustup's nightly with `rust-src`. `cargo xtask doctor` tells which is there, and
//! `cargo xtask build` brings one. The environment variable `FAIRWAY_BPF_TOOLCHAIN` names another.

use std::process::Command;

use anyhow::{Context as _, anyhow};
use aya_build::{Package, Toolchain};

const DEBIAN: &str = "debian";

fn main() -> anyhow::Result<()> {
    let manifest_dir = std::env::var("CARGO_MANIFEST_DIR").context("CARGO_MANIFEST_DIR is not set")?;
    let root_dir = format!("{manifest_dir}/../lb-ebpf");
    println!("cargo:rerun-if-changed={manifest_dir}/../lb-common/src");
    println!("cargo:rerun-if-env-changed=FAIRWAY_BPF_TOOLCHAIN");
    let named = std::env::var("FAIRWAY_BPF_TOOLCHAIN").ok();
    let toolchain = match &named {
        Some(name) => Toolchain::Custom(name),
        None if has_debian_toolchain() => Toolchain::Custom(DEBIAN),
        None => Toolchain::Nightly,
    };
    aya_build::build_ebpf(
        [Package {
            name: "lb-ebpf",
            root_dir: &root_dir,
            ..Default::default()
        }],
        toolchain,
    )
    .map_err(|error| anyhow!("{error:#}; `cargo xtask doctor` tells what is missing and how to get it"))
}

fn has_debian_toolchain() -> bool {
    Command::new("rustup")
        .args(["run", DEBIAN, "rustc", "--version"])
        .output()
        .is_ok_and(|output| output.status.success())
}
