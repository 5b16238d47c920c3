//! The path of a packet, on one page.
//!
//! **Ingress rewrites destinations, egress rewrites sources.** Between the two, a packet goes through the node's
//! own stack with real pod addresses: routing, tunnels, network policies and the CNI's rules see ordinary
//! traffic, and no packet ever enters the stack with one of the node's own addresses as its source.
//!
//! ```text
//!              ┌──────────── ingress (XDP, TC ingress) ───────────┐             ┌───── egress ────┐
//!   packet ──► │ is its destination ours? ─ no ──────────────────────► stack ──►│ is an address a │──► out
//!              │   yes: known connection? ─ yes ─► new destination │             │ backend's?      │
//!              │   no:  frontend? ─ no ──► pass, reject or drop    │             │ known: new      │
//!              │   yes: choose a backend, write the connection     │             │        source   │
//!              └──────────────────────────────────────────────────┘             └─────────────────┘
//!                XDP on an uplink, next hop known: both halves at once, and out again
//! ```
//!
//! An established packet costs one look into the address filter, one lookup in the connection table, one rewrite.
//! What is not ours costs the look into the filter and leaves exactly as it came.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`parse`] | headers in bounds: VLAN tags, IPv4 options, IPv6 extension headers |
//! | `transport` | transport headers, in bounds |
//! | [`fragment`] | the ports of fragments that have none |
//! | [`connection`] | known connections, and the writing of new ones |
//! | [`frontend`] | what a destination means; origin of the client, source ranges |
//! | [`select`] | session affinity, Maglev |
//! | [`rewrite`] | addresses, ports, checksums, link addresses |
//! | [`icmp`] | ICMP errors about known connections |
//! | [`announce`] | answers to ARP and NDP for announced addresses |
//! | [`reject`] | ICMP port unreachable |
//! | [`socket`] | the same answers when a socket connects or sends |

pub mod announce;
pub mod connection;
pub mod fragment;
pub mod frontend;
pub mod icmp;
pub mod parse;
pub mod reject;
pub mod rewrite;
pub mod select;
pub mod socket;
mod transport;

pub use parse::{Headers, Ip, Link};
pub use rewrite::Translation;

use crate::abi::{Direction, DropReason, Hook, Outcome, Tuple, V4, V6, address_class, config_flags};
use crate::env::{Env, Packet, Tables};
use crate::hash;
use crate::wire::ethertype;
use connection::Opening;
use fragment::Part;

/// What becomes of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// On to the node's stack, or out of the device, as it is now.
    Pass,
    /// Back where it came from: out of the device that it came in by, or, at egress, into the node.
    Reflect,
    /// Into the node as if it had come in by another device, given to [`Packet::aim`] (TC ingress): a reply to a
    /// process of the node, whose source is the frontend again and must pass the reverse path filter there.
    Deliver,
    /// Out of another device, given to [`Packet::aim`], to the neighbour that the node's routes name (TC egress).
    Output,
    /// Dropped, and counted by its reason.
    Drop(DropReason),
}

/// A packet comes into the node (XDP on uplinks, TC ingress on every device) or leaves it (TC egress on every device).
#[inline(always)]
pub fn run<P: Packet, E: Env>(packet: &mut P, env: &E) -> Verdict {
    match parse::link(packet) {
        Some(link) if link.ethertype == ethertype::IPV4 => pass::<V4, P, E>(packet, env, &link),
        Some(link) if link.ethertype == ethertype::IPV6 => pass::<V6, P, E>(packet, env, &link),
        Some(link) if announce::is_heard::<P>() && link.ethertype == ethertype::ARP => {
            end::<P, E>(env, announce::who_has(packet, env))
        }
        _ => {
            env.count(P::HOOK, Outcome::NotOurs);
            Verdict::Pass
        }
    }
}

/// How far a packet has come: to its verdict, and how it is counted, or to where a connection is to be opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Progress {
    /// Counted already.
    Done(Verdict),
    Open,
    /// It has no ports of its own; it may be an ICMP error.
    NoPorts,
}

/// What a step of the path returns, or why the packet is dropped.
type Step = Result<Progress, DropReason>;

