//! The adjacency table: ids for ways out of the node, to backends and to the nodes that they are on, kept in
//! `ADJACENCIES_V4` and `_V6`.
//!
//! A way keeps its id as long as the agent runs. A change of the next hop's Ethernet address, or its loss, is
//! written to the entry in place, so established connections, which remember the id, follow at once. After a
//! restart a way takes the id of the entry that says the same; entries that nobody claims lose their `FAST` flag
//! (the node's stack then finds the way for connections that remember them).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lb_common::abi::{Addr4, Addr6, Address, Adjacency, Mac, adjacency_flags};

use super::adjacency::{Way, entry, way, way_to_neighbour};
use super::network::Network;
use crate::model::IpFamily;
use crate::reconcile::NextHops;

/// Where adjacencies are written to.
pub trait AdjacencyMap<A> {
    /// All entries, by id.
    fn read(&self) -> Vec<Adjacency<A>>;
    /// Writes one.
    fn write(&self, id: u32, adjacency: &Adjacency<A>);
}

/// Which adjacency leads to which backend. Shared by the reconcile loop, which asks, and the agent, which tells of
/// changes of the network.
pub struct AdjacencyTable<M4, M6> {
    state: Mutex<State>,
    v4: Mutex<Ids<Addr4, M4>>,
    v6: Mutex<Ids<Addr6, M6>>,
}

#[derive(Default)]
struct State {
    network: Network,
    fast: BTreeSet<u32>,
    backends: HashMap<IpAddr, Option<Way>>,
    nodes: Arc<Nodes>,
    neighbours: Neighbours,
}

/// The ways to those of the nodes that are neighbours, by [`IpFamily`].
type Neighbours = HashMap<Arc<str>, [Option<Way>; 2]>;

/// Other nodes that run Fairway, with the addresses that they are known by.
pub type Nodes = BTreeMap<Arc<str>, BTreeSet<IpAddr>>;

/// What leads another way than before.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Moved {
    addresses: HashSet<IpAddr>,
    nodes: HashSet<Arc<str>>,
}

impl Moved {
    /// Nothing does.
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.nodes.is_empty()
    }

    /// Whether this backend, or the node that it is on, is concerned.
    pub fn concerns(&self, backend: IpAddr, node: Option<&str>) -> bool {
        self.addresses.contains(&backend) || node.is_some_and(|node| self.nodes.contains(node))
    }
}

/// The ids of one family.
struct Ids<A, M> {
    map: M,
    ids: HashMap<Way, u32>,
    entries: Vec<Adjacency<A>>,
    claimed: HashSet<u32>,
    next: u32,
}

impl<M4: AdjacencyMap<Addr4>, M6: AdjacencyMap<Addr6>> AdjacencyTable<M4, M6> {
    /// Begins with the entries found in the maps.
    pub fn new(v4: M4, v6: M6) -> Self {
        Self {
            state: Mutex::default(),
            v4: Mutex::new(Ids::new(v4)),
            v6: Mutex::new(Ids::new(v6)),
        }
    }

    /// Takes a new snapshot. Returns whose adjacency has another id now.
    pub fn network_changed(&self, network: &Network, fast: &BTreeSet<u32>, neighbours_only: bool) -> Moved {
        let mut state = lock(&self.state);
        let state = &mut *state;
        state.network = network.clone();
        state.fast.clone_from(fast);
        let mut moved = Moved::default();
        if !neighbours_only {
            for (backend, known) in &mut state.backends {
                let now = way(&state.network, *backend, &state.fast);
                if *known != now {
                    *known = now;
                    moved.addresses.insert(*backend);
                }
            }
        }
        if !neighbours_only {
            moved.nodes = state.find_neighbours();
        }
        let used: HashSet<Way> = state.ways().collect();
        lock(&self.v4).rewrite(&state.network, &used);
        lock(&self.v6).rewrite(&state.network, &used);
        moved
    }

    /// Takes which other nodes there are. Returns those whose backends are concerned.
    pub fn nodes_changed(&self, nodes: Arc<Nodes>) -> Moved {
        let mut state = lock(&self.state);
        state.nodes = nodes;
        Moved {
            nodes: state.find_neighbours(),
            ..Moved::default()
        }
    }

    /// The next hops that packets are sent to without the stack: they have to be kept resolved.
    pub fn direct(&self) -> BTreeSet<(u32, IpAddr)> {
        let state = lock(&self.state);
        state.ways().filter_map(|w| Some((w.device, w.next_hop?))).collect()
    }

    /// Takes `FAST` from the entries of an earlier run that nobody claimed.
    pub fn forget_unclaimed(&self) {
        lock(&self.v4).forget_unclaimed();
        lock(&self.v6).forget_unclaimed();
    }
}

