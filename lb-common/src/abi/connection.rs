//! The connection table: *a packet with this tuple, going this way, gets this new tuple*.
//!
//! ```text
//!   client C ──► frontend F            backend B answers
//!
//!   without SNAT, two entries             with SNAT to N, four entries
//!   ingress  C→F : C→B   (primary)        ingress  C→F : N→B   (primary)
//!   egress   B→C : F→C                    egress   C→B : N→F   (source N applied; F kept to find the primary)
//!                                         ingress  B→N : F→C
//!                                         egress   B→C : F→C
//!
//!   of a process of the node P, translated as its packets leave it, two entries
//!   egress   P→F : N→B   (primary)
//!   ingress  B→N : F→P
//!
//!   passed on to the node of the backend, which translates and answers, one entry
//!   ingress  C→F : C→F   (primary)
//! ```
//!
//! Ingress entries hold *both* new halves: TC ingress applies the destination only and leaves the source to TC
//! egress, XDP applies both when it sends the packet out itself. Egress entries apply the source only. An entry
//! with [`conn_flags::BOTH`] has both halves applied at its own hook (see there).

use zerocopy::{FromBytes, IntoBytes as _};

use super::{Address, Mac, Port};

/// Which way a packet passes a device of the node.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Direction {
    /// Into the node: XDP and TC ingress.
    Ingress = 0,
    /// Out of the node: TC egress.
    Egress = 1,
}

/// Key of the connection table: the tuple of a packet, and the direction in which it passes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, FromBytes)]
pub struct Tuple<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Source port.
    pub src_port: Port,
    /// Destination port.
    pub dst_port: Port,
    /// IP protocol number, see [`super::protocol`].
    pub protocol: u8,
    /// A [`Direction`].
    pub direction: u8,
    /// Zero.
    pub pad: [u8; 2],
}

/// Value of the connection table: what a packet becomes, and what is known of the flow.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Connection<A> {
    /// New source address.
    pub src: A,
    /// New destination address.
    pub dst: A,
    /// New source port.
    pub src_port: Port,
    /// New destination port.
    pub dst_port: Port,
    /// When the last packet hit this entry: the low 32 bits of jiffies (unit: 1/[`super::Config::hz`] s).
    pub last_seen: u32,
    /// Index into `ADJACENCIES` of the backend's next hop (entries of the forward way), or of the backend's node
    /// ([`conn_flags::PASSED_ON`]).
    pub adjacency: u32,
    /// Id of the Service port, see [`super::Frontend::service_port`].
    pub service_port: u32,
    /// Id of the backend, an index into `BACKENDS`.
    pub backend: u32,
    /// The device by which the client was met, and is answered.
    pub ifindex: u32,
    /// The client's next hop, learnt from its packets; zero if it has none (L3 devices).
    pub client_mac: Mac,
    /// See [`tcp_state`]; of packets that hit this very entry.
    pub state: u8,
    /// See [`conn_flags`].
    pub flags: u8,
}

/// Flags of a [`Connection`].
pub mod conn_flags {
    /// The entry is of the client's way to the backend; else of the way back.
    pub const FORWARD: u8 = 1;
    /// The connection is source-translated to an address of the node: it has four entries.
    pub const SNAT: u8 = 2;
    /// Both halves are applied at this entry's hook, also in TC. So it is for a client that uses one source
    /// port for two frontends which lead to the same backend: the second flow gets another source port as it
    /// enters the node, and its own one back as it leaves.
    pub const BOTH: u8 = 4;
    /// The first packet was translated by XDP.
    pub const BY_XDP: u8 = 8;
    /// The backend is on this node.
    pub const LOCAL: u8 = 16;
    /// A process of the node began it, and its packets are translated as they leave: it has two entries, both
    /// with [`BOTH`] and [`SNAT`]. `ifindex` is the device that the process's packets are routed to, and
    /// `client_mac` that device's own address: replies are delivered as if they came in there.
    pub const NODE: u8 = 32;
    /// This node announces the frontend's address, and passes the packets on as they are to the node of the backend, by
    /// whose link address alone that gets them. That node translates them, and answers the client itself. So when
    /// another node announces the address it needs to know nothing: by the same tables it passes the packets on to the
    /// same node, which knows the connection. (Unless the endpoints have changed since it began.)
    pub const PASSED_ON: u8 = 64;
}

