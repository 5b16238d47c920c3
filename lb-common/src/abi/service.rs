//! Frontends, backends and what leads from one to the other.
//!
//! The agent decides, the data path looks up: every question about policies, topology or the kind of a
//! frontend has been answered by the agent in the form of two backend sets and a few flags.

use super::{Addr4, Addr6, Mac, Port};

/// Key of `FRONTENDS`: what a packet's destination is matched with.
///
/// Port 0 with protocol 0 stands for *every other port of this address*: the agent adds it for each ClusterIP,
/// whose undefined ports reject.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct FrontendKey<A> {
    /// The address.
    pub addr: A,
    /// The port.
    pub port: Port,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
}

/// Backends to choose from: an extent of the array `MAGLEV`, filled with backend ids.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct BackendSet {
    /// Index of the first slot.
    pub offset: u32,
    /// Number of slots; 0 = there is nobody to send to.
    pub size: u32,
}

/// Value of `FRONTENDS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Frontend {
    /// Id of the Service port (namespace/name:port) that it belongs to; session affinity and source ranges are
    /// kept by it. 0 is nobody's.
    pub service_port: u32,
    /// See [`frontend_flags`].
    pub flags: u32,
    /// Session affinity timeout in seconds.
    pub affinity_timeout_s: u32,
    /// For clients from outside the node.
    pub external: BackendSet,
    /// For pods on this node and for its processes.
    pub internal: BackendSet,
}

/// Flags of a [`Frontend`].
pub mod frontend_flags {
    /// Clients from outside the node are masqueraded.
    pub const MASQUERADE_EXTERNAL: u32 = 1;
    /// Pods on this node are masqueraded.
    pub const MASQUERADE_POD: u32 = 2;
    /// Processes of this node are masqueraded (where the packet, not the socket, is translated).
    pub const MASQUERADE_NODE: u32 = 4;
    /// An empty `external` set drops; else it rejects.
    pub const DROP_EXTERNAL: u32 = 8;
    /// An empty `internal` set drops; else it rejects.
    pub const DROP_INTERNAL: u32 = 16;
    /// Session affinity by client address.
    pub const AFFINITY: u32 = 32;
    /// Only clients in `SOURCE_RANGES` may come, others are dropped.
    pub const SOURCE_RANGES: u32 = 64;
    /// Sockets of pods may be translated when they connect: no usable backend is on this node (so no hairpin
    /// can come of it) and pods are not masqueraded.
    pub const POD_SOCKETS: u32 = 128;
    /// The address is one of the node's own, or loopback: what the node's processes send there comes by no device,
    /// so only their sockets can be translated.
    pub const OWN_ADDRESS: u32 = 256;
    /// For sockets of the node's processes only: a NodePort on the loopback address.
    pub const ONLY_SOCKETS: u32 = 512;
    /// Some backend for the node's processes has an address of the node itself: their packets to it meet no hook.
    pub const OWN_BACKEND: u32 = 1024;
    /// It is a ClusterIP.
    pub const CLUSTER_IP: u32 = 1 << 16;
    /// It is a NodePort on an address of the node.
    pub const NODE_PORT: u32 = 1 << 17;
    /// It is a load balancer address.
    pub const LOAD_BALANCER: u32 = 1 << 18;
    /// It is an external IP.
    pub const EXTERNAL_IP: u32 = 1 << 19;
}

/// Value of the array `BACKENDS`; its index is the backend's id. Id 0 is never used.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Backend<A> {
    /// Address of the endpoint.
    pub addr: A,
    /// Port of the endpoint.
    pub port: Port,
    /// See [`backend_flags`].
    pub flags: u16,
    /// Index into `ADJACENCIES`. 0 = none known: the node's stack finds the way.
    pub adjacency: u16,
    /// Index into `ADJACENCIES` of the way to the node that it is on, if that runs Fairway and is a neighbour of this
    /// one. 0 = none known. See [`super::conn_flags::PASSED_ON`].
    pub node: u16,
}

/// Flags of a [`Backend`].
pub mod backend_flags {
    /// Some Service uses it. A cleared flag lets a new SYN of a known flow choose again.
    pub const LIVE: u16 = 1;
    /// It is on this node.
    pub const LOCAL: u16 = 2;
    /// Its address is one of this node's own: masquerading would gain nothing.
    pub const NODE_ADDRESS: u16 = 4;
}

