//! The environment of the packet logic on ordinary collections.

use core::any::Any;
use core::cell::{Cell, RefCell};
use core::ops::{Deref, DerefMut};
use std::boxed::Box;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::rc::Rc;
use std::vec::Vec;

use super::Cast;
use crate::abi::{
    Addr4, Addr6, Address, Adjacency, AffinityEntry, AffinityKey, AffinityMember, Announced, AnnouncedKey, Backend,
    Config, Connection, DatagramKey, DatagramPorts, DropReason, Frontend, FrontendKey, Hook, LpmKey, Mac, Outcome,
    Peer, Port, SocketKey, SourceRangeKey, Tuple,
};
use crate::datapath::connection::{self, Opening};
use crate::datapath::icmp;
use crate::env::{ConnectionEntry, Draft, Env, InsertError, Quote, Tables};

/// What is in the maps, and the clock: plain data, to be compared before and after.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct World {
    /// `CONFIG`.
    pub config: Config,
    /// Jiffies.
    pub now: u32,
    /// Nanoseconds since the machine was started.
    pub now_ns: u64,
    /// `ANNOUNCE_UNTIL`.
    pub announce_until_ns: u64,
    /// `FILTER`: bucket -> classes; buckets that are not here have none.
    pub filter: BTreeMap<u32, u8>,
    /// `NODE_PORTS`, in host order.
    pub node_ports: BTreeSet<u16>,
    /// `MAGLEV`: slot -> backend id; slots that are not here hold 0, as in an array map.
    pub maglev: BTreeMap<u32, u32>,
    /// `AFFINITY_MEMBERS`.
    pub members: HashSet<AffinityMember>,
    /// `POD_DEVICES`.
    pub pod_devices: BTreeSet<u32>,
    /// `COUNTERS`: slot -> packets.
    pub counts: BTreeMap<u32, u64>,
    /// The IPv4 maps.
    pub v4: FamilyMaps<Addr4>,
    /// The IPv6 maps.
    pub v6: FamilyMaps<Addr6>,
}

/// The maps of one family.
#[derive(Clone, PartialEq, Debug)]
pub struct FamilyMaps<A: Eq + core::hash::Hash> {
    /// `CONNECTIONS`.
    pub connections: HashMap<Tuple<A>, Connection<A>>,
    /// How many connection entries fit.
    pub capacity: usize,
    /// `FRONTENDS`.
    pub frontends: HashMap<FrontendKey<A>, Frontend>,
    /// `BACKENDS`.
    pub backends: HashMap<u32, Backend<A>>,
    /// `ADJACENCIES`.
    pub adjacencies: HashMap<u32, Adjacency<A>>,
    /// `AFFINITY`.
    pub affinity: HashMap<AffinityKey<A>, AffinityEntry>,
    /// `POD_CIDRS`.
    pub pod_cidrs: Vec<LpmKey<A>>,
    /// `SERVICE_CIDRS`.
    pub service_cidrs: Vec<LpmKey<A>>,
    /// `SOURCE_RANGES`.
    pub source_ranges: Vec<SourceRangeKey<A>>,
    /// `SOCKETS`.
    pub sockets: HashMap<SocketKey<A>, Peer<A>>,
    /// `DATAGRAMS`.
    pub datagrams: HashMap<DatagramKey<A>, DatagramPorts>,
    /// `ANNOUNCED`.
    pub announced: HashMap<AnnouncedKey<A>, Announced>,
}

impl<A: Eq + core::hash::Hash> Default for FamilyMaps<A> {
    fn default() -> Self {
        Self {
            connections: HashMap::new(),
            capacity: Self::ROOMY,
            frontends: HashMap::new(),
            backends: HashMap::new(),
            adjacencies: HashMap::new(),
            affinity: HashMap::new(),
            pod_cidrs: Vec::new(),
            service_cidrs: Vec::new(),
            source_ranges: Vec::new(),
            sockets: HashMap::new(),
            datagrams: HashMap::new(),
            announced: HashMap::new(),
        }
    }
}

