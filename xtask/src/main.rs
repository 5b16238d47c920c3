//! Everything one does with the repository, as `cargo xtask VERB`: one file per verb.
//!
//! Each verb brings what it needs before it starts (`setup`), so a fresh clone needs one command. What a verb needs
//! is told by the list of [`setup::Need`]s that it passes to [`setup::ensure`]; `doctor` prints the same checks
//! without changing anything. A new verb is a module here, a variant of [`Verb`] and a line in `main`.

mod bench;
mod build;
mod ci;
mod doctor;
mod kernel;
mod kubernetes;
mod lint;
mod panics;
mod process;
mod requirements;
mod run;
mod setup;
mod test;

use clap::{Parser, Subcommand};
use xtask::{conformance, differential, lab, world};

/// Set up, build, try, test and measure Fairway.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Say what is there, what is missing, and the command that brings it. Changes nothing.
    Doctor(doctor::Options),
    /// Bring what the other verbs need. They all do this by themselves; this does it once for all of them.
    Setup,
    /// Build the kernel object and the `fairway` binary.
    Build(build::Options),
    /// Build, set up a small cluster out of network namespaces, and send requests on every path.
    BuildAndRun(lab::Options),
    /// Keep such a cluster for playing and debugging.
    Lab(lab::cli::Options),
    /// Run every test: packet logic, agent, loaded kernel object, API server, end to end.
    Test(test::Options),
    /// Try cases of what a Service means, on the host and in network namespaces.
    ///
    /// Each case is Kubernetes objects on one node, and what has to become of packets, health check ports and old flows:
    /// see docs/conformance.md. A line tells what became of it, with every difference; the last one counts them.
    Conformance(conformance::Options),
    /// Compare Fairway with a real kube-proxy: random objects, the same probes, changes while connections are open.
    Differential(differential::Options),
    /// Measure what packets cost, against a reference program in the same run.
    Bench(bench::Options),
    /// Formatting, clippy, licences, and that the kernel object cannot panic.
    Lint,
    /// Real Kubernetes components for tests and the lab, built from their Go modules; prints their folder.
    Kubernetes(kubernetes::Options),
    /// Exactly what continuous integration runs (`.ci/run`).
    Ci,
    /// The application in a pod of the lab.
    #[command(hide = true)]
    LabServer(lab::cli::ServerOptions),
    /// Requests from a place of the lab.
    #[command(hide = true)]
    LabClient,
    /// Sockets of a node's processes and pods.
    #[command(hide = true)]
    WorldSockets,
}

fn main() -> std::process::ExitCode {
    let result = match Arguments::parse().verb {
        Verb::Doctor(options) => doctor::run(&options),
        Verb::Setup => setup::ensure(&setup::Need::ALL),
        Verb::Build(options) => build::run(&options),
        Verb::Test(options) => test::run(&options),
        Verb::Conformance(options) => run::conformance(&options),
        Verb::Differential(options) => run::differential(&options),
        Verb::Bench(options) => bench::run(&options),
        Verb::Lint => lint::run(),
        Verb::Kubernetes(options) => kubernetes::run(&options),
        Verb::Ci => ci::run(),
        Verb::BuildAndRun(options) => run::build_and_run(&options),
        Verb::Lab(options) => run::lab(options),
        Verb::LabServer(options) => lab::cli::serve(&options),
        Verb::LabClient => lab::cli::ask(),
        Verb::WorldSockets => world::make_sockets(),
    };
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
