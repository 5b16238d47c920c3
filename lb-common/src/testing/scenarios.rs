//! The scenario table: what Fairway does with a packet, one case after the other, in both families.
//!
//! | module | what happens there |
//! | --- | --- |
//! | [`forward`] | the first packet of a connection, and those after it, on their way to the backend |
//! | [`reply`] | the way back; a pod that reaches itself |
//! | [`fast_path`] | what XDP sends out itself, and what it leaves to the stack |
//! | [`policy`] | who may come, who is masqueraded, who gets nobody: REJECT and DROP |
//! | [`affinity`] | clients pinned to a backend |
//! | [`lifetime`] | connections that end, begin again, collide, or find no room |
//! | [`headers`] | options, extension headers, VLAN tags, checksums |
//! | [`foreign`] | what is not ours, and leaves as it came |
//! | [`fragments`] | datagrams in fragments, which have ports in the first only |
//! | [`sctp`] | SCTP, on every hook |
//! | [`icmp`] | ICMP errors about known connections |
//! | [`announce`] | ARP and NDP for announced addresses |
//! | [`passed_on`] | what comes in for them and goes on, as it is, to the backend's node |
//! | [`node`] | processes of the node whose sockets were not translated |
//! | [`socket`] | sockets |

mod affinity;
mod announce;
mod fast_path;
mod foreign;
mod forward;
mod fragments;
mod headers;
mod icmp;
mod lifetime;
mod node;
mod passed_on;
mod policy;
mod reply;
mod sctp;
mod socket;

use std::vec::Vec;

use super::{Cast, Scenario};
use crate::abi::{V4, V6};

/// What every module of the table uses.
mod prelude {
    pub(super) use std::vec;
    pub(super) use std::vec::Vec;

    pub(super) use crate::abi::{
        DropReason, Hook, Mac, Outcome, Port, address_class, backend_flags, conn_flags, frontend_flags, protocol,
        tcp_state,
    };
    pub(super) use crate::testing::cast::{CLIENT_MAC, NODE_1_MAC, NODE_2_MAC, OTHER_MAC};
    pub(super) use crate::testing::frontends::{
        MASQUERADE_ALL, NOBODY, cluster_ip, load_balancer, local_load_balancer, node_port, only, web,
    };
    pub(super) use crate::testing::scene::{
        CLIENT_PORT, HTTP, HZ, NODE_COOKIE, NODE_PORT, NOW, SNAT_PORT, TARGET, WEB, add_class,
    };
    pub(super) use crate::testing::{Cast, Flow, Frame, Scenario, Scene, World};
    pub(super) use crate::wire::tcp_flags::{ACK, FIN, RST, SYN};
}

/// Every scenario there is.
pub fn all() -> Vec<Scenario> {
    let mut all = of::<V4>();
    all.extend(of::<V6>());
    all
}

fn of<F: Cast>() -> Vec<Scenario> {
    [
        forward::scenarios::<F>(),
        reply::scenarios::<F>(),
        fast_path::scenarios::<F>(),
        policy::scenarios::<F>(),
        affinity::scenarios::<F>(),
        lifetime::scenarios::<F>(),
        headers::scenarios::<F>(),
        foreign::scenarios::<F>(),
        fragments::scenarios::<F>(),
        sctp::scenarios::<F>(),
        icmp::scenarios::<F>(),
        announce::scenarios::<F>(),
        passed_on::scenarios::<F>(),
        node::scenarios::<F>(),
        socket::scenarios::<F>(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
