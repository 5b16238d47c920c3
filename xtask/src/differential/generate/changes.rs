//! Draws one change of the objects as they are.

use super::*;

/// A change, if the cluster has what it would be made to.
pub(super) fn change(random: &mut Random, now: &Cluster) -> Option<Change> {
    match random.below(24) {
        0..8 => of_endpoint(random, now),
        8..11 => of_slice(random, now),
        11..20 => of_service(random, now),
        20 => Some(Change::Zone(
            random.one([None, Some(ZONES[0]), Some(ZONES[1])]).map(str::to_owned),
        )),
        21 => {
            let range = random.one(EXTRA_SERVICE_CIDRS);
            Some(Change::ServiceCidr(
                range.to_owned(),
                !now.service_cidrs.contains(range),
            ))
        }
        22 => Some(Change::Wait),
        _ => hints_of_all(random, now),
    }
}

fn slice_of_addresses<'a>(random: &mut Random, now: &'a Cluster) -> Option<&'a Slice> {
    let slices: Vec<&Slice> = now.slices.iter().filter(|slice| slice.address_type != "FQDN").collect();
    random.pick(&slices).copied()
}

fn family_of(slice: &Slice) -> Family {
    if slice.address_type == Family::V4.name() {
        Family::V4
    } else {
        Family::V6
    }
}

fn of_endpoint(random: &mut Random, now: &Cluster) -> Option<Change> {
    let slice = slice_of_addresses(random, now)?;
    let family = family_of(slice);
    let address = random
        .pick(&slice.endpoints)
        .map(|endpoint| endpoint.addresses[0].clone());
    match (random.below(8), address) {
        (0..3, Some(address)) => {
            let conditions = random.one([
                Conditions::READY,
                Conditions::TERMINATING,
                Conditions::NOT_READY,
                Conditions::default(),
            ]);
            Some(Change::Conditions(address, conditions))
        }
        (3..5, Some(address)) => Some(Change::DropEndpoint(address)),
        (5, Some(address)) => {
            let is_neighbour =
                |other: &&Slice| (&other.service, &other.key.namespace) == (&slice.service, &slice.key.namespace);
            let neighbours: Vec<&Slice> = now.slices.iter().filter(is_neighbour).collect();
            let to = random.pick(&neighbours)?;
            Some(Change::MoveEndpoint(address, slice.key.clone(), to.key.clone()))
        }
        _ => {
            let index = random.below(usize::from(PODS)) as u8;
            let (address, node) = if random.percent(50) {
                (plan::pod(family, index), plan::node_of_pod(index))
            } else {
                (plan::remote_pod(family, index), Some(OTHER_NODES[0]))
            };
            let mut new = endpoint(random, address, node, Hints::None);
            if random.percent(60) {
                new.conditions = Conditions::READY;
            }
            (!has_endpoint(now, slice, &new.addresses[0]))
                .then(|| Change::AddEndpoint(slice.key.clone(), Box::new(new)))
        }
    }
}

fn of_slice(random: &mut Random, now: &Cluster) -> Option<Change> {
    let slice = slice_of_addresses(random, now)?;
    let key = slice.key.clone();
    match random.below(6) {
        0 => Some(Change::DropSlice(key)),
        1 => {
            let neighbours: Vec<&Service> = now
                .services
                .iter()
                .filter(|service| service.key.namespace == key.namespace)
                .collect();
            let to = random.pick(&neighbours).map(|service| service.key.name.clone());
            let to = to.filter(|_| random.percent(80));
            let claimed = Slice {
                service: to.clone(),
                ..slice.clone()
            };
            let contradicts = slice
                .endpoints
                .iter()
                .any(|endpoint| has_endpoint(now, &claimed, &endpoint.addresses[0]));
            (slice.service != to && !contradicts).then_some(Change::Claim(key, to))
        }
        2 => Some(Change::Headless(key, !slice.headless)),
        3 => {
            let port = random.pick(&slice.ports)?;
            let number = random.one([
                None,
                Some(TARGET_PORTS[0]),
                Some(TARGET_PORTS[2]),
                Some(TARGET_PORTS[3]),
            ]);
            Some(Change::TargetPort(key, port.name.clone(), number))
        }
        4 => Some(Change::PutSlice(Box::new(Slice {
            endpoints: Vec::new(),
            ..slice.clone()
        }))),
        _ => {
            let service = slice.service.as_ref().map(|name| Key {
                namespace: key.namespace.clone(),
                name: name.clone(),
            });
            let service = now.service(&service?)?;
            let name = Key {
                namespace: key.namespace.clone(),
                name: format!("{}-more", key.name),
            };
            Some(Change::PutSlice(Box::new(Slice {
                key: name,
                endpoints: endpoints(random, family_of(slice), Hints::None)
                    .into_iter()
                    .filter(|new| !has_endpoint(now, slice, &new.addresses[0]))
                    .collect(),
                ports: slice_ports(random, service, 1),
                ..slice.clone()
            })))
        }
    }
}

