//! `cargo xtask bench`: figures that the goals are held against, each with a floor or a peer from the same run.

mod ingress;

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
    /// How many requests a second the Ingress proxy carries, and how late the slowest hundredth is, beside nginx.
    Ingress(ingress::Options),
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

/// Builds what is measured, optimised, and measures it; packets as root.
///
/// # Errors
/// If it does not build, or does not run here.
pub fn run(options: &Options) -> Result<()> {
    match &options.subject {
        Subject::Packet(packet) => measure_packets(packet),
        Subject::Ingress(ingress) => ingress::run(ingress),
    }
}

fn measure_packets(packet: &PacketOptions) -> Result<()> {
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
