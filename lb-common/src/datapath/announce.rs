//! Who has this address? Answers to ARP requests and neighbour solicitations for addresses that this node announces, on
//! the device that they come in by, with its own link address. No device has the address: the kernel needs nothing.
//!
//! ```text
//!   ARP request   who has A, tell S   →   ARP reply      A is at MAC, to S
//!   solicitation  S (or ::) → A?      →   advertisement  A → S (or all nodes): target A, link address MAC
//! ```
//!
//! The packet itself becomes the answer and goes back out of its device. The agent writes down what is announced where,
//! and until when it may be sure that no other node answers: after that time the programs are silent by themselves,
//! whatever has become of the agent.
//!
//! Only TC ingress of devices with Ethernet headers answers: XDP passes both up. What bears a VLAN tag is for another
//! device than this, where it comes in without. Gratuitous ARP, and what is malformed in whichever way (RFC 4861 section
//! 7.1.1), pass as they came.

use super::reject::{addresses, pseudo_header};
use super::rewrite::sum;
use super::{Progress, Step, Verdict, done, not_ours};
use crate::abi::{Addr4, Addr6, Announced, AnnouncedKey, DropReason, Family, Hook, Mac, Outcome, V4, V6};
use crate::checksum::fold;
use crate::env::{Env, Packet, Tables};
use crate::wire::{
    Arp, Be16, Ethernet, Ipv6, LinkAddress, Neighbour, NeighbourOption, arp_operation, ethertype, neighbour_kind,
    neighbour_option, next_header,
};

