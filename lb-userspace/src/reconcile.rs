//! The control plane, on one page.
//!
//! ```text
//! sources ─► Snapshot ─ desired() ─► Desired ─ lower(ids) ─► MapContents ─┐
//! (Kubernetes API, or a folder of manifests)                              diff() ─► [Op] ─► maps
//! maps.dump() (at start, then audited again and again) ──────────────────┘
//! ```
//!
//! Work is done for the Services that changed, and only for the parts of the maps that this touched. It is done again
//! from scratch ("everything") after a start, in an audit, and after a change of the node's own state.

mod diff;
mod extents;
mod ids;
mod lower;
mod serving;
mod snapshot;
mod tally;

pub use snapshot::Numbers;
pub use tally::NoLocal;

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use lb_common::abi::BackendSet;

use self::diff::{Stage, diff};
use self::lower::Lowering;
pub use self::lower::NODE_FLAGS;
pub use self::serving::{Pair, Serving};
use self::snapshot::{NodeNews, Snapshot};
use self::tally::Tally;
use crate::desired::{HealthCheck, LocalAddresses, NodeState, NodeView, desired};
use crate::maps::{FamilyOp, MapContents, Maps, MapsError, Op};
use crate::model::{EndpointSlice, IpFamily, ObjectKey, Problem, Protocol};
use crate::sources::Event;

/// Tells which adjacency leads to a backend, and to the node that it is on.
pub trait NextHops {
    /// Index into `ADJACENCIES` of the address's family; 0 = none known, the node's stack finds the way.
    fn adjacency(&self, backend: IpAddr) -> u16;

    /// Index into `ADJACENCIES` of the family: the way to another node that runs Fairway and is a neighbour of this one.
    /// 0 = it is not known to be one.
    fn neighbour(&self, _node: &str, _family: IpFamily) -> u16 {
        0
    }
}

/// Knows no adjacency.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoNextHops;

impl NextHops for NoNextHops {
    fn adjacency(&self, _backend: IpAddr) -> u16 {
        0
    }
}

/// A port of a Service, as a name for people.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ServicePortName {
    /// The Service.
    pub service: ObjectKey,
    /// The name of the port; empty if it has none.
    pub port: Arc<str>,
    /// The protocol of the port.
    pub protocol: Protocol,
}

/// What a run of the loop did.
#[derive(Debug, Default)]
pub struct Report {
    /// Nothing was done, since not all objects are known yet.
    pub waiting: bool,
    /// Services that were looked at.
    pub services: usize,
    /// Changes that were carried out.
    pub ops: usize,
    /// A backend no longer serves a UDP port: flows to it are to be cut, see [`Reconciler::serving`].
    pub flows_to_cut: bool,
    /// Changes that failed, or were put off since they build on one that did. They are tried again in the next run.
    pub failures: Vec<MapsError>,
    /// What triggered the changes of endpoints that are in force now: by family, Unix milliseconds. None while
    /// something failed.
    pub triggers: Vec<(IpFamily, i64)>,
}

/// Keeps the maps equal to what the objects say.
#[derive(Debug)]
pub struct Reconciler<M: Maps, H: NextHops> {
    maps: M,
    next_hops: H,
    node: NodeState,
    view: NodeView,
    snapshot: Snapshot,
    lowering: Lowering,
    tally: Tally,
    /// What the maps hold, as far as we know.
    actual: MapContents,
    /// What was in the maps at start has been taken over.
    restored: bool,
}

impl<M: Maps, H: NextHops> Reconciler<M, H> {
    /// Begins with what is in the maps: ids and tables found there are used again.
    ///
    /// # Errors
    /// If a map cannot be read.
    pub fn restore(mut maps: M, next_hops: H, node: NodeState) -> Result<Self, MapsError> {
        let actual = maps.dump()?;
        let with_members: HashSet<u32> = actual.affinity_members.iter().map(|member| member.offset).collect();
        let mut tables = Vec::new();
        let mut slots = Vec::new();
        for set in tables_in(&actual) {
            slots.clear();
            maps.read_maglev(set.offset, set.size, &mut slots)?;
            tables.push((set, extents::fingerprint(&slots, with_members.contains(&set.offset))));
        }
        let lowering = Lowering::restore(&actual, tables.into_iter(), maps.limits(), node.settings.datapath);
        let mut reconciler = Self {
            maps,
            next_hops,
            view: NodeView::default(),
            snapshot: Snapshot::default(),
            lowering,
            tally: Tally::default(),
            actual,
            restored: false,
            node,
        };
        reconciler.node_changed();
        Ok(reconciler)
    }

