//! The connection table as the agent sees it: what belongs together, what has ended, and its removal.
//!
//! A connection has two entries, four if it is source-translated, one if it is passed on (the picture is in
//! `lb_common::abi::Connection`'s module). The *primary* is the one that a client's packet to the frontend hits;
//! its key can be told from every other entry, and the other keys from it. A connection lives as long as its entry
//! seen last, and is removed as a whole.

pub mod clock;
pub mod sockets;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use lb_common::abi::{Address, Backend, Connection, Direction, Port, Tuple, conn_flags, protocol, tcp_state};

use crate::maps::MapsError;
use crate::maps::bpf::BpfMap;
use crate::reconcile::Pair;
use clock::Clock;

/// The table of one family.
pub type Table<A> = BpfMap<Tuple<A>, Connection<A>>;

/// What is known of a connection from all its entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Group {
    /// IP protocol number.
    pub protocol: u8,
    /// Seconds since its last packet, either way.
    pub idle_s: u32,
    /// [`tcp_state`] of the client's way.
    pub forward: u8,
    /// [`tcp_state`] of the way back.
    pub reply: u8,
    /// It is passed on to another node, by which its answers go: nothing is known of them.
    pub passed_on: bool,
}

/// How full the table is; the fuller, the shorter the timeouts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Pressure {
    /// Up to 75 %.
    None,
    /// Above 75 %.
    Some,
    /// Above 90 %.
    High,
}

impl Pressure {
    /// Of a table with so many entries.
    pub fn of(entries: usize, capacity: u32) -> Self {
        let percent = entries.saturating_mul(100) / (capacity.max(1) as usize);
        match percent {
            0..=75 => Self::None,
            76..=90 => Self::Some,
            _ => Self::High,
        }
    }
}

/// What a connection is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// TCP, before the answer to the SYN; SCTP, before that to the INIT.
    Opening,
    /// TCP, after it.
    Established,
    /// SCTP, after it. Both sides send heartbeats all the time.
    Associated,
    /// TCP, after a FIN of both sides; SCTP, after both have shut down.
    Closing,
    /// TCP, after a RST; SCTP, after an ABORT or the end of the shutdown.
    Reset,
    /// TCP, passed on to another node. If this is forgotten too early, the next packet is passed on to the same node,
    /// unless endpoints have changed.
    PassedOn,
    /// UDP, no answer yet.
    Unanswered,
    /// UDP, answered.
    Answered,
}

impl Phase {
    /// Its name, as tables show it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Established => "established",
            Self::Associated => "associated",
            Self::Closing => "closing",
            Self::Reset => "reset",
            Self::PassedOn => "passed on",
            Self::Unanswered => "unanswered",
            Self::Answered => "answered",
        }
    }

    /// How long a connection in this phase is kept after its last packet, in seconds.
    pub const fn timeout_s(self, pressure: Pressure) -> u32 {
        let [none, some, high] = match self {
            Self::Opening => [60, 20, 5],
            // Under pressure still longer than the keep-alive of common clients and servers.
            Self::Established => [24 * 3600, 4 * 3600, 3600],
            Self::Associated => [210, 120, 90],
            Self::Closing => [30, 10, 5],
            Self::Reset => [10, 5, 2],
            // Longer than the kernel's keep-alive, which the client is likely to have if it has any.
            Self::PassedOn => [7500, 7500, 3600],
            Self::Unanswered => [30, 15, 5],
            Self::Answered => [180, 60, 30],
        };
        match pressure {
            Pressure::None => none,
            Pressure::Some => some,
            Pressure::High => high,
        }
    }
}

impl Group {
    /// What the connection is doing.
    pub const fn phase(&self) -> Phase {
        // One side's end is followed by the other's.
        let reply = if self.passed_on {
            tcp_state::CONFIRMED | self.forward
        } else {
            self.reply
        };
        let answered = reply & tcp_state::CONFIRMED != 0;
        if self.protocol == protocol::UDP {
            return if answered { Phase::Answered } else { Phase::Unanswered };
        }
        if (self.forward | reply) & tcp_state::RST != 0 {
            Phase::Reset
        } else if self.forward & reply & tcp_state::FIN != 0 {
            Phase::Closing
        } else if self.passed_on && self.protocol == protocol::TCP {
            Phase::PassedOn
        } else if answered && self.protocol == protocol::SCTP {
            Phase::Associated
        } else if answered {
            Phase::Established
        } else {
            Phase::Opening
        }
    }