/// Value of the array `ADJACENCIES`: a next hop of the node. Index 0 is never resolved and has no device.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Adjacency<A> {
    /// The device the packet leaves by.
    pub ifindex: u32,
    /// See [`adjacency_flags`].
    pub flags: u16,
    /// Largest IP packet the device takes, bytes.
    pub mtu: u16,
    /// Ethernet address of the next hop.
    pub dst_mac: Mac,
    /// Ethernet address of the device.
    pub src_mac: Mac,
    /// The address that masquerading uses on this way; unspecified (zero) if the node has none.
    pub masquerade: A,
}

impl<A> Adjacency<A> {
    /// Whether packets may be sent there at once, out of this device.
    #[inline(always)]
    pub fn is_fast_by(&self, ifindex: u32) -> bool {
        self.flags & adjacency_flags::FAST != 0 && self.ifindex == ifindex
    }
}

/// Flags of an [`Adjacency`].
pub mod adjacency_flags {
    /// The Ethernet addresses are known, and packets may be sent there by them: from an uplink with XDP, or on to another
    /// node ([`super::Backend::node`]).
    pub const FAST: u16 = 1;
}

/// Key of `AFFINITY`: a client of a Service port.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct AffinityKey<A> {
    /// The client's address.
    pub client: A,
    /// Id of the Service port.
    pub service_port: u32,
}

/// Value of `AFFINITY`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AffinityEntry {
    /// Id of the backend that the client is pinned to.
    pub backend: u32,
    /// When a new connection last used it: low 32 bits of jiffies.
    pub last_used: u32,
}

/// Key of `AFFINITY_MEMBERS`, a set: *the backend is in the set that starts at this offset*. Kept for sets of
/// Services with affinity only.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct AffinityMember {
    /// [`BackendSet::offset`].
    pub offset: u32,
    /// Id of the backend.
    pub backend: u32,
}

/// Key of the longest-prefix tries `POD_CIDRS` (which sources are pods of this node) and `SERVICE_CIDRS`
/// (which destinations are ClusterIPs, assigned or not).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct LpmKey<A> {
    /// Length of the prefix in bits.
    pub prefix_len: u32,
    /// The address.
    pub addr: A,
}

/// Key of the longest-prefix tries `SOURCE_RANGES`: a Service port's id, wholly significant, then the prefix.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct SourceRangeKey<A> {
    /// 32 + length of the prefix in bits.
    pub prefix_len: u32,
    /// Id of the Service port.
    pub service_port: u32,
    /// The client's address.
    pub addr: A,
}

/// The one value of `CONFIG`: what the agent tells the programs beyond Services.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Config {
    /// Jiffies per second.
    pub hz: u32,
    /// First port that source translation may use.
    pub snat_port_min: u16,
    /// Last port that source translation may use.
    pub snat_port_max: u16,
    /// Cookie of the node's network namespace, low half: tells its processes from pods.
    pub netns_cookie_low: u32,
    /// Cookie of the node's network namespace, high half.
    pub netns_cookie_high: u32,
    /// See [`config_flags`].
    pub flags: u32,
    /// Zero.
    pub pad: u32,
}

/// Flags of [`Config`].
pub mod config_flags {
    /// `SERVICE_CIDRS_V4` or `_V6` has entries: addresses in it that no Service owns are dropped.
    pub const SERVICE_CIDRS: u32 = 1;
    /// Sockets outside the node's network namespace that meet the hooks are pods' of this node.
    pub const POD_SOCKETS: u32 = 2;
    /// Pods of this node are known by the devices in `POD_DEVICES` that their packets come in by; else by their
    /// addresses, which lie in `POD_CIDRS`.
    pub const POD_DEVICES: u32 = 4;
}

const _: () = {
    assert!(size_of::<FrontendKey<Addr4>>() == 8 && size_of::<FrontendKey<Addr6>>() == 20);
    assert!(size_of::<Frontend>() == 28);
    assert!(size_of::<Backend<Addr4>>() == 12 && size_of::<Backend<Addr6>>() == 24);
    assert!(size_of::<Adjacency<Addr4>>() == 24 && size_of::<Adjacency<Addr6>>() == 36);
    assert!(size_of::<AffinityKey<Addr4>>() == 8 && size_of::<AffinityKey<Addr6>>() == 20);
    assert!(size_of::<LpmKey<Addr4>>() == 8 && size_of::<LpmKey<Addr6>>() == 20);
    assert!(size_of::<SourceRangeKey<Addr4>>() == 12 && size_of::<SourceRangeKey<Addr6>>() == 24);
    assert!(size_of::<Config>() == 24);
};
