//! Makes random rounds: a few Services with their slices, and what happens to them.
//!
//! Chances are chosen so that most Services work and each oddity is met every few rounds. What the API would refuse is
//! not made; what no two proxies need agree on (copies of one endpoint that contradict each other about where it is) is
//! not made either.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::change::{Change, Round, Spec, Step};
use super::model::{
    Cluster, Conditions, Endpoint, Family, Ingress, Key, Policy, Port, Protocol, Service, Slice, SlicePort, Type,
};
use super::plan::{self, EXTRA_SERVICE_CIDRS, NAMESPACES, NODE, OTHER_NODES, PODS, TARGET_PORTS, ZONES};
use super::random::Random;

/// Makes a round.
pub fn round(random: &mut Random) -> Round {
    let start = cluster(random);
    let mut now = start.clone();
    let mut steps = Vec::new();
    for _ in 0..1 + random.below(3) {
        let mut step = Step::default();
        for _ in 0..1 + random.below(3) {
            let Some(change) = change(random, &now) else { continue };
            let one = Step {
                changes: vec![change.clone()],
            };
            one.apply(&mut now);
            step.changes.push(change);
        }
        if !step.changes.is_empty() {
            steps.push(step);
        }
    }
    Round { start, steps }
}

fn cluster(random: &mut Random) -> Cluster {
    let mut cluster = Cluster {
        zone: random.percent(85).then(|| ZONES[random.below(2)].to_owned()),
        ..Cluster::default()
    };
    for range in EXTRA_SERVICE_CIDRS {
        if random.percent(25) {
            cluster.service_cidrs.insert(range.to_owned());
        }
    }
    for number in 0..2 + random.below(3) {
        let service = service(random, number as u8);
        for slice in slices(random, &service, number as u8) {
            cluster.slices.push(slice);
        }
        cluster.services.push(service);
    }
    cluster
}

fn service(random: &mut Random, number: u8) -> Service {
    let families = match random.below(10) {
        0..3 => vec![Family::V4],
        3..5 => vec![Family::V6],
        5..9 => vec![Family::V4, Family::V6],
        _ => vec![Family::V6, Family::V4],
    };
    let kind = match random.below(20) {
        0..5 => Type::ClusterIp,
        5..10 => Type::NodePort,
        10..18 => Type::LoadBalancer,
        18 => Type::ExternalName,
        _ => Type::Headless,
    };
    let has_external_ips = random.percent(25);
    Service {
        key: Key {
            namespace: random.one(NAMESPACES).to_owned(),
            name: format!("web-{number}"),
        },
        kind,
        proxy_name: random.percent(6).then(|| "another-proxy".to_owned()),
        cluster_ips: families
            .iter()
            .map(|family| plan::cluster_ip(*family, number))
            .collect(),
        ports: ports(random, number),
        external_ips: if has_external_ips {
            external_ips(random, number)
        } else {
            Vec::new()
        },
        ingress: ingress(random, number),
        source_ranges: if random.percent(35) {
            source_ranges(random)
        } else {
            Vec::new()
        },
        internal: policy(random, 25),
        external: policy(random, 45),
        affinity_s: if random.percent(20) { affinity(random) } else { None },
        without_node_ports: random.percent(20),
        health_check_node_port: 32_000 + u16::from(number),
    }
}

fn policy(random: &mut Random, local: u64) -> Policy {
    if random.percent(local) {
        Policy::Local
    } else {
        Policy::Cluster
    }
}

fn affinity(random: &mut Random) -> Option<u32> {
    Some(random.one([1, 30, 10_800]))
}

fn external_ips(random: &mut Random, number: u8) -> Vec<IpAddr> {
    // Of both families, whatever those of the Service are: the other one's are not served.
    let ips = Family::ALL.map(|family| plan::external_ip(family, number));
    random.some(&ips, 70)
}

fn ingress(random: &mut Random, number: u8) -> Vec<Ingress> {
    let mut entries = Vec::new();
    for family in Family::ALL {
        for index in 0..2 {
            if random.percent([75, 15][usize::from(index)]) {
                entries.push(Ingress {
                    ip: Some(plan::load_balancer_ip(family, number, index)),
                    hostname: random.percent(10).then(|| "lb.example.com".to_owned()),
                    mode: random.one([None, Some("VIP"), Some("VIP"), Some("Proxy")]),
                });
            }
        }
    }
    if random.percent(10) {
        entries.push(Ingress {
            ip: None,
            hostname: Some("only-a-name.example.com".to_owned()),
            mode: None,
        });
    }
    entries
}

