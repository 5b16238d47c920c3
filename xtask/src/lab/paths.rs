//! Every path that a request can take to a pod, and what the pod has to see of it.
//!
//! What is demanded here is `docs/semantics.md` seen from outside: the source that arrives is the node's where
//! external traffic policy Cluster or a hairpin needs it, and the client's or the pod's own elsewhere.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use super::plan::{NODES, Network, POD_PORT, PODS, Place};
use super::wire::{Answer, Protocol, Request};

/// A Service of the examples, as the agents have programmed it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Its ClusterIPs, IPv4 and IPv6.
    pub cluster_ips: [Option<IpAddr>; 2],
    /// Its load balancer's addresses, IPv4 and IPv6.
    pub load_balancer: [Option<IpAddr>; 2],
    /// Its NodePort, if it has one.
    pub node_port: Option<u16>,
    /// Whether its external traffic policy is Local.
    pub local: bool,
    /// Whether it has a UDP port beside the TCP port.
    pub udp: bool,
}

/// The port of every Service of the examples.
pub const SERVICE_PORT: u16 = 80;

/// What of a Service is asked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Door {
    /// Its load balancer's address, which this node announces.
    LoadBalancer(usize),
    /// Its NodePort on this node's address.
    NodePort(usize),
    /// Its ClusterIP.
    ClusterIp,
}

/// One request and what has to come of it.
#[derive(Clone, Debug)]
pub struct Case {
    /// Who asks.
    pub from: Place,
    /// Where.
    pub door: Door,
    /// Whether the Service's external traffic policy is Local.
    pub local: bool,
    /// What is sent.
    pub request: Request,
}

/// Where the pod that answered is, seen from the node that the request came through.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Way {
    /// On the node itself.
    SameNode,
    /// On the other node.
    OtherNode,
    /// It is the pod that asked.
    Itself,
}

/// All cases for these Services while `announcer` announces the load balancer's addresses.
pub fn cases(services: &[Service], announcer: usize) -> Vec<Case> {
    let mut cases = Vec::new();
    for service in services {
        for from in Place::ALL {
            for door in doors(from, announcer) {
                for v6 in [false, true] {
                    for protocol in protocols(from, service) {
                        let Some(target) = service.target(door, v6) else {
                            continue;
                        };
                        // A Service of two families stands beside the one of the document, which is IPv4 and TCP.
                        let request = Request { target, protocol };
                        cases.push(Case {
                            from,
                            door,
                            local: service.local,
                            request,
                        });
                    }
                }
            }
        }
    }
    cases
}

fn doors(from: Place, announcer: usize) -> Vec<Door> {
    match from {
        Place::Client => vec![Door::LoadBalancer(announcer), Door::NodePort(0), Door::NodePort(1)],
        Place::Neighbour | Place::Router => Vec::new(),
        Place::Node(node) => vec![Door::ClusterIp, Door::NodePort(node), Door::LoadBalancer(announcer)],
        Place::Pod(_) => vec![Door::ClusterIp, Door::LoadBalancer(announcer)],
    }
}

fn protocols(from: Place, service: &Service) -> Vec<Protocol> {
    let mut protocols = vec![Protocol::Http];
    if service.udp {
        protocols.push(Protocol::Udp);
        // How a process names its destination matters where its socket is translated.
        if from.node().is_some() {
            protocols.push(Protocol::UdpUnconnected);
        }
    }
    protocols
}

impl Service {
    fn target(&self, door: Door, v6: bool) -> Option<SocketAddr> {
        let family = usize::from(v6);
        let (ip, port) = match door {
            Door::LoadBalancer(_) => (self.load_balancer[family]?, SERVICE_PORT),
            Door::NodePort(node) => {
                self.cluster_ips[family]?;
                (NODES[node].addr(v6), self.node_port?)
            }
            Door::ClusterIp => (self.cluster_ips[family]?, SERVICE_PORT),
        };
        Some(SocketAddr::new(ip, port))
    }
}

impl Case {
    /// The node whose programs translate the request.
    pub fn translator(&self) -> usize {
        match (self.from.node(), self.door) {
            (Some(node), _) | (None, Door::LoadBalancer(node) | Door::NodePort(node)) => node,
            (None, Door::ClusterIp) => 0,
        }
    }

    /// The pods that may answer, by their indices in [`PODS`].
    pub fn pods(&self) -> BTreeSet<usize> {
        let kept = self.keeps_source() && self.from == Place::Client;
        (0..PODS.len())
            .filter(|pod| !kept || PODS[*pod].node == self.translator())
            .collect()
    }

    /// Policy Local, from outside the cluster or from a pod: the source stays.
    fn keeps_source(&self) -> bool {
        self.local && self.door != Door::ClusterIp && !matches!(self.from, Place::Node(_))
    }