impl<A: Eq + core::hash::Hash> FamilyMaps<A> {
    /// A capacity that no scenario reaches.
    pub const ROOMY: usize = 1 << 16;
}

/// An environment of the packet logic over a [`World`].
pub struct FakeEnv {
    world: Rc<RefCell<World>>,
    random: Cell<u32>,
    /// The draft as it was left last, of whichever family it was.
    draft: Rc<RefCell<Option<Box<dyn Any>>>>,
}

/// The draft, held: what is written to it is there for whoever holds it next.
pub struct HeldDraft<A: Address> {
    place: Rc<RefCell<Option<Box<dyn Any>>>>,
    draft: Draft<A>,
}

impl<A: Address> Deref for HeldDraft<A> {
    type Target = Draft<A>;

    fn deref(&self) -> &Draft<A> {
        &self.draft
    }
}

impl<A: Address> DerefMut for HeldDraft<A> {
    fn deref_mut(&mut self) -> &mut Draft<A> {
        &mut self.draft
    }
}

impl<A: Address> Drop for HeldDraft<A> {
    fn drop(&mut self) {
        *self.place.borrow_mut() = Some(Box::new(self.draft));
    }
}

impl FakeEnv {
    /// An environment that starts from this world.
    pub fn new(world: World) -> Self {
        Self {
            world: Rc::new(RefCell::new(world)),
            random: Cell::new(0x1234_5678),
            draft: Rc::default(),
        }
    }

    /// Sets the next random number; those after it follow by a fixed rule.
    #[must_use]
    pub fn with_random(self, random: u32) -> Self {
        self.random.set(random);
        self
    }

    /// The world as it is now.
    pub fn world(&self) -> World {
        self.world.borrow().clone()
    }

    /// Changes the world, as the agent or time would.
    pub fn change(&self, change: impl FnOnce(&mut World)) {
        change(&mut self.world.borrow_mut());
    }

    fn insert<F: Cast>(&self, key: &Tuple<F::Addr>, value: &Connection<F::Addr>) -> Result<(), InsertError> {
        let mut world = self.world.borrow_mut();
        let maps = F::maps_mut(&mut world);
        if !maps.connections.contains_key(key) && maps.connections.len() >= maps.capacity {
            return Err(InsertError::Full);
        }
        maps.connections.insert(*key, *value);
        Ok(())
    }
}

/// A connection that was found.
pub struct FakeEntry<F: Cast> {
    world: Rc<RefCell<World>>,
    key: Tuple<F::Addr>,
    found: Connection<F::Addr>,
}

impl<F: Cast> FakeEntry<F> {
    fn change(&self, change: impl FnOnce(&mut Connection<F::Addr>)) {
        if let Some(entry) = F::maps_mut(&mut self.world.borrow_mut()).connections.get_mut(&self.key) {
            change(entry);
        }
    }
}

impl<F: Cast> ConnectionEntry<F> for FakeEntry<F> {
    fn get(&self) -> Connection<F::Addr> {
        self.found
    }

    fn touch(&self, last_seen: u32, state: u8) {
        self.change(|entry| {
            entry.last_seen = last_seen;
            entry.state = state;
        });
    }

    fn learn(&self, client_mac: Mac, ifindex: u32) {
        self.change(|entry| {
            entry.client_mac = client_mac;
            entry.ifindex = ifindex;
        });
    }
}