    /// Whether it is over.
    pub const fn expired(&self, pressure: Pressure) -> bool {
        self.idle_s >= self.phase().timeout_s(pressure)
    }
}

/// The shortest time after which a connection may be over, given one of its entries only.
const fn floor_s(protocol: u8, state: u8, pressure: Pressure) -> u32 {
    if protocol == protocol::UDP {
        return Phase::Unanswered.timeout_s(pressure);
    }
    if state & tcp_state::RST != 0 {
        Phase::Reset.timeout_s(pressure)
    } else if state & tcp_state::FIN != 0 {
        // The other side may have reset.
        Phase::Reset.timeout_s(pressure)
    } else {
        Phase::Closing.timeout_s(pressure)
    }
}

/// Whether it is the entry that the client's packets to the frontend hit.
pub fn is_primary<A: Address>(key: &Tuple<A>, entry: &Connection<A>) -> bool {
    let begins = if entry.flags & conn_flags::NODE != 0 {
        Direction::Egress
    } else {
        Direction::Ingress
    };
    key.direction == begins as u8 && entry.flags & conn_flags::FORWARD != 0
}

/// The key of the primary entry, from any entry of the connection.
pub fn primary_key<A: Address>(key: &Tuple<A>, entry: &Connection<A>) -> Tuple<A> {
    let ingress = |src, dst| Tuple::new(Direction::Ingress, key.protocol, src, dst);
    if is_primary(key, entry) {
        *key
    } else if entry.flags & conn_flags::NODE != 0 {
        Tuple::new(
            Direction::Egress,
            key.protocol,
            (entry.dst, entry.dst_port),
            (entry.src, entry.src_port),
        )
    } else if entry.flags & conn_flags::FORWARD == 0 {
        ingress((entry.dst, entry.dst_port), (entry.src, entry.src_port))
    } else {
        ingress((key.src, key.src_port), (entry.dst, entry.dst_port))
    }
}

/// All of a connection, from its primary entry.
pub struct Whole<A> {
    /// What is known of it.
    pub group: Group,
    /// The keys of all its entries.
    pub keys: Vec<Tuple<A>>,
    /// The address and port that it is source-translated to.
    pub snat: Option<(A, Port)>,
}

/// Reads a connection's other entries, by `get`. An entry under one of its keys that belongs to another connection
/// is left out.
///
/// # Errors
/// Those of `get`.
pub fn whole<A: Address, E>(
    key: &Tuple<A>,
    entry: &Connection<A>,
    get: impl Fn(&Tuple<A>) -> Result<Option<Connection<A>>, E>,
    idle_s: impl Fn(u32) -> u32,
) -> Result<Whole<A>, E> {
    let tuple = |direction, src, dst| Tuple::new(direction, key.protocol, src, dst);
    let both = entry.flags & conn_flags::BOTH != 0;
    let snat = entry.flags & conn_flags::SNAT != 0;
    // The client, by the port that it has between the hooks.
    let client = if both {
        (entry.src, entry.src_port)
    } else {
        (key.src, key.src_port)
    };
    let backend = (entry.dst, entry.dst_port);
    let between = tuple(Direction::Ingress, client, (key.dst, key.dst_port));
    let group = Group {
        protocol: key.protocol,
        idle_s: idle_s(entry.last_seen),
        forward: entry.state,
        reply: 0,
        passed_on: false,
    };
    let mut whole = Whole {
        group,
        keys: vec![*key],
        snat: None,
    };
    let mut see = |other: Tuple<A>| -> Result<Option<Connection<A>>, E> {
        let Some(found) = get(&other)? else { return Ok(None) };
        let primary = primary_key(&other, &found);
        if primary != *key && primary != between {
            return Ok(None);
        }
        whole.group.idle_s = whole.group.idle_s.min(idle_s(found.last_seen));
        if found.flags & conn_flags::FORWARD != 0 {
            whole.group.forward |= found.state;
        } else {
            whole.group.reply |= found.state;
        }
        whole.keys.push(other);
        Ok(Some(found))
    };
    if entry.flags & conn_flags::PASSED_ON != 0 {
        whole.group.passed_on = true;
        return Ok(whole);
    }
    if entry.flags & conn_flags::NODE != 0 {
        see(tuple(Direction::Ingress, backend, client))?;
        whole.snat = Some(client);
        return Ok(whole);
    }
    see(tuple(Direction::Egress, backend, client))?;
    if snat {
        let out = see(tuple(Direction::Egress, client, backend))?;
        let masquerade = match (both, out) {
            (false, _) => Some((entry.src, entry.src_port)),
            (true, out) => out.map(|out| (out.src, out.src_port)),
        };
        if let Some(masquerade) = masquerade {
            see(tuple(Direction::Ingress, backend, masquerade))?;
        }
        whole.snat = masquerade;
    }
    Ok(whole)
}

