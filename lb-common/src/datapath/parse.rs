//! Headers, in bounds.
//!
//! Nothing is returned for what cannot be translated, and such a packet passes as it came: other EtherTypes and
//! protocols, more than two VLAN tags, more than six IPv6 extension headers or more than a kilobyte of them, and
//! headers that the packet does not hold. Fragments that are not the first have no ports: see [`fragment`].

use super::fragment::{Part, Piece};
use super::icmp::{self, Places};
use super::{Translation, reject, transport};
use crate::abi::{Addr4, Addr6, Direction, Family, Port, Tuple, V4, V6};
use crate::checksum::Delta;
use crate::env::{Packet, Quote};
use crate::wire::{Be16, Ethernet, Extension, Fragment, Ipv4, Ipv6, Vlan, ethertype, next_header};

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
    /// What of a datagram it is.
    pub piece: Piece,
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

    /// Finds the headers of an ICMP error and of what it quotes, see [`icmp`].
    fn parse_error<P: Packet>(packet: &P, link: &Link) -> Option<Places>;

    /// Notes the addresses of an ICMP error and of what it quotes.
    fn read_error<P: Packet>(packet: &P, places: &Places, quote: &mut Quote<Self::Addr>) -> Option<()>;

    /// Gives an ICMP error and what it quotes these addresses and ports, see [`icmp`].
    fn rewrite_error<P: Packet>(packet: &mut P, places: &Places, new: &Quote<Self::Addr>) -> Option<()>;

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

impl Ip for V4 {
    #[inline(always)]
    fn parse<P: Packet>(packet: &P, link: &Link) -> Option<Headers<Self>> {
        let (protocol, l4, piece) = next_v4(packet, link)?;
        let transport = transport::of_piece(packet, protocol, l4, piece)?;
        headers_v4(packet, link, (protocol, l4, piece), &transport)
    }

    #[inline(always)]
    fn parse_plain<P: Packet>(packet: &P, link: &Link) -> Option<Headers<Self>> {
        let (protocol, l4, piece) = next_v4(packet, link)?;
        if piece.part != Part::Whole {
            return None;
        }
        let transport = transport::plain(packet, protocol, l4)?;
        headers_v4(packet, link, (protocol, l4, Piece::default()), &transport)
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
    fn parse_error<P: Packet>(packet: &P, link: &Link) -> Option<Places> {
        icmp::parse_v4(packet, link)
    }

    #[inline(always)]
    fn read_error<P: Packet>(packet: &P, places: &Places, quote: &mut Quote<Addr4>) -> Option<()> {
        icmp::read_v4(packet, places, quote)
    }

    #[inline(always)]
    fn rewrite_error<P: Packet>(packet: &mut P, places: &Places, new: &Quote<Addr4>) -> Option<()> {
        icmp::rewrite_v4(packet, places, new)
    }

    #[inline(always)]
    fn make_unreachable<P: Packet>(packet: &mut P, headers: &Headers<Self>) -> Option<()> {
        reject::write_icmp_v4(packet, headers)
    }
}

impl Ip for V6 {
    #[inline(always)]
    fn parse<P: Packet>(packet: &P, link: &Link) -> Option<Headers<Self>> {
        let (mut next, mut l4) = next_v6(packet, link)?;
        let mut piece = Piece::default();
        if !is_last(next) {
            (next, l4) = skip_extensions(packet, next, l4)?;
        }
        if next == next_header::FRAGMENT {
            let fragment: Fragment = packet.load(l4)?;
            piece = Piece::v6(&fragment);
            next = fragment.next_header;
            l4 = packet.launder(l4.wrapping_add(size_of::<Fragment>() as u32));
        }
        let transport = transport::of_piece(packet, next, l4, piece)?;
        headers_v6(packet, link, (next, l4, piece), &transport)
    }

    #[inline(always)]
    fn parse_plain<P: Packet>(packet: &P, link: &Link) -> Option<Headers<Self>> {
        let (protocol, l4) = next_v6(packet, link)?;
        let transport = transport::plain(packet, protocol, l4)?;
        headers_v6(packet, link, (protocol, l4, Piece::default()), &transport)
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
    fn parse_error<P: Packet>(packet: &P, link: &Link) -> Option<Places> {
        icmp::parse_v6(packet, link)
    }

    #[inline(always)]
    fn read_error<P: Packet>(packet: &P, places: &Places, quote: &mut Quote<Addr6>) -> Option<()> {
        icmp::read_v6(packet, places, quote)
    }

    #[inline(always)]
    fn rewrite_error<P: Packet>(packet: &mut P, places: &Places, new: &Quote<Addr6>) -> Option<()> {
        icmp::rewrite_v6(packet, places, new)
    }

    #[inline(always)]
    fn make_unreachable<P: Packet>(packet: &mut P, headers: &Headers<Self>) -> Option<()> {
        reject::write_icmp_v6(packet, headers)
    }
}

/// Protocol and offset of what follows the IPv4 header, and what of a datagram it is.
#[inline(always)]
pub(super) fn next_v4<P: Packet>(packet: &P, link: &Link) -> Option<(u8, u32, Piece)> {
    let ip: Ipv4 = packet.load(link.l3)?;
    let header_len = u32::from(ip.version_ihl & 0x0f) << 2;
    if ip.version_ihl >> 4 != 4 || header_len < 20 {
        return None;
    }
    Some((ip.protocol, link.l3.wrapping_add(header_len), Piece::v4(&ip)))
}

/// Number and offset of what follows the IPv6 header.
#[inline(always)]
pub(super) fn next_v6<P: Packet>(packet: &P, link: &Link) -> Option<(u8, u32)> {
    let ip: Ipv6 = packet.load(link.l3)?;
    if ip.version_class >> 4 != 6 {
        return None;
    }
    Some((ip.next_header, link.l3.wrapping_add(size_of::<Ipv6>() as u32)))
}

/// Puts the headers together. Addresses are read here, so that the kernel need not keep them meanwhile.
#[inline(always)]
fn headers_v4<P: Packet>(
    packet: &P,
    link: &Link,
    at: (u8, u32, Piece),
    transport: &transport::Transport,
) -> Option<Headers<V4>> {
    let addresses: Ipv4 = packet.load(link.l3)?;
    Some(headers(link, (addresses.src, addresses.dst), at, transport))
}

/// As [`headers_v4`].
#[inline(always)]
fn headers_v6<P: Packet>(
    packet: &P,
    link: &Link,
    at: (u8, u32, Piece),
    transport: &transport::Transport,
) -> Option<Headers<V6>> {
    let addresses: Ipv6 = packet.load(link.l3)?;
    Some(headers(link, (addresses.src, addresses.dst), at, transport))
}

#[inline(always)]
fn headers<F: Family>(
    link: &Link,
    (src, dst): (F::Addr, F::Addr),
    (protocol, l4, piece): (u8, u32, Piece),
    transport: &transport::Transport,
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
        piece,
    }
}

/// Whether it ends the walk over extension headers.
#[inline(always)]
fn is_last(next: u8) -> bool {
    transport::is_ported(next) || next == next_header::FRAGMENT
}

/// Walks over extension headers to the transport header, or the fragment header before it.
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
        if is_last(next) {
            return Some((next, packet.launder(at)));
        }
    }
    None
}
