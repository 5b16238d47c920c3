//! The command line: what can be asked of `fairway`, and how it is said.

mod agent;
mod cleanup;
mod controller;
mod crds;
mod ingress;
mod log;
mod objects;
mod view;

use std::io;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

/// A Kubernetes Service load balancer in Rust and eBPF: takes the place of kube-proxy, beside any CNI.
#[derive(Parser, Debug)]
#[command(name = "fairway", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Agent(Box<agent::Args>),
    Ingress(Box<ingress::Args>),
    /// Show what runs where on this node, how full the maps are, what was counted and what is wrong.
    Status(view::Args),
    /// Show the frontends (addresses and ports of Services) and the backends that they lead to.
    Services(view::Args),
    /// Show the load balancer addresses that are announced on the local network, by which node, and why by no other.
    Announcements(view::Args),
    /// Show the connections that are being translated.
    Flows(view::Args),
    Cleanup(cleanup::Args),
    Controller(Box<controller::Args>),
    Crds(crds::Args),
    /// Print a script that completes these commands in a shell.
    ///
    /// For bash: `fairway completions bash > /etc/bash_completion.d/fairway`.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

impl Cli {
    /// Does what was asked.
    ///
    /// # Errors
    /// If it cannot be done; the text says why, and what to do.
    pub fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Agent(args) => agent::run(*args),
            Command::Ingress(args) => ingress::run(*args),
            Command::Status(args) => view::status(&args),
            Command::Services(args) => view::services(&args),
            Command::Announcements(args) => view::announcements(&args),
            Command::Flows(args) => view::flows(&args),
            Command::Cleanup(args) => cleanup::run(&args),
            Command::Controller(args) => controller::run(*args),
            Command::Crds(args) => crds::run(&args),
            Command::Completions { shell } => {
                clap_complete::generate(shell, &mut Self::command(), "fairway", &mut io::stdout());
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_flags_of_the_documentation_are_understood() {
        let line = "fairway agent --node-name node1 --manifests examples --cluster-cidr 10.1.0.0/16,fd00:1::/48 \
                    --service-cidrs 10.96.0.0/16,fd00:96::/112 --nodeport-addresses primary \
                    --cgroup /sys/fs/cgroup --pin-dir /sys/fs/bpf/fairway-node1";
        Cli::try_parse_from(line.split_whitespace()).unwrap();
        let line = "fairway ingress --manifests examples --service-cidrs 10.96.0.0/16 --http-address 127.0.0.1:8080 \
                    --https-address none --proxy-protocol 192.0.2.0/24,2001:db8::/32 --trusted-proxies 192.0.2.0/24 \
                    --publish-service fairway/ingress --default-tls-secret fairway/default --upstream endpoints \
                    --access-log off --drain-delay 500ms --grace 1m";
        Cli::try_parse_from(line.split_whitespace()).unwrap();
        let line = "fairway controller --manifests examples --service-cidrs 10.96.0.0/16 --only-class --lease-duration 2 \
                    --lease-renewal 0.5 --metrics-address none";
        Cli::try_parse_from(line.split_whitespace()).unwrap();
        Cli::try_parse_from(["fairway", "crds", "--output", "json"]).unwrap();
        Cli::try_parse_from(["fairway", "flows", "-o", "json", "--pin-dir", "/sys/fs/bpf/x"]).unwrap();
    }
}
