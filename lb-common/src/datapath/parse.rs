//! Headers, in bounds.
//!
//! Nothing is returned for what cannot be translated, and such a packet passes as it came: other EtherTypes and
//! protocols, more than two VLAN tags, more than six IPv6 extension headers or more than a kilobyte of them,
//! fragments (only the first has ports, and a datagram must not be split between two destinations), and headers that
//! the packet does not hold.

use super::{Translation, reject};
use crate::abi::{Addr6, Direction, Family, Port, Tuple, V4, V6, protocol};
use crate::checksum::Delta;
use crate::env::Packet;
use crate::wire::{
    Be16, Ethernet, Extension, Ipv4, Ipv6, Sctp, SctpChunk, Tcp, Udp, Vlan, ethertype, next_header, sctp_chunk,
    tcp_flags,
};

/// What the link layer says.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// What follows.
    pub ethertype: Be16,
    /// Offset of the IP header.
    pub l3: u32,
    /// Whether there are VLAN tags in the packet.
    pub tagged: bool,
}

/// What the IP and transport headers say, and where they are.
#[derive(Clone, Copy, Debug)]
pub struct Headers<F: Family> {
    /// Source address.
    pub src: F::Addr,
    /// Destination address.
    pub dst: F::Addr,
    /// Source port.
    pub src_port: Port,
    /// Destination port.
    pub dst_port: Port,
    /// TCP, UDP or SCTP.
    pub protocol: u8,
    /// Flags of TCP; of SCTP those that its first chunk amounts to; 0 for UDP.
    pub tcp_flags: u8,
    /// Whether there are VLAN tags in the packet.
    pub tagged: bool,
    /// Offset of the IP header.
    pub l3: u32,
    /// Offset of the transport header.
    pub l4: u32,
    /// Checksum of the transport header; 0 for SCTP, whose checksum is another.
    pub check: Be16,
}

/// How far a packet may go, and how large it is.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Hops left.
    pub hops: u8,
    /// Length of the IP packet by its own header, bytes.
    pub len: u32,
}

/// What differs between the families on the path of a packet.
pub trait Ip: Family {
    /// Reads the headers of a packet.
    fn parse<P: Packet>(packet: &P, link: &Link) -> Option<Headers<Self>>;

    /// Reads the headers of a packet if they are those that most have: TCP or UDP, with no extension header before.
    fn parse_plain<P: Packet>(packet: &P, link: &Link) -> Option<Headers<Self>>;

    /// Reads what forwarding a packet depends on.
    fn extent<P: Packet>(packet: &P, headers: &Headers<Self>) -> Option<Extent>;