/// What the last user left in the place for drafts: something, so that nobody counts on zeros.
fn leftover<A: Address>() -> Draft<A> {
    let any = A::from_words([0xa5a5_a5a5, 0x5a5a_5a5a, 0xa5a5_a5a5, 0x5a5a_5a5a]);
    let key = Tuple {
        src: any,
        dst: any,
        src_port: Port::new(0xa5a5),
        dst_port: Port::new(0x5a5a),
        protocol: 0xa5,
        direction: 0xa5,
        pad: [0xa5; 2],
    };
    let value = Connection {
        src: any,
        dst: any,
        src_port: Port::new(0xa5a5),
        dst_port: Port::new(0x5a5a),
        last_seen: 0xa5a5_a5a5,
        adjacency: 0xa5a5_a5a5,
        service_port: 0xa5a5_a5a5,
        backend: 0xa5a5_a5a5,
        ifindex: 0xa5a5_a5a5,
        client_mac: Mac([0xa5; 6]),
        state: 0xa5,
        flags: 0xa5,
    };
    Draft {
        primary_key: key,
        primary: value,
        reply_key: key,
        reply: value,
        reply_in_key: key,
        out_key: key,
        out: value,
        datagram: DatagramKey {
            src: any,
            dst: any,
            id: 0xa5a5_a5a5,
            protocol: 0xa5,
            direction: 0xa5,
            pad: [0xa5; 2],
        },
        quote: Quote {
            from: any,
            to: any,
            packet: key,
        },
    }
}

fn bits<A: Address>(address: &A) -> u128 {
    let [a, b, c, d] = address.words().map(u32::from_be);
    u128::from(a) << 96 | u128::from(b) << 64 | u128::from(c) << 32 | u128::from(d)
}

/// Whether an address lies in a prefix of this many bits.
pub fn is_within<A: Address>(address: &A, prefix: &A, prefix_len: u32) -> bool {
    let ignored = 128 - prefix_len;
    (bits(address) ^ bits(prefix)).checked_shr(ignored).unwrap_or(0) == 0
}

impl<F: Cast> Tables<F> for FakeEnv {
    type Entry = FakeEntry<F>;
    type Draft = HeldDraft<F::Addr>;

    fn draft(&self) -> Option<HeldDraft<F::Addr>> {
        let left = self
            .draft
            .borrow()
            .as_ref()
            .and_then(|any| any.downcast_ref::<Draft<F::Addr>>().copied());
        Some(HeldDraft {
            place: Rc::clone(&self.draft),
            draft: left.unwrap_or_else(leftover),
        })
    }

    fn choose(&self) -> Result<Opening, DropReason> {
        connection::choose::<F, _>(self)
    }

    fn record(&self) -> Result<(), DropReason> {
        connection::record::<F, _>(self)
    }

    fn relate(&self, hook: Hook) -> icmp::Relation {
        icmp::relate::<F, _>(self, hook)
    }

    fn connection(&self, key: &Tuple<F::Addr>) -> Option<FakeEntry<F>> {
        let found = F::maps(&self.world.borrow()).connections.get(key).copied()?;
        Some(FakeEntry {
            world: Rc::clone(&self.world),
            key: *key,
            found,
        })
    }

    fn add_connection(&self, key: &Tuple<F::Addr>, value: &Connection<F::Addr>) -> Result<(), InsertError> {
        if F::maps(&self.world.borrow()).connections.contains_key(key) {
            return Err(InsertError::Exists);
        }
        self.insert::<F>(key, value)
    }

    fn put_connection(&self, key: &Tuple<F::Addr>, value: &Connection<F::Addr>) -> Result<(), InsertError> {
        self.insert::<F>(key, value)
    }

    fn remove_connection(&self, key: &Tuple<F::Addr>) {
        F::maps_mut(&mut self.world.borrow_mut()).connections.remove(key);
    }

    fn datagram(&self, key: &DatagramKey<F::Addr>) -> Option<DatagramPorts> {
        F::maps(&self.world.borrow()).datagrams.get(key).copied()
    }

    fn note_datagram(&self, key: &DatagramKey<F::Addr>, ports: &DatagramPorts) {
        F::maps_mut(&mut self.world.borrow_mut()).datagrams.insert(*key, *ports);
    }

