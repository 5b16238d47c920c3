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
//! | [`connection`] | known connections, and the writing of new ones |
//! | [`frontend`] | what a destination means; origin of the client, source ranges |
//! | [`select`] | session affinity, Maglev |
//! | [`rewrite`] | addresses, ports, checksums, link addresses |
//! | [`reject`] | ICMP port unreachable |
//! | [`socket`] | the same answers when a socket connects or sends |

pub mod connection;
pub mod frontend;
pub mod parse;
pub mod reject;
pub mod rewrite;
pub mod select;
pub mod socket;

pub use parse::{Headers, Ip, Link};
pub use rewrite::Translation;

use crate::abi::{Direction, DropReason, Hook, Outcome, V4, V6, address_class, config_flags};
use crate::env::{Env, Packet, Tables};
use crate::hash;
use crate::wire::ethertype;
use frontend::Match;

/// What becomes of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// On to the node's stack, or out of the device, as it is now.
    Pass,
    /// Out of the device that it came in by (XDP, and replies of our own in TC).
    Reflect,
    /// Dropped, and counted by its reason.
    Drop(DropReason),
}

/// A packet comes into the node: XDP on uplinks, TC ingress on every device.
#[inline(always)]
pub fn ingress<P: Packet, E: Env>(packet: &mut P, env: &E) -> Verdict {
    conclude::<P, E>(
        env,
        match parse::link(packet) {
            Some(link) if link.ethertype == ethertype::IPV4 => enter::<V4, P, E>(packet, env, &link),
            Some(link) if link.ethertype == ethertype::IPV6 => enter::<V6, P, E>(packet, env, &link),
            _ => Ok((Verdict::Pass, Outcome::NotOurs)),
        },
    )
}

/// A packet leaves the node: TC egress on every device.
#[inline(always)]
pub fn egress<P: Packet, E: Env>(packet: &mut P, env: &E) -> Verdict {
    conclude::<P, E>(
        env,
        match parse::link(packet) {
            Some(link) if link.ethertype == ethertype::IPV4 => leave::<V4, P, E>(packet, env, &link),
            Some(link) if link.ethertype == ethertype::IPV6 => leave::<V6, P, E>(packet, env, &link),
            _ => Ok((Verdict::Pass, Outcome::NotOurs)),
        },
    )
}

/// What a step of the path returns: the verdict and how it is counted, or why the packet is dropped.
type Step = Result<(Verdict, Outcome), DropReason>;

#[inline(always)]
fn enter<F: Ip, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, link: &Link) -> Step {
    let Some(headers) = F::parse(packet, link) else {
        return Ok((Verdict::Pass, Outcome::NotOurs));
    };
    let class = env.address_class(hash::filter_bucket(&headers.dst));
    if !is_candidate(env, class, headers.dst_port.get()) {
        return unowned::<F, E>(env, &headers);
    }
    let tuple = headers.tuple(Direction::Ingress);
    if let Some(entry) = Tables::<F>::connection(env, &tuple) {
        let known = entry_of::<F, E>(&entry);
        if !connection::starts_anew::<F, E>(env, &known, &headers) {
            return connection::follow::<F, P, E>(packet, env, &headers, &entry, known);
        }
    }
    match frontend::find::<F, E>(env, &headers) {
        Match::None => unowned::<F, E>(env, &headers),
        Match::Frontend(found) => {
            let client = frontend::admit::<F, E>(env, &found, &headers)?;
            match select::backend::<F, E>(env, &found, client, hash::flow(&tuple))? {
                Some(chosen) => {
                    env.count(P::HOOK, Outcome::Connection);
                    connection::begin::<F, P, E>(packet, env, &headers, &found, client, &chosen)
                }
                // Making room for an ICMP message is TC's: XDP leaves the packet to it.
                None if matches!(P::HOOK, Hook::Xdp) => Ok((Verdict::Pass, Outcome::NotOurs)),
                None => reject::unreachable::<F, P>(packet, &headers),
            }
        }
    }
}

#[inline(always)]
fn leave<F: Ip, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, link: &Link) -> Step {
    let Some(headers) = F::parse(packet, link) else {
        return Ok((Verdict::Pass, Outcome::NotOurs));
    };
    let class =
        env.address_class(hash::filter_bucket(&headers.src)) | env.address_class(hash::filter_bucket(&headers.dst));
    if class & address_class::BACKEND == 0 {
        return Ok((Verdict::Pass, Outcome::NotOurs));
    }
    match Tables::<F>::connection(env, &headers.tuple(Direction::Egress)) {
        Some(entry) => {
            let known = entry_of::<F, E>(&entry);
            connection::follow::<F, P, E>(packet, env, &headers, &entry, known)
        }
        None => Ok((Verdict::Pass, Outcome::NotOurs)),
    }
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

/// No connection, no frontend: it passes, unless its destination lies in a Service CIDR, where nothing but
/// Services can be.
#[inline(always)]
fn unowned<F: Ip, E: Env + Tables<F>>(env: &E, headers: &Headers<F>) -> Step {
    if env.config().flags & config_flags::SERVICE_CIDRS != 0 && Tables::<F>::is_service_address(env, &headers.dst) {
        return Err(DropReason::UnassignedServiceAddress);
    }
    Ok((Verdict::Pass, Outcome::NotOurs))
}

#[inline(always)]
fn entry_of<F: Ip, E: Tables<F>>(entry: &E::Entry) -> crate::abi::Connection<F::Addr> {
    crate::env::ConnectionEntry::get(entry)
}

/// The one exit: every packet is counted here.
#[inline(always)]
fn conclude<P: Packet, E: Env>(env: &E, step: Step) -> Verdict {
    let (verdict, outcome) = match step {
        Ok(concluded) => concluded,
        Err(reason) => (Verdict::Drop(reason), Outcome::Dropped(reason)),
    };
    env.count(P::HOOK, outcome);
    verdict
}
