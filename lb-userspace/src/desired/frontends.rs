//! The addresses and ports of a Service, and what becomes of connections to each.
//!
//! The internal policy governs ClusterIPs; the external policy governs NodePorts, load balancer addresses and external
//! IPs, but only for clients from outside: the node's own pods and processes are served from the whole cluster.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use lb_common::abi::frontend_flags as flags;

use super::{Endpoints, NodeView};
use crate::model::{IpFamily, Policy, Service, ServicePort};

/// An address and port of a Service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DesiredFrontend {
    /// The address.
    pub addr: IpAddr,
    /// The port.
    pub port: u16,
    /// What it is.
    pub kind: FrontendKind,
    /// See [`lb_common::abi::frontend_flags`].
    pub flags: u32,
    /// For clients from outside the node.
    pub external: Set,
    /// For pods on this node and for its processes.
    pub internal: Set,
}

/// Kinds of frontends.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FrontendKind {
    /// A ClusterIP.
    ClusterIp,
    /// A load balancer address.
    LoadBalancer,
    /// An external IP.
    ExternalIp,
    /// A NodePort on an address of the node.
    NodePort,
    /// A NodePort on the loopback address, for sockets of the node's processes only.
    Loopback,
}

/// Which of the [`Endpoints`] a frontend leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Set {
    /// [`Endpoints::cluster`].
    Cluster,
    /// [`Endpoints::local`].
    Local,
}

impl FrontendKind {
    /// Where two Services claim one address and port, the kind with the lesser rank has it.
    pub const fn rank(self) -> u8 {
        match self {
            Self::ClusterIp => 0,
            Self::LoadBalancer | Self::ExternalIp => 1,
            Self::NodePort | Self::Loopback => 2,
        }
    }

    const fn flag(self) -> u32 {
        match self {
            Self::ClusterIp => flags::CLUSTER_IP,
            Self::LoadBalancer => flags::LOAD_BALANCER,
            Self::ExternalIp => flags::EXTERNAL_IP,
            Self::NodePort => flags::NODE_PORT,
            Self::Loopback => flags::NODE_PORT | flags::ONLY_SOCKETS,
        }
    }
}

impl Set {
    const fn of(policy: Policy) -> Self {
        match policy {
            Policy::Cluster => Self::Cluster,
            Policy::Local => Self::Local,
        }
    }
}

