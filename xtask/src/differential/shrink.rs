//! Makes a round that shows a difference smaller, as long as it still does: what is left is what matters.
//!
//! It works on the model alone; whether a smaller round still shows the difference is for the caller to say (and to
//! deny when it has spent enough time). Changes that lose their object do nothing, so any part can be dropped alone.

use super::change::{Change, Round, Spec};
use super::model::{Cluster, Conditions, Endpoint, Policy, Service, Type};

/// The smallest round on the way down from this one that still differs.
pub fn shrink(round: Round, mut still_differs: impl FnMut(&Round) -> bool) -> Round {
    let mut best = round;
    loop {
        let mut smaller = false;
        for pass in PASSES {
            let mut index = 0;
            while let Some(candidate) = pass(&best, index) {
                if candidate != best && still_differs(&candidate) {
                    // What was behind it has moved to its place.
                    best = candidate;
                    smaller = true;
                } else {
                    index += 1;
                }
            }
        }
        if !smaller {
            return best;
        }
    }
}

/// The round with its part of this number dropped, as long as there is one.
type Pass = fn(&Round, usize) -> Option<Round>;

const PASSES: [Pass; 9] = [
    without_step,
    without_service,
    without_change,
    without_slice,
    without_port,
    without_endpoint,
    without_service_alone,
    with_simpler_service,
    with_simpler_rest,
];

fn without_step(round: &Round, index: usize) -> Option<Round> {
    // The last first: what comes after the difference goes at once.
    let last = round.steps.len().checked_sub(1 + index)?;
    let mut smaller = round.clone();
    smaller.steps.remove(last);
    Some(smaller)
}

fn without_change(round: &Round, index: usize) -> Option<Round> {
    let mut left = index;
    let mut smaller = round.clone();
    for (number, step) in smaller.steps.iter_mut().enumerate() {
        if left < step.changes.len() {
            step.changes.remove(left);
            if step.changes.is_empty() {
                smaller.steps.remove(number);
            }
            return Some(smaller);
        }
        left -= step.changes.len();
    }
    None
}

fn without_service(round: &Round, index: usize) -> Option<Round> {
    let service = round.start.services.get(index)?.key.clone();
    let mut smaller = round.clone();
    smaller.start.services.remove(index);
    let belongs =
        |namespace: &str, name: Option<&String>| namespace == service.namespace && name == Some(&service.name);
    smaller
        .start
        .slices
        .retain(|slice| !belongs(&slice.key.namespace, slice.service.as_ref()));
    Some(smaller)
}

fn without_service_alone(round: &Round, index: usize) -> Option<Round> {
    round.start.services.get(index)?;
    let mut smaller = round.clone();
    smaller.start.services.remove(index);
    Some(smaller)
}

fn without_slice(round: &Round, index: usize) -> Option<Round> {
    round.start.slices.get(index)?;
    let mut smaller = round.clone();
    smaller.start.slices.remove(index);
    Some(smaller)
}

fn without_port(round: &Round, index: usize) -> Option<Round> {
    let mut left = index;
    let mut smaller = round.clone();
    for service in &mut smaller.start.services {
        if left < service.ports.len() {
            let port = service.ports.remove(left);
            if service.ports.is_empty() {
                // A Service needs one.
                service.ports.push(port);
            }
            return Some(smaller);
        }
        left -= service.ports.len();
    }
    for slice in &mut smaller.start.slices {
        if left < slice.ports.len() {
            slice.ports.remove(left);
            return Some(smaller);
        }
        left -= slice.ports.len();
    }
    None
}

fn without_endpoint(round: &Round, index: usize) -> Option<Round> {
    let mut left = index;
    let mut smaller = round.clone();
    for slice in &mut smaller.start.slices {
        if left < slice.endpoints.len() {
            slice.endpoints.remove(left);
            return Some(smaller);
        }
        left -= slice.endpoints.len();
    }
    None
}

