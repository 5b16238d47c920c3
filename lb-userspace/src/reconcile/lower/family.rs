//! The part of lowering that each family has.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use lb_common::abi::{
    Backend, BackendSet, Frontend, FrontendKey, LpmKey, Port, SourceRangeKey, address_class, backend_flags,
    frontend_flags,
};

use super::claims::{Claim, Claims};
use super::{Content, Shared};
use crate::desired::{DesiredBackend, DesiredFrontend, DesiredPort, FrontendKind, NodeView, Set};
use crate::maglev;
use crate::maps::{FamilyContents, Limits, MapContents, MapFamily};
use crate::model::{IpFamily, ObjectKey, ObjectKind, Problem, Reason, Service};
use crate::reconcile::NextHops;
use crate::reconcile::ids::BackendIds;
use crate::reconcile::serving::{Pair, Serving};

/// Bits of the length of a source range's prefix that hold the Service port.
const SERVICE_PORT_BITS: u32 = 32;

/// Whose each part of a family's maps is.
#[derive(Debug)]
pub(in crate::reconcile) struct FamilyState<F: MapFamily> {
    backends: BackendIds<F::Addr>,
    serving: Arc<Serving>,
    claims: HashMap<FrontendKey<F::Addr>, Claims>,
    /// Ids of Service ports by frontend, as found in the maps; only until everything is restored.
    found: HashMap<FrontendKey<F::Addr>, u32>,
    /// What may differ from what is in the maps.
    pub(in crate::reconcile) touched: Touched<F>,
}

/// What may differ from what is in the maps.
#[derive(Debug)]
pub(in crate::reconcile) struct Touched<F: MapFamily> {
    pub(in crate::reconcile) frontends: HashSet<FrontendKey<F::Addr>>,
    pub(in crate::reconcile) backends: HashSet<u32>,
    pub(in crate::reconcile) source_ranges: HashSet<SourceRangeKey<F::Addr>>,
    /// Ranges of pods and of Services.
    pub(in crate::reconcile) cidrs: bool,
}

impl<F: MapFamily> Default for Touched<F> {
    fn default() -> Self {
        Self {
            frontends: HashSet::new(),
            backends: HashSet::new(),
            source_ranges: HashSet::new(),
            cidrs: false,
        }
    }
}

/// What a Service has in a family's maps.
#[derive(Debug)]
pub(super) struct Holdings<F: MapFamily> {
    frontends: Vec<(FrontendKey<F::Addr>, Claim)>,
    /// Ids, once for each set in which they are, with whether they are on this node.
    backends: Vec<(u32, bool)>,
    /// Who serves its UDP ports.
    serving: Vec<Pair>,
    source_ranges: Vec<SourceRangeKey<F::Addr>>,
}

impl<F: MapFamily> Default for Holdings<F> {
    fn default() -> Self {
        Self {
            frontends: Vec::new(),
            backends: Vec::new(),
            serving: Vec::new(),
            source_ranges: Vec::new(),
        }
    }
}

impl<F: MapFamily> FamilyState<F> {
    pub(super) fn restore(found: &FamilyContents<F>, limits: Limits) -> Self {
        let named = found
            .frontends
            .iter()
            .filter(|(_, frontend)| frontend.service_port != 0);
        Self {
            backends: BackendIds::restore(limits.backends, &found.backends),
            serving: Arc::default(),
            claims: HashMap::new(),
            found: named.map(|(key, frontend)| (*key, frontend.service_port)).collect(),
            touched: Touched::default(),
        }
    }

    /// Who serves UDP ports.
    pub(super) fn serving(&self) -> Arc<Serving> {
        Arc::clone(&self.serving)
    }

    /// The id that the port has in the maps, by the first of its frontends that is there.
    pub(super) fn found_id(&self, port: &DesiredPort) -> Option<u32> {
        let keys = port.frontends.iter().filter_map(|frontend| key::<F>(port, frontend));
        keys.into_iter().find_map(|key| self.found.get(&key).copied())
    }

    pub(super) fn table(&self, content: &Content, size: u32) -> Vec<u32> {
        let backends: Vec<_> = content
            .backends
            .iter()
            .map(|id| {
                let ((addr, port), _, _) = self.backends.state(*id);
                (addr, port, *id)
            })
            .collect();
        maglev::table(&backends, size)
    }

    pub(super) fn settle(&mut self) {
        self.backends.settle();
        self.touched = Touched::default();
    }

    /// Claims that lose.
    pub(super) fn conflicts(&self) -> impl Iterator<Item = Problem> {
        self.claims.iter().flat_map(|(key, claims)| {
            claims.losers().map(|claim| {
                let owner = claims
                    .owner()
                    .map(|owner| owner.service.to_string())
                    .unwrap_or_default();
                let addr: IpAddr = key.addr.into();
                let field = match claim.kind {
                    FrontendKind::ClusterIp => "spec.clusterIPs",
                    FrontendKind::LoadBalancer => "status.loadBalancer.ingress",
                    FrontendKind::ExternalIp => "spec.externalIPs",
                    FrontendKind::NodePort | FrontendKind::Loopback => "spec.ports[].nodePort",
                };
                Problem {
                    kind: ObjectKind::Service,
                    object: claim.service.clone(),
                    field: field.into(),
                    message: format!(
                        "{addr} port {} is served for {owner}, which also claims it",
                        key.port.get()
                    ),
                    remedy: "let only one Service have it".into(),
                    reason: Reason::AddressConflict,
                }
            })
        })
    }