/// The end of the path.
#[inline(always)]
fn done<P: Packet, E: Env>(env: &E, verdict: Verdict, outcome: Outcome) -> Step {
    env.count(P::HOOK, outcome);
    Ok(Progress::Done(verdict))
}

/// The end of the path of what stays as it is.
#[inline(always)]
fn not_ours<P: Packet, E: Env>(env: &E) -> Step {
    done::<P, E>(env, Verdict::Pass, Outcome::NotOurs)
}

/// The whole path: a known connection is followed; else one is opened, and then followed.
///
/// In XDP the way of known connections is part of the program itself, for packets with the headers that most have. All
/// else are functions of their own in the kernel, of which its small stack never holds two.
#[inline(always)]
fn pass<F: Ip, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, link: &Link) -> Verdict {
    let mut step = match P::HOOK {
        Hook::Xdp => match F::parse_plain(packet, link) {
            Some(headers) => walk_here::<F, P, E>(packet, env, &headers),
            None => walk_apart::<F, P, E>(packet, env),
        },
        _ => walk_apart::<F, P, E>(packet, env),
    };
    if step == Ok(Progress::NoPorts) && F::IS_V6 && announce::is_heard::<P>() {
        step = announce::solicited(packet, env);
    }
    // XDP leaves it to TC.
    if step == Ok(Progress::NoPorts) && !matches!(P::HOOK, Hook::Xdp) {
        step = icmp::translate::<F, P, E>(packet, env);
    }
    if step == Ok(Progress::Open) {
        step = match Tables::<F>::choose(env).and_then(|opening| {
            if opening == Opening::Connection {
                Tables::<F>::record(env).map(|()| opening)
            } else {
                Ok(opening)
            }
        }) {
            Ok(Opening::Connection) => {
                env.count(P::HOOK, Outcome::Connection);
                walk_apart::<F, P, E>(packet, env)
            }
            Ok(Opening::NoFrontend) => not_ours::<P, E>(env),
            // Making room for an ICMP message is TC's: XDP leaves the packet to it.
            Ok(Opening::NoBackend) if matches!(P::HOOK, Hook::Xdp) => not_ours::<P, E>(env),
            Ok(Opening::NoBackend) => reject::unreachable::<F, P, E>(packet, env),
            Err(reason) => Err(reason),
        };
    }
    end::<P, E>(env, step)
}

/// Where all paths end.
#[inline(always)]
fn end<P: Packet, E: Env>(env: &E, step: Step) -> Verdict {
    match step {
        Ok(Progress::Done(verdict)) => verdict,
        Ok(Progress::Open | Progress::NoPorts) => Verdict::Pass,
        Err(reason) => {
            env.count(P::HOOK, Outcome::Dropped(reason));
            Verdict::Drop(reason)
        }
    }
}

/// Which way packets pass this hook.
const fn direction<P: Packet>() -> Direction {
    match P::HOOK {
        Hook::Egress => Direction::Egress,
        _ => Direction::Ingress,
    }
}

/// [`walk`], with the packet's tuple on the stack.
#[inline(always)]
fn walk_here<F: Ip, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, headers: &Headers<F>) -> Step {
    let tuple = headers.tuple(direction::<P>());
    let step = walk::<F, P, E>(packet, env, headers, &tuple)?;
    if step == Progress::Open {
        let mut draft = Tables::<F>::draft(env).ok_or(DropReason::TableFull)?;
        draft.primary_key = tuple;
        connection::describe::<F, P>(packet, headers, &mut draft);
    }
    Ok(step)
}

/// [`walk`], as a function of its own, for packets with any headers. Their tuple lies in the draft: the stack is too
/// small for it.
#[inline(never)]
fn walk_apart<F: Ip, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E) -> Step {
    let Some(mut headers) = parse::link(packet).and_then(|link| F::parse(packet, &link)) else {
        return match P::HOOK {
            Hook::Xdp => not_ours::<P, E>(env),
            _ => Ok(Progress::NoPorts),
        };
    };
    let mut draft = Tables::<F>::draft(env).ok_or(DropReason::TableFull)?;
    if headers.piece.part != Part::Whole
        && fragment::complete::<F, P, E>(env, direction::<P>(), &mut headers, &mut draft).is_none()
    {
        return not_ours::<P, E>(env);
    }
    draft.primary_key = headers.tuple(direction::<P>());
    let step = walk::<F, P, E>(packet, env, &headers, &draft.primary_key)?;
    if step == Progress::Open {
        if headers.piece.part == Part::Rest {
            return unowned::<F, P, E>(env, &draft.primary_key.dst); // The first fragment opened nothing.
        }
        connection::describe::<F, P>(packet, &headers, &mut draft);
    }
    Ok(step)
}

