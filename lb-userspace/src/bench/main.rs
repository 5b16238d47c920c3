//! What a packet costs in the XDP program: run by `cargo xtask bench packet`, as root. Nothing is attached to any
//! device; all packets come from BPF_PROG_TEST_RUN.
//!
//! BPF_PROG_TEST_RUN repeats a program on one packet and keeps what the program did to it. So a wrapper program
//! puts the packet back first and then goes on in the program under test; the same wrapper before an empty program
//! is the floor, which is subtracted. Floor, reference program and Fairway's program are run in turn in many short
//! rounds, and medians are taken: machines differ, are noisy and change their clocks, so only what was measured in
//! one run may be compared. The unit of the goals is R, the cost of the reference program (`lb-ebpf/src/reference`).
//!
//! | module | what is in it |
//! | --- | --- |
//! | [`packets`] | frames, and the course on which the wrapper sends them |
//! | [`objects`] | both kernel objects, loaded without pins, and the maps' contents |
//! | [`rounds`] | running in turn, and medians |
//! | [`cells`] | what is measured, against what, and the goals |
//! | [`report`] | table and JSON |

mod cells;
mod objects;
mod packets;
mod report;
mod rounds;

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Measure what a packet costs in Fairway's XDP program.
#[derive(Parser)]
#[command(name = "fairway-bench")]
struct Arguments {
    /// How to print the figures.
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Fewer rounds, and at most 10,000 flows: for a first look.
    #[arg(long)]
    quick: bool,
    /// Only cells whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// The CPU to run on; the last one if it is not given.
    #[arg(long)]
    cpu: Option<usize>,
    /// Measure this kernel object instead of the one in this binary.
    #[arg(long)]
    object: Option<std::path::PathBuf>,
}

/// How to print.
#[derive(Clone, Copy, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    stay_on(arguments.cpu)?;
    let object = match &arguments.object {
        Some(path) => std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?,
        None => objects::FAIRWAY.to_vec(),
    };
    let plan = cells::Plan {
        quick: arguments.quick,
        only: arguments.only,
    };
    let report = cells::measure(&plan, &object)?;
    match arguments.output {
        Output::Table => println!("{}", report.table()),
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    Ok(())
}

/// Binds this process to one CPU: caches stay warm, and each CPU has its own free list of map entries.
fn stay_on(cpu: Option<usize>) -> Result<()> {
    let last = std::thread::available_parallelism().map_or(0, |count| count.get() - 1);
    let cpu = cpu.unwrap_or(last);
    let mut set = CpuSet::new();
    set.set(cpu).with_context(|| format!("there is no CPU {cpu}"))?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("cannot stay on CPU {cpu}"))
}
