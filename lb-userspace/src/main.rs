//! The `fairway` command.

use std::process::ExitCode;

use clap::Parser;
use fairway::cli::Cli;
use mimalloc::MiMalloc;

// A request through the Ingress proxy is some dozens of small allocations: glibc's take a fifth of its time, these a
// twentieth.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fairway: {error:#}");
            ExitCode::FAILURE
        }
    }
}
