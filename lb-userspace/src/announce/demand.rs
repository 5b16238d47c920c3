//! What there is to announce: the addresses of Services that lie in a pool which is announced, from the objects as they
//! come.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::choose::{Locals, Name};
use crate::model::{EndpointSlice, IpFamily, ObjectKey, Policy, Pool, Problem, Service};
use crate::sources::Event;

/// An address that a node has to announce.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Demand {
    /// The pool it lies in.
    pub pool: Arc<str>,
    /// The Services that have it, in their order.
    pub services: Vec<ObjectKey>,
    /// Which nodes have endpoints of those Services that want them there; `None` if none does.
    pub locals: Option<Locals>,
}

/// By address.
pub type Demands = BTreeMap<IpAddr, Demand>;

/// The objects that decide about announcement.
#[derive(Debug, Default)]
pub struct Index {
    /// Services with load balancer addresses, and no others.
    services: HashMap<ObjectKey, Facts>,
    pools: Vec<Pool>,
    changed: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Facts {
    addresses: Vec<IpAddr>,
    policy: Policy,
    proxy_name: Option<Arc<str>>,
}

impl Index {
    /// Takes news of objects.
    pub fn take(&mut self, event: &Event) {
        match event {
            Event::Services(all) => {
                let gone: BTreeSet<ObjectKey> = self.services.keys().cloned().collect();
                let there: BTreeSet<&ObjectKey> = all.iter().map(|service| &service.key).collect();
                gone.iter()
                    .filter(|key| !there.contains(key))
                    .for_each(|key| self.drop_service(key));
                all.iter().for_each(|service| self.put_service(service));
            }
            Event::Service(service) => self.put_service(service),
            Event::ServiceGone(key) => self.drop_service(key),
            Event::Pools(pools) => {
                self.changed |= self.pools != *pools;
                self.pools.clone_from(pools);
            }
            Event::EndpointSlices(_) => self.changed |= !self.services.is_empty(),
            Event::EndpointSlice(slice) => self.slice_changed(slice.service.as_ref()),
            // Of which Service it was is not said.
            Event::EndpointSliceGone(_) => self.slice_changed(None),
            Event::Node(_) | Event::ServiceCidrs(_) | Event::Problems(_) => {}
        }
    }

    fn put_service(&mut self, service: &Service) {
        if service.load_balancer_ips.is_empty() {
            return self.drop_service(&service.key);
        }
        let facts = Facts {
            addresses: service.load_balancer_ips.clone(),
            policy: service.external_policy,
            proxy_name: service.proxy_name.clone(),
        };
        if self.services.get(&service.key) != Some(&facts) {
            self.services.insert(service.key.clone(), facts);
            self.changed = true;
        }
    }

    fn drop_service(&mut self, key: &ObjectKey) {
        self.changed |= self.services.remove(key).is_some();
    }

    fn slice_changed(&mut self, service: Option<&ObjectKey>) {
        let is_local = |facts: &Facts| facts.policy == Policy::Local;
        self.changed |= match service {
            Some(key) => self.services.get(key).is_some_and(is_local),
            None => self.services.values().any(is_local),
        };
    }

    /// Whether anything has changed since this was asked last.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// The pools whose addresses are announced.
    pub fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.pools.iter().filter(|pool| pool.is_announced)
    }

    /// What is wrong with pools.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.pools.iter().flat_map(|pool| &pool.problems)
    }

    /// What there is to announce, for Services that are given to this proxy. An address in several pools is that of the
    /// first by name.
    pub fn demands<'a>(
        &self,
        proxy_name: Option<&Arc<str>>,
        slices: impl Fn(&ObjectKey) -> Vec<&'a EndpointSlice>,
    ) -> Demands {
        let mut demands = Demands::new();
        let mut services: Vec<_> = self
            .services
            .iter()
            .filter(|(_, facts)| facts.proxy_name.as_ref() == proxy_name)
            .collect();
        services.sort_unstable_by_key(|(key, _)| *key);
        for (key, facts) in services {
            let slices = match facts.policy {
                Policy::Local => Some(slices(key)),
                Policy::Cluster => None,
            };
            for addr in &facts.addresses {
                let Some(pool) = self.pool_of(addr) else { continue };
                let demand = demands.entry(*addr).or_insert_with(|| Demand {
                    pool: pool.name.clone(),
                    services: Vec::new(),
                    locals: None,
                });
                demand.services.push(key.clone());
                if let Some(slices) = &slices {
                    let locals = demand.locals.get_or_insert_default();
                    for node in nodes_with_endpoints(slices, IpFamily::of(addr)) {
                        *locals.entry(node).or_default() += 1;
                    }
                }
            }
        }
        demands
    }

    fn pool_of(&self, addr: &IpAddr) -> Option<&Pool> {
        let mut pools = self.pools.iter().filter(|pool| pool.contains(addr));
        let first = pools.next()?;
        let first = pools.fold(
            first,
            |first, other| if other.name < first.name { other } else { first },
        );
        first.is_announced.then_some(first)
    }
}