    /// Takes news of objects. Cheap: the work is done by [`Self::reconcile`].
    pub fn take(&mut self, event: Event) {
        match self.snapshot.take(event) {
            Some(NodeNews::Object(node)) => self.node.object = node,
            Some(NodeNews::ServiceCidrs(cidrs)) => self.node.service_cidrs = cidrs,
            None => return,
        }
        self.node_changed();
    }

    /// Takes the present addresses of the node's devices.
    pub fn local_addresses_changed(&mut self, local: LocalAddresses) {
        self.node.local = local;
        self.node_changed();
    }

    /// Asks [`NextHops`] again for the adjacencies of every backend for which `concerned` is true, by its address and
    /// the node that it is on.
    pub fn next_hops_changed(&mut self, concerned: impl Fn(IpAddr, Option<&str>) -> bool) {
        self.lowering.next_hops_changed(&concerned, &self.next_hops);
    }

    /// Brings the maps up to date with everything taken so far.
    pub fn reconcile(&mut self) -> Report {
        if !self.snapshot.complete() {
            return Report {
                waiting: true,
                ..Report::default()
            };
        }
        let changed = self.snapshot.take_changed();
        for key in &changed {
            let service = self.snapshot.service(key);
            let slices = self.snapshot.slices(key);
            let desired = service.map(|service| (service, desired(service, &slices, &self.view)));
            let new = desired.as_ref().map(|(service, desired)| (*service, desired));
            self.tally.service(key, new.map(|(_, desired)| desired));
            self.lowering.service(key, new, &self.next_hops);
        }
        if !self.restored {
            self.lowering.restored();
            self.restored = true;
        }
        let mut report = self.write();
        report.services = changed.len();
        if report.failures.is_empty() {
            report.triggers = self.snapshot.take_triggers();
        }
        report
    }

    /// Compares the maps with what they should hold, repairs them, and tells how much was wrong: `ops` changes.
    ///
    /// # Errors
    /// If a map cannot be read.
    pub fn audit(&mut self) -> Result<Report, MapsError> {
        if !self.restored {
            return Ok(Report {
                waiting: true,
                ..Report::default()
            });
        }
        self.actual = self.maps.dump()?;
        let mut slots = Vec::new();
        let mut wrong = Vec::new();
        for (content, set) in self.lowering.shared.extents.iter() {
            slots.clear();
            self.maps.read_maglev(set.offset, set.size, &mut slots)?;
            if slots != self.lowering.table(content, set.size) {
                wrong.push((content.clone(), set));
            }
        }
        self.lowering.shared.unwritten.extend(wrong);
        self.lowering.shared.everything = true;
        Ok(self.write())
    }

    /// Carries out what the maps differ by, stage by stage.
    fn write(&mut self) -> Report {
        let mut report = Report {
            flows_to_cut: self.lowering.shared.flows_to_cut,
            ..Report::default()
        };
        let mut missing = Missing::default();
        for stage in Stage::ALL {
            let failed = !report.failures.is_empty();
            for op in diff(stage, &self.lowering, &self.actual) {
                if missing.puts_off(&op) || (failed && stage == Stage::Break && !ends_service(&op)) {
                    continue;
                }
                match self.maps.apply(&op) {
                    Ok(()) => {
                        self.actual.apply(&op);
                        report.ops += 1;
                    }
                    Err(error) => {
                        missing.add(&op);
                        report.failures.push(error);
                    }
                }
            }
        }
        if report.failures.is_empty() {
            self.lowering.settle();
        }
        report
    }

    fn node_changed(&mut self) {
        let view = NodeView::new(&self.node);
        if view != self.view || !self.restored {
            self.lowering.node_changed(&view);
            self.snapshot.change_all();
            self.view = view;
        }
    }

