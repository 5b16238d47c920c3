//! REJECT: the packet becomes an ICMP port unreachable to its sender (RFC 792 type 3 code 3; RFC 4443 type 1
//! code 4), for TCP too, as kube-proxy's is: a TCP client then fails at once.
//!
//! ```text
//!   before   link │ IP  C→F │ TCP, UDP or SCTP │ payload
//!   after    link │ IP  F→C │ ICMP │ IP C→F │ TCP, UDP or SCTP, the first bytes
//! ```
//!
//! The message comes from the frontend's address: it is the one address that a packet to the client may bear on
//! this way without looking forged. It goes out by the device that the packet came in by.

use super::parse::{self, Headers};
use super::rewrite::{self, Macs};
use super::{Ip, Step, Verdict, done};
use crate::abi::{Address, DropReason, Outcome, V4, V6};
use crate::checksum::fold;
use crate::env::{Env, Packet};
use crate::wire::{Be16, Icmp, Ipv4, Ipv6, next_header};

/// How much of the packet's transport header and payload goes back with the message, bytes: more than ports and
/// sequence number, which the receiver needs to find its socket, so that a whole TCP header fits.
const QUOTED: u32 = 40;
/// Hops that the message may go.
const TTL: u8 = 64;

/// Answers a packet with an ICMP port unreachable.
///
/// # Errors
/// If the kernel gives no room for the message.
#[inline(never)]
pub(super) fn unreachable<F: Ip, P: Packet, E: Env>(packet: &mut P, env: &E) -> Step {
    let headers = parse::link(packet)
        .and_then(|link| F::parse(packet, &link))
        .ok_or(DropReason::Malformed)?;
    F::make_unreachable(packet, &headers).ok_or(DropReason::Malformed)?;
    done::<P, E>(env, Verdict::Reflect, Outcome::Rejected)
}

/// Bytes of the IP packet that are quoted: an even number, so that the sum has whole words.
#[inline(always)]
fn quote_len(l3: u32, l4: u32, ip_len: u32) -> u32 {
    let wanted = l4.wrapping_sub(l3).wrapping_add(QUOTED);
    ip_len.min(wanted).min(126) & !1
}

/// Sends the frame back where it came from.
#[inline(always)]
fn turn_around<P: Packet>(packet: &mut P, macs: Option<Macs>) -> Option<()> {
    match macs {
        Some(macs) => rewrite::link(packet, macs.dst, macs.src),
        None => Some(()),
    }
}

#[inline(always)]
pub(super) fn write_icmp_v4<P: Packet>(packet: &mut P, headers: &Headers<V4>) -> Option<()> {
    const ROOM: u32 = (size_of::<Ipv4>() + size_of::<Icmp>()) as u32;
    let quote = quote_len(headers.l3, headers.l4, V4::extent(packet, headers)?.len);
    let macs = rewrite::macs(packet);
    packet.open(quote, ROOM)?;
    let mut icmp = Icmp {
        kind: 3,
        code: 3,
        check: Be16::default(),
        rest: [0; 4],
    };
    let at = headers.l3.wrapping_add(size_of::<Ipv4>() as u32);
    let quoted = rewrite::sum(packet, headers.l3.wrapping_add(ROOM), quote)?;
    icmp.check = Be16::from_raw(!fold(quoted.wrapping_add(icmp_start(&icmp))));
    let mut ip = Ipv4 {
        version_ihl: 0x45,
        tos: 0,
        total_len: Be16::new(ROOM.wrapping_add(quote) as u16),
        id: Be16::default(),
        fragment: Be16::new(0x4000), // do not fragment
        ttl: TTL,
        protocol: next_header::ICMP,
        check: Be16::default(),
        src: headers.dst,
        dst: headers.src,
    };
    ip.check = Be16::from_raw(!fold(
        u64::from(u16::from_ne_bytes([ip.version_ihl, ip.tos]))
            .wrapping_add(u64::from(ip.total_len.raw()))
            .wrapping_add(u64::from(ip.fragment.raw()))
            .wrapping_add(u64::from(u16::from_ne_bytes([ip.ttl, ip.protocol])))
            .wrapping_add(addresses(&ip.src, &ip.dst)),
    ));
    packet.store(headers.l3, &ip)?;
    packet.store(at, &icmp)?;
    turn_around(packet, macs)
}

#[inline(always)]
pub(super) fn write_icmp_v6<P: Packet>(packet: &mut P, headers: &Headers<V6>) -> Option<()> {
    const ROOM: u32 = (size_of::<Ipv6>() + size_of::<Icmp>()) as u32;
    let quote = quote_len(headers.l3, headers.l4, V6::extent(packet, headers)?.len);
    let macs = rewrite::macs(packet);
    packet.open(quote, ROOM)?;
    let mut icmp = Icmp {
        kind: 1,
        code: 4,
        check: Be16::default(),
        rest: [0; 4],
    };
    let payload_len = quote.wrapping_add(size_of::<Icmp>() as u32);
    let quoted = rewrite::sum(packet, headers.l3.wrapping_add(ROOM), quote)?;
    let ip = Ipv6 {
        version_class: 0x60,
        flow: [0; 3],
        payload_len: Be16::new(payload_len as u16),
        next_header: next_header::ICMPV6,
        hop_limit: TTL,
        src: headers.dst,
        dst: headers.src,
    };
    icmp.check = Be16::from_raw(!fold(
        quoted.wrapping_add(icmp_start(&icmp)).wrapping_add(pseudo_header(&ip)),
    ));
    packet.store(headers.l3, &ip)?;
    packet.store(headers.l3.wrapping_add(size_of::<Ipv6>() as u32), &icmp)?;
    turn_around(packet, macs)
}

#[inline(always)]
fn icmp_start(icmp: &Icmp) -> u64 {
    u64::from(u16::from_ne_bytes([icmp.kind, icmp.code]))
}

/// The sum of the pseudo-header of an ICMPv6 message without extension headers (RFC 8200 section 8.1): addresses, length,
/// number of the next header.
#[inline(always)]
pub(super) fn pseudo_header(ip: &Ipv6) -> u64 {
    addresses(&ip.src, &ip.dst)
        .wrapping_add(u64::from(ip.payload_len.raw()))
        .wrapping_add(u64::from(u16::from(next_header::ICMPV6).to_be()))
}

/// The sum of two addresses.
#[inline(always)]
pub(super) fn addresses<A: Address>(src: &A, dst: &A) -> u64 {
    let ([a, b, c, d], [e, f, g, h]) = (src.words(), dst.words());
    [b, c, d, e, f, g, h]
        .iter()
        .fold(u64::from(a), |sum, word| sum.wrapping_add(u64::from(*word)))
}
