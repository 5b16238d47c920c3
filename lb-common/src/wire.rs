//! Headers as they lie in packets, and the walk over them.
//!
//! ```text
//!   Ethernet (14) [VLAN (4) [VLAN (4)]]  │ IPv4 (20..60)                     │ TCP | UDP | SCTP
//!   nothing, on devices without links    │ IPv6 (40) [extension headers ...] │
//! ```
//!
//! Fields wider than a byte are kept as the packet has them, in network byte order: in [`Port`], [`Addr4`],
//! [`Addr6`], [`Mac`], or as [`Be16`].

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::abi::{Addr4, Addr6, Mac, Port};

/// A header: plain bytes, without padding, that can be read from and written to any offset of a packet.
pub trait Wire: FromBytes + IntoBytes + Immutable + Copy + 'static {}
impl<T: FromBytes + IntoBytes + Immutable + Copy + 'static> Wire for T {}

/// Two bytes in network order.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Be16(u16);

impl Be16 {
    /// From a number in host order.
    #[inline(always)]
    pub const fn new(host: u16) -> Self {
        Self(host.to_be())
    }

    /// The number in host order.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }

    /// As it lies in memory, for checksums.
    #[inline(always)]
    pub const fn raw(self) -> u16 {
        self.0
    }

    /// From what lies in memory.
    #[inline(always)]
    pub const fn from_raw(raw: u16) -> Self {
        Self(raw)
    }
}

/// EtherType values.
pub mod ethertype {
    use super::Be16;
    /// IPv4.
    pub const IPV4: Be16 = Be16::new(0x0800);
    /// ARP.
    pub const ARP: Be16 = Be16::new(0x0806);
    /// IPv6.
    pub const IPV6: Be16 = Be16::new(0x86dd);
    /// IEEE 802.1Q tag.
    pub const VLAN: Be16 = Be16::new(0x8100);
    /// IEEE 802.1ad service tag.
    pub const SERVICE_VLAN: Be16 = Be16::new(0x88a8);
}

/// Numbers of the IPv6 extension headers that may stand before the transport header, and of ICMP.
pub mod next_header {
    /// Hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// Routing.
    pub const ROUTING: u8 = 43;
    /// Fragment.
    pub const FRAGMENT: u8 = 44;
    /// Authentication header; its length counts words of 4 bytes.
    pub const AUTHENTICATION: u8 = 51;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// Destination options.
    pub const DESTINATION: u8 = 60;
}

/// Ethernet header.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Ethernet {
    /// Destination.
    pub dst: Mac,
    /// Source.
    pub src: Mac,
    /// What follows.
    pub ethertype: Be16,
}

/// VLAN tag, after the EtherType that announced it.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Vlan {
    /// Priority and VLAN id.
    pub tci: Be16,
    /// What follows.
    pub ethertype: Be16,
}

/// IPv4 header without options.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Ipv4 {
    /// 4 in the upper half, header length in words of 4 bytes in the lower.
    pub version_ihl: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Length of header and payload in bytes.
    pub total_len: Be16,
    /// Identification.
    pub id: Be16,
    /// Flags (three bits) and fragment offset (units of 8 bytes).
    pub fragment: Be16,
    /// Time to live, hops.
    pub ttl: u8,
    /// IP protocol number.
    pub protocol: u8,
    /// Header checksum.
    pub check: Be16,
    /// Source.
    pub src: Addr4,
    /// Destination.
    pub dst: Addr4,
}

/// IPv6 header.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Ipv6 {
    /// Version (6, upper half) and part of the traffic class.
    pub version_class: u8,
    /// Rest of the traffic class, and flow label.
    pub flow: [u8; 3],
    /// Bytes after this header.
    pub payload_len: Be16,
    /// Number of the next header.
    pub next_header: u8,
    /// Hops left.
    pub hop_limit: u8,
    /// Source.
    pub src: Addr6,
    /// Destination.
    pub dst: Addr6,
}

/// First bytes of an IPv6 extension header.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Extension {
    /// Number of the next header.
    pub next_header: u8,
    /// Length beyond the first 8 bytes, in units of 8 (authentication: 4, beyond the first 2 units).
    pub length: u8,
}

/// IPv6 fragment header.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Fragment {
    /// Number of the next header.
    pub next_header: u8,
    /// Zero.
    pub reserved: u8,
    /// Offset (units of 8 bytes, 13 bits), two bits of zeros, whether more follow.
    pub offset: Be16,
    /// Identification, upper half.
    pub id_high: Be16,
    /// Identification, lower half.
    pub id_low: Be16,
}

/// TCP header up to and with its checksum.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Tcp {
    /// Source port.
    pub src: Port,
    /// Destination port.
    pub dst: Port,
    /// Sequence number.
    pub seq: [u8; 4],
    /// Acknowledgement number.
    pub ack: [u8; 4],
    /// Header length in words of 4 bytes, upper half.
    pub offset: u8,
    /// See [`tcp_flags`].
    pub flags: u8,
    /// Window.
    pub window: Be16,
    /// Checksum.
    pub check: Be16,
}

/// What the headers of TCP, UDP and SCTP begin with.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Ports {
    /// Source port.
    pub src: Port,
    /// Destination port.
    pub dst: Port,
}

