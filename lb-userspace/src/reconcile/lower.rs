//! From what a Service wants to what stands in the maps: gives ids, places tables, settles who owns an address.
//!
//! Incremental: for each Service it is remembered what it has in the maps, and a new version of it is put in place
//! before what only the old one had is taken back. What was touched on the way is all that `diff` has to look at.

mod claims;
mod family;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use lb_common::abi::{AffinityMember, BackendSet, Config, V4, V6, config_flags};

use super::extents::{Content, Extents};
use super::ids::Names;
use super::serving::Serving;
use super::{NextHops, ServicePortName};
use crate::desired::{Desired, DesiredPort, NodeView};
use crate::maglev;
use crate::maps::{Limits, MapContents, MapFamily};
use crate::model::{IpFamily, ObjectKey, ObjectKind, Problem, Reason, Service};

pub(super) use family::{FamilyState, Touched};

/// The flags of `CONFIG` that follow from the node's state. What an agent before has set stays until that is known.
pub const NODE_FLAGS: u32 = config_flags::SERVICE_CIDRS | config_flags::POD_DEVICES;

/// Ids of Service ports lie below this.
const SERVICE_PORTS: u32 = 1 << 24;

/// What should stand in the maps, and whose each part is.
#[derive(Debug)]
pub(super) struct Lowering {
    /// What should stand in the maps.
    pub(super) wanted: MapContents,
    pub(super) v4: FamilyState<V4>,
    pub(super) v6: FamilyState<V6>,
    pub(super) shared: Shared,
    /// What each Service has in the maps.
    holdings: HashMap<ObjectKey, Holdings>,
    node: NodeView,
}

/// What is not kept by family.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) extents: Extents,
    /// Extents whose tables have yet to be written.
    pub(super) unwritten: HashMap<Content, BackendSet>,
    /// Members of affinity sets that may differ from what is in the maps.
    pub(super) touched_members: HashSet<AffinityMember>,
    /// Buckets of the filter that may.
    pub(super) touched_filter: BTreeSet<u32>,
    /// NodePorts that may.
    pub(super) touched_node_ports: BTreeSet<u16>,
    /// Anything may.
    pub(super) everything: bool,
    /// A backend no longer serves a UDP port.
    pub(super) flows_to_cut: bool,
    names: Names<ServicePortName>,
}

/// What a Service has in the maps.
#[derive(Debug, Default)]
struct Holdings {
    names: Vec<ServicePortName>,
    v4: family::Holdings<V4>,
    v6: family::Holdings<V6>,
    tables: Vec<Content>,
    problems: Vec<Problem>,
}

impl Lowering {
    /// Begins with what is in the maps; `tables` are the extents there with the fingerprints of their contents.
    pub(super) fn restore(
        found: &MapContents,
        tables: impl Iterator<Item = (BackendSet, u64)>,
        limits: Limits,
        datapath: Config,
    ) -> Self {
        let ids = {
            let v4 = found.v4.frontends.values();
            v4.chain(found.v6.frontends.values())
                .map(|frontend| frontend.service_port)
        };
        let wanted = MapContents {
            filter: found.filter.clone(),
            node_ports: found.node_ports.clone(),
            config: datapath,
            ..MapContents::default()
        };
        Self {
            wanted,
            v4: FamilyState::restore(&found.v4, limits),
            v6: FamilyState::restore(&found.v6, limits),
            shared: Shared {
                extents: Extents::restore(limits.maglev, tables),
                unwritten: HashMap::new(),
                touched_members: HashSet::new(),
                touched_filter: BTreeSet::new(),
                touched_node_ports: BTreeSet::new(),
                everything: true,
                flows_to_cut: false,
                names: Names::restore(SERVICE_PORTS, ids),
            },
            holdings: HashMap::new(),
            node: NodeView::default(),
        }
    }

    /// Takes what is known of the node. All Services have to be lowered again after it.
    pub(super) fn node_changed(&mut self, node: &NodeView) {
        self.node = node.clone();
        family::node_changed(&mut self.v4, &mut self.wanted, &mut self.shared, node);
        family::node_changed(&mut self.v6, &mut self.wanted, &mut self.shared, node);
        self.wanted.config.flags &= !NODE_FLAGS;
        if !node.service_cidrs.is_empty() {
            self.wanted.config.flags |= config_flags::SERVICE_CIDRS;
        }
        if node.pods_by_device {
            self.wanted.config.flags |= config_flags::POD_DEVICES;
        }
    }

