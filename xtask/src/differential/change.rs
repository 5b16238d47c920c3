//! What happens to the objects of a round between probes: each change is a pure function on them.

use super::model::{Cluster, Conditions, Endpoint, Ingress, Key, Policy, Port, Service, Slice, Type};

/// A round: how it begins, and what happens then.
#[derive(Clone, PartialEq, Debug)]
pub struct Round {
    /// The objects at first.
    pub start: Cluster,
    /// The steps, each followed by probes.
    pub steps: Vec<Step>,
}

/// Changes that are made together.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Step {
    /// The changes.
    pub changes: Vec<Change>,
}

/// One change. It does nothing where what it names is not there.
#[derive(Clone, PartialEq, Debug)]
pub enum Change {
    /// The Service is deleted and made anew, with the same addresses.
    Recreate(Key),
    /// The Service is deleted; its slices stay.
    Delete(Key),
    /// A Service comes.
    Add(Box<Service>),
    /// A field of a Service changes.
    Spec(Key, Spec),
    /// A slice comes, or is replaced.
    PutSlice(Box<Slice>),
    /// A slice goes.
    DropSlice(Key),
    /// A slice is deleted, and made anew for another Service, or for none. (kube-proxy 1.37 would keep its endpoints for the
    /// first one for ever if the label changed in place.)
    Claim(Key, Option<String>),
    /// The slice's label `service.kubernetes.io/headless` comes or goes.
    Headless(Key, bool),
    /// The number of a port of a slice changes.
    TargetPort(Key, String, Option<u16>),
    /// The endpoints with this address become so.
    Conditions(String, Conditions),
    /// An endpoint comes to a slice.
    AddEndpoint(Key, Box<Endpoint>),
    /// The endpoints with this address go, from every slice.
    DropEndpoint(String),
    /// An endpoint moves from a slice to another.
    MoveEndpoint(String, Key, Key),
    /// The hints of the endpoints with this address: zones and nodes.
    Hints(String, Vec<String>, Vec<String>),
    /// The zone in the labels of the node.
    Zone(Option<String>),
    /// A `ServiceCIDR` comes or goes.
    ServiceCidr(String, bool),
    /// Time passes, until affinity with the shortest timeout is over.
    Wait,
}

/// A change of a field of a Service.
#[derive(Clone, PartialEq, Debug)]
pub enum Spec {
    /// Its type.
    Type(Type),
    /// internalTrafficPolicy.
    Internal(Policy),
    /// externalTrafficPolicy.
    External(Policy),
    /// Session affinity.
    Affinity(Option<u32>),
    /// loadBalancerSourceRanges.
    SourceRanges(Vec<String>),
    /// The load balancer's status.
    Ingress(Vec<Ingress>),
    /// External IPs.
    ExternalIps(Vec<std::net::IpAddr>),
    /// A port comes.
    AddPort(Port),
    /// A port goes.
    DropPort(String),
    /// The number of a port.
    PortNumber(String, u16),
    /// The NodePort of a port.
    NodePort(String, u16),
    /// The label `service.kubernetes.io/service-proxy-name`.
    ProxyName(Option<String>),
}

impl Round {
    /// The objects before the first step and after each.
    pub fn stages(&self) -> Vec<Cluster> {
        let mut stages = vec![self.start.clone()];
        let mut cluster = self.start.clone();
        for step in &self.steps {
            step.apply(&mut cluster);
            stages.push(cluster.clone());
        }
        stages
    }
}

impl Step {
    /// Makes the changes.
    pub fn apply(&self, cluster: &mut Cluster) {
        for change in &self.changes {
            change.apply(cluster);
        }
    }

    /// The slices that are deleted on the way, though they are there afterwards.
    pub fn recreated_slices(&self) -> impl Iterator<Item = &Key> {
        self.changes.iter().filter_map(|change| match change {
            Change::Claim(key, _) => Some(key),
            _ => None,
        })
    }

    /// The Services that are deleted on the way, though they are there afterwards.
    pub fn recreated(&self) -> impl Iterator<Item = &Key> {
        self.changes.iter().filter_map(|change| match change {
            Change::Recreate(key) => Some(key),
            _ => None,
        })
    }
}

