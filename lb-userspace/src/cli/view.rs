//! `fairway status`, `services`, `announcements` and `flows`: what is looked at, as a table or as JSON.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::ValueEnum;
use serde::Serialize;

use crate::datapath::pin::{self, PinDir};
use crate::observe::{announcements, flows, services, state, status};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Where the agent pins its maps and links.
    #[arg(long, value_name = "PATH", default_value = pin::DEFAULT)]
    pin_dir: PathBuf,

    /// How it is printed.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// Shows what runs where.
pub fn status(args: &Args) -> anyhow::Result<()> {
    let pins = args.pins()?;
    let status = status::read(&pins, state::fetch(&pins))?;
    args.print(&status, || status.table())
}

/// Shows frontends and backends.
pub fn services(args: &Args) -> anyhow::Result<()> {
    let pins = args.pins()?;
    let names = args.names(&pins);
    let frontends = services::read(&pins, &names)?;
    args.print(&frontends, || services::table(&frontends))
}

/// Shows announced addresses.
pub fn announcements(args: &Args) -> anyhow::Result<()> {
    let pins = args.pins()?;
    let state = state::fetch(&pins).context("ask the agent, which alone knows who announces what: does it run?")?;
    args.print(&state.announcements, || announcements::table(&state.announcements))
}

/// Shows connections.
pub fn flows(args: &Args) -> anyhow::Result<()> {
    let pins = args.pins()?;
    let names = args.names(&pins);
    let flows = flows::read(&pins, &names)?;
    args.print(&flows, || flows::table(&flows))
}

impl Args {
    fn pins(&self) -> anyhow::Result<PinDir> {
        let pins = PinDir::new(&self.pin_dir);
        let maps = pins.map("CONFIG");
        anyhow::ensure!(
            maps.try_exists()
                .with_context(|| format!("look at {}", maps.display()))?,
            "there is no data path pinned in {}: is an agent running here, and is this its --pin-dir? (in a namespace \
             with a /sys of its own, pins are not visible: enter it by `nsenter --net=`)",
            pins.root().display()
        );
        Ok(pins)
    }

    /// The names of Services, which only the agent knows.
    fn names(&self, pins: &PinDir) -> state::Names {
        state::fetch(pins).map(|state| state.names).unwrap_or_else(|error| {
            if self.output == Output::Table {
                eprintln!("The agent does not answer ({error}); this is what its maps hold, without names.");
            }
            state::Names::default()
        })
    }

    fn print(&self, value: &impl Serialize, table: impl FnOnce() -> String) -> anyhow::Result<()> {
        let text = match self.output {
            Output::Table => table(),
            Output::Json => serde_json::to_string_pretty(value).context("write JSON")?,
        };
        // A reader that has seen enough (`| head`) is no failure.
        let _closed = writeln!(std::io::stdout(), "{text}");
        Ok(())
    }
}
