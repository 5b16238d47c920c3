//! What a destination means, and who may use it.

use crate::abi::{BackendSet, DropReason, Family, Frontend, FrontendKey, Port, frontend_flags};
use crate::env::Tables;

/// Where a client is, as seen from this node. Policies and masquerading depend on it (rules 28 to 36).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Elsewhere: outside the cluster, another node, a pod of another node.
    External,
    /// A pod on this node.
    Pod,
    /// A process in this node's own network namespace.
    Node,
}

impl Origin {
    /// The backends for clients from here, and what an empty set means: [`DropReason`] or, if none, a reject.
    #[inline(always)]
    pub fn backends(self, frontend: &Frontend) -> (BackendSet, Option<DropReason>) {
        let (set, drop) = match self {
            Self::External => (frontend.external, frontend.flags & frontend_flags::DROP_EXTERNAL),
            Self::Pod | Self::Node => (frontend.internal, frontend.flags & frontend_flags::DROP_INTERNAL),
        };
        (
            set,
            if drop != 0 {
                Some(DropReason::NoLocalEndpoint)
            } else {
                None
            },
        )
    }

    /// Whether the frontend wants clients from here to be masqueraded.
    #[inline(always)]
    pub fn is_masqueraded(self, frontend: &Frontend) -> bool {
        let flag = match self {
            Self::External => frontend_flags::MASQUERADE_EXTERNAL,
            Self::Pod => frontend_flags::MASQUERADE_POD,
            Self::Node => frontend_flags::MASQUERADE_NODE,
        };
        frontend.flags & flag != 0
    }
}

/// A client that may use a frontend.
#[derive(Clone, Copy, Debug)]
pub struct Client<F: Family> {
    /// Its address; the unspecified one for a process of this node whose socket is not bound yet.
    pub addr: F::Addr,
    /// Where it is.
    pub origin: Origin,
}

/// Looks up a destination: address, port and protocol first, then the address alone. An undefined port of a ClusterIP
/// is a frontend without backends.
#[inline(always)]
pub fn lookup<F: Family, E: Tables<F>>(env: &E, addr: F::Addr, port: Port, protocol: u8) -> Option<Frontend> {
    let exact = FrontendKey {
        addr,
        port,
        protocol,
        pad: 0,
    };
    if let Some(found) = env.frontend(&exact) {
        return Some(found);
    }
    env.frontend(&FrontendKey {
        addr,
        port: Port::default(),
        protocol: 0,
        pad: 0,
    })
}

/// [`lookup`] of a packet's destination, to which what is for sockets is none.
#[inline(always)]
pub fn lookup_of_packet<F: Family, E: Tables<F>>(env: &E, addr: F::Addr, port: Port, protocol: u8) -> Option<Frontend> {
    let found = lookup::<F, E>(env, addr, port, protocol)?;
    if found.flags & frontend_flags::ONLY_SOCKETS == 0 {
        Some(found)
    } else {
        None
    }
}

/// Lets a client in, or says why not.
#[inline(always)]
pub fn admit<F: Family, E: Tables<F>>(
    env: &E,
    frontend: &Frontend,
    addr: F::Addr,
    origin: Origin,
) -> Result<Client<F>, DropReason> {
    if frontend.flags & frontend_flags::SOURCE_RANGES != 0 && !env.in_source_ranges(frontend.service_port, &addr) {
        return Err(DropReason::SourceRange);
    }
    Ok(Client { addr, origin })
}
