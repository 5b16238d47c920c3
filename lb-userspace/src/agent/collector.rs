//! The thread that removes connections that are over.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lb_common::abi::{Addr4, Addr6, Address, Backend, Connection, Peer};
use tracing::{debug, warn};

use crate::connections::clock::Clock;
use crate::connections::{Pass, Pressure, Table, collect, is_cut, sockets};
use crate::datapath::pin::PinDir;
use crate::maps::MapsError;
use crate::maps::bpf::{Arrays, BpfMap};
use crate::observe::state::Connections;
use crate::reconcile::Serving;
use crate::sys::MappedArray;

/// How often the tables are gone through, at most.
const EVERY: Duration = Duration::from_secs(5);
/// However often backends stop serving, passes take no more than one part of the time in so many.
const SHARE: u32 = 5;
/// Of so many passes one looks for entries that lost their connection.
const DEEP: u32 = 12;

/// The thread, as the agent sees it. It ends when this is dropped.
pub struct Collector {
    wake: SyncSender<()>,
    seen: Arc<Mutex<Vec<Connections>>>,
}

impl Collector {
    /// Starts it.
    ///
    /// # Errors
    /// If the maps cannot be opened.
    pub fn start(pins: &PinDir, arrays: Arrays, serving: [Arc<Serving>; 2]) -> Result<Self, MapsError> {
        let [serving_v4, serving_v6] = serving;
        let v4 = Side::open(pins, ["CONNECTIONS_V4", "SOCKETS_V4"], arrays.backends_v4, serving_v4)?;
        let v6 = Side::open(pins, ["CONNECTIONS_V6", "SOCKETS_V6"], arrays.backends_v6, serving_v6)?;
        let clock = Clock::measure(pins);
        let (wake, woken) = sync_channel(1);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&seen);
        std::thread::Builder::new()
            .name("connections".to_owned())
            .spawn(move || run(v4, v6, &clock, &woken, &shared))
            .map_err(|source| MapsError::Read {
                map: "CONNECTIONS_V4",
                source,
            })?;
        Ok(Self { wake, seen })
    }

    /// Has the tables gone through at once: a backend no longer serves.
    pub fn cut_now(&self) {
        // If it is full it has been told already.
        let _told = self.wake.try_send(());
    }

    /// What the last passes found.
    pub fn seen(&self) -> Vec<Connections> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The same, for others to look at when they want.
    pub fn shared(&self) -> Arc<Mutex<Vec<Connections>>> {
        Arc::clone(&self.seen)
    }
}

/// The table of one family, and what tells who serves what.
struct Side<A: Address> {
    table: Table<A>,
    sockets: sockets::Table<A>,
    backends: Arc<MappedArray<Backend<A>>>,
    serving: Arc<Serving>,
    pressure: Pressure,
    removed: u64,
}

impl<A: Address> Side<A> {
    fn open(
        pins: &PinDir,
        [connections, sockets]: [&'static str; 2],
        backends: Arc<MappedArray<Backend<A>>>,
        serving: Arc<Serving>,
    ) -> Result<Self, MapsError> {
        Ok(Self {
            table: BpfMap::open(pins, connections)?,
            sockets: BpfMap::open(pins, sockets)?,
            backends,
            serving,
            pressure: Pressure::None,
            removed: 0,
        })
    }

    /// One pass.
    fn pass(&mut self, clock: &Clock, deep: bool) -> (Connections, Duration) {
        let serving = self.serving.pairs();
        let is_cut = |key: &_, entry: &_| {
            let backend = |entry: &Connection<A>| self.backends.get(entry.backend as usize);
            serving
                .as_ref()
                .is_some_and(|serving| is_cut(key, entry, backend(entry), serving))
        };
        let pass = collect(&self.table, clock, self.pressure, deep, is_cut).unwrap_or_else(|error| {
            warn!(%error, "connections that are over could not be removed");
            Pass::default()
        });
        if pass.removed + pass.orphans > 0 {
            debug!(
                map = self.table.name(),
                removed = pass.removed,
                orphans = pass.orphans,
                "connections are over"
            );
        }
        if let Some(serving) = &serving {
            let is_stale = |key: &_, given: &Peer<A>| {
                let backend = self.backends.get(given.backend as usize);
                sockets::is_stale(key, given, backend, serving)
            };
            match sockets::forget(&self.sockets, is_stale) {
                Ok(0) => {}
                Ok(forgotten) => debug!(
                    map = self.sockets.name(),
                    forgotten, "backends of sockets serve no more"
                ),
                Err(error) => warn!(%error, "backends of sockets that serve no more could not be forgotten"),
            }
        }
        self.removed += u64::try_from(pass.removed).unwrap_or(u64::MAX);
        self.pressure = Pressure::of(pass.entries, self.table.capacity());
        let family = if size_of::<A>() == 4 { "IPv4" } else { "IPv6" };
        let seen = Connections {
            family: family.to_owned(),
            connections: pass.connections,
            entries: pass.entries,
            capacity: self.table.capacity(),
            removed: self.removed,
            pressed: self.pressure > Pressure::None,
        };
        (seen, pass.took)
    }
}

fn run(mut v4: Side<Addr4>, mut v6: Side<Addr6>, clock: &Clock, woken: &Receiver<()>, seen: &Mutex<Vec<Connections>>) {
    let mut earliest = Instant::now();
    for round in 1_u32.. {
        match woken.recv_timeout(EVERY) {
            // A lone change is followed at once; changes in quick succession are taken together.
            Ok(()) => sleep(earliest.saturating_duration_since(Instant::now())),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let deep = round.is_multiple_of(DEEP);
        let (first, took4) = v4.pass(clock, deep);
        let (second, took6) = v6.pass(clock, deep);
        earliest = Instant::now() + (took4 + took6) * (SHARE - 1);
        *seen.lock().unwrap_or_else(PoisonError::into_inner) = vec![first, second];
    }
}