/// Ways to make a Service plainer; each says whether there was anything to do.
const PLAINER: [fn(&mut Service) -> bool; 12] = [
    |service| service.external_ips.pop().is_some(),
    |service| !service.external_ips.is_empty() && remove_first(&mut service.external_ips),
    |service| service.ingress.pop().is_some(),
    |service| !service.ingress.is_empty() && remove_first(&mut service.ingress),
    |service| service.source_ranges.pop().is_some(),
    |service| !service.source_ranges.is_empty() && remove_first(&mut service.source_ranges),
    |service| service.proxy_name.take().is_some(),
    |service| service.affinity_s.take().is_some(),
    |service| std::mem::replace(&mut service.internal, Policy::Cluster) == Policy::Local,
    |service| std::mem::replace(&mut service.external, Policy::Cluster) == Policy::Local,
    |service| service.cluster_ips.len() > 1 && service.cluster_ips.pop().is_some(),
    |service| {
        let plainer = match service.kind {
            Type::LoadBalancer => Type::NodePort,
            Type::NodePort => Type::ClusterIp,
            _ => return false,
        };
        service.kind = plainer;
        true
    },
];

fn remove_first<T>(items: &mut Vec<T>) -> bool {
    items.remove(0);
    true
}

fn with_simpler_service(round: &Round, index: usize) -> Option<Round> {
    let (service, way) = (index / PLAINER.len(), index % PLAINER.len());
    let mut smaller = round.clone();
    PLAINER[way](smaller.start.services.get_mut(service)?);
    Some(smaller)
}

/// Ways to make an endpoint plainer.
const PLAINER_ENDPOINT: [fn(&mut Endpoint); 4] = [
    |endpoint| endpoint.addresses.truncate(1),
    |endpoint| endpoint.zone = None,
    |endpoint| {
        endpoint.for_zones.clear();
        endpoint.for_nodes.clear();
    },
    |endpoint| endpoint.conditions = Conditions::READY,
];

fn with_simpler_rest(round: &Round, index: usize) -> Option<Round> {
    let mut smaller = round.clone();
    let plain: [fn(&mut Cluster); 3] = [
        |cluster| cluster.zone = None,
        |cluster| cluster.service_cidrs.clear(),
        |cluster| cluster.slices.iter_mut().for_each(|slice| slice.headless = false),
    ];
    if let Some(simplify) = plain.get(index) {
        simplify(&mut smaller.start);
        return Some(smaller);
    }
    let index = index - plain.len();
    let mut endpoints = smaller.start.slices.iter_mut().flat_map(|slice| &mut slice.endpoints);
    let endpoint = endpoints.nth(index / PLAINER_ENDPOINT.len())?;
    PLAINER_ENDPOINT[index % PLAINER_ENDPOINT.len()](endpoint);
    Some(smaller)
}

/// A change in words, for a report.
pub fn describe(change: &Change) -> String {
    match change {
        Change::Recreate(key) => format!("delete Service {key} and make it anew"),
        Change::Delete(key) => format!("delete Service {key}"),
        Change::Add(service) => format!("add Service {}", service.key),
        Change::Spec(key, spec) => format!("Service {key}: {}", describe_spec(spec)),
        Change::PutSlice(slice) => format!("EndpointSlice {} as below", slice.key),
        Change::DropSlice(key) => format!("delete EndpointSlice {key}"),
        Change::Claim(key, Some(service)) => format!("EndpointSlice {key} belongs to Service {service}"),
        Change::Claim(key, None) => format!("EndpointSlice {key} belongs to no Service"),
        Change::Headless(key, true) => format!("EndpointSlice {key} gets the headless label"),
        Change::Headless(key, false) => format!("EndpointSlice {key} loses the headless label"),
        Change::TargetPort(key, name, Some(number)) => format!("EndpointSlice {key}: port {name:?} is {number}"),
        Change::TargetPort(key, name, None) => format!("EndpointSlice {key}: port {name:?} has no number"),
        Change::Conditions(address, conditions) => format!("endpoint {address}: {conditions:?}"),
        Change::AddEndpoint(key, endpoint) => format!("EndpointSlice {key} gets {endpoint:?}"),
        Change::DropEndpoint(address) => format!("endpoint {address} goes"),
        Change::MoveEndpoint(address, from, to) => format!("endpoint {address} moves from {from} to {to}"),
        Change::Hints(address, zones, nodes) => format!("endpoint {address}: hints for {zones:?} and {nodes:?}"),
        Change::Zone(Some(zone)) => format!("the node is in {zone}"),
        Change::Zone(None) => "the node is in no zone".to_owned(),
        Change::ServiceCidr(range, true) => format!("ServiceCIDR {range} comes"),
        Change::ServiceCidr(range, false) => format!("ServiceCIDR {range} goes"),
        Change::Wait => "time passes".to_owned(),
    }
}

