//! `cargo xtask bench`: figures that the goals are held against, each with a floor or a peer from the same run.

use std::process::Command;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};

use crate::{
    build, process,
    setup::{self, Need},
};

/// What to measure.
#[derive(Args)]
pub struct Options {
    #[command(subcommand)]
    subject: Subject,
}

#[derive(Subcommand)]
enum Subject {
    /// What a packet costs in the XDP program, in nanoseconds and in multiples of the reference program.
    Packet(PacketOptions),
}

#[derive(Args)]
struct PacketOptions {
    /// How to print the figures.
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Fewer rounds, and at most 10,000 flows: for a first look.
    #[arg(long)]
    quick: bool,
    /// Only cells whose name contains this.
    #[arg(long)]
    only: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Builds what is measured, optimised, and measures it as root.
///
/// # Errors
/// If it does not build, or does not run here.
pub fn run(options: &Options) -> Result<()> {
    let Subject::Packet(packet) = &options.subject;
    setup::ensure(&[Need::Build, Need::Kernel])?;
    let program = build::build_binary("fairway-bench", true)?.fairway;
    let mut command: Command = process::as_root(&program.to_string_lossy())?;
    command.args([
        "--output",
        match packet.output {
            Output::Table => "table",
            Output::Json => "json",
        },
    ]);
    if packet.quick {
        command.arg("--quick");
    }
    if let Some(only) = &packet.only {
        command.args(["--only", only]);
    }
    process::run(&mut command)
}