/// The nodes that new connections to a Service can be sent to: those with a ready endpoint; if there is none anywhere,
/// those with one that still serves.
fn nodes_with_endpoints(slices: &[&EndpointSlice], family: IpFamily) -> BTreeSet<Name> {
    let endpoints = || {
        let of_family = slices.iter().filter(move |slice| slice.family == family);
        of_family.flat_map(|slice| slice.endpoints.iter())
    };
    let ready: BTreeSet<Name> = endpoints()
        .filter(|endpoint| endpoint.ready)
        .filter_map(|endpoint| endpoint.node.clone())
        .collect();
    if !ready.is_empty() {
        return ready;
    }
    let last = endpoints().filter(|endpoint| endpoint.serving && endpoint.terminating);
    last.filter_map(|endpoint| endpoint.node.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::pool::Selector;
    use crate::model::{Endpoint, Standing};

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn pool(name: &str, first: &str, last: &str, is_announced: bool) -> Pool {
        Pool {
            name: name.into(),
            ranges: vec![(ip(first), ip(last))],
            is_announced,
            nodes: Selector::default(),
            interfaces: Vec::new(),
            problems: Vec::new(),
        }
    }

    fn service(name: &str, addresses: &[&str], policy: Policy) -> Service {
        Service {
            key: ObjectKey::new("shop", name),
            created_s: 0,
            proxy_name: None,
            standing: Standing::Served,
            cluster_ips: Vec::new(),
            external_ips: Vec::new(),
            load_balancer_ips: addresses.iter().map(|text| ip(text)).collect(),
            source_ranges: crate::model::SourceRanges::default(),
            internal_policy: Policy::Cluster,
            external_policy: policy,
            affinity_timeout_s: None,
            health_check_node_port: 0,
            ports: Vec::new(),
            problems: Vec::new(),
        }
    }

    fn slice(service: &str, endpoints: &[(&str, bool, bool)]) -> EndpointSlice {
        let endpoints = endpoints.iter().map(|(node, ready, terminating)| Endpoint {
            addr: ip("10.244.1.10"),
            ready: *ready,
            serving: true,
            terminating: *terminating,
            node: Some((*node).into()),
            hints: None,
        });
        EndpointSlice {
            key: ObjectKey::new("shop", service),
            service: Some(ObjectKey::new("shop", service)),
            family: IpFamily::V4,
            ports: Vec::new(),
            endpoints: endpoints.collect(),
            last_change_ms: None,
            problems: Vec::new(),
        }
    }

    fn demands(services: Vec<Service>, slices: &[EndpointSlice]) -> Demands {
        let mut index = Index::default();
        index.take(&Event::Pools(vec![
            pool("b", "192.0.2.0", "192.0.2.255", true),
            pool("a", "192.0.2.128", "192.0.2.255", true),
            pool("static", "198.51.100.0", "198.51.100.255", false),
        ]));
        index.take(&Event::Services(services));
        assert!(index.take_changed() && !index.take_changed());
        index.demands(None, |key| {
            slices
                .iter()
                .filter(|slice| slice.service.as_ref() == Some(key))
                .collect()
        })
    }

    #[test]
    fn an_address_is_announced_that_lies_in_a_pool_which_is() {
        let found = demands(
            vec![
                service(
                    "web",
                    &["192.0.2.10", "198.51.100.1", "203.0.113.1", "2001:db8::1"],
                    Policy::Cluster,
                ),
                service("api", &["192.0.2.10", "192.0.2.200"], Policy::Cluster),
            ],
            &[],
        );
        let found: Vec<_> = found
            .iter()
            .map(|(addr, demand)| (addr.to_string(), &*demand.pool, demand.services.len()))
            .collect();
        assert_eq!(
            found,
            [("192.0.2.10".to_owned(), "b", 2), ("192.0.2.200".to_owned(), "a", 1)]
        );
    }

    #[test]
    fn policy_local_names_the_nodes_with_endpoints_of_each_service_that_shares_the_address() {
        let found = demands(
            vec![
                service("web", &["192.0.2.10"], Policy::Local),
                service("dns", &["192.0.2.10"], Policy::Local),
                service("api", &["192.0.2.10"], Policy::Cluster),
            ],
            &[
                slice("web", &[("n1", true, false), ("n2", true, false), ("n3", false, true)]),
                slice("dns", &[("n2", true, false)]),
                slice("api", &[("n4", true, false)]),
            ],
        );
        let locals = found[&ip("192.0.2.10")].locals.clone().expect("two Services are Local");
        let locals: Vec<_> = locals.iter().map(|(node, of)| (&**node, *of)).collect();
        assert_eq!(locals, [("n1", 1), ("n2", 2)]);
    }

    #[test]
    fn endpoints_that_go_count_while_there_are_no_others() {
        let found = demands(
            vec![service("web", &["192.0.2.10"], Policy::Local)],
            &[slice("web", &[("n1", false, true), ("n2", false, false)])],
        );
        let locals = found[&ip("192.0.2.10")].locals.clone().expect("it is Local");
        assert_eq!(locals.keys().map(|node| &**node).collect::<Vec<_>>(), ["n1"]);
    }

    #[test]
    fn only_what_can_change_the_choice_is_a_change() {
        let mut index = Index::default();
        index.take(&Event::Services(vec![
            service("web", &["192.0.2.10"], Policy::Cluster),
            service("dns", &["192.0.2.11"], Policy::Local),
            service("inner", &[], Policy::Local),
        ]));
        assert!(index.take_changed());
        let mut changes = |event: Event| {
            index.take(&event);
            index.take_changed()
        };
        assert!(!changes(Event::Service(service(
            "web",
            &["192.0.2.10"],
            Policy::Cluster
        ))));
        assert!(!changes(Event::EndpointSlice(slice("web", &[("n1", true, false)]))));
        assert!(!changes(Event::EndpointSlice(slice("inner", &[("n1", true, false)]))));
        assert!(changes(Event::EndpointSlice(slice("dns", &[("n1", true, false)]))));
        assert!(changes(Event::Service(service("web", &[], Policy::Cluster))));
        assert!(!changes(Event::ServiceGone(ObjectKey::new("shop", "web"))));
    }
}
