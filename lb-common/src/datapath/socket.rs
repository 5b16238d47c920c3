//! Socket level: the destination is translated once, when a socket connects or sends, so that its packets need no
//! translation at all. It gives the same answers as the packet path, and leaves to that what it cannot answer.
//!
//! A process of the node is always translated here: it has no address of its own that a policy could ask for. A
//! pod is translated here only where no hairpin and no masquerading can come of it
//! ([`frontend_flags::POD_SOCKETS`]); its packets are translated otherwise.

use super::frontend::{self, Client, Match, Origin};
use super::select;
use crate::abi::{Address, Family, Peer, Port, SocketKey, Tuple, frontend_flags};
use crate::env::{Env, Tables};
use crate::hash;

/// A socket that asks for a destination.
#[derive(Clone, Copy, Debug)]
pub struct Request<A> {
    /// The kernel's cookie of the socket.
    pub cookie: u64,
    /// The kernel's cookie of the network namespace that the socket is in.
    pub netns_cookie: u64,
    /// IP protocol number.
    pub protocol: u8,
    /// The address asked for.
    pub addr: A,
    /// The port asked for.
    pub port: Port,
}

/// The answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer<A> {
    /// As asked for; packets may still be translated.
    Leave,
    /// Use this backend instead.
    Use(A, Port),
    /// Refuse: nobody serves it.
    Refuse,
}

/// Translates the destination of a socket, and notes what it asked for.
#[inline(always)]
pub fn translate<F: Family, E: Env + Tables<F>>(env: &E, request: &Request<F::Addr>) -> Answer<F::Addr> {
    let Match::Frontend(found) = frontend::lookup::<F, E>(env, request.addr, request.port, request.protocol) else {
        return Answer::Leave;
    };
    let config = env.config();
    let node = u64::from(config.netns_cookie_high) << 32 | u64::from(config.netns_cookie_low);
    let is_pod = request.netns_cookie != node;
    // Affinity and source ranges ask for the pod's address, which a socket need not have yet.
    let asks_for_address = found.flags & (frontend_flags::AFFINITY | frontend_flags::SOURCE_RANGES) != 0;
    if is_pod && (found.flags & frontend_flags::POD_SOCKETS == 0 || asks_for_address) {
        return Answer::Leave;
    }
    let origin = if is_pod { Origin::Pod } else { Origin::Node };
    // The socket has no address yet: the node's processes are one client.
    let client = Client::<F> {
        addr: F::Addr::default(),
        origin,
    };
    match select::backend::<F, E>(env, &found, client, flow(request)) {
        Ok(Some(chosen)) => {
            let key = key(request, chosen.backend.addr, chosen.backend.port);
            let peer = Peer {
                addr: request.addr,
                port: request.port,
                pad: 0,
                service_port: found.service_port,
                last_seen: env.now(),
            };
            Tables::<F>::note_peer(env, &key, &peer);
            Answer::Use(chosen.backend.addr, chosen.backend.port)
        }
        Ok(None) if !is_pod => Answer::Refuse,
        _ => Answer::Leave,
    }
}

/// The frontend that a socket believes to talk to, given the backend that it really talks to.
#[inline(always)]
pub fn restore<F: Family, E: Tables<F>>(env: &E, request: &Request<F::Addr>) -> Option<(F::Addr, Port)> {
    env.peer(&key(request, request.addr, request.port))
        .map(|peer| (peer.addr, peer.port))
}

#[inline(always)]
fn key<A: Address>(request: &Request<A>, addr: A, port: Port) -> SocketKey<A> {
    SocketKey {
        cookie_low: request.cookie as u32,
        cookie_high: (request.cookie >> 32) as u32,
        addr,
        port,
        protocol: request.protocol,
        pad: 0,
    }
}

/// A socket's flow: the same socket gets the same backend for each message it sends, as long as the set stays.
#[inline(always)]
fn flow<A: Address>(request: &Request<A>) -> u32 {
    let low = Port::new(request.cookie as u16);
    let tuple = Tuple {
        src: A::default(),
        dst: request.addr,
        src_port: low,
        dst_port: request.port,
        protocol: request.protocol,
        direction: 0,
        pad: [0; 2],
    };
    hash::flow(&tuple) ^ ((request.cookie >> 16) as u32).wrapping_mul(0x9E37_79B1)
}
