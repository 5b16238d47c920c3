//! Labs for tests, and why there is none where there is none.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod cases;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use xtask::lab::plan::Network;
use xtask::lab::{Lab, Setup};

static LABS: AtomicU32 = AtomicU32::new(0);

/// The folder with the examples.
pub fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

/// A lab without agents; none if the test cannot run here, which has been said then.
pub fn plain_lab(network: Network, test: &str) -> Option<Lab> {
    if !nix::unistd::geteuid().is_root() {
        skip(test, "needs root for network namespaces");
        return None;
    }
    Some(up(network, None))
}

/// A lab with agents; none if the test cannot run here, which has been said then.
pub fn lab(network: Network, test: &str) -> Option<Lab> {
    let Some(fairway) = std::env::var_os("FAIRWAY_BIN") else {
        skip(
            test,
            "FAIRWAY_BIN does not name the fairway program; `cargo xtask test` does that",
        );
        return None;
    };
    if !nix::unistd::geteuid().is_root() {
        skip(test, "needs root for network namespaces and BPF programs");
        return None;
    }
    Some(up(network, Some(fairway.into())))
}

fn up(network: Network, fairway: Option<PathBuf>) -> Lab {
    let setup = Setup {
        name: format!("test-{}-{}", std::process::id(), LABS.fetch_add(1, Ordering::Relaxed)),
        network,
        xtask: env!("CARGO_BIN_EXE_xtask").into(),
        fairway,
        manifests: examples().join("loadbalancer"),
    };
    Lab::up(&setup).expect("a lab can be set up")
}

/// Says why a test does not run. Fails it where skipping is not allowed.
pub fn skip(test: &str, why: &str) {
    let required = std::env::var("FAIRWAY_REQUIRE").is_ok_and(|value| value == "1");
    assert!(!required, "{test} has to run here, and cannot: {why}");
    // Past the harness, which would keep it from whoever reads.
    _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
}