    /// What should stand in `BACKENDS`.
    fn record(&self, id: u32, node: &NodeView, next_hops: &impl NextHops) -> Backend<F::Addr> {
        let ((addr, port), used, local) = self.backends.state(id);
        let mut backend = Backend {
            addr,
            port: Port::new(port),
            flags: 0,
            adjacency: 0,
            node: 0,
        };
        if used {
            let ip: IpAddr = addr.into();
            backend.flags |= backend_flags::LIVE;
            if local {
                backend.flags |= backend_flags::LOCAL;
            }
            if node.has_address(&ip) {
                backend.flags |= backend_flags::NODE_ADDRESS;
            }
            backend.adjacency = next_hops.adjacency(ip);
            if let Some(name) = self.backends.node(id)
                && !local
            {
                backend.node = next_hops.neighbour(name, IpFamily::of(&ip));
            }
        }
        backend
    }

    fn refresh(
        &mut self,
        id: u32,
        wanted: &mut MapContents,
        shared: &mut Shared,
        node: &NodeView,
        next_hops: &impl NextHops,
    ) {
        let record = self.record(id, node, next_hops);
        let contents = F::contents_mut(wanted);
        if contents.backend(id) != record {
            contents.set_backend(id, record);
            self.touched.backends.insert(id);
            if record.flags & backend_flags::LIVE != 0 {
                shared.set_filter::<F>(wanted, &record.addr, address_class::BACKEND);
            }
        }
    }
}

/// Sets of backend ids, by [`Set`].
type Sets = [Arc<[u32]>; 2];

/// Gives ids to the backends of the sets that the port's frontends use. On error (with the map that is full) some
/// backends are missing.
pub(super) fn port<F: MapFamily>(
    state: &mut FamilyState<F>,
    service: &Service,
    port: &DesiredPort,
    id: u32,
    holdings: &mut Holdings<F>,
) -> Result<Sets, (Sets, &'static str)> {
    let uses = |set| port.frontends.iter().any(|f| f.external == set || f.internal == set);
    let mut full = false;
    let mut give_ids = |backends: &[DesiredBackend]| -> Arc<[u32]> {
        let mut ids = Vec::with_capacity(backends.len());
        for backend in backends {
            let Some(addr) = F::addr(backend.addr) else {
                continue;
            };
            match state
                .backends
                .add((addr, backend.port), backend.local, backend.node.as_ref())
            {
                Some(id) => {
                    ids.push(id);
                    holdings.backends.push((id, backend.local));
                }
                None => full = true,
            }
        }
        ids.into()
    };
    let sets = [
        (Set::Cluster, &port.endpoints.cluster),
        (Set::Local, &port.endpoints.local),
    ]
    .map(|(set, backends)| if uses(set) { give_ids(backends) } else { Arc::default() });
    let serving = give_ids(&port.endpoints.serving);
    holdings.serving.extend(serving.iter().map(|backend| (id, *backend)));
    debug_assert!(service.cluster_ips.iter().any(|addr| F::addr(*addr).is_some()));
    for net in port.source_ranges.iter().flatten() {
        if let Some(LpmKey { prefix_len, addr }) = F::lpm_key(net) {
            holdings.source_ranges.push(SourceRangeKey {
                prefix_len: SERVICE_PORT_BITS + prefix_len,
                service_port: id,
                addr,
            });
        }
    }
    if full { Err((sets, "BACKENDS")) } else { Ok(sets) }
}

fn key<F: MapFamily>(port: &DesiredPort, frontend: &DesiredFrontend) -> Option<FrontendKey<F::Addr>> {
    F::addr(frontend.addr).map(|addr| FrontendKey {
        addr,
        port: Port::new(frontend.port),
        protocol: port.protocol.number(),
        pad: 0,
    })
}

/// The frontends of a port, now that the places of its tables are known.
pub(super) fn frontends<F: MapFamily>(
    service: &Service,
    port: &DesiredPort,
    id: u32,
    places: [BackendSet; 2],
    holdings: &mut Holdings<F>,
) {
    for frontend in &port.frontends {
        let Some(key) = key::<F>(port, frontend) else {
            continue;
        };
        if holdings.frontends.iter().any(|(other, _)| *other == key) {
            continue;
        }
        holdings.frontends.push((
            key,
            Claim {
                kind: frontend.kind,
                created_s: service.created_s,
                service: service.key.clone(),
                frontend: Frontend {
                    service_port: id,
                    flags: frontend.flags,
                    affinity_timeout_s: port.affinity_timeout_s,
                    external: places[frontend.external as usize],
                    internal: places[frontend.internal as usize],
                },
            },
        ));
    }
}