fn source_ranges(random: &mut Random) -> Vec<String> {
    let mut ranges: Vec<String> = Vec::new();
    for _ in 0..1 + random.below(3) {
        // Everybody is rare: it makes all others meaningless.
        let range = random.one(plan::SOURCE_RANGES).to_owned();
        if !ranges.contains(&range) && (range != "0.0.0.0/0" || random.percent(20)) {
            ranges.push(range);
        }
    }
    ranges
}

fn ports(random: &mut Random, number: u8) -> Vec<Port> {
    let first_node_port = 30_100 + u16::from(number) * 10;
    let protocol = |random: &mut Random| random.one([Protocol::Tcp, Protocol::Tcp, Protocol::Udp, Protocol::Sctp]);
    let mut ports = vec![Port {
        name: String::new(),
        protocol: protocol(random),
        port: random.one([80, 443, 53]),
        node_port: first_node_port,
    }];
    for more in 1..1 + random.below(3) as u16 {
        let port = Port {
            name: String::new(),
            protocol: protocol(random),
            port: random.one([80, 443, 53, 9090]),
            node_port: first_node_port + more,
        };
        if !ports
            .iter()
            .any(|other| (other.port, other.protocol) == (port.port, port.protocol))
        {
            // One number with several protocols.
            let shared = ports
                .iter()
                .find(|other| other.protocol != port.protocol && other.port == port.port);
            let node_port = shared.map_or(port.node_port, |other| other.node_port);
            ports.push(Port { node_port, ..port });
        }
    }
    let mut taken = BTreeSet::new();
    for (index, port) in ports.iter_mut().enumerate() {
        if !taken.insert((port.node_port, port.protocol)) {
            port.node_port = first_node_port + 5 + index as u16;
        }
    }
    if ports.len() > 1 || random.percent(50) {
        for (index, port) in ports.iter_mut().enumerate() {
            port.name = format!("p{index}");
        }
    }
    ports
}

/// The slices of a Service: for each of its families, at times for the other one and of names.
fn slices(random: &mut Random, service: &Service, number: u8) -> Vec<Slice> {
    let mut slices = Vec::new();
    let hints = Hints::of_service(random);
    for family in Family::ALL {
        let of_service = service.cluster_ips.iter().any(|ip| Family::of(ip) == family);
        if !of_service && random.percent(80) {
            continue;
        }
        let mut left = endpoints(random, family, hints);
        // Named target ports can have other numbers on other pods, which are then in another slice.
        let several = random.percent(35);
        let second = if several {
            left.split_off(left.len() / 2)
        } else {
            Vec::new()
        };
        let twice: Vec<Endpoint> = if several && random.percent(30) {
            left.first().cloned().into_iter().collect()
        } else {
            Vec::new()
        };
        let groups = [left, [second, twice].concat()];
        for (index, group) in groups.into_iter().enumerate().take(1 + usize::from(several)) {
            let name = format!("web-{number}-{}-{index}", family.name().to_lowercase());
            slices.push(Slice {
                key: Key {
                    namespace: service.key.namespace.clone(),
                    name,
                },
                service: random.percent(97).then(|| service.key.name.clone()),
                headless: random.percent(4),
                address_type: family.name(),
                ports: slice_ports(random, service, index),
                endpoints: group,
            });
        }
    }
    if random.percent(8) {
        slices.push(of_names(service, number));
    }
    slices
}

fn of_names(service: &Service, number: u8) -> Slice {
    Slice {
        key: Key {
            namespace: service.key.namespace.clone(),
            name: format!("web-{number}-names"),
        },
        service: Some(service.key.name.clone()),
        headless: false,
        address_type: "FQDN",
        ports: service
            .ports
            .iter()
            .map(|port| slice_port(port, Some(TARGET_PORTS[0])))
            .collect(),
        endpoints: vec![Endpoint {
            addresses: vec!["pod.example.com".to_owned()],
            node: None,
            zone: None,
            conditions: Conditions::READY,
            for_zones: Vec::new(),
            for_nodes: Vec::new(),
        }],
    }
}

fn slice_port(port: &Port, number: Option<u16>) -> SlicePort {
    SlicePort {
        name: port.name.clone(),
        protocol: port.protocol,
        port: number,
    }
}