fn describe_spec(spec: &Spec) -> String {
    match spec {
        Spec::Type(kind) => format!("type {kind:?}"),
        Spec::Internal(policy) => format!("internalTrafficPolicy {}", policy.name()),
        Spec::External(policy) => format!("externalTrafficPolicy {}", policy.name()),
        Spec::Affinity(Some(timeout)) => format!("sessionAffinity ClientIP, {timeout} s"),
        Spec::Affinity(None) => "sessionAffinity None".to_owned(),
        Spec::SourceRanges(ranges) => format!("loadBalancerSourceRanges {ranges:?}"),
        Spec::Ingress(entries) => format!("status.loadBalancer.ingress {entries:?}"),
        Spec::ExternalIps(ips) => format!("externalIPs {ips:?}"),
        Spec::AddPort(port) => format!("gets port {port:?}"),
        Spec::DropPort(name) => format!("loses port {name:?}"),
        Spec::PortNumber(name, number) => format!("port {name:?} is {number}"),
        Spec::NodePort(name, number) => format!("nodePort of {name:?} is {number}"),
        Spec::ProxyName(Some(name)) => format!("label service-proxy-name {name:?}"),
        Spec::ProxyName(None) => "no label service-proxy-name".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::differential::generate;
    use crate::differential::random::Random;

    fn rounds() -> impl Iterator<Item = Round> {
        (0..60).map(|number| generate::round(&mut Random::of_round(9, number)))
    }

    #[test]
    fn what_does_not_matter_is_dropped() {
        for round in rounds() {
            let smallest = shrink(round, |_| true);
            assert_eq!(smallest.steps, Vec::new());
            assert_eq!(smallest.start, Cluster::default());
        }
    }

    #[test]
    fn nothing_is_dropped_that_matters() {
        for round in rounds() {
            assert_eq!(shrink(round.clone(), |_| false), round);
        }
    }

    #[test]
    fn the_part_that_makes_the_difference_is_left_alone() {
        let terminates = |round: &Round| {
            let mut endpoints = round.start.slices.iter().flat_map(|slice| &slice.endpoints);
            endpoints.any(|endpoint| endpoint.conditions == Conditions::TERMINATING)
        };
        let affected: Vec<Round> = rounds().filter(terminates).collect();
        assert!(!affected.is_empty());
        for round in affected {
            let smallest = shrink(round, terminates);
            assert!(smallest.start.services.is_empty() && smallest.steps.is_empty());
            let [slice] = smallest.start.slices.as_slice() else {
                panic!("{smallest:?}")
            };
            assert_eq!(slice.endpoints.len(), 1);
            assert!(slice.ports.is_empty());
        }
    }

    #[test]
    fn a_change_that_matters_survives_with_its_object() {
        let deletes = |round: &Round| {
            let stages = round.stages();
            let there = |cluster: &Cluster| cluster.services.iter().any(|s| s.key.name == "web-0");
            stages.windows(2).any(|pair| there(&pair[0]) && !there(&pair[1]))
        };
        let affected: Vec<Round> = rounds().filter(deletes).collect();
        assert!(!affected.is_empty());
        for round in affected {
            let smallest = shrink(round, deletes);
            assert_eq!(smallest.start.services.len(), 1);
            assert_eq!(smallest.steps.len(), 1);
            assert_eq!(smallest.steps[0].changes.len(), 1);
        }
    }
}
