//! The maps. Their layouts, and what they mean, are in `lb_common::abi`; sizes are set by the agent at load.

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray};
use lb_common::abi::{
    Addr4, Addr6, Address, Adjacency, AffinityEntry, AffinityKey, AffinityMember, Announced, AnnouncedKey, Backend,
    COUNTER_SLOTS, Config, Connection, DatagramKey, DatagramPorts, FILTER_BUCKETS, Frontend, FrontendKey,
    NODE_PORT_BITMAP_BYTES, Peer, SocketKey, Tuple, V4, V6,
};
use lb_common::datapath::Ip;
use lb_common::env::Draft;

const MOST_CONNECTIONS: u32 = 1 << 19;
const MOST_FRONTENDS: u32 = 1 << 17;
const MOST_BACKENDS: u32 = 1 << 19;
const MOST_ADJACENCIES: u32 = 1 << 14;
const MOST_SLOTS: u32 = 1 << 24;
const MOST_CLIENTS: u32 = 1 << 16;
const MOST_PREFIXES: u32 = 1 << 14;
const MOST_SOCKETS: u32 = 1 << 16;
const MOST_DEVICES: u32 = 1 << 14;
const MOST_DATAGRAMS: u32 = 1 << 14;
const MOST_ANNOUNCED: u32 = 1 << 14;

/// What follows the prefix length in the keys of `SOURCE_RANGES`, see `lb_common::abi::SourceRangeKey`.
#[repr(C)]
pub struct SourceRange<A> {
    pub service_port: u32,
    pub addr: A,
}

/// A packet's tuple and direction -> its new tuple.
#[map]
static CONNECTIONS_V4: HashMap<Tuple<Addr4>, Connection<Addr4>> = HashMap::with_max_entries(MOST_CONNECTIONS, 0);
#[map]
static CONNECTIONS_V6: HashMap<Tuple<Addr6>, Connection<Addr6>> = HashMap::with_max_entries(MOST_CONNECTIONS, 0);

/// Address, port, protocol -> Service port, policy, backend sets.
#[map]
static FRONTENDS_V4: HashMap<FrontendKey<Addr4>, Frontend> =
    HashMap::with_max_entries(MOST_FRONTENDS, BPF_F_NO_PREALLOC);
#[map]
static FRONTENDS_V6: HashMap<FrontendKey<Addr6>, Frontend> =
    HashMap::with_max_entries(MOST_FRONTENDS, BPF_F_NO_PREALLOC);

/// Backend id -> address and port.
#[map]
static BACKENDS_V4: Array<Backend<Addr4>> = Array::with_max_entries(MOST_BACKENDS, BPF_F_MMAPABLE);
#[map]
static BACKENDS_V6: Array<Backend<Addr6>> = Array::with_max_entries(MOST_BACKENDS, BPF_F_MMAPABLE);

/// Slot of some set's table -> backend id.
#[map]
pub static MAGLEV: Array<u32> = Array::with_max_entries(MOST_SLOTS, BPF_F_MMAPABLE);

/// Adjacency id -> device, link addresses, masquerade address.
#[map]
static ADJACENCIES_V4: Array<Adjacency<Addr4>> = Array::with_max_entries(MOST_ADJACENCIES, 0);
#[map]
static ADJACENCIES_V6: Array<Adjacency<Addr6>> = Array::with_max_entries(MOST_ADJACENCIES, 0);

/// Client and Service port -> the backend it is pinned to.
#[map]
static AFFINITY_V4: LruHashMap<AffinityKey<Addr4>, AffinityEntry> = LruHashMap::with_max_entries(MOST_CLIENTS, 0);
#[map]
static AFFINITY_V6: LruHashMap<AffinityKey<Addr6>, AffinityEntry> = LruHashMap::with_max_entries(MOST_CLIENTS, 0);

/// Set of a Service with affinity, and backend -> it is a member.
#[map]
pub static AFFINITY_MEMBERS: HashMap<AffinityMember, u32> = HashMap::with_max_entries(MOST_BACKENDS, BPF_F_NO_PREALLOC);

