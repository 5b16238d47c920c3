//! `cargo xtask lab`: a lab that stays, for playing and debugging.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};

use super::plan::{Names, Network, Place};
use super::{Lab, Setup, client, run, server};

/// A lab that stays until it is taken down.
#[derive(Args, Debug)]
pub struct Options {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Set up a lab and leave it standing.
    Up {
        /// How pods on different nodes are connected.
        #[arg(long, value_enum, default_value_t)]
        network: Network,
        /// Name of the lab.
        #[arg(long, default_value = "lab")]
        name: String,
        /// The folder with the manifests that the agents read.
        #[arg(long)]
        manifests: Option<PathBuf>,
        /// Only the network and the pods, without agents.
        #[arg(long)]
        plain: bool,
    },
    /// Run a command in a place of the lab: client, router, node-1, node-2, pod-1a, pod-1b, pod-2a, pod-2b.
    Exec {
        /// Name of the lab.
        #[arg(long, default_value = "lab")]
        name: String,
        /// Where.
        place: String,
        /// The command.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Remove a lab, whatever is left of it.
    Down {
        /// Name of the lab.
        #[arg(long, default_value = "lab")]
        name: String,
        /// Every lab on this machine whose owner has ended, and the one of this name.
        #[arg(long)]
        all: bool,
    },
    /// The labs on this machine.
    List,
}

impl Options {
    /// Whether agents are wanted, so that `fairway` has to be built first.
    pub fn needs_fairway(&self) -> bool {
        matches!(self.verb, Verb::Up { plain: false, .. })
    }

    /// Whether a whole set-up is needed, since a lab is going to be made.
    pub fn makes_a_lab(&self) -> bool {
        matches!(self.verb, Verb::Up { .. })
    }
}

/// Does what `cargo xtask lab` was asked for.
pub fn run(options: Options, fairway: Option<PathBuf>, workspace: &Path) -> anyhow::Result<()> {
    match options.verb {
        Verb::Up {
            network,
            name,
            manifests,
            plain,
        } => {
            let is_example = manifests.is_none() && !plain;
            let mut lab = Lab::up(&Setup {
                name,
                network,
                xtask: std::env::current_exe().context("find this program's own file")?,
                fairway: if plain { None } else { fairway },
                manifests: manifests.unwrap_or_else(|| workspace.join("examples/loadbalancer")),
            })?;
            if is_example {
                lab.wait_for_services(super::Form::LoadBalancer)?;
            }
            let folder = lab.names().state_dir();
            println!(
                "lab {} stands; its logs and manifests are in {}",
                lab.names().lab(),
                folder.display()
            );
            lab.keep();
            Ok(())
        }
        Verb::Exec { name, place, command } => {
            let lab = Lab::open(&name)?;
            let place = Place::parse(&place).with_context(|| {
                let places: Vec<_> = Place::ALL.iter().map(|place| place.name()).collect();
                format!("there is no {place:?} in a lab, but: {}", places.join(", "))
            })?;
            let Some((program, arguments)) = command.split_first() else {
                bail!("no command")
            };
            let error = lab.command(place, Path::new(program)).args(arguments).exec();
            Err(error).with_context(|| format!("run {program}"))
        }
        Verb::Down { name, all } => {
            if all {
                for name in run::remove_crashed()? {
                    println!("removed {name}");
                }
            }
            Lab::remove(&Names::new(&name)?)
        }
        Verb::List => {
            for (name, description) in Lab::list() {
                let network = description.map_or("incomplete", |description| description.network.name());
                println!("{name}  {network}");
            }
            Ok(())
        }
    }
}

/// The application in a pod: hidden, started by the lab.
#[derive(Args, Debug)]
pub struct ServerOptions {
    pod: usize,
    ready: PathBuf,
}

/// Serves as a pod.
pub fn serve(options: &ServerOptions) -> anyhow::Result<()> {
    server::serve(options.pod, &options.ready)
}

/// Sends requests as standard input says.
pub fn ask() -> anyhow::Result<()> {
    client::run()
}
