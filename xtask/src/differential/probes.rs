//! Where a round's probes go: every address and port that some Service of the round ever had, others that look like
//! them, and who asks.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::change::Round;
use super::model::{Cluster, Family, Key, Protocol, Service, Type};
use super::plan;

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// A client outside.
    Outside,
    /// A pod of the node.
    Pod,
    /// A process of the node.
    Node,
}

impl Origin {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Outside, Self::Pod, Self::Node];
}

/// What an address and port is to a Service.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Frontend {
    /// A port of a `ClusterIP`.
    ClusterIp,
    /// A port that a `ClusterIP` does not have.
    UndefinedPort,
    /// A load balancer address.
    LoadBalancer,
    /// An external IP.
    ExternalIp,
    /// A port that a load balancer address or external IP does not have.
    OtherPort,
    /// A `NodePort` on the node's primary address.
    NodePort,
    /// A `NodePort` on another address of the node.
    NodePortElsewhere,
    /// A `NodePort` on loopback.
    NodePortLoopback,
    /// An address of a range of `ClusterIP`s that no Service has.
    Unassigned,
}

/// Where a probe goes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Target {
    /// The address and port.
    pub addr: SocketAddr,
    /// The protocol.
    pub protocol: Protocol,
}

/// What a target is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Role {
    /// What it is to the Service.
    pub frontend: Frontend,
    /// The Service that has it at some time.
    pub service: Option<Key>,
    /// The name of the Service's port.
    pub port: Option<String>,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.protocol.name(), self.addr)
    }
}

/// All targets of a round.
pub fn targets(round: &Round) -> BTreeMap<Target, Role> {
    let mut targets = BTreeMap::new();
    for stage in round.stages() {
        for service in &stage.services {
            of_service(&mut targets, service);
        }
    }
    for family in Family::ALL {
        for addr in [plan::unassigned(family), plan::unassigned_extra(family)] {
            add(&mut targets, (addr, 80, Protocol::Tcp), Frontend::Unassigned, None);
        }
    }
    targets
}

/// What a target is by these objects, if it is one of a Service's.
pub fn role(cluster: &Cluster, target: &Target) -> Option<Role> {
    let mut targets = BTreeMap::new();
    for service in &cluster.services {
        of_service(&mut targets, service);
    }
    targets.remove(target)
}

type Place = (IpAddr, u16, Protocol);

fn add(targets: &mut BTreeMap<Target, Role>, place: Place, frontend: Frontend, of: Option<(&Service, &str)>) {
    let (ip, port, protocol) = place;
    let target = Target {
        addr: SocketAddr::new(ip, port),
        protocol,
    };
    let role = Role {
        frontend,
        service: of.map(|(service, _)| service.key.clone()),
        port: of.map(|(_, name)| name.to_owned()),
    };
    let known = targets.entry(target).or_insert_with(|| role.clone());
    // What it really is says more than what it only looks like.
    let looks = |frontend| matches!(frontend, Frontend::UndefinedPort | Frontend::OtherPort);
    if looks(known.frontend) && !looks(frontend) {
        *known = role;
    }
}

