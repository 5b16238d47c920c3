//! The thread that removes connections that are over.

use std::collections::HashSet;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lb_common::abi::{
    Addr4, Addr6, Address, Backend, BackendSet, Connection, Frontend, FrontendKey, backend_flags, protocol,
};
use tracing::{debug, warn};

use crate::connections::clock::Clock;
use crate::connections::{Pass, Pressure, Table, collect};
use crate::datapath::pin::PinDir;
use crate::maps::MapsError;
use crate::maps::bpf::{Arrays, BpfMap};
use crate::observe::state::Connections;
use crate::sys::MappedArray;

/// How often the tables are gone through, at most.
const EVERY: Duration = Duration::from_secs(5);
/// After changes of Services, so many changes are taken together.
const SETTLE: Duration = Duration::from_millis(500);
/// Passes take this part of the time at most.
const SHARE: u32 = 20;
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
    pub fn start(pins: &PinDir, arrays: Arrays) -> Result<Self, MapsError> {
        let Arrays {
            maglev,
            backends_v4,
            backends_v6,
        } = arrays;
        let v4 = Side::open(pins, "CONNECTIONS_V4", "FRONTENDS_V4", backends_v4, Arc::clone(&maglev))?;
        let v6 = Side::open(pins, "CONNECTIONS_V6", "FRONTENDS_V6", backends_v6, maglev)?;
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

    /// Has the tables gone through soon: backends may have gone.
    pub fn look_now(&self) {
        // If it is full it has been told already.
        let _told = self.wake.try_send(());
    }

    /// What the last passes found.
    pub fn seen(&self) -> Vec<Connections> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The table of one family, and the maps that tell who serves what.
struct Side<A: Address> {
    table: Table<A>,
    frontends: BpfMap<FrontendKey<A>, Frontend>,
    backends: Arc<MappedArray<Backend<A>>>,
    maglev: Arc<MappedArray<u32>>,
    pressure: Pressure,
    removed: u64,
}

/// Service ports without states of their own (UDP), with the backends that serve them.
type Serving = HashSet<(u32, u32)>;

impl<A: Address> Side<A> {
    fn open(
        pins: &PinDir,
        connections: &'static str,
        frontends: &'static str,
        backends: Arc<MappedArray<Backend<A>>>,
        maglev: Arc<MappedArray<u32>>,
    ) -> Result<Self, MapsError> {
        Ok(Self {
            table: BpfMap::open(pins, connections)?,
            frontends: BpfMap::open(pins, frontends)?,
            backends,
            maglev,
            pressure: Pressure::None,
            removed: 0,
        })
    }

    /// Who serves what now.
    fn serving(&self) -> Result<Serving, MapsError> {
        let mut serving = Serving::new();
        let mut seen: HashSet<(u32, BackendSet)> = HashSet::new();
        self.frontends.walk(|chunk| {
            for (_, frontend) in chunk.iter().filter(|(key, _)| key.protocol != protocol::TCP) {
                for set in [frontend.external, frontend.internal] {
                    if seen.insert((frontend.service_port, set)) {
                        let slots = set.offset..set.offset.saturating_add(set.size);
                        let ids = slots.filter_map(|slot| self.maglev.get(slot as usize));
                        serving.extend(ids.map(|id| (frontend.service_port, id)));
                    }
                }
            }
        })?;
        Ok(serving)
    }

    /// One pass. `changed` says that Services have changed since the last one.
    fn pass(&mut self, clock: &Clock, deep: bool, changed: bool) -> (Connections, Duration) {
        let serving = changed.then(|| self.serving().ok()).flatten();
        let usable = |connection: &Connection<A>| {
            let backend = self.backends.get(connection.backend as usize);
            let is_live = backend.is_some_and(|backend| backend.flags & backend_flags::LIVE != 0);
            let serves = |all: &Serving| all.contains(&(connection.service_port, connection.backend));
            is_live && serving.as_ref().is_none_or(serves)
        };
        let pass = collect(&self.table, clock, self.pressure, deep, usable).unwrap_or_else(|error| {
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
    let mut pause = EVERY;
    for round in 1_u32.. {
        let changed = match woken.recv_timeout(pause) {
            Ok(()) => {
                std::thread::sleep(SETTLE);
                true
            }
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let deep = round.is_multiple_of(DEEP);
        let (first, took4) = v4.pass(clock, deep, changed);
        let (second, took6) = v6.pass(clock, deep, changed);
        pause = EVERY.max((took4 + took6) * SHARE);
        *seen.lock().unwrap_or_else(PoisonError::into_inner) = vec![first, second];
    }
}
