//! The objects as they are now, and which Services have to be looked at again.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use ipnet::IpNet;

use crate::model::{EndpointSlice, IpFamily, Node, ObjectKey, Problem, Service, Standing};
use crate::sources::Event;

/// What decides about every Service.
#[derive(Debug)]
pub(super) enum NodeNews {
    Object(Option<Node>),
    ServiceCidrs(Option<Vec<IpNet>>),
}

/// The objects as they are now.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    services: HashMap<ObjectKey, Service>,
    slices: HashMap<ObjectKey, EndpointSlice>,
    /// Names of the slices of each Service, in their order. A slice stays known under its own name, so that one
    /// that loses an endpoint takes nothing from one that has won it.
    slices_of: HashMap<ObjectKey, BTreeSet<Arc<str>>>,
    services_known: bool,
    slices_known: bool,
    origin_problems: Vec<Problem>,
    changed: HashSet<ObjectKey>,
    /// What triggered the changes of endpoints that were taken: by family, Unix milliseconds.
    triggers: Vec<(IpFamily, i64)>,
    numbers: Numbers,
}

/// How many objects there are, and how many have come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Numbers {
    /// Services that are served.
    pub services: usize,
    /// EndpointSlices.
    pub slices: usize,
    /// Endpoints in them.
    pub endpoints: usize,
    /// Services that were told of so far, each time that one was.
    pub service_changes: u64,
    /// EndpointSlices that were told of so far, each time that one was.
    pub slice_changes: u64,
}

impl Numbers {
    fn count(&mut self, event: &Event) {
        match event {
            Event::Services(all) => self.service_changes += all.len() as u64,
            Event::Service(_) | Event::ServiceGone(_) => self.service_changes += 1,
            Event::EndpointSlices(all) => self.slice_changes += all.len() as u64,
            Event::EndpointSlice(_) | Event::EndpointSliceGone(_) => self.slice_changes += 1,
            Event::Node(_) | Event::ServiceCidrs(_) | Event::Pools(_) | Event::Problems(_) => {}
        }
    }
}

impl Snapshot {
    /// Takes news of objects. Gives back what is about the node.
    pub(super) fn take(&mut self, event: Event) -> Option<NodeNews> {
        self.numbers.count(&event);
        match event {
            Event::Services(services) => {
                self.services_known = true;
                let mut gone: HashSet<ObjectKey> = self.services.keys().cloned().collect();
                for service in services {
                    gone.remove(&service.key);
                    self.put_service(service);
                }
                for key in gone {
                    self.drop_service(&key);
                }
            }
            Event::EndpointSlices(slices) => {
                self.slices_known = true;
                let mut gone: HashSet<ObjectKey> = self.slices.keys().cloned().collect();
                for slice in slices {
                    gone.remove(&slice.key);
                    self.put_slice(slice);
                }
                for key in gone {
                    self.drop_slice(&key);
                }
            }
            Event::Service(service) => self.put_service(service),
            Event::ServiceGone(key) => self.drop_service(&key),
            Event::EndpointSlice(slice) => self.put_slice(slice),
            Event::EndpointSliceGone(key) => self.drop_slice(&key),
            Event::Problems(problems) => self.origin_problems = problems,
            // They decide about announcement alone.
            Event::Pools(_) => {}
            Event::Node(node) => return Some(NodeNews::Object(node)),
            Event::ServiceCidrs(cidrs) => return Some(NodeNews::ServiceCidrs(cidrs)),
        }
        None
    }

    /// Whether the complete lists of both kinds have been seen.
    pub(super) const fn complete(&self) -> bool {
        self.services_known && self.slices_known
    }

    /// The Services to look at again, each told once.
    pub(super) fn take_changed(&mut self) -> Vec<ObjectKey> {
        let mut changed: Vec<ObjectKey> = self.changed.drain().collect();
        changed.sort_unstable();
        changed
    }

    /// Every Service has to be looked at again.
    pub(super) fn change_all(&mut self) {
        self.changed.extend(self.services.keys().cloned());
    }

    pub(super) fn service(&self, key: &ObjectKey) -> Option<&Service> {
        self.services.get(key)
    }

    /// The slices of a Service, in the order of their names.
    pub(super) fn slices(&self, service: &ObjectKey) -> Vec<&EndpointSlice> {
        let names = self.slices_of.get(service).into_iter().flatten();
        let keys = names.map(|name| ObjectKey {
            namespace: service.namespace.clone(),
            name: name.clone(),
        });
        keys.filter_map(|key| self.slices.get(&key)).collect()
    }

    /// What triggered the changes of endpoints since this was asked last.
    pub(super) fn take_triggers(&mut self) -> Vec<(IpFamily, i64)> {
        std::mem::take(&mut self.triggers)
    }

    pub(super) fn numbers(&self) -> Numbers {
        Numbers {
            slices: self.slices.len(),
            ..self.numbers
        }
    }

    /// All that is wrong with the objects and their origin.
    pub(super) fn problems(&self) -> impl Iterator<Item = &Problem> {
        let services = self.services.values().flat_map(|service| &service.problems);
        let slices = self.slices.values().flat_map(|slice| &slice.problems);
        self.origin_problems.iter().chain(services).chain(slices)
    }

    fn put_service(&mut self, service: Service) {
        if self.services.get(&service.key) != Some(&service) {
            self.changed.insert(service.key.clone());
            self.numbers.services += usize::from(service.standing == Standing::Served);
            if let Some(before) = self.services.insert(service.key.clone(), service) {
                self.numbers.services -= usize::from(before.standing == Standing::Served);
            }
        }
    }

    fn drop_service(&mut self, key: &ObjectKey) {
        if let Some(service) = self.services.remove(key) {
            self.changed.insert(key.clone());
            self.numbers.services -= usize::from(service.standing == Standing::Served);
        }
    }

    fn put_slice(&mut self, slice: EndpointSlice) {
        let before = self.slices.get(&slice.key);
        if before == Some(&slice) {
            return;
        }
        // Of a change to something else the annotation tells nothing.
        let same = |before: &EndpointSlice| before.endpoints == slice.endpoints && before.ports == slice.ports;
        if let Some(at) = slice.last_change_ms
            && !before.is_some_and(same)
        {
            self.triggers.push((slice.family, at));
        }
        if before.is_some_and(|before| before.service != slice.service) {
            self.drop_slice(&slice.key.clone());
        }
        if let Some(service) = &slice.service {
            self.changed.insert(service.clone());
            let names = self.slices_of.entry(service.clone()).or_default();
            names.insert(slice.key.name.clone());
        }
        self.numbers.endpoints += slice.endpoints.len();
        if let Some(before) = self.slices.insert(slice.key.clone(), slice) {
            self.numbers.endpoints -= before.endpoints.len();
        }
    }

    fn drop_slice(&mut self, key: &ObjectKey) {
        let Some(slice) = self.slices.remove(key) else {
            return;
        };
        self.numbers.endpoints -= slice.endpoints.len();
        let Some(service) = slice.service else {
            return;
        };
        if let Some(names) = self.slices_of.get_mut(&service) {
            names.remove(&key.name);
            if names.is_empty() {
                self.slices_of.remove(&service);
            }
        }
        self.changed.insert(service);
    }
}