fn of_service(targets: &mut BTreeMap<Target, Role>, service: &Service) {
    if matches!(service.kind, Type::Headless | Type::ExternalName) {
        // It has no address; if it had or gets one, that is met in another stage.
        return;
    }
    let balancer_ips = || service.ingress.iter().filter_map(|entry| entry.ip);
    for port in &service.ports {
        let of = Some((service, port.name.as_str()));
        let mut add = |ip, number, frontend| add(targets, (ip, number, port.protocol), frontend, of);
        for ip in &service.cluster_ips {
            add(*ip, port.port, Frontend::ClusterIp);
        }
        if service.kind == Type::LoadBalancer {
            for ip in balancer_ips() {
                add(ip, port.port, Frontend::LoadBalancer);
            }
        }
        for ip in &service.external_ips {
            add(*ip, port.port, Frontend::ExternalIp);
        }
        if service.kind != Type::ClusterIp {
            for family in Family::ALL {
                add(plan::node(family), port.node_port, Frontend::NodePort);
                add(plan::other_of_node(family), port.node_port, Frontend::NodePortElsewhere);
            }
            add(Ipv4Addr::LOCALHOST.into(), port.node_port, Frontend::NodePortLoopback);
            add(Ipv6Addr::LOCALHOST.into(), port.node_port, Frontend::NodePortLoopback);
        }
    }
    // One port that it does not have, and the first one with a protocol that it does not have.
    let Some(first) = service.ports.first() else { return };
    let has = |protocol| {
        let mut ports = service.ports.iter();
        ports.any(|port| port.port == first.port && port.protocol == protocol)
    };
    let mut odd = vec![(7777, Protocol::Tcp), (7777, Protocol::Udp)];
    odd.extend(
        Protocol::ALL
            .into_iter()
            .filter(|p| !has(*p))
            .take(1)
            .map(|p| (first.port, p)),
    );
    for (number, protocol) in odd {
        let of = Some((service, ""));
        for ip in &service.cluster_ips {
            add(targets, (*ip, number, protocol), Frontend::UndefinedPort, of);
        }
        if service.kind == Type::LoadBalancer && protocol != Protocol::Udp {
            for ip in balancer_ips().take(1) {
                add(targets, (ip, number, protocol), Frontend::OtherPort, of);
            }
        }
    }
}

/// Who asks a target.
pub fn origins(target: &Target) -> Vec<Origin> {
    if target.addr.ip().is_loopback() {
        vec![Origin::Node]
    } else {
        Origin::ALL.to_vec()
    }
}

/// The number of endpoints that could answer at most, by which one chooses how often to ask.
pub fn most_backends(cluster: &Cluster, target: &Target, role: &Role) -> usize {
    let Some(key) = &role.service else { return 0 };
    let family = Family::of(&target.addr.ip()).name();
    let slices = cluster.slices_of(key).filter(|slice| slice.address_type == family);
    slices.map(|slice| slice.endpoints.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::differential::change::{Change, Step};
    use crate::differential::generate::round;
    use crate::differential::random::Random;

    fn round_with_a_cluster_ip() -> Round {
        let mut made = (0..20).map(|number| round(&mut Random::of_round(2, number)));
        made.find(|round| round.start.services.iter().any(Service::has_cluster_ips))
            .expect("most rounds have such a Service")
    }

    #[test]
    fn what_a_step_takes_away_is_still_asked() {
        let mut round = round_with_a_cluster_ip();
        let keys: Vec<Key> = round.start.services.iter().map(|service| service.key.clone()).collect();
        let changes = keys.into_iter().map(Change::Delete).collect();
        let before = targets(&Round {
            steps: Vec::new(),
            ..round.clone()
        });
        round.steps = vec![Step { changes }];
        assert_eq!(targets(&round), before);
    }

    #[test]
    fn a_target_is_of_the_service_that_has_it_now() {
        let mut cluster = round_with_a_cluster_ip().start;
        let service = cluster.services.iter().find(|service| service.has_cluster_ips());
        let service = service.expect("there is one").clone();
        let target = Target {
            addr: SocketAddr::new(service.cluster_ips[0], service.ports[0].port),
            protocol: service.ports[0].protocol,
        };
        let owner = |cluster: &Cluster| role(cluster, &target)?.service;
        assert_eq!(owner(&cluster), Some(service.key.clone()));
        cluster.services.retain(|other| other.key != service.key);
        assert_eq!(owner(&cluster), None);
        let key = Key {
            namespace: "kube-public".to_owned(),
            name: "next".to_owned(),
        };
        cluster.services.push(Service {
            key: key.clone(),
            ..service
        });
        assert_eq!(owner(&cluster), Some(key));
    }

    #[test]
    fn a_port_that_is_defined_is_not_called_undefined() {
        for number in 0..50 {
            let round = round(&mut Random::of_round(4, number));
            for (target, role) in targets(&round) {
                let defined = round.start.services.iter().any(|service| {
                    let mut ports = service.ports.iter();
                    service.has_cluster_ips()
                        && service.cluster_ips.contains(&target.addr.ip())
                        && ports.any(|port| (port.port, port.protocol) == (target.addr.port(), target.protocol))
                });
                assert!(!defined || role.frontend == Frontend::ClusterIp, "{target} {role:?}");
            }
        }
    }
}