/// Flags of a TCP header.
pub mod tcp_flags {
    /// No more data from the sender.
    pub const FIN: u8 = 1;
    /// Opens a connection.
    pub const SYN: u8 = 2;
    /// Resets the connection.
    pub const RST: u8 = 4;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 16;
}

/// UDP header.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Udp {
    /// Source port.
    pub src: Port,
    /// Destination port.
    pub dst: Port,
    /// Length of header and payload.
    pub len: Be16,
    /// Checksum; 0 over IPv4 = none was computed.
    pub check: Be16,
}

/// SCTP header, before the first chunk.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Sctp {
    /// Source port.
    pub src: Port,
    /// Destination port.
    pub dst: Port,
    /// Verification tag.
    pub tag: [u8; 4],
    /// CRC32c, lowest byte first; 0 = yet to be computed, see [`crate::crc32c`].
    pub check: [u8; 4],
}

impl Sctp {
    /// Both ports as a number, first byte lowest.
    #[inline(always)]
    pub const fn ports(&self) -> u32 {
        let ([a, b], [c, d]) = (self.src.raw().to_ne_bytes(), self.dst.raw().to_ne_bytes());
        u32::from_le_bytes([a, b, c, d])
    }
}

/// First bytes of an SCTP chunk.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SctpChunk {
    /// See [`sctp_chunk`].
    pub kind: u8,
    /// Their meaning depends on the type.
    pub flags: u8,
    /// Length with these four bytes.
    pub len: Be16,
}

/// Types of SCTP chunks that begin or end an association (RFC 9260 section 3.2).
pub mod sctp_chunk {
    /// Opens an association.
    pub const INIT: u8 = 1;
    /// Breaks it off.
    pub const ABORT: u8 = 6;
    /// No more data from the sender.
    pub const SHUTDOWN: u8 = 7;
    /// The answer to that.
    pub const SHUTDOWN_ACK: u8 = 8;
    /// The association is over.
    pub const SHUTDOWN_COMPLETE: u8 = 14;
}

/// ICMP and ICMPv6 header of an error.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Icmp {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Checksum.
    pub check: Be16,
    /// Rest of the header; its meaning depends on the type.
    pub rest: [u8; 4],
}

/// ARP message about IPv4 over Ethernet (RFC 826). Its addresses lie unaligned.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Arp {
    /// What is asked for: the first 6 bytes say that it is link addresses of Ethernet for IPv4, see [`Arp::KIND`].
    pub kind: [u8; 6],
    /// See [`arp_operation`].
    pub operation: Be16,
    /// Link address of the sender.
    pub sender_mac: Mac,
    /// The sender; zero if it has no address yet.
    pub sender: [u8; 4],
    /// Link address of whom it is about, in a reply.
    pub target_mac: Mac,
    /// Whom it is about.
    pub target: [u8; 4],
}

impl Arp {
    /// Hardware type 1 (Ethernet), protocol type 0x0800 (IPv4), 6 and 4 bytes in an address.
    pub const KIND: [u8; 6] = [0, 1, 8, 0, 6, 4];
}

/// Operations of [`Arp`].
pub mod arp_operation {
    use super::Be16;
    /// Who has it?
    pub const REQUEST: Be16 = Be16::new(1);
    /// I have.
    pub const REPLY: Be16 = Be16::new(2);
}

/// Neighbour solicitation or advertisement (RFC 4861 sections 4.3 and 4.4), before its options.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Neighbour {
    /// See [`neighbour_kind`].
    pub kind: u8,
    /// Zero.
    pub code: u8,
    /// Checksum.
    pub check: Be16,
    /// Advertisements: router, solicited, override in the upper three bits of the first byte.
    pub flags: [u8; 4],
    /// Whom it is about.
    pub target: Addr6,
}

/// ICMPv6 types of [`Neighbour`].
pub mod neighbour_kind {
    /// Who has it?
    pub const SOLICITATION: u8 = 135;
    /// I have.
    pub const ADVERTISEMENT: u8 = 136;
}

/// First bytes of an option of neighbour discovery.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct NeighbourOption {
    /// See [`neighbour_option`].
    pub kind: u8,
    /// Length with these bytes, in units of 8.
    pub length: u8,
}

/// An option of neighbour discovery that tells a link address.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct LinkAddress {
    /// What it is.
    pub option: NeighbourOption,
    /// The link address.
    pub mac: Mac,
}

/// Types of [`LinkAddress`].
pub mod neighbour_option {
    /// Of the sender.
    pub const SOURCE: u8 = 1;
    /// Of the target.
    pub const TARGET: u8 = 2;
}

/// Offset of the checksum in a TCP header.
pub const TCP_CHECK_OFFSET: u32 = 16;
/// Offset of the checksum in a UDP header.
pub const UDP_CHECK_OFFSET: u32 = 6;

const _: () = {
    assert!(size_of::<Ethernet>() == 14 && size_of::<Ipv4>() == 20 && size_of::<Ipv6>() == 40);
    assert!(size_of::<Tcp>() == 18 && size_of::<Udp>() == 8 && size_of::<Icmp>() == 8);
    assert!(size_of::<Arp>() == 28 && size_of::<Neighbour>() == 24 && size_of::<LinkAddress>() == 8);
    assert!(size_of::<Sctp>() == 12 && size_of::<SctpChunk>() == 4);
};