    /// All that is wrong at present: with objects, between them, and with the room in the maps.
    pub fn problems(&self) -> Vec<Problem> {
        let node = self.node.object.iter().flat_map(|node| &node.problems);
        let mut problems: Vec<Problem> = self.snapshot.problems().chain(node).cloned().collect();
        problems.extend(self.lowering.problems());
        problems.sort_unstable();
        problems.dedup();
        problems
    }

    /// The ids of Service ports, as they stand in the maps.
    pub fn service_ports(&self) -> impl Iterator<Item = (u32, &ServicePortName)> {
        self.lowering.service_ports()
    }

    /// Who serves UDP ports, IPv4 and IPv6.
    pub fn serving(&self) -> [Arc<Serving>; 2] {
        self.lowering.serving()
    }

    /// The EndpointSlices of a Service, in the order of their names.
    pub fn slices(&self, service: &ObjectKey) -> Vec<&EndpointSlice> {
        self.snapshot.slices(service)
    }

    /// The Services with a health check port, and what it answers.
    pub fn health_checks(&self) -> &BTreeMap<ObjectKey, HealthCheck> {
        self.tally.health()
    }

    /// Service ports without an endpoint on this node that policy Local could use, by family.
    pub fn no_local(&self) -> [NoLocal; 2] {
        self.tally.no_local()
    }

    /// How many objects there are.
    pub fn numbers(&self) -> Numbers {
        self.snapshot.numbers()
    }

    /// The state of the node that is worked with.
    pub fn node(&self) -> &NodeState {
        &self.node
    }

    /// What follows from it.
    pub fn view(&self) -> &NodeView {
        &self.view
    }

    /// What the maps should hold.
    pub fn wanted(&self) -> &MapContents {
        &self.lowering.wanted
    }

    /// The maps.
    pub fn maps(&self) -> &M {
        &self.maps
    }

    /// The maps, to be written by others beside the reconciler (adjacencies).
    pub fn maps_mut(&mut self) -> &mut M {
        &mut self.maps
    }

    /// Who tells the adjacencies.
    pub fn next_hops_mut(&mut self) -> &mut H {
        &mut self.next_hops
    }
}

/// The extents that frontends lead to, each once.
fn tables_in(contents: &MapContents) -> HashSet<BackendSet> {
    let frontends = contents.v4.frontends.values().chain(contents.v6.frontends.values());
    let sets = frontends.flat_map(|frontend| [frontend.external, frontend.internal]);
    sets.filter(|set| set.size > 0).collect()
}

/// Whether removing this can hurt nobody. Anything else may still be used by a frontend that was put off.
const fn ends_service(op: &Op) -> bool {
    matches!(
        op,
        Op::V4(FamilyOp::RemoveFrontend(_)) | Op::V6(FamilyOp::RemoveFrontend(_))
    )
}

/// What could not be written in a run: frontends that need it are put off.
#[derive(Debug, Default)]
struct Missing {
    anything: bool,
    offsets: HashSet<u32>,
    service_ports: HashSet<u32>,
}

impl Missing {
    fn add(&mut self, op: &Op) {
        match op {
            Op::SetMaglev { offset, .. } => {
                self.offsets.insert(*offset);
            }
            Op::AddAffinityMember(member) => {
                self.offsets.insert(member.offset);
            }
            Op::V4(FamilyOp::AddSourceRange(range)) => {
                self.service_ports.insert(range.service_port);
            }
            Op::V6(FamilyOp::AddSourceRange(range)) => {
                self.service_ports.insert(range.service_port);
            }
            Op::V4(FamilyOp::SetFrontend(..)) | Op::V6(FamilyOp::SetFrontend(..)) => {}
            _ => self.anything = true,
        }
    }

    fn puts_off(&self, op: &Op) -> bool {
        let (Op::V4(FamilyOp::SetFrontend(_, frontend)) | Op::V6(FamilyOp::SetFrontend(_, frontend))) = op else {
            return false;
        };
        self.anything
            || self.service_ports.contains(&frontend.service_port)
            || [frontend.external, frontend.internal]
                .iter()
                .any(|set| set.size > 0 && self.offsets.contains(&set.offset))
    }
}

#[cfg(test)]
mod tests;
