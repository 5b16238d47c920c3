//! `fairway cleanup`.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};

use crate::datapath::pin::{self, PinDir};
use crate::datapath::{attach, probe};
use crate::netlink::{self, Watcher, network::Network};
use crate::observe::state;

/// Remove all that is Fairway's from this node, and nothing else. Connections are lost.
///
/// Removes the programs from their hooks, and the maps with everything in them. Network devices, routes, and what
/// others have attached stay as they are. The agent must have ended before, and this must run in its network
/// namespace.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Where the agent pinned its maps and links.
    #[arg(long, value_name = "PATH", default_value = pin::DEFAULT)]
    pin_dir: PathBuf,

    /// Remove it even if the agent is running.
    #[arg(long)]
    force: bool,
}

/// Removes it.
pub fn run(args: &Args) -> anyhow::Result<()> {
    probe::privilege()?;
    let pins = PinDir::new(&args.pin_dir);
    ensure!(
        args.force || state::fetch(&pins).is_err(),
        "the agent with the pins in {} is running: stop it first, or say --force",
        pins.root().display()
    );
    let removed = pins.remove()?;
    let filters = remove_filters()?;
    let state = pins.state_dir();
    for file in [pins.socket(), state.join("agent.lock")] {
        let _gone_already = std::fs::remove_file(file);
    }
    let _not_ours = std::fs::remove_dir(&state);
    println!(
        "removed {} pins from {} and {filters} filters of devices",
        removed.len(),
        pins.root().display()
    );
    Ok(())
}

/// Filters have no pins: they are looked for on every device.
fn remove_filters() -> anyhow::Result<usize> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    let network = runtime.block_on(async {
        let mut network = Network::default();
        let kinds = [netlink::Kind::Links].into();
        Watcher::subscribe()?.read(&kinds, &mut network).await.map(|()| network)
    })?;
    Ok(network
        .devices
        .values()
        .map(|device| attach::remove_filters(&device.name))
        .sum())
}