/// Prefixes of this node's pods.
#[map]
static POD_CIDRS_V4: LpmTrie<Addr4, u32> = LpmTrie::with_max_entries(MOST_PREFIXES, 0);
#[map]
static POD_CIDRS_V6: LpmTrie<Addr6, u32> = LpmTrie::with_max_entries(MOST_PREFIXES, 0);

/// Index of a device -> its packets are of pods on this node.
#[map]
pub static POD_DEVICES: HashMap<u32, u32> = HashMap::with_max_entries(MOST_DEVICES, BPF_F_NO_PREALLOC);

/// Prefixes of ClusterIPs.
#[map]
static SERVICE_CIDRS_V4: LpmTrie<Addr4, u32> = LpmTrie::with_max_entries(MOST_PREFIXES, 0);
#[map]
static SERVICE_CIDRS_V6: LpmTrie<Addr6, u32> = LpmTrie::with_max_entries(MOST_PREFIXES, 0);

/// Service port, then prefixes of clients that may use its load balancer addresses.
#[map]
static SOURCE_RANGES_V4: LpmTrie<SourceRange<Addr4>, u32> = LpmTrie::with_max_entries(MOST_PREFIXES, 0);
#[map]
static SOURCE_RANGES_V6: LpmTrie<SourceRange<Addr6>, u32> = LpmTrie::with_max_entries(MOST_PREFIXES, 0);

/// Socket and backend -> the frontend that the socket asked for.
#[map]
static SOCKETS_V4: LruHashMap<SocketKey<Addr4>, Peer<Addr4>> = LruHashMap::with_max_entries(MOST_SOCKETS, 0);
#[map]
static SOCKETS_V6: LruHashMap<SocketKey<Addr6>, Peer<Addr6>> = LruHashMap::with_max_entries(MOST_SOCKETS, 0);

/// Datagram in fragments -> its ports.
#[map]
static DATAGRAMS_V4: LruHashMap<DatagramKey<Addr4>, DatagramPorts> = LruHashMap::with_max_entries(MOST_DATAGRAMS, 0);
#[map]
static DATAGRAMS_V6: LruHashMap<DatagramKey<Addr6>, DatagramPorts> = LruHashMap::with_max_entries(MOST_DATAGRAMS, 0);

/// Address and device -> the link address that requests for it are answered with.
#[map]
static ANNOUNCED_V4: HashMap<AnnouncedKey<Addr4>, Announced> =
    HashMap::with_max_entries(MOST_ANNOUNCED, BPF_F_NO_PREALLOC);
#[map]
static ANNOUNCED_V6: HashMap<AnnouncedKey<Addr6>, Announced> =
    HashMap::with_max_entries(MOST_ANNOUNCED, BPF_F_NO_PREALLOC);

/// One value: until when they are answered, nanoseconds since the machine was started.
#[map]
pub static ANNOUNCE_UNTIL: Array<u64> = Array::with_max_entries(1, 0);

/// One value: what the agent tells the programs.
#[map]
pub static CONFIG: Array<Config> = Array::with_max_entries(1, 0);

/// One value: classes of addresses, by hash.
#[map]
pub static FILTER: Array<[u8; FILTER_BUCKETS]> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// One value: a bit for each NodePort.
#[map]
pub static NODE_PORTS: Array<[u8; NODE_PORT_BITMAP_BYTES]> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Hook and outcome -> packets.
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTER_SLOTS, 0);

/// One value: jiffies, as `fairway_clock` last saw them.
#[map]
pub static CLOCK: Array<u64> = Array::with_max_entries(1, 0);

/// One value a CPU: the connection that it draws up.
#[map]
static DRAFTS_V4: PerCpuArray<Draft<Addr4>> = PerCpuArray::with_max_entries(1, 0);
#[map]
static DRAFTS_V6: PerCpuArray<Draft<Addr6>> = PerCpuArray::with_max_entries(1, 0);

/// One value a CPU: a number that the verifier is to forget.
#[map]
static FORGOTTEN: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);

/// The same number, by way of a map, whose contents the verifier does not know.
#[inline(always)]
pub fn launder(number: u32) -> u32 {
    FORGOTTEN.get_ptr_mut(0).map_or(0, |place| {
        // SAFETY: the value is this CPU's own, and programs on a CPU do not run at once.
        unsafe {
            place.write_volatile(number);
            place.read_volatile()
        }
    })
}

