//! Headers, in bounds.
//!
//! Nothing is returned for what cannot be translated, and such a packet passes as it came: other EtherTypes and
//! protocols, more than two VLAN tags, more than six IPv6 extension headers or more than a kilobyte of them,
//! fragments (only the first has ports, and a datagram must not be split between two destinations), and headers that
//! the packet does not hold.

use super::reject;
use crate::abi::{Direction, Family, Port, Tuple, V4, V6, protocol};
use crate::checksum::Delta;
use crate::env::Packet;
use crate::wire::{Be16, Ethernet, Extension, Ipv4, Ipv6, Tcp, Udp, Vlan, ethertype, next_header};

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
    /// TCP or UDP.
    pub protocol: u8,
    /// Flags of TCP; 0 for others.
    pub tcp_flags: u8,
    /// Hops left.
    pub ttl: u8,
    /// Whether there are VLAN tags in the packet.
    pub tagged: bool,
    /// Offset of the IP header.
    pub l3: u32,
    /// Offset of the transport header.
    pub l4: u32,
    /// Length of the IP packet by its own header, bytes.
    pub ip_len: u32,
    /// Checksum of the IPv4 header; unused for IPv6.
    pub ip_check: Be16,
    /// Checksum of the transport header.
    pub check: Be16,
}

/// What differs between the families on the path of a packet.
pub trait Ip: Family {
    /// Reads the headers of a packet.
    fn parse<P: Packet>(packet: &P, link: &Link) -> Option<Headers<Self>>;

    /// Writes addresses, hops left and what checksum the IP header has. `delta` is of all that changes in it but
    /// the hops.
    fn write<P: Packet>(
        packet: &mut P,
        headers: &Headers<Self>,
        src: &Self::Addr,
        dst: &Self::Addr,
        ttl: u8,
        delta: Delta,
    ) -> Option<()>;

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

#[inline(always)]
fn transport<P: Packet>(packet: &P, protocol: u8, l4: u32) -> Option<Transport> {
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

impl Ip for V4 {
    #[inline(always)]
    fn parse<P: Packet>(packet: &P, link: &Link) -> Option<Headers<Self>> {
        /// More fragments, or an offset other than zero.
        const FRAGMENT: u16 = 0x3fff;
        let ip: Ipv4 = packet.load(link.l3)?;
        let header_len = u32::from(ip.version_ihl & 0x0f) << 2;
        if ip.version_ihl >> 4 != 4 || header_len < 20 || ip.fragment.get() & FRAGMENT != 0 {
            return None;
        }
        let l4 = link.l3.wrapping_add(header_len);
        let transport = transport(packet, ip.protocol, l4)?;
        Some(Headers {
            src: ip.src,
            dst: ip.dst,
            src_port: transport.src,
            dst_port: transport.dst,
            protocol: ip.protocol,
            tcp_flags: transport.tcp_flags,
            ttl: ip.ttl,
            tagged: link.tagged,
            l3: link.l3,
            l4,
            ip_len: u32::from(ip.total_len.get()),
            ip_check: ip.check,
            check: transport.check,
        })
    }

    #[inline(always)]
    fn write<P: Packet>(
        packet: &mut P,
        headers: &Headers<Self>,
        src: &Self::Addr,
        dst: &Self::Addr,
        ttl: u8,
        delta: Delta,
    ) -> Option<()> {
        let hops = |ttl: u8| u16::from_ne_bytes([ttl, headers.protocol]);
        let check = delta.half_word(hops(headers.ttl), hops(ttl)).apply(headers.ip_check);
        let tail = Ipv4Tail {
            ttl,
            protocol: headers.protocol,
            check,
            src: *src,
            dst: *dst,
        };
        packet.store(headers.l3.wrapping_add(8), &tail)
    }

    #[inline(always)]
    fn make_unreachable<P: Packet>(packet: &mut P, headers: &Headers<Self>) -> Option<()> {
        reject::write_icmp_v4(packet, headers)
    }
}

/// The last 12 bytes of an IPv4 header: all that translation changes, in one store.
#[repr(C)]
#[derive(Clone, Copy, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
struct Ipv4Tail {
    ttl: u8,
    protocol: u8,
    check: Be16,
    src: crate::abi::Addr4,
    dst: crate::abi::Addr4,
}

/// The addresses of an IPv6 header.
#[repr(C)]
#[derive(Clone, Copy, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
struct Ipv6Addresses {
    src: crate::abi::Addr6,
    dst: crate::abi::Addr6,
}

impl Ip for V6 {
    #[inline(always)]
    fn parse<P: Packet>(packet: &P, link: &Link) -> Option<Headers<Self>> {
        let ip: Ipv6 = packet.load(link.l3)?;
        if ip.version_class >> 4 != 6 {
            return None;
        }
        let first = link.l3.wrapping_add(size_of::<Ipv6>() as u32);
        let (protocol, l4) = if is_transport(ip.next_header) {
            (ip.next_header, first)
        } else {
            skip_extensions(packet, ip.next_header, first)?
        };
        let transport = transport(packet, protocol, l4)?;
        Some(Headers {
            src: ip.src,
            dst: ip.dst,
            src_port: transport.src,
            dst_port: transport.dst,
            protocol,
            tcp_flags: transport.tcp_flags,
            ttl: ip.hop_limit,
            tagged: link.tagged,
            l3: link.l3,
            l4,
            ip_len: u32::from(ip.payload_len.get()).wrapping_add(size_of::<Ipv6>() as u32),
            ip_check: Be16::default(),
            check: transport.check,
        })
    }

    #[inline(always)]
    fn write<P: Packet>(
        packet: &mut P,
        headers: &Headers<Self>,
        src: &Self::Addr,
        dst: &Self::Addr,
        ttl: u8,
        _delta: Delta,
    ) -> Option<()> {
        if ttl != headers.ttl {
            packet.store(headers.l3.wrapping_add(7), &ttl)?;
        }
        packet.store(headers.l3.wrapping_add(8), &Ipv6Addresses { src: *src, dst: *dst })
    }

    #[inline(always)]
    fn make_unreachable<P: Packet>(packet: &mut P, headers: &Headers<Self>) -> Option<()> {
        reject::write_icmp_v6(packet, headers)
    }
}

#[inline(always)]
fn is_transport(next: u8) -> bool {
    next == protocol::TCP || next == protocol::UDP
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