    /// What is wrong with an answer, or the way that the request took.
    pub fn judge(&self, network: Network, answer: &Answer) -> Result<Way, String> {
        let seen = answer.result.as_ref().map_err(Clone::clone)?;
        let pod = PODS.iter().position(|pod| pod.name == seen.pod);
        let pod = pod.ok_or_else(|| format!("answered by {}, who is no pod", seen.pod))?;
        let target = self.request.target;
        if !self.pods().contains(&pod) {
            return Err(format!("answered by {}, whom the policy forbids", seen.pod));
        }
        if answer.peer != Some(target) {
            return Err(format!("asked {target}, and the socket says {:?}", answer.peer));
        }
        let own = SocketAddr::new(PODS[pod].addr(target.is_ipv6()), POD_PORT);
        if seen.destination != own {
            return Err(format!("{} was reached at {}", seen.pod, seen.destination));
        }
        // The address only. A port is mostly kept with it, but not always: a client that comes by one port to two
        // Services, which lead it to one pod, has to be seen there by two.
        let allowed = self.sources(network, pod);
        if !allowed.contains(&seen.source.ip()) {
            return Err(format!("{} saw {}, it should be of {allowed:?}", seen.pod, seen.source));
        }
        Ok(if self.from == Place::Pod(pod) {
            Way::Itself
        } else if PODS[pod].node == self.translator() {
            Way::SameNode
        } else {
            Way::OtherNode
        })
    }

    fn is_node(&self) -> bool {
        matches!(self.from, Place::Node(_))
    }

    /// The addresses of which the pod has to see one.
    fn sources(&self, network: Network, pod: usize) -> Vec<IpAddr> {
        let v6 = self.request.target.is_ipv6();
        let hairpin = self.from == Place::Pod(pod);
        let kept = self.keeps_source() || self.door == Door::ClusterIp;
        if kept && !hairpin && !self.is_node() {
            return vec![self.from.addr(v6)];
        }
        node_addresses(network, self.translator(), v6)
    }
}

/// The addresses of a node: masquerading takes that of the device by which the packet leaves.
fn node_addresses(network: Network, node: usize, v6: bool) -> Vec<IpAddr> {
    let n = node + 1;
    let pod_side = |host: u16| -> Option<IpAddr> {
        let text = if v6 {
            format!("fd00:10:244:{n}::{host}")
        } else {
            format!("10.244.{n}.{host}")
        };
        text.parse().ok()
    };
    let mut addresses = vec![NODES[node].addr(v6)];
    addresses.extend(pod_side(1));
    if network == Network::Vxlan {
        addresses.extend(pod_side(254));
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::wire::Seen;

    fn service(local: bool) -> Service {
        Service {
            name: "app".into(),
            cluster_ips: ["10.96.0.1".parse().ok(), "fd00:10:96::1".parse().ok()],
            load_balancer: ["198.51.100.1".parse().ok(), None],
            node_port: Some(30080),
            local,
            udp: false,
        }
    }

    fn answer(case: &Case, pod: usize, source: &str) -> Answer {
        let target = case.request.target;
        let destination = SocketAddr::new(PODS[pod].addr(target.is_ipv6()), POD_PORT);
        let seen = Seen {
            pod: PODS[pod].name.into(),
            source: source.parse().expect("an address"),
            destination,
            request: String::new(),
        };
        Answer {
            request: case.request.clone(),
            local: Some(SocketAddr::new(case.from.addr(target.is_ipv6()), 4000)),
            peer: Some(target),
            took_us: 1,
            result: Ok(seen),
        }
    }

    fn case(local: bool, from: Place, door: Door) -> Case {
        let cases = cases(&[service(local)], 0);
        cases
            .into_iter()
            .find(|case| case.from == from && case.door == door)
            .expect("such a case")
    }

    #[test]
    fn policy_cluster_shows_the_node_and_policy_local_the_client() {
        let cluster = case(false, Place::Client, Door::LoadBalancer(0));
        assert_eq!(
            cluster.judge(Network::Routed, &answer(&cluster, 2, "172.18.0.11:5000")),
            Ok(Way::OtherNode)
        );
        assert!(
            cluster
                .judge(Network::Routed, &answer(&cluster, 2, "203.0.113.10:4000"))
                .is_err()
        );
        let local = case(true, Place::Client, Door::LoadBalancer(0));
        assert_eq!(
            local.judge(Network::Routed, &answer(&local, 0, "203.0.113.10:4000")),
            Ok(Way::SameNode)
        );
        assert!(
            local
                .judge(Network::Routed, &answer(&local, 2, "203.0.113.10:4000"))
                .is_err()
        );
    }

    #[test]
    fn a_pod_that_reaches_itself_sees_its_node() {
        let case = case(false, Place::Pod(1), Door::ClusterIp);
        assert_eq!(
            case.judge(Network::Bridge, &answer(&case, 1, "10.244.1.1:5000")),
            Ok(Way::Itself)
        );
        assert!(
            case.judge(Network::Bridge, &answer(&case, 1, "10.244.1.11:4000"))
                .is_err()
        );
        assert_eq!(
            case.judge(Network::Bridge, &answer(&case, 0, "10.244.1.11:4000")),
            Ok(Way::SameNode)
        );
    }

    #[test]
    fn a_kept_source_may_come_by_another_port() {
        let case = case(false, Place::Pod(1), Door::ClusterIp);
        assert_eq!(
            case.judge(Network::Routed, &answer(&case, 2, "10.244.1.11:4001")),
            Ok(Way::OtherNode)
        );
    }

    #[test]
    fn a_service_is_asked_only_in_the_families_it_has() {
        let cases = cases(&[service(false)], 1);
        assert!(
            !cases
                .iter()
                .any(|c| c.request.target.is_ipv6() && matches!(c.door, Door::LoadBalancer(_)))
        );
        assert!(
            cases
                .iter()
                .any(|c| c.request.target.is_ipv6() && c.door == Door::ClusterIp)
        );
    }
}