impl Change {
    fn apply(&self, cluster: &mut Cluster) {
        match self {
            Self::Recreate(_) | Self::Wait => {}
            Self::Delete(key) => cluster.services.retain(|service| service.key != *key),
            Self::Add(service) => {
                cluster.services.retain(|other| other.key != service.key);
                cluster.services.push((**service).clone());
            }
            Self::Spec(key, spec) => {
                if let Some(service) = cluster.services.iter_mut().find(|service| service.key == *key) {
                    spec.apply(service);
                }
            }
            Self::PutSlice(slice) => {
                cluster.slices.retain(|other| other.key != slice.key);
                cluster.slices.push((**slice).clone());
            }
            Self::DropSlice(key) => cluster.slices.retain(|slice| slice.key != *key),
            Self::Claim(key, service) => with_slice(cluster, key, |slice| slice.service.clone_from(service)),
            Self::Headless(key, headless) => with_slice(cluster, key, |slice| slice.headless = *headless),
            Self::TargetPort(key, name, number) => with_slice(cluster, key, |slice| {
                for port in slice.ports.iter_mut().filter(|port| port.name == *name) {
                    port.port = *number;
                }
            }),
            Self::Conditions(address, conditions) => with_endpoints(cluster, address, |endpoint| {
                endpoint.conditions = *conditions;
            }),
            Self::AddEndpoint(key, endpoint) => with_slice(cluster, key, |slice| {
                slice.endpoints.push((**endpoint).clone());
            }),
            Self::DropEndpoint(address) => {
                for slice in &mut cluster.slices {
                    slice
                        .endpoints
                        .retain(|endpoint| endpoint.addresses.first() != Some(address));
                }
            }
            Self::MoveEndpoint(address, from, to) => move_endpoint(cluster, address, from, to),
            Self::Hints(address, zones, nodes) => with_endpoints(cluster, address, |endpoint| {
                endpoint.for_zones.clone_from(zones);
                endpoint.for_nodes.clone_from(nodes);
            }),
            Self::Zone(zone) => cluster.zone.clone_from(zone),
            Self::ServiceCidr(range, true) => {
                cluster.service_cidrs.insert(range.clone());
            }
            Self::ServiceCidr(range, false) => {
                cluster.service_cidrs.remove(range);
            }
        }
    }
}

impl Spec {
    fn apply(&self, service: &mut Service) {
        let port_named = |ports: &mut [Port], name: &str, change: &dyn Fn(&mut Port)| {
            ports.iter_mut().filter(|port| port.name == *name).for_each(change);
        };
        match self {
            Self::Type(kind) => service.kind = *kind,
            Self::Internal(policy) => service.internal = *policy,
            Self::External(policy) => service.external = *policy,
            Self::Affinity(timeout) => service.affinity_s = *timeout,
            Self::SourceRanges(ranges) => service.source_ranges.clone_from(ranges),
            Self::Ingress(entries) => service.ingress.clone_from(entries),
            Self::ExternalIps(ips) => service.external_ips.clone_from(ips),
            Self::AddPort(port) => service.ports.push(port.clone()),
            // A Service needs one.
            Self::DropPort(name) if service.ports.len() > 1 => service.ports.retain(|port| port.name != *name),
            Self::DropPort(_) => {}
            Self::PortNumber(name, number) => port_named(&mut service.ports, name, &|port| port.port = *number),
            Self::NodePort(name, number) => port_named(&mut service.ports, name, &|port| port.node_port = *number),
            Self::ProxyName(name) => service.proxy_name.clone_from(name),
        }
    }
}

fn with_slice(cluster: &mut Cluster, key: &Key, change: impl Fn(&mut Slice)) {
    cluster
        .slices
        .iter_mut()
        .filter(|slice| slice.key == *key)
        .for_each(change);
}

fn with_endpoints(cluster: &mut Cluster, address: &str, change: impl Fn(&mut Endpoint)) {
    let endpoints = cluster.slices.iter_mut().flat_map(|slice| &mut slice.endpoints);
    endpoints
        .filter(|endpoint| endpoint.addresses.first().is_some_and(|first| first == address))
        .for_each(change);
}

fn move_endpoint(cluster: &mut Cluster, address: &str, from: &Key, to: &Key) {
    let is_it = |endpoint: &Endpoint| endpoint.addresses.first().is_some_and(|first| first == address);
    let find = |key: &Key| cluster.slices.iter().position(|slice| slice.key == *key);
    let (Some(from), Some(to)) = (find(from), find(to)) else {
        return;
    };
    if from == to || cluster.slices[from].address_type != cluster.slices[to].address_type {
        return;
    }
    let Some(index) = cluster.slices[from].endpoints.iter().position(is_it) else {
        return;
    };
    let endpoint = cluster.slices[from].endpoints.remove(index);
    if !cluster.slices[to].endpoints.iter().any(is_it) {
        cluster.slices[to].endpoints.push(endpoint);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::differential::generate::round;
    use crate::differential::random::Random;

    #[test]
    fn a_change_of_what_is_not_there_does_nothing() {
        let nobody = Key {
            namespace: "default".to_owned(),
            name: "nobody".to_owned(),
        };
        let mut cluster = round(&mut Random::of_round(1, 1)).start;
        let before = cluster.clone();
        for change in [
            Change::Delete(nobody.clone()),
            Change::Spec(nobody.clone(), Spec::Type(Type::Headless)),
            Change::DropSlice(nobody.clone()),
            Change::MoveEndpoint("10.9.9.9".to_owned(), nobody.clone(), nobody.clone()),
            Change::Conditions("10.9.9.9".to_owned(), Conditions::NOT_READY),
            Change::Headless(nobody, true),
        ] {
            change.apply(&mut cluster);
        }
        assert_eq!(cluster, before);
    }

    #[test]
    fn the_last_port_of_a_service_stays() {
        let mut cluster = round(&mut Random::of_round(1, 1)).start;
        let service = &mut cluster.services[0];
        for port in service.ports.clone() {
            Spec::DropPort(port.name).apply(service);
        }
        assert_eq!(service.ports.len(), 1);
    }
}