    /// Puts a new version of a Service in place of the old one; without one the Service is gone.
    pub(super) fn service(&mut self, key: &ObjectKey, new: Option<(&Service, &Desired)>, next_hops: &impl NextHops) {
        let mut holdings = Holdings::default();
        if let Some((service, desired)) = new {
            holdings.problems.clone_from(&desired.problems);
            for port in &desired.ports {
                self.port(service, port, &mut holdings);
            }
            for addr in &desired.cluster_ips {
                match IpFamily::of(addr) {
                    IpFamily::V4 => family::other_ports(service, *addr, &mut holdings.v4),
                    IpFamily::V6 => family::other_ports(service, *addr, &mut holdings.v6),
                }
            }
        }
        let old = match new {
            Some(_) => self.holdings.insert(key.clone(), Holdings::default()),
            None => self.holdings.remove(key),
        };
        let old = old.unwrap_or_default();
        let node = &self.node;
        family::replace(
            &mut self.v4,
            &mut self.wanted,
            &mut self.shared,
            key,
            &old.v4,
            &holdings.v4,
            node,
            next_hops,
        );
        family::replace(
            &mut self.v6,
            &mut self.wanted,
            &mut self.shared,
            key,
            &old.v6,
            &holdings.v6,
            node,
            next_hops,
        );
        for content in &old.tables {
            self.drop_table(content);
        }
        for name in &old.names {
            if !holdings.names.contains(name) {
                self.shared.names.release(name);
            }
        }
        if let Some(place) = self.holdings.get_mut(key) {
            *place = holdings;
        }
    }

    fn port(&mut self, service: &Service, port: &DesiredPort, holdings: &mut Holdings) {
        let name = ServicePortName {
            service: service.key.clone(),
            port: port.name.clone(),
            protocol: port.protocol,
        };
        let (v4, v6) = (&self.v4, &self.v6);
        let id = self.shared.names.id(&name, || match port.family {
            IpFamily::V4 => v4.found_id(port),
            IpFamily::V6 => v6.found_id(port),
        });
        let Some(id) = id else {
            return;
        };
        if !holdings.names.contains(&name) {
            holdings.names.push(name);
        }
        let fits = match port.family {
            IpFamily::V4 => family::port(&mut self.v4, service, port, id, &mut holdings.v4),
            IpFamily::V6 => family::port(&mut self.v6, service, port, id, &mut holdings.v6),
        };
        let (sets, mut short) = match fits {
            Ok(sets) => (sets, None),
            Err((sets, map)) => (sets, Some(map)),
        };
        let mut places = [BackendSet::default(); 2];
        for (place, backends) in places.iter_mut().zip(sets) {
            if backends.is_empty() {
                continue;
            }
            let content = Content {
                family: port.family,
                backends,
                affinity: port.affinity_timeout_s != 0,
            };
            match self.take_table(&content) {
                Some(set) => {
                    *place = set;
                    holdings.tables.push(content);
                }
                None => short = Some("MAGLEV"),
            }
        }
        match port.family {
            IpFamily::V4 => family::frontends(service, port, id, places, &mut holdings.v4),
            IpFamily::V6 => family::frontends(service, port, id, places, &mut holdings.v6),
        }
        if let Some(map) = short {
            holdings.problems.push(no_room(&service.key, &port.name, map));
        }
    }

    /// The place of this table: an extent in which it lies already, or a new one that is to be written.
    fn take_table(&mut self, content: &Content) -> Option<BackendSet> {
        if let Some(set) = self.shared.extents.add(content) {
            return Some(set);
        }
        for size in maglev::table_sizes(content.backends.len()) {
            let claimed = if self.shared.extents.any_unclaimed() {
                let table = self.table(content, size);
                self.shared.extents.claim(content, &table)
            } else {
                None
            };
            let set = claimed.or_else(|| {
                let set = self.shared.extents.create(content, size)?;
                self.shared.unwritten.insert(content.clone(), set);
                Some(set)
            });
            if let Some(set) = set {
                if content.affinity {
                    for member in members(content, set) {
                        self.wanted.affinity_members.insert(member);
                        self.shared.touched_members.insert(member);
                    }
                }
                return Some(set);
            }
        }
        None
    }

