//! The `fairway` command.

use std::process::ExitCode;

use clap::Parser;
use fairway::cli::Cli;
use mimalloc::MiMalloc;

// A request through the Ingress proxy is some dozens of small allocations: glibc's take a sixth of its time, these less
// than half of that.
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