impl<M4: AdjacencyMap<Addr4>, M6: AdjacencyMap<Addr6>> NextHops for AdjacencyTable<M4, M6> {
    fn adjacency(&self, backend: IpAddr) -> u16 {
        let mut state = lock(&self.state);
        let State {
            network,
            fast,
            backends,
            ..
        } = &mut *state;
        let found = *backends.entry(backend).or_insert_with(|| way(network, backend, fast));
        found.map_or(0, |way| self.id(network, &way, IpFamily::of(&backend)))
    }

    fn neighbour(&self, node: &str, family: IpFamily) -> u16 {
        let state = lock(&self.state);
        let found = state.neighbours.get(node).and_then(|ways| ways[family as usize]);
        found.map_or(0, |way| self.id(&state.network, &way, family))
    }
}

impl State {
    /// The ways that there are.
    fn ways(&self) -> impl Iterator<Item = Way> {
        let neighbours = self.neighbours.values().flatten().flatten();
        self.backends.values().flatten().chain(neighbours).copied()
    }

    /// Finds the ways to neighbours anew. Returns the nodes whose ways are others than before.
    fn find_neighbours(&mut self) -> HashSet<Arc<str>> {
        let mut found = Neighbours::new();
        let devices = self.network.devices.keys().copied().collect();
        for (name, addresses) in &*self.nodes {
            let ways = IpFamily::ALL.map(|family| {
                let mut of_family = addresses.iter().filter(|addr| IpFamily::of(addr) == family);
                of_family.find_map(|addr| way_to_neighbour(&self.network, *addr, &devices))
            });
            found.insert(Arc::clone(name), ways);
        }
        let none = [None; 2];
        let before = std::mem::replace(&mut self.neighbours, found);
        let way = |ways: &Neighbours, name| *ways.get(name).unwrap_or(&none);
        let names = before.keys().chain(self.neighbours.keys());
        let moved = names.filter(|name| way(&before, *name) != way(&self.neighbours, *name));
        moved.map(Arc::clone).collect()
    }
}

impl<M4: AdjacencyMap<Addr4>, M6: AdjacencyMap<Addr6>> AdjacencyTable<M4, M6> {
    fn id(&self, network: &Network, way: &Way, family: IpFamily) -> u16 {
        let id = match family {
            IpFamily::V4 => lock(&self.v4).id(network, way),
            IpFamily::V6 => lock(&self.v6).id(network, way),
        };
        u16::try_from(id).unwrap_or(0)
    }
}

impl<T: NextHops> NextHops for Arc<T> {
    fn adjacency(&self, backend: IpAddr) -> u16 {
        self.as_ref().adjacency(backend)
    }

    fn neighbour(&self, node: &str, family: IpFamily) -> u16 {
        self.as_ref().neighbour(node, family)
    }
}

impl<A: Address + FromIp, M: AdjacencyMap<A>> Ids<A, M> {
    fn new(map: M) -> Self {
        let entries = map.read();
        let last = entries.iter().rposition(|e| *e != Adjacency::default()).unwrap_or(0);
        let next = u32::try_from(last + 1).unwrap_or(u32::MAX);
        Self {
            map,
            ids: HashMap::new(),
            entries,
            claimed: HashSet::new(),
            next,
        }
    }

    /// The id of a way; its entry is in the map before anyone can use the id.
    fn id(&mut self, network: &Network, way: &Way) -> u32 {
        if let Some(id) = self.ids.get(way) {
            return *id;
        }
        let entry = entry(network, way, masquerade(way));
        // Of next hops that are not resolved nothing tells one from the other.
        let is_told = way.next_hop.is_none() || entry.dst_mac != Mac::default();
        let same = |(id, found): (usize, &Adjacency<A>)| {
            let id = u32::try_from(id).ok()?;
            (is_told && id != 0 && is_same_way(found, &entry) && !self.claimed.contains(&id)).then_some(id)
        };
        let Some(id) = self
            .entries
            .iter()
            .enumerate()
            .take(self.next as usize)
            .find_map(same)
            .or_else(|| self.fresh())
        else {
            return 0;
        };
        self.ids.insert(*way, id);
        self.claimed.insert(id);
        self.set(id, entry);
        id
    }

    /// An id that was never used, or one that nobody uses any more; `None` if the table is full.
    fn fresh(&mut self) -> Option<u32> {
        if (self.next as usize) < self.entries.len() {
            self.next += 1;
            return Some(self.next - 1);
        }
        (1..self.next).find(|id| !self.claimed.contains(id))
    }

