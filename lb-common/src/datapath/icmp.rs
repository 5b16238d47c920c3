//! ICMP errors about known connections: a router says that a packet is too big or has been too long on its way, a host
//! that nobody listens. Path MTU discovery lives by them. An error quotes the packet that it is about as it was seen
//! where it went wrong; the one who sent it has to be shown the packet that it sent.
//!
//! ```text
//!   link │ IP  R→X │ ICMP │ IP X→Y │ the first bytes of TCP, UDP or SCTP: both ports
//! ```
//!
//! *X→Y* is a packet that has been translated, so *Y→X* is what its answer would look like, and that is in the
//! connection table:
//!
//! | hook | the answer's entry | is about | becomes |
//! | --- | --- | --- | --- |
//! | ingress | B→N, or C→F | a packet on its way to the backend, or to the client | to and from the other two ends |
//! | ingress | C→F, passed on | a packet of the node that answers the client | as it is, for that node |
//! | egress | B→C | a packet of a client between the hooks, such as the node's own stack has it | C→F |
//! | egress | C→B | a packet of a backend between the hooks | B→N |
//!
//! At egress the sender is named as the receiver knows it: the backend by the frontend's address, and whoever speaks to
//! a backend about a source-translated connection by the node's. Any other sender stays what it is.

use super::fragment::Part;
use super::parse::{self, Ip, Link};
use super::{Step, Verdict, connection, done, not_ours, transport};
use crate::abi::{Addr4, Addr6, Address, Connection, Direction, DropReason, Family, Hook, Outcome, Tuple, conn_flags};
use crate::checksum::Delta;
use crate::env::{ConnectionEntry as _, Env, Packet, Quote, Tables};
use crate::wire::{Icmp, Ipv4, Ipv6, Ports, next_header};

/// Where the headers of an ICMP error lie. The quoted IP header follows the ICMP header.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    l3: u32,
    l4: u32,
    quoted_l4: u32,
    /// Protocol of the quoted packet.
    protocol: u8,
}

impl Places {
    const fn quoted_l3(&self) -> u32 {
        self.l4.wrapping_add(size_of::<Icmp>() as u32)
    }
}

/// Translates an ICMP error about a known connection, in three steps, each a function of its own for the kernel's small
/// stack: what it quotes is noted in the draft, looked up, and written.
///
/// # Errors
/// If the kernel refuses to have the packet written.
#[inline(always)]
pub(super) fn translate<F: Ip, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E) -> Step {
    if note::<F, P, E>(packet, env).is_none() {
        return not_ours::<P, E>(env);
    }
    match Tables::<F>::relate(env, P::HOOK) {
        Relation::None => not_ours::<P, E>(env),
        Relation::Translated => {
            write::<F, P, E>(packet, env).ok_or(DropReason::Malformed)?;
            done::<P, E>(env, Verdict::Pass, Outcome::Translated)
        }
        Relation::PassedOn => match pass_on::<F, P, E>(packet, env) {
            Some(()) => done::<P, E>(env, Verdict::Reflect, Outcome::Forwarded),
            None => not_ours::<P, E>(env),
        },
    }
}

/// What an ICMP error has to do with a known connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Relation {
    /// Nothing.
    None,
    /// It is about a packet of it, and now noted as an error about the packet that its receiver has sent.
    Translated,
    /// It is about an answer of the node that the connection is passed on to, whose adjacency is in the draft: that node
    /// has to have it.
    PassedOn,
}

/// Passes the error on to the node that has sent what it is about.
#[inline(always)]
fn pass_on<F: Ip, P: Packet, E: Tables<F>>(packet: &mut P, env: &E) -> Option<()> {
    if parse::link(packet)?.tagged || packet.is_tagged_beside() {
        return None;
    }
    let adjacency = env.draft()?.primary.adjacency;
    connection::readdress::<F, P, E>(packet, env, adjacency)
}

#[inline(always)]
fn places<F: Ip, P: Packet>(packet: &P) -> Option<Places> {
    let link = parse::link(packet)?;
    F::parse_error(packet, &link)
}