/// In or out, as far as a known connection leads.
#[inline(always)]
fn walk<F: Ip, P: Packet, E: Env + Tables<F>>(
    packet: &mut P,
    env: &E,
    headers: &Headers<F>,
    tuple: &Tuple<F::Addr>,
) -> Step {
    match P::HOOK {
        Hook::Egress => leave::<F, P, E>(packet, env, headers, tuple),
        _ => enter::<F, P, E>(packet, env, headers, tuple),
    }
}

/// Into the node: what is of a known connection, or to a frontend, gets its new destination.
#[inline(always)]
fn enter<F: Ip, P: Packet, E: Env + Tables<F>>(
    packet: &mut P,
    env: &E,
    headers: &Headers<F>,
    tuple: &Tuple<F::Addr>,
) -> Step {
    let class = env.address_class(hash::filter_bucket(&headers.dst));
    if !is_candidate(env, class, headers.dst_port.get()) {
        return unowned::<F, P, E>(env, &tuple.dst);
    }
    follow_or::<F, P, E>(packet, env, headers, tuple, || Ok(Progress::Open))
}

/// Out of the node: what is of a known connection gets its new source. So does what a process of the node sends to a
/// frontend if its socket was not translated: nothing else to a frontend ever comes here.
#[inline(always)]
fn leave<F: Ip, P: Packet, E: Env + Tables<F>>(
    packet: &mut P,
    env: &E,
    headers: &Headers<F>,
    tuple: &Tuple<F::Addr>,
) -> Step {
    let from = env.address_class(hash::filter_bucket(&headers.src));
    let to = env.address_class(hash::filter_bucket(&headers.dst));
    let is_of_node = to & address_class::FRONTEND != 0 && from & address_class::NODE != 0;
    let otherwise = || {
        if is_of_node {
            Ok(Progress::Open)
        } else if from & address_class::NODE != 0 {
            unowned::<F, P, E>(env, &tuple.dst)
        } else {
            // What others send has been looked at as it came in.
            not_ours::<P, E>(env)
        }
    };
    if (from | to) & address_class::BACKEND == 0 && !is_of_node {
        return otherwise();
    }
    follow_or::<F, P, E>(packet, env, headers, tuple, otherwise)
}

/// Follows the packet's connection if there is one.
#[inline(always)]
fn follow_or<F: Ip, P: Packet, E: Env + Tables<F>>(
    packet: &mut P,
    env: &E,
    headers: &Headers<F>,
    tuple: &Tuple<F::Addr>,
    otherwise: impl FnOnce() -> Step,
) -> Step {
    if let Some(entry) = Tables::<F>::connection(env, tuple)
        && !connection::starts_anew::<F, E>(env, &entry, headers)
    {
        return connection::follow::<F, P, E>(packet, env, headers, &entry);
    }
    otherwise()
}

/// Whether a packet to an address of this class, and to this port (host order), can be of a connection or to a
/// frontend at all.
#[inline(always)]
fn is_candidate<E: Env>(env: &E, class: u8, dst_port: u16) -> bool {
    if class & address_class::FRONTEND != 0 {
        return true;
    }
    if class & address_class::NODE == 0 {
        return false;
    }
    let config = env.config();
    (dst_port >= config.snat_port_min && dst_port <= config.snat_port_max) || env.is_node_port(dst_port)
}

/// No connection, no frontend: it passes, unless its destination lies in a Service CIDR, where nothing but Services
/// can be.
#[inline(always)]
fn unowned<F: Ip, P: Packet, E: Env + Tables<F>>(env: &E, dst: &F::Addr) -> Step {
    if env.config().flags & config_flags::SERVICE_CIDRS != 0 && Tables::<F>::is_service_address(env, dst) {
        Err(DropReason::UnassignedServiceAddress)
    } else {
        not_ours::<P, E>(env)
    }
}