/// The maps of one address family.
pub trait Maps: Ip {
    fn connections() -> &'static HashMap<Tuple<Self::Addr>, Connection<Self::Addr>>;
    fn frontends() -> &'static HashMap<FrontendKey<Self::Addr>, Frontend>;
    fn backends() -> &'static Array<Backend<Self::Addr>>;
    fn adjacencies() -> &'static Array<Adjacency<Self::Addr>>;
    fn affinity() -> &'static LruHashMap<AffinityKey<Self::Addr>, AffinityEntry>;
    fn pod_cidrs() -> &'static LpmTrie<Self::Addr, u32>;
    fn service_cidrs() -> &'static LpmTrie<Self::Addr, u32>;
    fn source_ranges() -> &'static LpmTrie<SourceRange<Self::Addr>, u32>;
    fn sockets() -> &'static LruHashMap<SocketKey<Self::Addr>, Peer<Self::Addr>>;
    fn datagrams() -> &'static LruHashMap<DatagramKey<Self::Addr>, DatagramPorts>;
    fn announced() -> &'static HashMap<AnnouncedKey<Self::Addr>, Announced>;
    fn drafts() -> &'static PerCpuArray<Draft<Self::Addr>>;
}

macro_rules! maps_of {
    ($family:ty, $addr:ty, $($name:ident: $map:ident<$($part:ty),+> = $static:ident;)+) => {
        impl Maps for $family {
            $(#[inline(always)]
            fn $name() -> &'static $map<$($part),+> {
                &$static
            })+
        }
    };
}

maps_of! { V4, Addr4,
    connections: HashMap<Tuple<Addr4>, Connection<Addr4>> = CONNECTIONS_V4;
    frontends: HashMap<FrontendKey<Addr4>, Frontend> = FRONTENDS_V4;
    backends: Array<Backend<Addr4>> = BACKENDS_V4;
    adjacencies: Array<Adjacency<Addr4>> = ADJACENCIES_V4;
    affinity: LruHashMap<AffinityKey<Addr4>, AffinityEntry> = AFFINITY_V4;
    pod_cidrs: LpmTrie<Addr4, u32> = POD_CIDRS_V4;
    service_cidrs: LpmTrie<Addr4, u32> = SERVICE_CIDRS_V4;
    source_ranges: LpmTrie<SourceRange<Addr4>, u32> = SOURCE_RANGES_V4;
    sockets: LruHashMap<SocketKey<Addr4>, Peer<Addr4>> = SOCKETS_V4;
    datagrams: LruHashMap<DatagramKey<Addr4>, DatagramPorts> = DATAGRAMS_V4;
    announced: HashMap<AnnouncedKey<Addr4>, Announced> = ANNOUNCED_V4;
    drafts: PerCpuArray<Draft<Addr4>> = DRAFTS_V4;
}

maps_of! { V6, Addr6,
    connections: HashMap<Tuple<Addr6>, Connection<Addr6>> = CONNECTIONS_V6;
    frontends: HashMap<FrontendKey<Addr6>, Frontend> = FRONTENDS_V6;
    backends: Array<Backend<Addr6>> = BACKENDS_V6;
    adjacencies: Array<Adjacency<Addr6>> = ADJACENCIES_V6;
    affinity: LruHashMap<AffinityKey<Addr6>, AffinityEntry> = AFFINITY_V6;
    pod_cidrs: LpmTrie<Addr6, u32> = POD_CIDRS_V6;
    service_cidrs: LpmTrie<Addr6, u32> = SERVICE_CIDRS_V6;
    source_ranges: LpmTrie<SourceRange<Addr6>, u32> = SOURCE_RANGES_V6;
    sockets: LruHashMap<SocketKey<Addr6>, Peer<Addr6>> = SOCKETS_V6;
    datagrams: LruHashMap<DatagramKey<Addr6>, DatagramPorts> = DATAGRAMS_V6;
    announced: HashMap<AnnouncedKey<Addr6>, Announced> = ANNOUNCED_V6;
    drafts: PerCpuArray<Draft<Addr6>> = DRAFTS_V6;
}

/// Bits of an address's prefix, as the tries count them.
pub const fn address_bits<A: Address>() -> u32 {
    if size_of::<A>() == 4 { 32 } else { 128 }
}