/// Whether the entry, which is not a primary one, belongs to no connection any more.
fn is_orphan<A: Address, E>(
    key: &Tuple<A>,
    entry: &Connection<A>,
    get: impl Fn(&Tuple<A>) -> Result<Option<Connection<A>>, E>,
) -> Result<bool, E> {
    if get(&primary_key(key, entry))?.is_some() {
        return Ok(false);
    }
    if entry.flags & conn_flags::SNAT == 0 || entry.flags & conn_flags::NODE != 0 {
        return Ok(true);
    }
    // The client may have another port between the hooks: the entry for replies that leave the node knows both.
    let client = if key.direction == Direction::Egress as u8 && entry.flags & conn_flags::FORWARD != 0 {
        ((key.dst, key.dst_port), (key.src, key.src_port))
    } else {
        ((key.src, key.src_port), (entry.dst, entry.dst_port))
    };
    let reply_key = Tuple::new(Direction::Egress, key.protocol, client.0, client.1);
    match get(&reply_key)? {
        Some(reply) if reply.flags & conn_flags::BOTH != 0 => Ok(get(&primary_key(&reply_key, &reply))?.is_none()),
        _ => Ok(true),
    }
}

/// What a pass over the table found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pass {
    /// Entries that were there.
    pub entries: usize,
    /// Connections that were there.
    pub connections: usize,
    /// Connections that were removed.
    pub removed: usize,
    /// Entries without a primary one that were removed.
    pub orphans: usize,
    /// How long it took.
    pub took: Duration,
}

/// Whether a connection, given by its primary entry, is a UDP flow to a backend that no longer serves its Service port.
/// TCP and SCTP connections end by themselves. `backend` is what `BACKENDS` holds under the flow's backend id now.
pub fn is_cut<A: Address>(
    key: &Tuple<A>,
    entry: &Connection<A>,
    backend: Option<Backend<A>>,
    serving: &HashSet<Pair>,
) -> bool {
    // What is passed on keeps its destination. (Whether the backend's node is one to pass on to does not count: after a
    // restart that is known later than what serves, and a restart cuts nothing.)
    let is_same = entry.flags & conn_flags::PASSED_ON != 0
        || backend.is_some_and(|b| (b.addr, b.port) == (entry.dst, entry.dst_port));
    key.protocol == protocol::UDP && !(is_same && serving.contains(&(entry.service_port, entry.backend)))
}