fn slice_ports(random: &mut Random, service: &Service, slice: usize) -> Vec<SlicePort> {
    let mut ports: Vec<SlicePort> = Vec::new();
    for (index, port) in service.ports.iter().enumerate() {
        if random.percent(5) {
            // This slice's pods do not have the port.
            continue;
        }
        let number = match random.below(25) {
            0 => None,
            1 => Some(0),
            _ => Some(TARGET_PORTS[(index + slice) % TARGET_PORTS.len()]),
        };
        ports.push(slice_port(port, number));
    }
    if random.percent(10) {
        ports.push(SlicePort {
            name: "unused".to_owned(),
            protocol: Protocol::Tcp,
            port: Some(TARGET_PORTS[3]),
        });
    }
    ports
}

/// How the endpoints of a Service are hinted.
#[derive(Clone, Copy)]
enum Hints {
    None,
    /// All for zones.
    Zones,
    /// All for nodes.
    Nodes,
    /// All for both.
    Both,
    /// Some for any of them, some for nobody.
    Some,
}

impl Hints {
    fn of_service(random: &mut Random) -> Self {
        match random.below(10) {
            0..5 => Self::None,
            5 | 6 => Self::Zones,
            7 => Self::Nodes,
            8 => Self::Both,
            _ => Self::Some,
        }
    }

    fn draw(self, random: &mut Random) -> (Vec<String>, Vec<String>) {
        let zones = |random: &mut Random| vec![random.one(ZONES).to_owned()];
        let nodes = |random: &mut Random| vec![random.one([NODE, OTHER_NODES[0]]).to_owned()];
        match self {
            Self::None => (Vec::new(), Vec::new()),
            Self::Zones => (zones(random), Vec::new()),
            Self::Nodes => (Vec::new(), nodes(random)),
            Self::Both => (zones(random), nodes(random)),
            Self::Some => {
                let zones = if random.percent(60) { zones(random) } else { Vec::new() };
                let nodes = if random.percent(30) { nodes(random) } else { Vec::new() };
                (zones, nodes)
            }
        }
    }
}

fn endpoints(random: &mut Random, family: Family, hints: Hints) -> Vec<Endpoint> {
    let mut endpoints = Vec::new();
    // No endpoint, only ones of this node, only ones of others, or both.
    let (here, there) = match random.below(12) {
        0 => (0, 0),
        1 | 2 => (70, 0),
        3..5 => (0, 70),
        _ => (50, 40),
    };
    for index in 0..PODS {
        if random.percent(here) {
            endpoints.push(endpoint(
                random,
                plan::pod(family, index),
                plan::node_of_pod(index),
                hints,
            ));
        }
        if random.percent(there) {
            endpoints.push(endpoint(
                random,
                plan::remote_pod(family, index),
                Some(OTHER_NODES[0]),
                hints,
            ));
        }
    }
    if here > 0 && random.percent(8) {
        endpoints.push(endpoint(random, plan::node(family), Some(NODE), hints));
    }
    if there > 0 && random.percent(8) {
        endpoints.push(endpoint(random, plan::other_node(family), Some(OTHER_NODES[0]), hints));
    }
    // Services without any ready endpoint are rare if each is drawn alone.
    if random.percent(12) {
        let conditions = random.one([Conditions::TERMINATING, Conditions::NOT_READY]);
        for endpoint in &mut endpoints {
            endpoint.conditions = conditions;
        }
    }
    endpoints
}

fn endpoint(random: &mut Random, address: IpAddr, node: Option<&str>, hints: Hints) -> Endpoint {
    let (for_zones, for_nodes) = hints.draw(random);
    let mut addresses = vec![address.to_string()];
    if random.percent(5) {
        // Only the first counts.
        addresses.push(plan::remote_pod(Family::of(&address), PODS + 1).to_string());
    }
    Endpoint {
        addresses,
        node: node.map(str::to_owned),
        zone: random.percent(80).then(|| random.one(ZONES).to_owned()),
        conditions: conditions(random),
        for_zones,
        for_nodes,
    }
}

fn conditions(random: &mut Random) -> Conditions {
    match random.below(20) {
        0..13 => Conditions::READY,
        13 => Conditions::default(),
        14 | 15 => Conditions::TERMINATING,
        16 => Conditions::NOT_READY,
        _ => {
            let draw = |random: &mut Random| random.one([None, Some(true), Some(false)]);
            Conditions {
                ready: draw(random),
                serving: draw(random),
                terminating: draw(random),
            }
        }
    }
}

mod changes;
use changes::change;

#[cfg(test)]
mod tests;
