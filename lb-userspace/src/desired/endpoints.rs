//! Which endpoints of a Service port may be chosen.
//!
//! The rules are those of kube-proxy (`pkg/proxy/topology.go`, KEP-1669, KEP-2086, KEP-3015, KEP-4444).

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::{NodeView, Set};
use crate::model::{Endpoint, EndpointSlice, Hints, IpFamily, Protocol, ServicePort};

/// The endpoints of a Service port in one family, sorted out by policy.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Endpoints {
    /// For policy Cluster, in the order of address and port. Empty: no endpoint is usable anywhere.
    pub cluster: Vec<DesiredBackend>,
    /// For policy Local, in the order of address and port.
    pub local: Vec<DesiredBackend>,
    /// Addresses of the ready endpoints on this node.
    pub local_ready: BTreeSet<IpAddr>,
    /// Of a UDP port: all endpoints that serve, whether new connections may go there or not. Flows to any of them are
    /// kept, flows to others are cut. Empty for other protocols, whose connections end by themselves.
    pub serving: Vec<DesiredBackend>,
}

/// An endpoint to which connections may go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DesiredBackend {
    /// Its address.
    pub addr: IpAddr,
    /// Its port.
    pub port: u16,
    /// The name of the node that it is on.
    pub node: Option<Arc<str>>,
    /// That is this node.
    pub local: bool,
    /// Its address is one of this node's own.
    pub node_address: bool,
}

/// How good an endpoint is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// Not to be used.
    Unusable,
    /// To be used if no other is ready.
    Terminating,
    /// To be used.
    Ready,
}

struct Candidate<'a> {
    addr: IpAddr,
    port: u16,
    rank: Rank,
    serving: bool,
    terminating: bool,
    node: Option<&'a Arc<str>>,
    local: bool,
    hints: Option<&'a Hints>,
}

impl Endpoints {
    /// Those of a set.
    pub fn of(&self, set: Set) -> &[DesiredBackend] {
        match set {
            Set::Cluster => &self.cluster,
            Set::Local => &self.local,
        }
    }

    /// The endpoints of this port.
    pub(super) fn of_port(port: &ServicePort, family: IpFamily, slices: &[&EndpointSlice], node: &NodeView) -> Self {
        let candidates = candidates(port, family, slices, node);
        let preference = Preference::of(&candidates, node);
        let backend = |c: &Candidate<'_>| DesiredBackend {
            addr: c.addr,
            port: c.port,
            node: c.node.cloned(),
            local: c.local,
            node_address: node.has_address(&c.addr),
        };
        let pick = |wanted: Rank, keep: &dyn Fn(&Candidate<'_>) -> bool| -> Vec<DesiredBackend> {
            let of_rank = candidates.iter().filter(|c| c.rank == wanted);
            of_rank.filter(|c| keep(c)).map(backend).collect()
        };
        let serving = if port.protocol == Protocol::Udp {
            candidates.iter().filter(|c| c.serving).map(backend).collect()
        } else {
            Vec::new()
        };
        let mut cluster = pick(Rank::Ready, &|c| preference.allows(c, node));
        if cluster.is_empty() {
            cluster = pick(Rank::Terminating, &|_| true);
        }
        let mut local = pick(Rank::Ready, &|c| c.local);
        let local_ready = local.iter().map(|b| b.addr).collect();
        if local.is_empty() {
            local = pick(Rank::Terminating, &|c| c.local);
        }
        Self {
            cluster,
            local,
            local_ready,
            serving,
        }
    }
}

/// The endpoints of all slices that have the port, each address and port once, in their order.
///
/// If copies differ, one that is not terminating counts, since an address of a pod that goes can be used again before
/// the pod has gone; then the better one. Among equals one that is on this node makes the endpoint local.
fn candidates<'a>(
    port: &ServicePort,
    family: IpFamily,
    slices: &[&'a EndpointSlice],
    node: &NodeView,
) -> Vec<Candidate<'a>> {
    let mut candidates = Vec::new();
    for slice in slices.iter().filter(|slice| slice.family == family) {
        for slice_port in &slice.ports {
            if slice_port.name != port.name || slice_port.protocol != port.protocol {
                continue;
            }
            candidates.extend(slice.endpoints.iter().map(|endpoint| Candidate {
                addr: endpoint.addr,
                port: slice_port.port,
                rank: rank(endpoint),
                serving: endpoint.serving || endpoint.ready,
                terminating: endpoint.terminating,
                node: endpoint.node.as_ref(),
                local: endpoint.node.as_ref().is_some_and(|name| *name == node.name),
                hints: endpoint.hints.as_deref(),
            }));
        }
    }
    candidates.sort_by_key(|c| (c.addr, c.port, c.terminating, Reverse(c.rank)));
    candidates.dedup_by(|copy, first| {
        let same = (copy.addr, copy.port) == (first.addr, first.port);
        if same && (copy.terminating, copy.rank) == (first.terminating, first.rank) {
            first.serving |= copy.serving;
            first.local |= copy.local;
        }
        same
    });
    candidates
}

const fn rank(endpoint: &Endpoint) -> Rank {
    if endpoint.ready {
        Rank::Ready
    } else if endpoint.serving && endpoint.terminating {
        Rank::Terminating
    } else {
        Rank::Unusable
    }
}

/// What the hints of the ready endpoints ask for. A level counts only if every ready endpoint has hints for it and
/// some are for us: while hints are being rolled out all endpoints are used.
#[derive(Clone, Copy)]
enum Preference {
    None,
    SameNode,
    SameZone,
}

impl Preference {
    fn of(candidates: &[Candidate<'_>], node: &NodeView) -> Self {
        let ready = || candidates.iter().filter(|c| c.rank == Rank::Ready);
        let usable = |preference: Self, hinted: fn(&Hints) -> bool| {
            ready().all(|c| c.hints.is_some_and(hinted)) && ready().any(|c| preference.allows(c, node))
        };
        if usable(Self::SameNode, |hints| !hints.nodes.is_empty()) {
            Self::SameNode
        } else if node.zone.is_some() && usable(Self::SameZone, |hints| !hints.zones.is_empty()) {
            Self::SameZone
        } else {
            Self::None
        }
    }

    fn allows(self, candidate: &Candidate<'_>, node: &NodeView) -> bool {
        let named = |pick: fn(&Hints) -> &[Arc<str>], name: Option<&str>| {
            let names = candidate.hints.map(pick).unwrap_or_default();
            name.is_some_and(|wanted| names.iter().any(|name| **name == *wanted))
        };
        match self {
            Self::None => true,
            Self::SameNode => named(|hints| &hints.nodes, Some(&node.name)),
            Self::SameZone => named(|hints| &hints.zones, node.zone.as_deref()),
        }
    }
}
