//! What tests share. Each test file uses a part of it.
#![allow(
    dead_code,
    missing_docs,
    reason = "each test file is a crate of its own and uses a part"
)]

pub mod api_server;
pub mod cluster;
pub mod namespaces;
pub mod node;
#[path = "../../../xtask/src/ports.rs"]
pub mod ports;
pub mod process;
pub mod proxy;
pub mod world;

use std::io::Write as _;
use std::time::{Duration, Instant};

/// Says that the test cannot run here, past the test harness so that it is seen; fails where `FAIRWAY_REQUIRE=1`.
pub fn skip(test: &str, reason: &str) {
    assert!(
        std::env::var("FAIRWAY_REQUIRE").as_deref() != Ok("1"),
        "{test} cannot be skipped here (FAIRWAY_REQUIRE=1): {reason}"
    );
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {reason}");
}

/// Asks again and again until there is an answer; panics after `limit`.
pub fn poll<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