    fn frontend(&self, key: &FrontendKey<F::Addr>) -> Option<Frontend> {
        F::maps(&self.world.borrow()).frontends.get(key).copied()
    }

    fn backend(&self, id: u32) -> Option<Backend<F::Addr>> {
        let found = F::maps(&self.world.borrow()).backends.get(&id).copied();
        (id < 1 << 19).then(|| found.unwrap_or_default())
    }

    fn adjacency(&self, id: u32) -> Option<Adjacency<F::Addr>> {
        let found = F::maps(&self.world.borrow()).adjacencies.get(&id).copied();
        (id < 1 << 14).then(|| found.unwrap_or_default())
    }

    fn affinity(&self, key: &AffinityKey<F::Addr>) -> Option<AffinityEntry> {
        F::maps(&self.world.borrow()).affinity.get(key).copied()
    }

    fn pin(&self, key: &AffinityKey<F::Addr>, entry: &AffinityEntry) {
        F::maps_mut(&mut self.world.borrow_mut()).affinity.insert(*key, *entry);
    }

    fn in_source_ranges(&self, service_port: u32, client: &F::Addr) -> bool {
        F::maps(&self.world.borrow()).source_ranges.iter().any(|range| {
            range.service_port == service_port && is_within(client, &range.addr, range.prefix_len.saturating_sub(32))
        })
    }

    fn is_pod_address(&self, address: &F::Addr) -> bool {
        let world = self.world.borrow();
        let prefixes = &F::maps(&world).pod_cidrs;
        prefixes
            .iter()
            .any(|cidr| is_within(address, &cidr.addr, cidr.prefix_len))
    }

    fn is_service_address(&self, address: &F::Addr) -> bool {
        let world = self.world.borrow();
        let prefixes = &F::maps(&world).service_cidrs;
        prefixes
            .iter()
            .any(|cidr| is_within(address, &cidr.addr, cidr.prefix_len))
    }

    fn announced(&self, key: &AnnouncedKey<F::Addr>) -> Option<Announced> {
        F::maps(&self.world.borrow()).announced.get(key).copied()
    }

    fn peer(&self, key: &SocketKey<F::Addr>) -> Option<Peer<F::Addr>> {
        F::maps(&self.world.borrow()).sockets.get(key).copied()
    }

    fn note_peer(&self, key: &SocketKey<F::Addr>, peer: &Peer<F::Addr>) {
        F::maps_mut(&mut self.world.borrow_mut()).sockets.insert(*key, *peer);
    }
}

impl Env for FakeEnv {
    fn config(&self) -> Config {
        self.world.borrow().config
    }

    fn now(&self) -> u32 {
        self.world.borrow().now
    }

    fn now_ns(&self) -> u64 {
        self.world.borrow().now_ns
    }

    fn announce_until_ns(&self) -> u64 {
        self.world.borrow().announce_until_ns
    }

    fn random(&self) -> u32 {
        let random = self.random.get();
        self.random
            .set(random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
        random
    }

    fn address_class(&self, bucket: u32) -> u8 {
        self.world.borrow().filter.get(&bucket).copied().unwrap_or(0)
    }

    fn is_node_port(&self, port: u16) -> bool {
        self.world.borrow().node_ports.contains(&port)
    }

    fn is_pod_device(&self, ifindex: u32) -> bool {
        self.world.borrow().pod_devices.contains(&ifindex)
    }

    fn maglev(&self, slot: u32) -> Option<u32> {
        let found = self.world.borrow().maglev.get(&slot).copied();
        (slot < 1 << 24).then(|| found.unwrap_or(0))
    }

    fn is_member(&self, offset: u32, backend: u32) -> bool {
        self.world
            .borrow()
            .members
            .contains(&AffinityMember { offset, backend })
    }

    fn count(&self, hook: Hook, outcome: Outcome) {
        *self.world.borrow_mut().counts.entry(outcome.slot(hook)).or_default() += 1;
    }
}