    /// Brings the entries of all ways up to date; ways that lead to no backend or node any more lose `FAST`, and their
    /// ids become free when no others are.
    fn rewrite(&mut self, network: &Network, used: &HashSet<Way>) {
        let ways: Vec<_> = self.ids.iter().map(|(way, id)| (*way, *id)).collect();
        for (way, id) in ways {
            let mut entry = entry(network, &way, masquerade(&way));
            if entry.flags & adjacency_flags::FAST == 0
                && let Some(known) = self.entries.get(id as usize)
            {
                // What is passed on by it goes to where it went, until more is known.
                (entry.dst_mac, entry.src_mac) = (known.dst_mac, known.src_mac);
            }
            if !used.contains(&way) {
                entry.flags &= !adjacency_flags::FAST;
                self.ids.remove(&way);
                self.claimed.remove(&id);
            }
            self.set(id, entry);
        }
    }

    fn forget_unclaimed(&mut self) {
        for id in 1..self.next {
            let found = self.entries.get(id as usize).copied().unwrap_or_default();
            if !self.claimed.contains(&id) && found.flags & adjacency_flags::FAST != 0 {
                self.set(
                    id,
                    Adjacency {
                        flags: found.flags & !adjacency_flags::FAST,
                        ..found
                    },
                );
            }
        }
    }

    fn set(&mut self, id: u32, entry: Adjacency<A>) {
        if let Some(known) = self.entries.get_mut(id as usize)
            && *known != entry
        {
            *known = entry;
            self.map.write(id, &entry);
        }
    }
}

/// Whether both say the same of a way, but for whether it may be used just now.
fn is_same_way<A: Address>(one: &Adjacency<A>, other: &Adjacency<A>) -> bool {
    let Adjacency { flags, .. } = *other;
    Adjacency { flags, ..*one } == *other
}

/// An address of one family from one of either.
trait FromIp {
    fn from_ip(ip: IpAddr) -> Option<Self>
    where
        Self: Sized;
}

impl FromIp for Addr4 {
    fn from_ip(ip: IpAddr) -> Option<Self> {
        if let IpAddr::V4(a) = ip { Some(a.into()) } else { None }
    }
}

impl FromIp for Addr6 {
    fn from_ip(ip: IpAddr) -> Option<Self> {
        if let IpAddr::V6(a) = ip { Some(a.into()) } else { None }
    }
}

fn masquerade<A: Address + FromIp>(way: &Way) -> A {
    way.masquerade.and_then(A::from_ip).unwrap_or_default()
}

