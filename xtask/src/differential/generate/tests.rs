use super::*;

fn rounds() -> impl Iterator<Item = Round> {
    (0..400).map(|number| round(&mut Random::of_round(11, number)))
}

#[test]
fn a_round_is_the_same_each_time() {
    assert_eq!(round(&mut Random::of_round(3, 9)), round(&mut Random::of_round(3, 9)));
}

#[test]
fn every_kind_of_service_and_every_policy_is_met() {
    let services: Vec<Service> = rounds().flat_map(|round| round.start.services).collect();
    let met = |what: &str, is_it: &dyn Fn(&Service) -> bool| {
        let count = services.iter().filter(|service| is_it(service)).count();
        assert!(count >= 8, "{what}: {count} of {}", services.len());
    };
    for kind in [
        Type::ClusterIp,
        Type::NodePort,
        Type::LoadBalancer,
        Type::ExternalName,
        Type::Headless,
    ] {
        met("type", &|service| service.kind == kind);
    }
    for protocol in Protocol::ALL {
        met("protocol", &|service| {
            service.ports.iter().any(|port| port.protocol == protocol)
        });
    }
    met("one number, several protocols", &|service| {
        let ports = &service.ports;
        ports
            .iter()
            .any(|a| ports.iter().any(|b| a.port == b.port && a.protocol != b.protocol))
    });
    met("internal policy Local", &|service| service.internal == Policy::Local);
    met("external policy Local", &|service| service.external == Policy::Local);
    met("affinity", &|service| service.affinity_s.is_some());
    met("source ranges", &|service| !service.source_ranges.is_empty());
    met("another proxy's", &|service| service.proxy_name.is_some());
    met("mode Proxy", &|service| {
        service.ingress.iter().any(|entry| entry.mode == Some("Proxy"))
    });
    met("no address of a load balancer", &|service| service.ingress.is_empty());
    met("both families, IPv6 first", &|service| {
        service.cluster_ips.len() == 2 && Family::of(&service.cluster_ips[0]) == Family::V6
    });
}

#[test]
fn every_oddity_of_endpoints_is_met() {
    let slices: Vec<Slice> = rounds().flat_map(|round| round.start.slices).collect();
    let endpoints = || slices.iter().flat_map(|slice| &slice.endpoints);
    let met = |what: &str, count: usize| assert!(count >= 8, "{what}: {count}");
    met("headless label", slices.iter().filter(|slice| slice.headless).count());
    met(
        "no Service",
        slices.iter().filter(|slice| slice.service.is_none()).count(),
    );
    met(
        "names",
        slices.iter().filter(|slice| slice.address_type == "FQDN").count(),
    );
    met(
        "no endpoint",
        slices.iter().filter(|slice| slice.endpoints.is_empty()).count(),
    );
    let ports = || slices.iter().flat_map(|slice| &slice.ports);
    met("port nil", ports().filter(|port| port.port.is_none()).count());
    met("port 0", ports().filter(|port| port.port == Some(0)).count());
    met(
        "no conditions",
        endpoints().filter(|e| e.conditions == Conditions::default()).count(),
    );
    met(
        "terminating",
        endpoints().filter(|e| e.conditions == Conditions::TERMINATING).count(),
    );
    met("zone hints", endpoints().filter(|e| !e.for_zones.is_empty()).count());
    met("node hints", endpoints().filter(|e| !e.for_nodes.is_empty()).count());
    met("nobody's", endpoints().filter(|e| e.node.is_none()).count());
    let host = plan::node(Family::V4).to_string();
    met("host network", endpoints().filter(|e| e.addresses[0] == host).count());
}

#[test]
fn copies_of_an_endpoint_of_a_service_agree() {
    for round in rounds() {
        for cluster in round.stages() {
            for service in &cluster.services {
                let mut seen = std::collections::BTreeMap::new();
                for endpoint in cluster.slices_of(&service.key).flat_map(|slice| &slice.endpoints) {
                    let first = seen.entry(&endpoint.addresses[0]).or_insert(endpoint);
                    assert_eq!(*first, endpoint, "{}", service.key);
                }
            }
        }
    }
}

#[test]
fn ports_of_a_service_differ_by_number_or_protocol_and_node_ports_belong_to_one_service() {
    for round in rounds() {
        for cluster in round.stages() {
            let mut node_ports = std::collections::BTreeMap::new();
            for service in &cluster.services {
                let mut taken = BTreeSet::new();
                for port in &service.ports {
                    assert!(taken.insert((port.port, port.protocol)), "{service:?}");
                    let owner = node_ports.entry(port.node_port).or_insert(&service.key);
                    assert_eq!(*owner, &service.key);
                }
            }
        }
    }
}

#[test]
fn every_change_is_met() {
    let changes: Vec<Change> = rounds()
        .flat_map(|round| round.steps)
        .flat_map(|step| step.changes)
        .collect();
    let kinds: BTreeSet<String> = changes
        .iter()
        .map(|change| {
            let text = format!("{change:?}");
            let end = text.find(|c: char| !c.is_alphanumeric()).unwrap_or(text.len());
            text[..end].to_owned()
        })
        .collect();
    assert_eq!(kinds.len(), 17, "{kinds:?}");
}