/// Whether the Service of this slice has this endpoint already: a copy drawn anew would contradict it.
fn has_endpoint(now: &Cluster, slice: &Slice, address: &str) -> bool {
    let of_service = |other: &&Slice| (&other.service, &other.key.namespace) == (&slice.service, &slice.key.namespace);
    let mut endpoints = now.slices.iter().filter(of_service).flat_map(|slice| &slice.endpoints);
    endpoints.any(|endpoint| endpoint.addresses[0] == address)
}

fn of_service(random: &mut Random, now: &Cluster) -> Option<Change> {
    let service = random.pick(&now.services)?;
    let key = service.key.clone();
    // The number that its addresses are made from.
    let number: u8 = service.key.name.strip_prefix("web-")?.parse().ok()?;
    let spec = match random.below(18) {
        0 => return Some(Change::Recreate(key)),
        1 => return Some(Change::Delete(key)),
        2 => {
            let free = (0..8).find(|number| !now.services.iter().any(|s| s.key.name == format!("web-{number}")))?;
            return Some(Change::Add(Box::new(super::service(random, free))));
        }
        3 | 4 => Spec::Type(random.one([Type::ClusterIp, Type::NodePort, Type::LoadBalancer, Type::ExternalName])),
        5 => Spec::Internal(service.internal.other()),
        6 | 7 => Spec::External(service.external.other()),
        8 | 9 => Spec::Affinity(if service.affinity_s.is_some() {
            None
        } else {
            affinity(random)
        }),
        10 => Spec::SourceRanges(if random.percent(25) {
            Vec::new()
        } else {
            source_ranges(random)
        }),
        11 | 12 => Spec::Ingress(if random.percent(25) {
            Vec::new()
        } else {
            ingress(random, number)
        }),
        13 => Spec::ExternalIps(external_ips(random, number)),
        14 => {
            if service.ports.iter().any(|port| port.name.is_empty()) {
                return None;
            }
            let name = (0..9)
                .map(|n| format!("p{n}"))
                .find(|name| !service.ports.iter().any(|p| p.name == *name))?;
            let port = Port {
                name,
                protocol: random.one(Protocol::ALL),
                port: random.one([8443, 5353, 7000]),
                node_port: 30_100 + u16::from(number) * 10 + 9,
            };
            let clash = |other: &Port| {
                (other.port, other.protocol) == (port.port, port.protocol) || other.node_port == port.node_port
            };
            if service.ports.iter().any(clash) {
                return None;
            }
            Spec::AddPort(port)
        }
        15 => Spec::DropPort(random.pick(&service.ports)?.name.clone()),
        16 => {
            let port = random.pick(&service.ports)?;
            if random.percent(50) {
                Spec::PortNumber(port.name.clone(), 8000 + port.port)
            } else {
                Spec::NodePort(port.name.clone(), 31_000 + (port.node_port - 30_000) % 1000)
            }
        }
        _ => Spec::ProxyName(if service.proxy_name.is_some() {
            None
        } else {
            Some("another-proxy".to_owned())
        }),
    };
    // A Service that was none keeps to the rules of its new type: the API wants a change to or from one without a
    // ClusterIP made by replacing it.
    if service.kind == Type::Headless {
        return Some(Change::Delete(key));
    }
    Some(Change::Spec(key, spec))
}

fn hints_of_all(random: &mut Random, now: &Cluster) -> Option<Change> {
    let slice = slice_of_addresses(random, now)?;
    let endpoint = random.pick(&slice.endpoints)?;
    let (zones, nodes) = Hints::Some.draw(random);
    Some(Change::Hints(endpoint.addresses[0].clone(), zones, nodes))
}