/// The frontend that stands for all other ports of a ClusterIP: they reject.
pub(super) fn other_ports<F: MapFamily>(service: &Service, addr: IpAddr, holdings: &mut Holdings<F>) {
    let Some(addr) = F::addr(addr) else {
        return;
    };
    let key = FrontendKey {
        addr,
        ..FrontendKey::default()
    };
    holdings.frontends.push((
        key,
        Claim {
            kind: FrontendKind::ClusterIp,
            created_s: service.created_s,
            service: service.key.clone(),
            frontend: Frontend {
                flags: frontend_flags::CLUSTER_IP,
                ..Frontend::default()
            },
        },
    ));
}

/// Puts what a Service has now in place of what it had.
#[expect(clippy::too_many_arguments, reason = "the parts of one lowering, borrowed apart")]
pub(super) fn replace<F: MapFamily>(
    state: &mut FamilyState<F>,
    wanted: &mut MapContents,
    shared: &mut Shared,
    service: &ObjectKey,
    old: &Holdings<F>,
    new: &Holdings<F>,
    node: &NodeView,
    next_hops: &impl NextHops,
) {
    for (id, local) in &old.backends {
        state.backends.remove(*id, *local);
    }
    shared.flows_to_cut |= state.serving.replace(&old.serving, &new.serving);
    for (id, _) in new.backends.iter().chain(&old.backends) {
        state.refresh(*id, wanted, shared, node, next_hops);
    }

    for (key, claim) in &new.frontends {
        state.claims.entry(*key).or_default().put(claim.clone());
        match claim.kind {
            FrontendKind::NodePort => shared.set_node_port(wanted, key.port.get()),
            FrontendKind::Loopback => {}
            FrontendKind::ClusterIp | FrontendKind::LoadBalancer | FrontendKind::ExternalIp => {
                shared.set_filter::<F>(wanted, &key.addr, address_class::FRONTEND);
            }
        }
    }
    let kept: HashSet<_> = new.frontends.iter().map(|(key, _)| *key).collect();
    for (key, _) in &old.frontends {
        if !kept.contains(key)
            && let Some(claims) = state.claims.get_mut(key)
        {
            claims.withdraw(service);
        }
    }
    let contents = F::contents_mut(wanted);
    for (key, _) in new.frontends.iter().chain(&old.frontends) {
        let owner = state
            .claims
            .get(key)
            .and_then(Claims::owner)
            .map(|claim| claim.frontend);
        let before = match owner {
            Some(frontend) => contents.frontends.insert(*key, frontend),
            None => contents.frontends.remove(key),
        };
        if before != owner {
            state.touched.frontends.insert(*key);
        }
        if state.claims.get(key).is_some_and(Claims::is_empty) {
            state.claims.remove(key);
        }
    }

    for range in &old.source_ranges {
        if !new.source_ranges.contains(range) && contents.source_ranges.remove(range) {
            state.touched.source_ranges.insert(*range);
        }
    }
    for range in &new.source_ranges {
        if contents.source_ranges.insert(*range) {
            state.touched.source_ranges.insert(*range);
        }
    }
}

/// Takes what the node's state says beside Services.
pub(super) fn node_changed<F: MapFamily>(
    state: &mut FamilyState<F>,
    wanted: &mut MapContents,
    shared: &mut Shared,
    node: &NodeView,
) {
    let contents = F::contents_mut(wanted);
    contents.pod_cidrs = node.pod_cidrs.iter().filter_map(F::lpm_key).collect();
    contents.service_cidrs = node.service_cidrs.iter().filter_map(F::lpm_key).collect();
    state.touched.cidrs = true;
    for addr in node.addresses.iter().chain(&node.primary).copied().filter_map(F::addr) {
        shared.set_filter::<F>(wanted, &addr, address_class::NODE);
    }
}

/// Everything has been lowered once: backends found in the maps that nobody uses are no longer live.
pub(super) fn restored<F: MapFamily>(state: &mut FamilyState<F>, wanted: &mut MapContents) {
    state.found = HashMap::new();
    state.serving.all_known();
    state.backends.restored();
    let contents = F::contents_mut(wanted);
    for id in state.backends.all() {
        let ((addr, port), used, _) = state.backends.state(id);
        if !used {
            let unused = Backend {
                addr,
                port: Port::new(port),
                ..Backend::default()
            };
            contents.set_backend(id, unused);
        }
    }
}

/// Asks again for the adjacencies of these backends.
pub(super) fn next_hops_changed<F: MapFamily>(
    state: &mut FamilyState<F>,
    wanted: &mut MapContents,
    shared: &mut Shared,
    concerned: &impl Fn(IpAddr, Option<&str>) -> bool,
    node: &NodeView,
    next_hops: &impl NextHops,
) {
    for id in state.backends.all() {
        let ((addr, _), used, _) = state.backends.state(id);
        if used && concerned(addr.into(), state.backends.node(id).map(|name| &**name)) {
            state.refresh(id, wanted, shared, node, next_hops);
        }
    }
}