/// What has been seen of a flow, by the entry that its packets hit. UDP uses `CONFIRMED` only.
pub mod tcp_state {
    /// A packet has hit the entry. (The one that opened the connection hits the primary entry.)
    pub const CONFIRMED: u8 = 1;
    /// A FIN went this way.
    pub const FIN: u8 = 2;
    /// A RST went this way.
    pub const RST: u8 = 4;
}

/// Key of the table of datagrams that come in fragments, of which the first alone has ports.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct DatagramKey<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// The sender's number for it.
    pub id: u32,
    /// IP protocol number.
    pub protocol: u8,
    /// A [`Direction`].
    pub direction: u8,
    /// Zero.
    pub pad: [u8; 2],
}

/// Value of the table of datagrams: the ports that the first fragment had at that hook.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DatagramPorts {
    /// Source port.
    pub src: Port,
    /// Destination port.
    pub dst: Port,
}

/// Key of the table of socket-level translations: a socket, and one side of what it talks to.
///
/// By the backend that it really talks to it is found what the process asked for, which it is told as its peer. By the
/// frontend that it asked for it is found which backend a UDP socket was given, which it keeps.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct SocketKey<A> {
    /// The kernel's cookie of the socket, low half.
    pub cookie_low: u32,
    /// The kernel's cookie of the socket, high half.
    pub cookie_high: u32,
    /// That side's address.
    pub addr: A,
    /// That side's port.
    pub port: Port,
    /// IP protocol number.
    pub protocol: u8,
    /// Which side it is, see [`socket_side`].
    pub side: u8,
}

/// The sides of a socket-level translation.
pub mod socket_side {
    /// What the socket really talks to.
    pub const BACKEND: u8 = 0;
    /// What the process asked for. Of UDP only.
    pub const FRONTEND: u8 = 1;
}

/// Value of the table of socket-level translations: the other side.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Peer<A> {
    /// That side's address.
    pub addr: A,
    /// That side's port.
    pub port: Port,
    /// Zero.
    pub pad: u16,
    /// Id of the Service port.
    pub service_port: u32,
    /// Id of the backend.
    pub backend: u32,
    /// When it was made or last used to send: low 32 bits of jiffies.
    pub last_seen: u32,
}

impl<A: Address> Tuple<A> {
    /// A tuple for lookups.
    ///
    /// Put together from words of 32 bits, as the kernel's hash reads it at once: a processor's load that takes in
    /// several smaller stores has to wait for them.
    #[inline(always)]
    pub fn new(direction: Direction, protocol: u8, src: (A, Port), dst: (A, Port)) -> Self {
        let ([a, b, c, d], [e, f, g, h]) = (src.0.words(), dst.0.words());
        let ([i, j], [k, l]) = (src.1.raw().to_ne_bytes(), dst.1.raw().to_ne_bytes());
        let ports = u32::from_ne_bytes([i, j, k, l]);
        let way = u32::from_ne_bytes([protocol, direction as u8, 0, 0]);
        let words = if size_of::<A>() == 4 {
            [a, e, ports, way, 0, 0, 0, 0, 0, 0]
        } else {
            [a, b, c, d, e, f, g, h, ports, way]
        };
        // There are as many bytes as the larger tuple has.
        Self::read_from_prefix(words.as_bytes()).map_or_else(|_| Self::default(), |(tuple, _)| tuple)
    }

    /// The tuple of the answer to such a packet.
    #[inline(always)]
    pub fn reversed(&self, direction: Direction) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            src_port: self.dst_port,
            dst_port: self.src_port,
            protocol: self.protocol,
            direction: direction as u8,
            pad: [0; 2],
        }
    }
}

const _: () = {
    use super::{Addr4, Addr6};
    assert!(size_of::<Tuple<Addr4>>() == 16 && size_of::<Tuple<Addr6>>() == 40);
    assert!(size_of::<Connection<Addr4>>() == 40 && size_of::<Connection<Addr6>>() == 64);
    assert!(size_of::<DatagramKey<Addr4>>() == 16 && size_of::<DatagramKey<Addr6>>() == 40);
    assert!(size_of::<DatagramPorts>() == 4);
    assert!(size_of::<SocketKey<Addr4>>() == 16 && size_of::<SocketKey<Addr6>>() == 28);
    assert!(size_of::<Peer<Addr4>>() == 20 && size_of::<Peer<Addr6>>() == 32);
};