    /// Changes addresses, hops left and what checksum the IP header has. Returns the change of a checksum that
    /// covers the addresses.
    fn rewrite<P: Packet>(packet: &mut P, translation: &Translation<'_, Self>) -> Option<Delta>;

    /// Makes an ICMP message of a packet, see [`reject`].
    fn make_unreachable<P: Packet>(packet: &mut P, headers: &Headers<Self>) -> Option<()>;
}

impl<F: Family> Headers<F> {
    /// The packet's tuple.
    #[inline(always)]
    pub fn tuple(&self, direction: Direction) -> Tuple<F::Addr> {
        Tuple::new(
            direction,
            self.protocol,
            (self.src, self.src_port),
            (self.dst, self.dst_port),
        )
    }
}

/// Reads the link header and up to two VLAN tags.
#[inline(always)]
pub fn link<P: Packet>(packet: &P) -> Option<Link> {
    if !P::ETHERNET {
        return Some(Link {
            ethertype: packet.ethertype(),
            l3: 0,
            tagged: false,
        });
    }
    let ethernet: Ethernet = packet.load(0)?;
    let untagged = Link {
        ethertype: ethernet.ethertype,
        l3: size_of::<Ethernet>() as u32,
        tagged: false,
    };
    if !is_tag(untagged.ethertype) {
        return Some(untagged);
    }
    let outer: Vlan = packet.load(untagged.l3)?;
    if !is_tag(outer.ethertype) {
        return Some(Link {
            ethertype: outer.ethertype,
            l3: 18,
            tagged: true,
        });
    }
    let inner: Vlan = packet.load(18)?;
    Some(Link {
        ethertype: inner.ethertype,
        l3: 22,
        tagged: true,
    })
}

#[inline(always)]
fn is_tag(ethertype: Be16) -> bool {
    ethertype == ethertype::VLAN || ethertype == ethertype::SERVICE_VLAN
}

/// Transport header: ports, TCP flags, checksum.
struct Transport {
    src: Port,
    dst: Port,
    tcp_flags: u8,
    check: Be16,
}

/// The transport header of a protocol that most packets have.
#[inline(always)]
fn plain_transport<P: Packet>(packet: &P, protocol: u8, l4: u32) -> Option<Transport> {
    match protocol {
        protocol::TCP => {
            let tcp: Tcp = packet.load(l4)?;
            Some(Transport {
                src: tcp.src,
                dst: tcp.dst,
                tcp_flags: tcp.flags,
                check: tcp.check,
            })
        }
        protocol::UDP => {
            let udp: Udp = packet.load(l4)?;
            Some(Transport {
                src: udp.src,
                dst: udp.dst,
                tcp_flags: 0,
                check: udp.check,
            })
        }
        _ => None,
    }
}

#[inline(always)]
fn transport<P: Packet>(packet: &P, protocol: u8, l4: u32) -> Option<Transport> {
    if protocol != protocol::SCTP {
        return plain_transport(packet, protocol, l4);
    }
    let sctp: Sctp = packet.load(l4)?;
    let first: Option<SctpChunk> = packet.load(l4.wrapping_add(size_of::<Sctp>() as u32));
    let kind = first.map_or(0, |chunk| chunk.kind);
    Some(Transport {
        src: sctp.src,
        dst: sctp.dst,
        tcp_flags: MEANINGS.get(usize::from(kind)).copied().unwrap_or(0),
        check: Be16::default(),
    })
}

/// The flags of TCP that a type of SCTP chunk amounts to. A table, since the verifier would walk the rest of a program
/// once for each flag that it knows to be set.
static MEANINGS: [u8; 256] = meanings();

#[expect(clippy::indexing_slicing, reason = "evaluated by the compiler, which would refuse")]
const fn meanings() -> [u8; 256] {
    let mut meanings = [0; 256];
    meanings[sctp_chunk::INIT as usize] = tcp_flags::SYN;
    meanings[sctp_chunk::SHUTDOWN as usize] = tcp_flags::FIN;
    meanings[sctp_chunk::SHUTDOWN_ACK as usize] = tcp_flags::FIN;
    meanings[sctp_chunk::SHUTDOWN_COMPLETE as usize] = tcp_flags::RST;
    meanings[sctp_chunk::ABORT as usize] = tcp_flags::RST;
    meanings
}

impl Ip for V4 {
    #[inline(always)]
    fn parse<P: Packet>(packet: &P, link: &Link) -> Option<Headers<Self>> {
        let (protocol, l4) = next_v4(packet, link)?;
        let transport = transport(packet, protocol, l4)?;
        headers_v4(packet, link, protocol, l4, &transport)
    }

    #[inline(always)]
    fn parse_plain<P: Packet>(packet: &P, link: &Link) -> Option<Headers<Self>> {
        let (protocol, l4) = next_v4(packet, link)?;
        let transport = plain_transport(packet, protocol, l4)?;
        headers_v4(packet, link, protocol, l4, &transport)
    }

    #[inline(always)]
    fn extent<P: Packet>(packet: &P, headers: &Headers<Self>) -> Option<Extent> {
        let ip: Ipv4 = packet.load(headers.l3)?;
        Some(Extent {
            hops: ip.ttl,
            len: u32::from(ip.total_len.get()),
        })
    }

    #[inline(always)]
    fn rewrite<P: Packet>(packet: &mut P, translation: &Translation<'_, Self>) -> Option<Delta> {
        let mut delta = Delta::default();
        packet.update(translation.headers.l3, |ip: &mut Ipv4| {
            let (src, dst) = translation.addresses(ip.src, ip.dst);
            delta = delta.address(&ip.src, &src).address(&ip.dst, &dst);
            ip.check = delta.first_byte_less(translation.hops).apply(ip.check);
            ip.ttl = ip.ttl.wrapping_sub(translation.hops);
            (ip.src, ip.dst) = (src, dst);
        })?;
        Some(delta)
    }

    #[inline(always)]
    fn make_unreachable<P: Packet>(packet: &mut P, headers: &Headers<Self>) -> Option<()> {
        reject::write_icmp_v4(packet, headers)
    }
}

impl Ip for V6 {
    #[inline(always)]
    fn parse<P: Packet>(packet: &P, link: &Link) -> Option<Headers<Self>> {
        let (next, first) = next_v6(packet, link)?;
        let (protocol, l4) = if is_transport(next) {
            (next, first)
        } else {
            skip_extensions(packet, next, first)?
        };
        let transport = transport(packet, protocol, l4)?;
        headers_v6(packet, link, protocol, l4, &transport)
    }

    #[inline(always)]
    fn parse_plain<P: Packet>(packet: &P, link: &Link) -> Option<Headers<Self>> {
        let (protocol, l4) = next_v6(packet, link)?;
        let transport = plain_transport(packet, protocol, l4)?;
        headers_v6(packet, link, protocol, l4, &transport)
    }

    #[inline(always)]
    fn extent<P: Packet>(packet: &P, headers: &Headers<Self>) -> Option<Extent> {
        let ip: Ipv6 = packet.load(headers.l3)?;
        Some(Extent {
            hops: ip.hop_limit,
            len: u32::from(ip.payload_len.get()).wrapping_add(size_of::<Ipv6>() as u32),
        })
    }

