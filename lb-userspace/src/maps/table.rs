//! Which maps there are, and how large: the one table that loading, checking pins and status go by.

use lb_common::abi::{
    Addr4, Addr6, Adjacency, AffinityEntry, AffinityKey, AffinityMember, Announced, AnnouncedKey, Backend,
    COUNTER_SLOTS, Config, Connection, DatagramKey, DatagramPorts, FILTER_BUCKETS, Frontend, FrontendKey, LpmKey,
    NODE_PORT_BITMAP_BYTES, Peer, SocketKey, SourceRangeKey, Tuple,
};

/// A map of the data path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapSpec {
    /// Its name, in the object and as a pin.
    pub name: &'static str,
    /// What it is in the kernel.
    pub kind: MapKind,
    /// Bytes in a key.
    pub key_size: u32,
    /// Bytes in a value.
    pub value_size: u32,
    /// How many entries it takes.
    pub entries: u32,
    /// The flag of `fairway agent` that sets its size; empty if none does.
    pub flag: &'static str,
}

/// Kinds of maps, with their numbers in `enum bpf_map_type`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum MapKind {
    /// A hash table.
    Hash = 1,
    /// An array.
    Array = 2,
    /// An array per CPU.
    PerCpuArray = 6,
    /// A hash table that forgets what was not used for longest.
    LruHash = 9,
    /// A longest-prefix trie.
    LpmTrie = 11,
}

/// Sizes of the maps, in entries of each family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sizes {
    /// Connections; one takes two entries of the table, four if it is source-translated.
    pub connections: u32,
    /// Frontends: addresses and ports of Services.
    pub frontends: u32,
    /// Backends: endpoints of Services.
    pub backends: u32,
    /// Slots for the Maglev tables of all Services together, of both families.
    pub maglev: u32,
    /// Clients remembered for session affinity.
    pub affinity: u32,
    /// Source ranges of load balancers.
    pub source_ranges: u32,
    /// Sockets whose destination was translated.
    pub sockets: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            connections: 1 << 18,
            frontends: 1 << 18,
            backends: 1 << 19,
            maglev: 1 << 23,
            affinity: 1 << 16,
            source_ranges: 1 << 16,
            sockets: 1 << 16,
        }
    }
}

/// Devices of pods.
const POD_DEVICES: u32 = 1 << 14;

/// Next hops of each family.
pub const ADJACENCIES: u32 = 1 << 16;

/// Datagrams in fragments of each family: as many as may be on their way through the node at once.
const DATAGRAMS: u32 = 1 << 14;

/// Announced addresses of each family, each once for every device.
const ANNOUNCED: u32 = 1 << 14;

impl Sizes {
    /// The table of maps at these sizes.
    pub fn maps(&self) -> Vec<MapSpec> {
        use MapKind::{Array, Hash, LpmTrie, LruHash, PerCpuArray};
        let connections = self.connections.saturating_mul(2);
        let prefixes = 1 << 12;
        vec![
            spec::<Tuple<Addr4>, Connection<Addr4>>("CONNECTIONS_V4", Hash, connections, "--max-connections"),
            spec::<Tuple<Addr6>, Connection<Addr6>>("CONNECTIONS_V6", Hash, connections, "--max-connections"),
            spec::<FrontendKey<Addr4>, Frontend>("FRONTENDS_V4", Hash, self.frontends, "--max-frontends"),
            spec::<FrontendKey<Addr6>, Frontend>("FRONTENDS_V6", Hash, self.frontends, "--max-frontends"),
            spec::<u32, Backend<Addr4>>("BACKENDS_V4", Array, self.backends, "--max-backends"),
            spec::<u32, Backend<Addr6>>("BACKENDS_V6", Array, self.backends, "--max-backends"),
            spec::<u32, u32>("MAGLEV", Array, self.maglev, "--max-maglev-slots"),
            spec::<u32, Adjacency<Addr4>>("ADJACENCIES_V4", Array, ADJACENCIES, ""),
            spec::<u32, Adjacency<Addr6>>("ADJACENCIES_V6", Array, ADJACENCIES, ""),
            spec::<AffinityKey<Addr4>, AffinityEntry>("AFFINITY_V4", LruHash, self.affinity, "--max-affinity"),
            spec::<AffinityKey<Addr6>, AffinityEntry>("AFFINITY_V6", LruHash, self.affinity, "--max-affinity"),
            spec::<AffinityMember, u32>("AFFINITY_MEMBERS", Hash, self.backends, "--max-backends"),
            spec::<LpmKey<Addr4>, u32>("POD_CIDRS_V4", LpmTrie, prefixes, ""),
            spec::<LpmKey<Addr6>, u32>("POD_CIDRS_V6", LpmTrie, prefixes, ""),
            spec::<u32, u32>("POD_DEVICES", Hash, POD_DEVICES, ""),
            spec::<LpmKey<Addr4>, u32>("SERVICE_CIDRS_V4", LpmTrie, prefixes, ""),
            spec::<LpmKey<Addr6>, u32>("SERVICE_CIDRS_V6", LpmTrie, prefixes, ""),
            spec::<SourceRangeKey<Addr4>, u32>("SOURCE_RANGES_V4", LpmTrie, self.source_ranges, "--max-source-ranges"),
            spec::<SourceRangeKey<Addr6>, u32>("SOURCE_RANGES_V6", LpmTrie, self.source_ranges, "--max-source-ranges"),
            spec::<u32, Config>("CONFIG", Array, 1, ""),
            spec::<u32, [u8; FILTER_BUCKETS]>("FILTER", Array, 1, ""),
            spec::<u32, [u8; NODE_PORT_BITMAP_BYTES]>("NODE_PORTS", Array, 1, ""),
            spec::<u32, u64>("COUNTERS", PerCpuArray, COUNTER_SLOTS, ""),
            spec::<SocketKey<Addr4>, Peer<Addr4>>("SOCKETS_V4", LruHash, self.sockets, "--max-sockets"),
            spec::<SocketKey<Addr6>, Peer<Addr6>>("SOCKETS_V6", LruHash, self.sockets, "--max-sockets"),
            spec::<DatagramKey<Addr4>, DatagramPorts>("DATAGRAMS_V4", LruHash, DATAGRAMS, ""),
            spec::<DatagramKey<Addr6>, DatagramPorts>("DATAGRAMS_V6", LruHash, DATAGRAMS, ""),
            spec::<u32, u64>("CLOCK", Array, 1, ""),
            spec::<AnnouncedKey<Addr4>, Announced>("ANNOUNCED_V4", Hash, ANNOUNCED, ""),
            spec::<AnnouncedKey<Addr6>, Announced>("ANNOUNCED_V6", Hash, ANNOUNCED, ""),
            spec::<u32, u64>("ANNOUNCE_UNTIL", Array, 1, ""),
        ]
    }
}

fn spec<K, V>(name: &'static str, kind: MapKind, entries: u32, flag: &'static str) -> MapSpec {
    let size = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
    MapSpec {
        name,
        kind,
        key_size: size(size_of::<K>()),
        value_size: size(size_of::<V>()),
        entries,
        flag,
    }
}