#[inline(never)]
fn note<F: Ip, P: Packet, E: Tables<F>>(packet: &P, env: &E) -> Option<()> {
    let places = places::<F, P>(packet)?;
    let mut draft = env.draft()?;
    let ports: Ports = packet.load(places.quoted_l4)?;
    draft.quote.packet.src_port = ports.src;
    draft.quote.packet.dst_port = ports.dst;
    draft.quote.packet.protocol = places.protocol;
    F::read_error(packet, &places, &mut draft.quote)?;
    // It is for the sender of the packet that it quotes, or it is none.
    if draft.quote.to == draft.quote.packet.src {
        Some(())
    } else {
        None
    }
}

#[inline(never)]
fn write<F: Ip, P: Packet, E: Tables<F>>(packet: &mut P, env: &E) -> Option<()> {
    let places = places::<F, P>(packet)?;
    let draft = env.draft()?;
    F::rewrite_error(packet, &places, &draft.quote)
}

/// Makes the noted error one about the packet that its receiver has sent. The kernel has it out of line.
#[inline(always)]
pub fn relate<F: Family, E: Env + Tables<F>>(env: &E, hook: Hook) -> Relation {
    let Some(mut draft) = Tables::<F>::draft(env) else {
        return Relation::None;
    };
    let draft = &mut *draft;
    let quote = &mut draft.quote;
    draft.reply_key = quote.packet.reversed(direction(hook));
    let answer: Option<Connection<F::Addr>> = Tables::<F>::connection(env, &draft.reply_key).map(|entry| entry.get());
    if !matches!(hook, Hook::Egress) {
        let Some(known) = answer else { return Relation::None };
        if known.flags & conn_flags::PASSED_ON != 0 {
            draft.primary.adjacency = known.adjacency;
            return Relation::PassedOn;
        }
        (quote.packet.src, quote.packet.src_port) = (known.dst, known.dst_port);
        (quote.packet.dst, quote.packet.dst_port) = (known.src, known.src_port);
        quote.to = known.dst;
        return Relation::Translated;
    }
    let mut is_ours = false;
    if let Some(known) = answer
        && known.flags & conn_flags::NODE == 0
    {
        (quote.packet.dst, quote.packet.dst_port) = (known.src, known.src_port);
        if known.flags & conn_flags::FORWARD == 0 {
            (quote.packet.src, quote.packet.src_port) = (known.dst, known.dst_port);
        }
        is_ours = true;
    }
    quote.packet.direction = Direction::Ingress as u8;
    quote.packet.pad = [0; 2];
    if let Some(entry) = Tables::<F>::connection(env, &quote.packet) {
        let known: Connection<F::Addr> = entry.get();
        let is_named_anew = if known.flags & conn_flags::FORWARD != 0 {
            quote.from == known.dst
        } else {
            known.flags & conn_flags::SNAT != 0
        };
        if is_named_anew {
            quote.from = quote.packet.dst;
            is_ours = true;
        }
    }
    if is_ours { Relation::Translated } else { Relation::None }
}

#[inline(always)]
const fn direction(hook: Hook) -> Direction {
    match hook {
        Hook::Egress => Direction::Egress,
        _ => Direction::Ingress,
    }
}

#[inline(always)]
pub(super) fn parse_v4<P: Packet>(packet: &P, link: &Link) -> Option<Places> {
    /// Destination unreachable (too big is one of these), time exceeded, parameter problem (RFC 792).
    const ERRORS: [u8; 3] = [3, 11, 12];
    let (protocol, l4, piece) = parse::next_v4(packet, link)?;
    let icmp: Icmp = packet.load(l4)?;
    if piece.part != Part::Whole || protocol != next_header::ICMP || !ERRORS.contains(&icmp.kind) {
        return None;
    }
    let quoted = Link {
        l3: l4.wrapping_add(size_of::<Icmp>() as u32),
        ..*link
    };
    let (protocol, quoted_l4, piece) = parse::next_v4(packet, &quoted)?;
    if piece.part == Part::Rest {
        return None;
    }
    known(link.l3, l4, quoted_l4, protocol)
}

