//! What the data path should do, from objects alone: pure functions, one Service at a time.
//!
//! [`desired`] answers every question of policy, topology, readiness and address for one Service: its result depends
//! on that Service, its slices and the [`NodeView`] only.

mod endpoints;
mod frontends;
mod node;

pub use endpoints::{DesiredBackend, Endpoints};
pub use frontends::{DesiredFrontend, FrontendKind, Set};
pub use node::{LocalAddresses, LocalPods, NodePortAddresses, NodeState, NodeView, Settings};

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::model::{EndpointSlice, IpFamily, ObjectKind, Policy, Problem, Protocol, Reason, Service, Standing};

/// What the data path should do for a Service.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Desired {
    /// Its ports, each once for each family that the Service has.
    pub ports: Vec<DesiredPort>,
    /// Its ClusterIPs: every port of them that is not among the frontends rejects.
    pub cluster_ips: Vec<IpAddr>,
    /// What load balancers are told.
    pub health: Option<HealthCheck>,
    /// What is wrong with the Service on this node.
    pub problems: Vec<Problem>,
}

/// What the data path should do for a port of a Service in one family.
#[derive(Clone, PartialEq, Debug)]
pub struct DesiredPort {
    /// Its name; empty if it has none.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// The family.
    pub family: IpFamily,
    /// Session affinity timeout in seconds; 0 = no affinity.
    pub affinity_timeout_s: u32,
    /// Whose packets the load balancer addresses take, if they are restricted.
    pub source_ranges: Option<Vec<IpNet>>,
    /// Where connections may go.
    pub endpoints: Endpoints,
    /// Where connections come in. No two of them have the same address and port.
    pub frontends: Vec<DesiredFrontend>,
}

/// What a health check port answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HealthCheck {
    /// The port.
    pub node_port: u16,
    /// How many ready endpoints are on this node, by family: each address counts once, whatever its ports. `None`: the
    /// Service is not there in the family, so nothing answers at the node's addresses of it. (kube-proxy has a server
    /// for each family, since 1.36 at addresses of that family only.)
    pub local_endpoints: [Option<usize>; 2],
}

/// What the data path should do for this Service, given its slices (in an order that does not change by itself).
pub fn desired(service: &Service, slices: &[&EndpointSlice], node: &NodeView) -> Desired {
    let mut desired = Desired::default();
    if service.standing != Standing::Served || service.proxy_name != node.proxy_name {
        return desired;
    }
    desired.cluster_ips.clone_from(&service.cluster_ips);
    let mut local_ready: [Option<BTreeSet<IpAddr>>; 2] = [None, None];
    for cluster_ip in &service.cluster_ips {
        let family = IpFamily::of(cluster_ip);
        let local_ready = local_ready[family as usize].get_or_insert_default();
        for port in &service.ports {
            let endpoints = Endpoints::of_port(port, family, slices, node);
            local_ready.extend(endpoints.local_ready.iter().copied());
            let frontends = frontends::of_port(service, port, *cluster_ip, &endpoints, node);
            desired.ports.push(DesiredPort {
                name: port.name.clone(),
                protocol: port.protocol,
                family,
                affinity_timeout_s: service.affinity_timeout_s.unwrap_or(0),
                source_ranges: frontends::source_ranges(service, family, node),
                endpoints,
                frontends,
            });
        }
    }
    if service.health_check_node_port != 0 && service.external_policy == Policy::Local {
        desired.health = Some(HealthCheck {
            node_port: service.health_check_node_port,
            local_endpoints: local_ready.map(|addresses| addresses.map(|addresses| addresses.len())),
        });
    }
    desired.problems = own_addresses(service, node);
    desired
}

/// Addresses of the Service that are this node's own. They are served, as by kube-proxy, but what else listens on them
/// should know.
fn own_addresses(service: &Service, node: &NodeView) -> Vec<Problem> {
    let fields = [
        ("spec.clusterIPs", &service.cluster_ips),
        ("status.loadBalancer.ingress", &service.load_balancer_ips),
        ("spec.externalIPs", &service.external_ips),
    ];
    let listed = fields
        .iter()
        .flat_map(|(field, addrs)| addrs.iter().map(move |addr| (*field, addr)));
    listed
        .filter(|(_, addr)| node.has_address(addr))
        .map(|(field, addr)| Problem {
            kind: ObjectKind::Service,
            object: service.key.clone(),
            field: field.into(),
            message: format!(
                "{addr} is an address of node {} itself, whose processes get nothing any more on the Service's ports",
                node.name
            ),
            remedy: "use an address that no node has, or make sure that nothing else listens on these ports".into(),
            reason: Reason::NodeAddress,
        })
        .collect()
}

#[cfg(test)]
mod tests;