/// Offset of the IPv6 header: there are no tags.
const L3: u32 = size_of::<Ethernet>() as u32;
/// Offset of the ICMPv6 header: there are no extension headers (RFC 6980 forbids fragments here).
const L4: u32 = L3.wrapping_add(size_of::<Ipv6>() as u32);
/// Bytes of a solicitation and of an advertisement before their options.
const FIXED: u32 = size_of::<Neighbour>() as u32;
/// Bytes of an advertisement with its one option.
const ADVERTISED: u32 = FIXED.wrapping_add(size_of::<LinkAddress>() as u32);
/// The longest solicitation that is looked at, bytes: with 13 options.
const LONGEST: u32 = 128;
/// Neighbour discovery does not cross routers (RFC 4861 section 11.2).
const HOPS: u8 = 255;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
const ALL_NODES: Addr6 = Addr6::from_octets([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
/// The group address of [`ALL_NODES`] (RFC 2464 section 7).
const ALL_NODES_MAC: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);

/// Whether packets are answered at this hook.
#[inline(always)]
pub(super) const fn is_heard<P: Packet>() -> bool {
    matches!(P::HOOK, Hook::Ingress) && P::ETHERNET
}

/// What to do about a request for an address.
enum Request {
    /// Not announced here, or not to be answered at all.
    NotOurs,
    /// Announced, but the time is over.
    Lapsed,
    /// To be answered with this link address.
    Answer(Mac),
}

/// Answers an ARP request for an announced address.
///
/// # Errors
/// If the kernel refuses to have the packet written.
#[inline(never)]
pub(super) fn who_has<P: Packet, E: Env>(packet: &mut P, env: &E) -> Step {
    let Some(mut frame) = packet.load::<ArpFrame>(0) else {
        return not_ours::<P, E>(env);
    };
    match asks_for(packet, env, &frame) {
        Request::NotOurs => not_ours::<P, E>(env),
        Request::Lapsed => done::<P, E>(env, Verdict::Pass, Outcome::Lapsed),
        Request::Answer(mac) => {
            let ArpFrame { ethernet, arp } = &mut frame;
            (ethernet.dst, ethernet.src) = (arp.sender_mac, mac);
            arp.operation = arp_operation::REPLY;
            let asked = arp.target;
            (arp.target_mac, arp.target) = (arp.sender_mac, arp.sender);
            (arp.sender_mac, arp.sender) = (mac, asked);
            if packet.store(0, &frame).is_none() {
                return not_ours::<P, E>(env);
            }
            done::<P, E>(env, Verdict::Reflect, Outcome::Answered)
        }
    }
}

/// An ARP message in its frame.
#[repr(C)]
#[derive(Clone, Copy, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
struct ArpFrame {
    ethernet: Ethernet,
    arp: Arp,
}

#[inline(always)]
fn asks_for<P: Packet, E: Env>(packet: &P, env: &E, frame: &ArpFrame) -> Request {
    let arp = &frame.arp;
    if frame.ethernet.ethertype != ethertype::ARP
        || arp.kind != Arp::KIND
        || arp.operation != arp_operation::REQUEST
        || arp.sender == arp.target
        || is_group(arp.sender_mac)
    {
        return Request::NotOurs;
    }
    look_up::<V4, P, E>(packet, env, frame.ethernet.dst, Addr4::from_octets(arp.target))
}

/// Answers a neighbour solicitation for an announced address; any other packet is not done with.
///
/// # Errors
/// If the kernel refuses to have the packet written.
#[inline(never)]
pub(super) fn solicited<P: Packet, E: Env>(packet: &mut P, env: &E) -> Step {
    match solicits(packet, env) {
        None | Some(Request::NotOurs) => Ok(Progress::NoPorts),
        Some(Request::Lapsed) => done::<P, E>(env, Verdict::Pass, Outcome::Lapsed),
        Some(Request::Answer(mac)) => {
            advertise(packet, mac).ok_or(DropReason::Malformed)?;
            done::<P, E>(env, Verdict::Reflect, Outcome::Answered)
        }
    }
}

#[inline(always)]
fn solicits<P: Packet, E: Env>(packet: &P, env: &E) -> Option<Request> {
    let message: Neighbour = packet.load(L4)?;
    if message.kind != neighbour_kind::SOLICITATION || message.code != 0 {
        return None;
    }
    let ethernet: Ethernet = packet.load(0)?;
    let ip: Ipv6 = packet.load(L3)?;
    let len = u32::from(ip.payload_len.get());
    if ethernet.ethertype != ethertype::IPV6
        || ip.version_class >> 4 != 6
        || ip.next_header != next_header::ICMPV6
        || ip.hop_limit != HOPS
        || !(FIXED..=LONGEST).contains(&len)
        || len & 7 != 0
    {
        return None;
    }
    let from_nobody = ip.src == Addr6::default();
    let to_group = ip.dst == solicited_group(message.target);
    if ip.src == message.target || is_multicast(ip.src) || !(to_group || (ip.dst == message.target && !from_nobody)) {
        return None;
    }
    let request = look_up::<V6, P, E>(packet, env, ethernet.dst, message.target);
    if matches!(request, Request::NotOurs) {
        return None;
    }
    check_options(packet, len, from_nobody)?;
    if fold(sum(packet, L4, len)?.wrapping_add(pseudo_header(&ip))) != 0xffff {
        return None;
    }
    Some(request)
}

/// Options have lengths, and one who has no address yet has no link address to tell.
#[inline(always)]
fn check_options<P: Packet>(packet: &P, len: u32, from_nobody: bool) -> Option<()> {
    const MOST: u32 = LONGEST.wrapping_sub(FIXED) >> 3;
    let mut at = FIXED;
    for _ in 0..MOST {
        if at >= len {
            break;
        }
        let option: NeighbourOption = packet.load(L4.wrapping_add(at))?;
        if option.length == 0 || (from_nobody && option.kind == neighbour_option::SOURCE) {
            return None;
        }
        at = at.wrapping_add(u32::from(option.length) << 3);
    }
    if at == len { Some(()) } else { None }
}

/// Makes the solicitation an advertisement.
#[inline(always)]
fn advertise<P: Packet>(packet: &mut P, mac: Mac) -> Option<()> {
    let mut ethernet: Ethernet = packet.load(0)?;
    let asked: Ipv6 = packet.load(L3)?;
    let target = packet.load::<Neighbour>(L4)?.target;
    let from_nobody = asked.src == Addr6::default();
    packet.resize(L4.wrapping_add(ADVERTISED))?;
    let ip = Ipv6 {
        version_class: 0x60,
        flow: [0; 3],
        payload_len: Be16::new(ADVERTISED as u16),
        next_header: next_header::ICMPV6,
        hop_limit: HOPS,
        src: target,
        dst: if from_nobody { ALL_NODES } else { asked.src },
    };
    let flags = if from_nobody { OVERRIDE } else { SOLICITED | OVERRIDE };
    let mut message = Neighbour {
        kind: neighbour_kind::ADVERTISEMENT,
        code: 0,
        check: Be16::default(),
        flags: [flags, 0, 0, 0],
        target,
    };
    let option = LinkAddress {
        option: NeighbourOption {
            kind: neighbour_option::TARGET,
            length: 1,
        },
        mac,
    };
    message.check = Be16::from_raw(!fold(
        pseudo_header(&ip)
            .wrapping_add(addresses(&target, &Addr6::default()))
            .wrapping_add(pair(message.kind, message.code))
            .wrapping_add(pair(flags, 0))
            .wrapping_add(link_address(&option)),
    ));
    packet.store(L4.wrapping_add(FIXED), &option)?;
    packet.store(L4, &message)?;
    packet.store(L3, &ip)?;
    ethernet.dst = if from_nobody { ALL_NODES_MAC } else { ethernet.src };
    ethernet.src = mac;
    packet.store(0, &ethernet)
}

#[inline(always)]
fn pair(first: u8, second: u8) -> u64 {
    u64::from(u16::from_ne_bytes([first, second]))
}

#[inline(always)]
fn link_address(option: &LinkAddress) -> u64 {
    let Mac([a, b, c, d, e, f]) = option.mac;
    pair(option.option.kind, option.option.length)
        .wrapping_add(pair(a, b))
        .wrapping_add(pair(c, d))
        .wrapping_add(pair(e, f))
}

/// What to do about a request for this address that came to this link address.
#[inline(always)]
fn look_up<F: Family, P: Packet, E: Env + Tables<F>>(packet: &P, env: &E, to: Mac, addr: F::Addr) -> Request {
    let key = AnnouncedKey {
        addr,
        ifindex: packet.ifindex(),
    };
    let Some(Announced { mac, .. }) = Tables::<F>::announced(env, &key) else {
        return Request::NotOurs;
    };
    if packet.is_tagged_beside() || !(is_group(to) || to == mac) {
        return Request::NotOurs;
    }
    if has_right(env) {
        Request::Answer(mac)
    } else {
        Request::Lapsed
    }
}

/// Whether this node announces the address on that network, and may answer for it now.
#[inline(always)]
pub(super) fn may_answer<F: Family, E: Env + Tables<F>>(env: &E, key: &AnnouncedKey<F::Addr>) -> bool {
    Tables::<F>::announced(env, key).is_some() && has_right(env)
}

/// Whether this node may answer for what it announces now.
#[inline(always)]
fn has_right<E: Env>(env: &E) -> bool {
    env.now_ns() < env.announce_until_ns()
}

/// A group address, broadcast included.
#[inline(always)]
const fn is_group(mac: Mac) -> bool {
    let Mac([first, ..]) = mac;
    first & 1 != 0
}

#[inline(always)]
fn is_multicast(addr: Addr6) -> bool {
    let [first, ..] = addr.octets();
    first == 0xff
}

/// The group in which those listen who may have this address: ff02::1:ff00:0/104 with its last 24 bits (RFC 4291 section
/// 2.7.1).
#[inline(always)]
fn solicited_group(addr: Addr6) -> Addr6 {
    let [.., x, y, z] = addr.octets();
    Addr6::from_octets([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, x, y, z])
}
