//! Socket level: the destination is translated once, when a socket connects or sends, so that its packets need no
//! translation at all. It gives the same answers as the packet path, and leaves to that what it cannot answer:
//!
//! | whose socket | to | |
//! | --- | --- | --- |
//! | a process of the node | one of the node's own addresses, or loopback | is answered here: no packet meets a hook |
//! | | a frontend that may lead to the node's own address | is answered here too |
//! | | any other frontend, by TCP | is answered here, unless it is bound to an address, or the client's counts |
//! | | any other frontend, by UDP | is left: its packets keep a backend while that serves, and then find another |
//! | a pod | a frontend, by TCP | is answered here, where no hairpin and no masquerading can come of it |
//! | | loopback, or anything by UDP | is left |
//!
//! The address of a client (for session affinity and source ranges) is the one that the socket is bound to; the one
//! that is asked for, if that is the node's own, for then the kernel takes it as the source; else it is not known here.
//!
//! A UDP socket on the node's own addresses keeps the backend that it was given for a frontend while that serves (the
//! agent removes the note when it does not). A *connected* one keeps it for good: the kernel does not ask again.

use super::frontend::{self, Client, Origin};
use super::select;
use crate::abi::{
    Address, DropReason, Family, Frontend, Peer, Port, SocketKey, Tuple, backend_flags, config_flags, frontend_flags,
    protocol, socket_side,
};
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
    /// The address that the socket is bound to, or that the message is to be sent from; unspecified (zero) if the
    /// kernel may choose.
    pub source: A,
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
    /// Fail as if packets were lost: the frontend's policy drops them.
    Drop(DropReason),
}

/// Translates the destination of a socket, and notes what it asked for.
#[inline(always)]
pub fn translate<F: Family, E: Env + Tables<F>>(env: &E, request: &Request<F::Addr>) -> Answer<F::Addr> {
    let config = env.config();
    let node = u64::from(config.netns_cookie_high) << 32 | u64::from(config.netns_cookie_low);
    let is_of_node = request.netns_cookie == node;
    let is_loopback = request.addr.is_loopback();
    let is_udp = request.protocol == protocol::UDP;
    if !(is_udp || request.protocol == protocol::TCP) || !is_of_node && (is_udp || is_loopback) {
        return Answer::Leave;
    }
    let addr = if is_loopback { F::Addr::LOOPBACK } else { request.addr };
    let Some(found) = frontend::lookup::<F, E>(env, addr, request.port, request.protocol) else {
        return Answer::Leave;
    };
    let is_own = found.flags & frontend_flags::OWN_ADDRESS != 0;
    let meets_no_hook = found.flags & (frontend_flags::OWN_ADDRESS | frontend_flags::OWN_BACKEND) != 0;
    let asks_for_address = found.flags & (frontend_flags::AFFINITY | frontend_flags::SOURCE_RANGES) != 0;
    let is_bound = request.source != F::Addr::default();
    let is_left = if is_of_node && meets_no_hook {
        // A backend could not answer loopback. Who asks has to be known where ranges restrict.
        request.source.is_loopback() || !is_own && !is_bound && found.flags & frontend_flags::SOURCE_RANGES != 0
    } else if is_of_node {
        is_udp || is_bound || asks_for_address
    } else {
        config.flags & config_flags::POD_SOCKETS == 0
            || found.flags & frontend_flags::POD_SOCKETS == 0
            || asks_for_address
    };
    if is_left {
        return Answer::Leave;
    }
    if is_udp && let Some((addr, port)) = keep::<F, E>(env, request, &found) {
        return Answer::Use(addr, port);
    }
    let client = match (is_bound, is_own) {
        (true, _) => request.source,
        (false, true) => request.addr,
        (false, false) => F::Addr::default(),
    };
    let origin = if is_of_node { Origin::Node } else { Origin::Pod };
    match choose::<F, E>(env, request, &found, client, origin) {
        Ok(Some((addr, port))) => Answer::Use(addr, port),
        // It may well be somebody's who listens there.
        _ if is_loopback => Answer::Leave,
        Ok(None) if is_of_node => Answer::Refuse,
        Err(reason) if is_of_node && meets_no_hook => Answer::Drop(reason),
        _ => Answer::Leave,
    }
}

/// Chooses a backend for the socket, and notes what it asked for.
#[inline(always)]
fn choose<F: Family, E: Env + Tables<F>>(
    env: &E,
    request: &Request<F::Addr>,
    found: &Frontend,
    client: F::Addr,
    origin: Origin,
) -> Result<Option<(F::Addr, Port)>, DropReason> {
    let client: Client<F> = if origin == Origin::Node {
        frontend::admit::<F, E>(env, found, client, origin)?
    } else {
        Client { addr: client, origin }
    };
    let Some(chosen) = select::backend::<F, E>(env, found, client, flow(request))? else {
        return Ok(None);
    };
    let backend = (chosen.backend.addr, chosen.backend.port);
    let asked = Peer {
        addr: request.addr,
        port: request.port,
        pad: 0,
        service_port: found.service_port,
        backend: chosen.id,
        last_seen: env.now(),
    };
    Tables::<F>::note_peer(env, &key(request, socket_side::BACKEND, backend), &asked);
    if request.protocol == protocol::UDP {
        let given = Peer {
            addr: backend.0,
            port: backend.1,
            ..asked
        };
        let asked = (request.addr, request.port);
        Tables::<F>::note_peer(env, &key(request, socket_side::FRONTEND, asked), &given);
    }
    Ok(Some(backend))
}

/// The backend that the socket was given for this frontend before, if it still serves.
#[inline(always)]
fn keep<F: Family, E: Env + Tables<F>>(
    env: &E,
    request: &Request<F::Addr>,
    found: &Frontend,
) -> Option<(F::Addr, Port)> {
    let asked = (request.addr, request.port);
    let given = Tables::<F>::peer(env, &key(request, socket_side::FRONTEND, asked))?;
    let backend = Tables::<F>::backend(env, given.backend)?;
    let serves = backend.flags & backend_flags::LIVE != 0
        && (backend.addr, backend.port) == (given.addr, given.port)
        && given.service_port == found.service_port;
    if !serves {
        return None;
    }
    // What is told of the peer is to be what was asked for last: another frontend may lead to the same backend.
    let by_backend = key(request, socket_side::BACKEND, (given.addr, given.port));
    let is_told = Tables::<F>::peer(env, &by_backend).is_some_and(|told| (told.addr, told.port) == asked);
    if !is_told {
        let told = Peer {
            addr: request.addr,
            port: request.port,
            ..given
        };
        Tables::<F>::note_peer(env, &by_backend, &told);
    }
    Some((given.addr, given.port))
}

/// The frontend that a socket believes to talk to, given the backend that it really talks to.
#[inline(always)]
pub fn restore<F: Family, E: Tables<F>>(env: &E, request: &Request<F::Addr>) -> Option<(F::Addr, Port)> {
    env.peer(&key(request, socket_side::BACKEND, (request.addr, request.port)))
        .map(|peer| (peer.addr, peer.port))
}

#[inline(always)]
fn key<A: Address>(request: &Request<A>, side: u8, (addr, port): (A, Port)) -> SocketKey<A> {
    SocketKey {
        cookie_low: request.cookie as u32,
        cookie_high: (request.cookie >> 32) as u32,
        addr,
        port,
        protocol: request.protocol,
        side,
    }
}

/// A socket's flow: its own, as far as the choice of a backend goes.
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
