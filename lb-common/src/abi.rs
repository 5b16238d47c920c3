//! Layouts of what lies in BPF maps, shared by the kernel programs and the agent.
//!
//! Rules of this module: every type is `#[repr(C)]`, has no implicit padding (the kernel hashes and compares
//! keys byte by byte, so padding would have to be zeroed by luck), holds only integers and arrays of them, and
//! its size is asserted at the end of the file that defines it. Addresses, ports and MACs are kept in network
//! byte order inside types of their own ([`Addr4`], [`Addr6`], [`Port`], [`Mac`]); every plain integer is in
//! host order.
//!
//! A change of any layout changes [`LAYOUT_VERSION`], which is part of the pin directory's name.

mod address;
mod announce;
mod connection;
mod counters;
mod service;

pub use address::{Addr4, Addr6, Address, Family, Mac, Port, V4, V6};
pub use announce::{Announced, AnnouncedKey};
pub use connection::{
    Connection, DatagramKey, DatagramPorts, Direction, Peer, SocketKey, Tuple, conn_flags, socket_side, tcp_state,
};
pub use counters::{COUNTER_SLOTS, DropReason, Hook, Outcome};
pub use service::{
    Adjacency, AffinityEntry, AffinityKey, AffinityMember, Backend, BackendSet, Config, Frontend, FrontendKey, LpmKey,
    SourceRangeKey, adjacency_flags, backend_flags, config_flags, frontend_flags,
};

/// Version of all layouts together. Maps pinned by an agent with another version are not taken over.
pub const LAYOUT_VERSION: u32 = 2;

/// IP protocol numbers that have ports.
pub mod protocol {
    /// Transmission Control Protocol.
    pub const TCP: u8 = 6;
    /// User Datagram Protocol.
    pub const UDP: u8 = 17;
    /// Stream Control Transmission Protocol.
    pub const SCTP: u8 = 132;
}

/// Buckets of the address filter. A power of two: the hash of an address is masked with it.
pub const FILTER_BUCKETS: usize = 1 << 18;

/// The classes of addresses that the filter knows, one bit each. A set bit may be wrong (two addresses share a
/// bucket; an address was removed), a clear bit never is.
pub mod address_class {
    /// A ClusterIP, load balancer or external address: packets *to* it may need a frontend.
    pub const FRONTEND: u8 = 1;
    /// One of this node's addresses: NodePorts are served on it and source-translated replies return to it.
    pub const NODE: u8 = 2;
    /// An address of a backend: packets *from* it may be replies, packets *to* it may need a new source.
    pub const BACKEND: u8 = 4;
}

/// Bytes in the bitmap of NodePorts, one bit a port number, whatever the protocol.
pub const NODE_PORT_BITMAP_BYTES: usize = 8192;