    fn drop_table(&mut self, content: &Content) {
        let Some(set) = self.shared.extents.remove(content) else {
            return;
        };
        self.shared.unwritten.remove(content);
        if content.affinity {
            for member in members(content, set) {
                self.wanted.affinity_members.remove(&member);
                self.shared.touched_members.insert(member);
            }
        }
    }

    /// What has to lie in an extent.
    pub(super) fn table(&self, content: &Content, size: u32) -> Vec<u32> {
        match content.family {
            IpFamily::V4 => self.v4.table(content, size),
            IpFamily::V6 => self.v6.table(content, size),
        }
    }

    /// Everything that is there has been lowered once: what was found in the maps and is nobody's goes.
    pub(super) fn restored(&mut self) {
        self.shared.names.restored();
        self.shared.extents.restored();
        family::restored(&mut self.v4, &mut self.wanted);
        family::restored(&mut self.v6, &mut self.wanted);
    }

    /// The maps hold what they should: what was given back is free from now on.
    pub(super) fn settle(&mut self) {
        let shared = &mut self.shared;
        shared.names.settle();
        shared.extents.settle();
        shared.unwritten.clear();
        shared.touched_members.clear();
        shared.touched_filter.clear();
        shared.touched_node_ports.clear();
        shared.everything = false;
        shared.flows_to_cut = false;
        self.v4.settle();
        self.v6.settle();
    }

    /// Asks again for the adjacencies of these backends.
    pub(super) fn next_hops_changed(
        &mut self,
        concerned: &impl Fn(IpAddr, Option<&str>) -> bool,
        next_hops: &impl NextHops,
    ) {
        let node = &self.node;
        family::next_hops_changed(
            &mut self.v4,
            &mut self.wanted,
            &mut self.shared,
            concerned,
            node,
            next_hops,
        );
        family::next_hops_changed(
            &mut self.v6,
            &mut self.wanted,
            &mut self.shared,
            concerned,
            node,
            next_hops,
        );
    }

    /// What is wrong with Services here: the room is short, or an address is another's.
    pub(super) fn problems(&self) -> impl Iterator<Item = Problem> {
        let own = self
            .holdings
            .values()
            .flat_map(|holdings| holdings.problems.iter().cloned());
        own.chain(self.v4.conflicts()).chain(self.v6.conflicts())
    }

    /// Who serves UDP ports, by family.
    pub(super) fn serving(&self) -> [Arc<Serving>; 2] {
        [self.v4.serving(), self.v6.serving()]
    }

    pub(super) fn service_ports(&self) -> impl Iterator<Item = (u32, &ServicePortName)> {
        self.shared.names.iter()
    }
}

impl Shared {
    /// Sets bits of the filter for an address.
    fn set_filter<F: MapFamily>(&mut self, wanted: &mut MapContents, addr: &F::Addr, bits: u8) {
        let bucket = lb_common::hash::filter_bucket(addr);
        let byte = &mut wanted.filter[bucket as usize];
        if *byte & bits != bits {
            *byte |= bits;
            self.touched_filter.insert(bucket);
        }
    }

    /// Sets the bit of a NodePort.
    fn set_node_port(&mut self, wanted: &mut MapContents, port: u16) {
        let byte = &mut wanted.node_ports[usize::from(port >> 3)];
        let bit = 1 << (port & 7);
        if *byte & bit == 0 {
            *byte |= bit;
            self.touched_node_ports.insert(port);
        }
    }
}

fn members(content: &Content, set: BackendSet) -> impl Iterator<Item = AffinityMember> {
    let offset = set.offset;
    content.backends.iter().map(move |backend| AffinityMember {
        offset,
        backend: *backend,
    })
}

fn no_room(service: &ObjectKey, port: &Arc<str>, map: &str) -> Problem {
    Problem {
        kind: ObjectKind::Service,
        object: service.clone(),
        field: format!("spec.ports[{port}]"),
        message: format!("no room is left in {map}, so some of its endpoints get no connections"),
        remedy: "give the agent larger maps".into(),
        reason: Reason::MapFull,
    }
}