#[inline(always)]
pub(super) fn parse_v6<P: Packet>(packet: &P, link: &Link) -> Option<Places> {
    /// Destination unreachable, packet too big, time exceeded, parameter problem (RFC 4443).
    const ERRORS: [u8; 4] = [1, 2, 3, 4];
    let (protocol, l4) = parse::next_v6(packet, link)?;
    let icmp: Icmp = packet.load(l4)?;
    if protocol != next_header::ICMPV6 || !ERRORS.contains(&icmp.kind) {
        return None;
    }
    let quoted = Link {
        l3: l4.wrapping_add(size_of::<Icmp>() as u32),
        ..*link
    };
    let (protocol, quoted_l4) = parse::next_v6(packet, &quoted)?;
    known(link.l3, l4, quoted_l4, protocol)
}

#[inline(always)]
fn known(l3: u32, l4: u32, quoted_l4: u32, protocol: u8) -> Option<Places> {
    if !transport::is_ported(protocol) {
        return None;
    }
    Some(Places {
        l3,
        l4,
        quoted_l4,
        protocol,
    })
}

#[inline(always)]
pub(super) fn read_v4<P: Packet>(packet: &P, places: &Places, quote: &mut Quote<Addr4>) -> Option<()> {
    let outer: Ipv4 = packet.load(places.l3)?;
    (quote.from, quote.to) = (outer.src, outer.dst);
    let quoted: Ipv4 = packet.load(places.quoted_l3())?;
    (quote.packet.src, quote.packet.dst) = (quoted.src, quoted.dst);
    Some(())
}

#[inline(always)]
pub(super) fn read_v6<P: Packet>(packet: &P, places: &Places, quote: &mut Quote<Addr6>) -> Option<()> {
    let outer: Ipv6 = packet.load(places.l3)?;
    (quote.from, quote.to) = (outer.src, outer.dst);
    let quoted: Ipv6 = packet.load(places.quoted_l3())?;
    (quote.packet.src, quote.packet.dst) = (quoted.src, quoted.dst);
    Some(())
}

/// The quoted addresses change with the quoted header's own checksum, so for the message's checksum only the ports do.
#[inline(always)]
pub(super) fn rewrite_v4<P: Packet>(packet: &mut P, places: &Places, new: &Quote<Addr4>) -> Option<()> {
    addresses_v4(packet, places.l3, new.from, new.to)?;
    addresses_v4(packet, places.quoted_l3(), new.packet.src, new.packet.dst)?;
    finish(packet, places, &new.packet, Delta::default())
}

#[inline(always)]
fn addresses_v4<P: Packet>(packet: &mut P, at: u32, src: Addr4, dst: Addr4) -> Option<()> {
    packet.update(at, |ip: &mut Ipv4| {
        let delta = Delta::default().address(&ip.src, &src).address(&ip.dst, &dst);
        ip.check = delta.apply(ip.check);
        (ip.src, ip.dst) = (src, dst);
    })
}

/// The message's checksum covers its own addresses and all that it quotes.
#[inline(always)]
pub(super) fn rewrite_v6<P: Packet>(packet: &mut P, places: &Places, new: &Quote<Addr6>) -> Option<()> {
    const SRC: u32 = 8;
    const DST: u32 = 24;
    let mut delta = Delta::default();
    for (at, addr) in [
        (places.l3.wrapping_add(SRC), &new.from),
        (places.l3.wrapping_add(DST), &new.to),
        (places.quoted_l3().wrapping_add(SRC), &new.packet.src),
        (places.quoted_l3().wrapping_add(DST), &new.packet.dst),
    ] {
        packet.update(at, |old: &mut Addr6| {
            delta = delta.address(old, addr);
            *old = *addr;
        })?;
    }
    finish(packet, places, &new.packet, delta)
}

/// Quoted ports, and the message's checksum. (The quoted transport's checksum, if it is quoted at all, stays: nobody
/// can check it without the rest of the packet.)
#[inline(always)]
fn finish<A: Address, P: Packet>(packet: &mut P, places: &Places, new: &Tuple<A>, delta: Delta) -> Option<()> {
    let mut after = delta;
    packet.update(places.quoted_l4, |ports: &mut Ports| {
        after = delta.port(ports.src, new.src_port).port(ports.dst, new.dst_port);
        (ports.src, ports.dst) = (new.src_port, new.dst_port);
    })?;
    packet.update(places.l4, |icmp: &mut Icmp| icmp.check = after.apply(icmp.check))
}