/// Removes what is over. `deep` looks for entries without a primary one as well. `is_cut` tells of a connection, by its
/// primary entry, that it is to go whatever its age.
pub fn collect<A: Address>(
    table: &Table<A>,
    clock: &Clock,
    pressure: Pressure,
    deep: bool,
    is_cut: impl Fn(&Tuple<A>, &Connection<A>) -> bool,
) -> Result<Pass, MapsError> {
    let started = Instant::now();
    let now = clock.now();
    let idle = |last_seen| clock.seconds(now, last_seen);
    let mut pass = Pass::default();
    let mut failed = None;
    table.walk(|chunk| {
        let mut doomed = Vec::new();
        for (key, entry) in chunk {
            pass.entries += 1;
            let result = if is_primary(key, entry) {
                pass.connections += 1;
                let stale = is_cut(key, entry);
                if !stale && idle(entry.last_seen) < floor_s(key.protocol, entry.state, pressure) {
                    continue;
                }
                whole(key, entry, |k| table.get(k), idle).map(|whole| {
                    if stale || whole.group.expired(pressure) {
                        pass.removed += 1;
                        doomed.extend(whole.keys);
                    }
                })
            } else if deep && idle(entry.last_seen) >= Phase::Opening.timeout_s(pressure) {
                is_orphan(key, entry, |k| table.get(k)).map(|orphan| {
                    if orphan {
                        pass.orphans += 1;
                        doomed.push(*key);
                    }
                })
            } else {
                continue;
            };
            if let Err(error) = result {
                failed = Some(error);
            }
        }
        if let Err(error) = table.remove_all(&doomed) {
            failed = Some(error);
        }
    })?;
    pass.took = started.elapsed();
    failed.map_or(Ok(pass), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::abi::{Addr4, Port};

    type End = (Addr4, Port);

    fn end(last: u8, port: u16) -> End {
        (Addr4::from_octets([10, 0, 0, last]), Port::new(port))
    }

    fn entry(src: End, dst: End, flags: u8) -> Connection<Addr4> {
        Connection {
            src: src.0,
            src_port: src.1,
            dst: dst.0,
            dst_port: dst.1,
            flags,
            ..Connection::default()
        }
    }

    /// The entries of a connection from client 1 to frontend 2, backend 3 and with SNAT to 4, as documented.
    fn entries(snat: bool) -> Entries {
        let (c, f, b, n) = (end(1, 40000), end(2, 80), end(3, 8080), end(4, 61000));
        let tuple = |direction, src, dst| Tuple::new(direction, protocol::TCP, src, dst);
        let (forward, s) = (conn_flags::FORWARD, conn_flags::SNAT);
        if snat {
            vec![
                (tuple(Direction::Ingress, c, f), entry(n, b, forward | s)),
                (tuple(Direction::Egress, c, b), entry(n, f, forward | s)),
                (tuple(Direction::Ingress, b, n), entry(f, c, s)),
                (tuple(Direction::Egress, b, c), entry(f, c, s)),
            ]
        } else {
            vec![
                (tuple(Direction::Ingress, c, f), entry(c, b, forward)),
                (tuple(Direction::Egress, b, c), entry(f, c, 0)),
            ]
        }
    }

    type Entries = Vec<(Tuple<Addr4>, Connection<Addr4>)>;

    fn get(entries: &Entries) -> impl Fn(&Tuple<Addr4>) -> Result<Option<Connection<Addr4>>, ()> {
        |key| Ok(entries.iter().find(|(k, _)| k == key).map(|(_, v)| *v))
    }

    /// The entries of a connection of the node's process 1 to frontend 2, backend 3, with SNAT to 4.
    fn of_node() -> Entries {
        let (p, f, b, n) = (end(1, 40000), end(2, 80), end(3, 8080), end(4, 61000));
        let tuple = |direction, src, dst| Tuple::new(direction, protocol::TCP, src, dst);
        let flags = conn_flags::NODE | conn_flags::SNAT | conn_flags::BOTH;
        vec![
            (tuple(Direction::Egress, p, f), entry(n, b, flags | conn_flags::FORWARD)),
            (tuple(Direction::Ingress, b, n), entry(f, p, flags)),
        ]
    }

    #[test]
    fn a_connection_of_the_nodes_process_is_found_whole_by_its_two_entries() {
        let entries = of_node();
        let (key, value) = entries[0];
        let whole = whole(&key, &value, get(&entries), |_| 0).unwrap();
        assert_eq!(whole.keys.len(), 2);
        assert_eq!(whole.snat, Some(end(4, 61000)));
        assert_eq!(primary_key(&entries[1].0, &entries[1].1), key);
        assert_eq!(is_orphan(&entries[1].0, &entries[1].1, get(&entries)), Ok(false));
        assert_eq!(
            is_orphan(&entries[1].0, &entries[1].1, get(&entries[1..].to_vec())),
            Ok(true)
        );
    }

    #[test]
    fn a_connection_is_found_whole_from_its_primary_entry() {
        for entries in [entries(false), entries(true), changed_port(false), changed_port(true)] {
            let (key, value) = entries[0];
            assert_eq!(entries.iter().filter(|(k, v)| is_primary(k, v)).count(), 1);
            let whole = whole(&key, &value, get(&entries), |_| 0).unwrap();
            assert_eq!(whole.keys.len(), entries.len(), "{entries:?}");
            assert_eq!(whole.snat, (entries.len() == 4).then(|| end(4, 61000)));
        }
    }

    #[test]
    fn without_the_primary_entry_the_others_are_orphans() {
        for entries in [entries(false), entries(true), changed_port(false), changed_port(true)] {
            for (key, value) in &entries[1..] {
                assert_eq!(
                    is_orphan(key, value, get(&entries)),
                    Ok(false),
                    "{key:?} of {entries:?}"
                );
                assert_eq!(
                    is_orphan(key, value, get(&entries[1..].to_vec())),
                    Ok(true),
                    "{key:?} of {entries:?}"
                );
            }
        }
    }

    #[test]
    fn a_connection_that_is_passed_on_has_one_entry_and_is_cut_by_the_name_of_its_backend() {
        let (c, f) = (end(1, 40000), end(2, 53));
        let key = Tuple::new(Direction::Ingress, protocol::UDP, c, f);
        let value = Connection {
            service_port: 5,
            backend: 3,
            ..entry(c, f, conn_flags::FORWARD | conn_flags::PASSED_ON)
        };
        let entries = vec![(key, value)];
        let whole = whole(&key, &value, get(&entries), |_| 0).unwrap();
        assert!(is_primary(&key, &value) && whole.group.passed_on);
        assert_eq!(whole.keys, [key]);
        let backend = Some(Backend::default());
        assert!(!is_cut(&key, &value, backend, &HashSet::from([(5, 3)])));
        assert!(is_cut(&key, &value, backend, &HashSet::from([(5, 4)])));
    }

    #[test]
    fn the_idle_time_and_state_are_those_of_all_entries() {
        let mut entries = entries(true);
        entries[1].1.state = tcp_state::FIN;
        entries[2].1.state = tcp_state::CONFIRMED;
        entries[2].1.last_seen = 3;
        let (key, value) = entries[0];
        let whole = whole(&key, &value, get(&entries), |last_seen| 10 - last_seen).unwrap();
        let expected = Group {
            protocol: protocol::TCP,
            idle_s: 7,
            forward: tcp_state::FIN,
            reply: tcp_state::CONFIRMED,
            passed_on: false,
        };
        assert_eq!(whole.group, expected);
    }

    /// The same for a client whose port is taken at the backend: it has 61001 between the hooks.
    fn changed_port(snat: bool) -> Entries {
        let (c, between, f, b, n) = (end(1, 40000), end(1, 61001), end(2, 80), end(3, 8080), end(4, 61000));
        let tuple = |direction, src, dst| Tuple::new(direction, protocol::TCP, src, dst);
        let (forward, both) = (conn_flags::FORWARD, conn_flags::BOTH);
        let s = if snat { conn_flags::SNAT } else { 0 };
        let mut entries = vec![
            (tuple(Direction::Ingress, c, f), entry(between, b, forward | both | s)),
            (tuple(Direction::Egress, b, between), entry(f, c, both | s)),
        ];
        if snat {
            entries.push((tuple(Direction::Egress, between, b), entry(n, f, forward | s)));
            entries.push((tuple(Direction::Ingress, b, n), entry(f, between, s)));
        }
        entries
    }

    fn group(protocol: u8, forward: u8, reply: u8) -> Group {
        Group {
            protocol,
            idle_s: 0,
            forward,
            reply,
            passed_on: false,
        }
    }

    /// The same of a connection that is passed on.
    fn passed_on(protocol: u8, forward: u8) -> Group {
        Group {
            passed_on: true,
            ..group(protocol, forward, 0)
        }
    }

    #[test]
    fn each_phase_has_its_timeout() {
        use tcp_state::{CONFIRMED, FIN, RST};
        for (group, phase, seconds) in [
            (group(protocol::TCP, 0, 0), Phase::Opening, 60),
            (group(protocol::TCP, CONFIRMED, 0), Phase::Opening, 60),
            (group(protocol::TCP, CONFIRMED, CONFIRMED), Phase::Established, 86400),
            (
                group(protocol::TCP, CONFIRMED | FIN, CONFIRMED),
                Phase::Established,
                86400,
            ),
            (
                group(protocol::TCP, CONFIRMED | FIN, CONFIRMED | FIN),
                Phase::Closing,
                30,
            ),
            (group(protocol::TCP, CONFIRMED, CONFIRMED | RST), Phase::Reset, 10),
            (group(protocol::SCTP, CONFIRMED, 0), Phase::Opening, 60),
            (group(protocol::SCTP, CONFIRMED, CONFIRMED), Phase::Associated, 210),
            (group(protocol::SCTP, CONFIRMED | RST, CONFIRMED), Phase::Reset, 10),
            (group(protocol::UDP, CONFIRMED, 0), Phase::Unanswered, 30),
            (group(protocol::UDP, 0, CONFIRMED), Phase::Answered, 180),
            (passed_on(protocol::TCP, CONFIRMED), Phase::PassedOn, 7500),
            (passed_on(protocol::TCP, CONFIRMED | FIN), Phase::Closing, 30),
            (passed_on(protocol::TCP, CONFIRMED | RST), Phase::Reset, 10),
            (passed_on(protocol::SCTP, CONFIRMED), Phase::Associated, 210),
            (passed_on(protocol::UDP, CONFIRMED), Phase::Answered, 180),
        ] {
            assert_eq!(group.phase(), phase, "{group:?}");
            assert!(
                !Group {
                    idle_s: seconds - 1,
                    ..group
                }
                .expired(Pressure::None),
                "{group:?}"
            );
            assert!(
                Group {
                    idle_s: seconds,
                    ..group
                }
                .expired(Pressure::None),
                "{group:?}"
            );
        }
    }

    #[test]
    fn a_fuller_table_waits_less() {
        assert_eq!(Pressure::of(750, 1000), Pressure::None);
        assert_eq!(Pressure::of(800, 1000), Pressure::Some);
        assert_eq!(Pressure::of(950, 1000), Pressure::High);
        for phase in [
            Phase::Opening,
            Phase::Established,
            Phase::Associated,
            Phase::Closing,
            Phase::Reset,
            Phase::Answered,
        ] {
            assert!(phase.timeout_s(Pressure::High) < phase.timeout_s(Pressure::Some));
            assert!(phase.timeout_s(Pressure::Some) < phase.timeout_s(Pressure::None));
        }
    }

    #[test]
    fn no_connection_ends_before_the_floor_of_any_of_its_entries() {
        for pressure in [Pressure::None, Pressure::Some, Pressure::High] {
            for protocol in [protocol::TCP, protocol::UDP, protocol::SCTP] {
                for (forward, reply) in (0..8).flat_map(|f| (0..8).map(move |r| (f, r))) {
                    let timeout = group(protocol, forward, reply).phase().timeout_s(pressure);
                    // The other side's reset is found later: the pass looks again after the closing timeout.
                    let reset = reply & tcp_state::RST != 0 && forward & (tcp_state::RST | tcp_state::FIN) == 0;
                    assert!(reset || floor_s(protocol, forward, pressure) <= timeout);
                }
            }
        }
    }
}