/// Nobody panics while holding these locks; if so nevertheless, what they guard is still whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::network::tests::node;
    use super::*;
    use lb_common::abi::Mac;
    use std::sync::Arc;

    #[derive(Clone)]
    struct Fake<A>(Arc<Mutex<Vec<Adjacency<A>>>>);

    impl<A: Address> Fake<A> {
        fn new() -> Self {
            Self(Arc::new(Mutex::new(vec![Adjacency::default(); 8])))
        }
    }

    impl<A: Address> AdjacencyMap<A> for Fake<A> {
        fn read(&self) -> Vec<Adjacency<A>> {
            self.0.lock().unwrap().clone()
        }
        fn write(&self, id: u32, adjacency: &Adjacency<A>) {
            self.0.lock().unwrap()[id as usize] = *adjacency;
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_changed_ethernet_address_is_written_in_place() {
        let map = Fake::new();
        let table = AdjacencyTable::new(map.clone(), Fake::new());
        let mut network = node();
        table.network_changed(&network, &[2].into(), false);
        let id = table.adjacency(ip("10.1.2.5"));
        assert_eq!((id, table.adjacency(ip("10.1.2.6"))), (1, 1));
        network.neighbours.get_mut(&(2, ip("192.0.2.2"))).unwrap().mac = Mac([8; 6]);
        assert!(table.network_changed(&network, &[2].into(), true).is_empty());
        assert_eq!(map.read()[1].dst_mac, Mac([8; 6]));
        assert_eq!(table.adjacency(ip("10.1.2.5")), id);
    }

    #[test]
    fn a_changed_route_gives_the_backend_another_id_and_the_old_way_is_no_longer_fast() {
        let map = Fake::new();
        let table = AdjacencyTable::new(map.clone(), Fake::new());
        let mut network = node();
        table.network_changed(&network, &[2].into(), false);
        assert_eq!(table.adjacency(ip("10.1.2.5")), 1);
        network.set_routes(vec![super::super::network::tests::route(
            "10.1.2.0/24",
            2,
            Some("192.0.2.254"),
        )]);
        let moved = table.network_changed(&network, &[2].into(), false);
        assert!(moved.concerns(ip("10.1.2.5"), None) && !moved.concerns(ip("10.1.2.6"), Some("node2")));
        assert_eq!(table.adjacency(ip("10.1.2.5")), 2);
        assert_eq!(map.read()[1].flags, 0);
        assert_eq!(map.read()[2].flags, adjacency_flags::FAST);
    }

    #[test]
    fn a_restarted_agent_gives_the_same_ways_the_same_ids() {
        let map = Fake::new();
        let before = AdjacencyTable::new(map.clone(), Fake::new());
        before.network_changed(&node(), &[2].into(), false);
        let ids = ["10.1.2.5", "10.1.3.5", "198.51.100.1"].map(|b| before.adjacency(ip(b)));
        assert_eq!(ids, [1, 2, 3]);
        let after = AdjacencyTable::new(map.clone(), Fake::new());
        after.network_changed(&node(), &[2].into(), false);
        assert_eq!(["198.51.100.1", "10.1.3.5"].map(|b| after.adjacency(ip(b))), [3, 2]);
        after.forget_unclaimed();
        assert_eq!(map.read()[1].flags, 0);
        assert_eq!(map.read()[3].flags, adjacency_flags::FAST);
    }

    /// The node of this name, known by this address.
    fn nodes(name: &str, address: &str) -> Arc<Nodes> {
        Arc::new([(name.into(), [ip(address), ip("2001:db8::2")].into())].into())
    }

    #[test]
    fn a_node_on_the_same_network_is_a_neighbour_by_the_way_of_its_pods() {
        let table = AdjacencyTable::new(Fake::new(), Fake::new());
        table.network_changed(&node(), &[2].into(), false);
        assert_eq!(table.neighbour("node2", IpFamily::V4), 0);
        let moved = table.nodes_changed(nodes("node2", "192.0.2.2"));
        assert!(moved.concerns(ip("10.1.3.5"), Some("node2")) && !moved.concerns(ip("10.1.3.5"), Some("node3")));
        assert_eq!(table.neighbour("node2", IpFamily::V4), table.adjacency(ip("10.1.2.5")));

        assert!(table.nodes_changed(nodes("node2", "192.0.2.2")).is_empty());
        assert!(
            table
                .nodes_changed(Arc::default())
                .concerns(ip("10.1.3.5"), Some("node2"))
        );
        assert_eq!(table.neighbour("node2", IpFamily::V4), 0);
    }

    #[test]
    fn a_node_behind_a_router_is_no_neighbour() {
        let table = AdjacencyTable::new(Fake::new(), Fake::new());
        let mut network = node();
        network.set_routes(vec![super::super::network::tests::route(
            "198.51.100.0/24",
            2,
            Some("192.0.2.254"),
        )]);
        table.network_changed(&network, &[2].into(), false);
        table.nodes_changed(nodes("node2", "198.51.100.2"));
        assert_eq!(table.neighbour("node2", IpFamily::V4), 0);
        network.set_routes(vec![super::super::network::tests::route("198.51.100.0/24", 2, None)]);
        let moved = table.network_changed(&network, &[2].into(), false);
        assert!(moved.concerns(ip("10.1.3.5"), Some("node2")));
        assert_ne!(table.neighbour("node2", IpFamily::V4), 0);
    }

    #[test]
    fn a_next_hop_that_is_lost_leaves_its_last_link_address() {
        let map = Fake::new();
        let table = AdjacencyTable::new(map.clone(), Fake::new());
        let mut network = node();
        table.network_changed(&network, &[2].into(), false);
        let id = usize::from(table.adjacency(ip("10.1.2.5")));
        let before = map.read()[id];
        network.neighbours.clear();
        table.network_changed(&network, &[2].into(), true);
        assert_eq!(map.read()[id], Adjacency { flags: 0, ..before });
        // What is asked for meanwhile is not taken for the same.
        assert_ne!(usize::from(table.adjacency(ip("192.0.2.77"))), id);
    }

    #[test]
    fn a_way_that_is_asked_for_late_after_a_restart_has_the_same_id_again() {
        let map = Fake::new();
        let before = AdjacencyTable::new(map.clone(), Fake::new());
        before.network_changed(&node(), &[2].into(), false);
        assert_eq!(before.adjacency(ip("10.1.2.5")), 1);
        let after = AdjacencyTable::new(map.clone(), Fake::new());
        after.network_changed(&node(), &[2].into(), false);
        after.forget_unclaimed();
        assert_eq!(
            (after.adjacency(ip("10.1.2.5")), map.read()[1].flags),
            (1, adjacency_flags::FAST)
        );
    }

    #[test]
    fn next_hops_of_uplinks_are_kept_resolved() {
        let table = AdjacencyTable::new(Fake::new(), Fake::new());
        table.network_changed(&node(), &[2].into(), false);
        table.adjacency(ip("10.1.2.5"));
        table.adjacency(ip("10.1.3.5"));
        assert_eq!(table.direct(), [(2, ip("192.0.2.2"))].into());
    }
}