    #[inline(always)]
    fn rewrite<P: Packet>(packet: &mut P, translation: &Translation<'_, Self>) -> Option<Delta> {
        // Address by address: the kernel has no registers for both at once.
        const SRC: u32 = 8;
        const DST: u32 = 24;
        let l3 = translation.headers.l3;
        let mut delta = Delta::default();
        packet.update(l3.wrapping_add(DST), |dst: &mut Addr6| {
            let new = translation.addresses(*dst, *dst).1;
            delta = delta.address(dst, &new);
            *dst = new;
        })?;
        packet.update(l3.wrapping_add(SRC), |src: &mut Addr6| {
            let new = translation.addresses(*src, *src).0;
            delta = delta.address(src, &new);
            *src = new;
        })?;
        if translation.hops != 0 {
            packet.update(l3, |ip: &mut Ipv6| {
                ip.hop_limit = ip.hop_limit.wrapping_sub(translation.hops);
            })?;
        }
        Some(delta)
    }

    #[inline(always)]
    fn make_unreachable<P: Packet>(packet: &mut P, headers: &Headers<Self>) -> Option<()> {
        reject::write_icmp_v6(packet, headers)
    }
}

/// Protocol and offset of what follows the IPv4 header.
#[inline(always)]
fn next_v4<P: Packet>(packet: &P, link: &Link) -> Option<(u8, u32)> {
    /// More fragments, or an offset other than zero.
    const FRAGMENT: u16 = 0x3fff;
    let ip: Ipv4 = packet.load(link.l3)?;
    let header_len = u32::from(ip.version_ihl & 0x0f) << 2;
    if ip.version_ihl >> 4 != 4 || header_len < 20 || ip.fragment.get() & FRAGMENT != 0 {
        return None;
    }
    Some((ip.protocol, link.l3.wrapping_add(header_len)))
}

/// Number and offset of what follows the IPv6 header.
#[inline(always)]
fn next_v6<P: Packet>(packet: &P, link: &Link) -> Option<(u8, u32)> {
    let ip: Ipv6 = packet.load(link.l3)?;
    if ip.version_class >> 4 != 6 {
        return None;
    }
    Some((ip.next_header, link.l3.wrapping_add(size_of::<Ipv6>() as u32)))
}

/// Puts the headers together. Addresses are read here, so that the kernel need not keep them meanwhile.
#[inline(always)]
fn headers_v4<P: Packet>(packet: &P, link: &Link, protocol: u8, l4: u32, transport: &Transport) -> Option<Headers<V4>> {
    let addresses: Ipv4 = packet.load(link.l3)?;
    Some(headers(link, (addresses.src, addresses.dst), protocol, l4, transport))
}

/// As [`headers_v4`].
#[inline(always)]
fn headers_v6<P: Packet>(packet: &P, link: &Link, protocol: u8, l4: u32, transport: &Transport) -> Option<Headers<V6>> {
    let addresses: Ipv6 = packet.load(link.l3)?;
    Some(headers(link, (addresses.src, addresses.dst), protocol, l4, transport))
}

#[inline(always)]
fn headers<F: Family>(
    link: &Link,
    (src, dst): (F::Addr, F::Addr),
    protocol: u8,
    l4: u32,
    transport: &Transport,
) -> Headers<F> {
    Headers {
        src,
        dst,
        src_port: transport.src,
        dst_port: transport.dst,
        protocol,
        tcp_flags: transport.tcp_flags,
        tagged: link.tagged,
        l3: link.l3,
        l4,
        check: transport.check,
    }
}

#[inline(always)]
fn is_transport(next: u8) -> bool {
    next == protocol::TCP || next == protocol::UDP || next == protocol::SCTP
}

/// Walks over extension headers to the transport header.
#[inline(always)]
fn skip_extensions<P: Packet>(packet: &P, first: u8, at: u32) -> Option<(u8, u32)> {
    const MOST: u32 = 6;
    /// Where the transport header begins at the latest. The kernel programs address the first 2 kB of a packet.
    const FARTHEST: u32 = 1024;
    let (mut next, mut at) = (first, at);
    for _ in 0..MOST {
        let unit = match next {
            next_header::HOP_BY_HOP | next_header::ROUTING | next_header::DESTINATION => 8,
            next_header::AUTHENTICATION => 4,
            _ => return None,
        };
        let extension: Extension = packet.load(at)?;
        let beyond = u32::from(extension.length).wrapping_mul(unit);
        at = at.wrapping_add(beyond).wrapping_add(8);
        if at > FARTHEST {
            return None;
        }
        next = extension.next_header;
        if is_transport(next) {
            return Some((next, packet.launder(at)));
        }
    }
    None
}