/// The frontends of a port in the family of this ClusterIP.
pub(super) fn of_port(
    service: &Service,
    port: &ServicePort,
    cluster_ip: IpAddr,
    endpoints: &Endpoints,
    node: &NodeView,
) -> Vec<DesiredFrontend> {
    let family = IpFamily::of(&cluster_ip);
    let internal = Set::of(service.internal_policy);
    let external = Set::of(service.external_policy);
    let of_family = |addrs: &[IpAddr]| -> Vec<IpAddr> {
        let same = addrs.iter().filter(|addr| IpFamily::of(addr) == family);
        same.copied().collect()
    };
    let mut frontends = Vec::new();
    let mut add = |kind: FrontendKind, addr: IpAddr, number: u16, sets: (Set, Set), mut bits: u32| {
        bits |= kind.flag() | empty(sets, endpoints);
        if addr.is_loopback() || node.addresses.contains(&addr) {
            bits |= flags::OWN_ADDRESS;
        }
        bits |= own_backend(sets.1, endpoints);
        if kind != FrontendKind::Loopback {
            bits |= sockets(sets.1, bits, endpoints);
        }
        if service.affinity_timeout_s.is_some() {
            bits |= flags::AFFINITY;
        }
        if frontends
            .iter()
            .any(|f: &DesiredFrontend| (f.addr, f.port) == (addr, number))
        {
            return;
        }
        frontends.push(DesiredFrontend {
            addr,
            port: number,
            kind,
            flags: bits,
            external: sets.0,
            internal: sets.1,
        });
    };

    let bits = if node.masquerade_all {
        flags::MASQUERADE_EXTERNAL | flags::MASQUERADE_POD | flags::MASQUERADE_NODE
    } else if node.tells_pods(family) {
        flags::MASQUERADE_EXTERNAL | flags::MASQUERADE_NODE
    } else {
        flags::MASQUERADE_NODE
    };
    add(
        FrontendKind::ClusterIp,
        cluster_ip,
        port.port,
        (internal, internal),
        bits,
    );

    let sets = (external, Set::Cluster);
    let bits = match service.external_policy {
        Policy::Cluster => flags::MASQUERADE_EXTERNAL | flags::MASQUERADE_POD | flags::MASQUERADE_NODE,
        Policy::Local => flags::MASQUERADE_NODE,
    };
    let firewall = if service.source_ranges.restrict(family) {
        flags::SOURCE_RANGES
    } else {
        0
    };
    for addr in of_family(&service.load_balancer_ips) {
        add(FrontendKind::LoadBalancer, addr, port.port, sets, bits | firewall);
    }
    for addr in of_family(&service.external_ips) {
        add(FrontendKind::ExternalIp, addr, port.port, sets, bits);
    }
    if port.node_port != 0 {
        for addr in of_family(&node.node_port_addresses) {
            add(FrontendKind::NodePort, addr, port.node_port, sets, bits);
        }
        let loopback: IpAddr = match family {
            IpFamily::V4 => Ipv4Addr::LOCALHOST.into(),
            IpFamily::V6 => Ipv6Addr::LOCALHOST.into(),
        };
        add(FrontendKind::Loopback, loopback, port.node_port, sets, bits);
    }
    frontends
}

/// Nobody to send to: reject, so that clients fail at once. But if only the policy stands in the way, drop: another
/// node may do better.
fn empty((external, internal): (Set, Set), endpoints: &Endpoints) -> u32 {
    let drops = |set| set == Set::Local && endpoints.local.is_empty() && !endpoints.cluster.is_empty();
    let mut bits = 0;
    if drops(external) {
        bits |= flags::DROP_EXTERNAL;
    }
    if drops(internal) {
        bits |= flags::DROP_INTERNAL;
    }
    bits
}

/// Whether a process of the node may be sent to the node itself: see [`flags::OWN_BACKEND`].
fn own_backend(internal: Set, endpoints: &Endpoints) -> u32 {
    if endpoints.of(internal).iter().any(|backend| backend.node_address) {
        flags::OWN_BACKEND
    } else {
        0
    }
}

/// Whether sockets of pods may be translated: see [`flags::POD_SOCKETS`].
fn sockets(internal: Set, bits: u32, endpoints: &Endpoints) -> u32 {
    if bits & flags::MASQUERADE_POD == 0 && !endpoints.of(internal).iter().any(|b| b.local) {
        flags::POD_SOCKETS
    } else {
        0
    }
}

/// The ranges of this family, if clients are restricted. If the node itself is within them, the load balancer
/// addresses are added: the node reaches an address that is bound to it with that address as its source.
pub(super) fn source_ranges(service: &Service, family: IpFamily, node: &NodeView) -> Option<Vec<IpNet>> {
    if service.load_balancer_ips.is_empty() || !service.source_ranges.restrict(family) {
        return None;
    }
    let of_family = |addr: &IpAddr| IpFamily::of(addr) == family;
    let mut ranges: Vec<IpNet> = service.source_ranges.nets.clone();
    ranges.retain(|net| of_family(&net.addr()));
    let node_within = node
        .primary
        .iter()
        .any(|addr| ranges.iter().any(|net| net.contains(addr)));
    if node_within {
        let own = service
            .load_balancer_ips
            .iter()
            .copied()
            .filter(of_family)
            .map(IpNet::from);
        let new: Vec<IpNet> = own.filter(|net| !ranges.contains(net)).collect();
        ranges.extend(new);
    }
    Some(ranges)
}
