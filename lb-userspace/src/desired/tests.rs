use std::sync::Arc;

use lb_common::abi::frontend_flags as flags;

use super::*;
use crate::model::{Endpoint, Hints, Node, ObjectKey, ServicePort, SlicePort, SourceRanges};

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a range")
}

fn state() -> NodeState {
    NodeState {
        settings: Settings {
            node_name: "node-a".into(),
            ..Settings::default()
        },
        local: LocalAddresses {
            all: [
                "127.0.0.1",
                "192.0.2.11",
                "198.51.100.11",
                "::1",
                "fe80::1",
                "2001:db8::11",
            ]
            .map(ip)
            .into(),
            primary: vec![ip("192.0.2.11"), ip("2001:db8::11")],
        },
        object: None,
        service_cidrs: None,
    }
}

fn node_object(zone: &str) -> Node {
    Node {
        name: "node-a".into(),
        zone: Some(zone.into()),
        addresses: Vec::new(),
        pod_cidrs: Vec::new(),
        leaving: false,
        labels: std::collections::BTreeMap::new(),
        problems: Vec::new(),
    }
}

fn service() -> Service {
    Service {
        key: ObjectKey::new("default", "web"),
        created_s: 0,
        proxy_name: None,
        standing: Standing::Served,
        cluster_ips: vec![ip("172.30.0.41")],
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: SourceRanges::default(),
        internal_policy: Policy::Cluster,
        external_policy: Policy::Cluster,
        affinity_timeout_s: None,
        health_check_node_port: 0,
        ports: vec![ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: 30080,
        }],
        problems: Vec::new(),
    }
}

fn endpoint(addr: &str, node: &str) -> Endpoint {
    Endpoint {
        addr: ip(addr),
        ready: true,
        serving: true,
        terminating: false,
        node: Some(node.into()),
        hints: None,
    }
}

fn hinted(addr: &str, nodes: &[&str], zones: &[&str]) -> Endpoint {
    let names = |texts: &[&str]| texts.iter().map(|text| Arc::from(*text)).collect();
    let hints = Hints {
        nodes: names(nodes),
        zones: names(zones),
    };
    Endpoint {
        hints: Some(Arc::new(hints)),
        ..endpoint(addr, "node-b")
    }
}

fn slice(endpoints: Vec<Endpoint>) -> EndpointSlice {
    EndpointSlice {
        key: ObjectKey::new("default", "web-1"),
        service: Some(ObjectKey::new("default", "web")),
        family: IpFamily::V4,
        ports: vec![SlicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 8080,
        }],
        endpoints: endpoints.into(),
        last_change_ms: None,
        problems: Vec::new(),
    }
}

fn frontends(service: &Service, state: &NodeState) -> Vec<DesiredFrontend> {
    let slice = slice(vec![endpoint("10.180.0.1", "node-a"), endpoint("10.180.1.1", "node-b")]);
    let desired = desired(service, &[&slice], &NodeView::new(state));
    desired.ports.into_iter().flat_map(|port| port.frontends).collect()
}

fn node_ports(service: &Service, state: &NodeState) -> Vec<String> {
    let all = frontends(service, state).into_iter();
    let node_ports = all.filter(|frontend| frontend.kind == FrontendKind::NodePort);
    node_ports.map(|frontend| frontend.addr.to_string()).collect()
}

fn cluster(endpoints: Vec<Endpoint>, state: &NodeState) -> Vec<String> {
    let desired = desired(&service(), &[&slice(endpoints)], &NodeView::new(state));
    let backends = desired.ports[0].endpoints.cluster.iter();
    backends.map(|backend| backend.addr.to_string()).collect()
}

#[test]
fn node_ports_are_served_on_the_primary_addresses_of_the_services_families() {
    assert_eq!(node_ports(&service(), &state()), ["192.0.2.11"]);
    let mut dual = service();
    dual.cluster_ips.push(ip("fd00::41"));
    assert_eq!(node_ports(&dual, &state()), ["192.0.2.11", "2001:db8::11"]);
    let mut state = state();
    state.object = Some(Node {
        addresses: vec![ip("198.51.100.11")],
        ..node_object("zone-a")
    });
    assert_eq!(
        node_ports(&service(), &state),
        ["198.51.100.11"],
        "what the Node object says comes first"
    );
}

#[test]
fn node_ports_are_served_on_loopback_for_sockets_whatever_addresses_are_asked_for() {
    let mut state = state();
    state.settings.node_port_addresses = NodePortAddresses::Within(vec![net("203.0.113.0/24"), net("2001:db8:9::/48")]);
    let mut dual = service();
    dual.cluster_ips.push(ip("fd00::41"));
    assert!(node_ports(&dual, &state).is_empty());
    let loopback: Vec<_> = frontends(&dual, &state)
        .into_iter()
        .filter(|frontend| frontend.kind == FrontendKind::Loopback)
        .collect();
    let places: Vec<_> = loopback.iter().map(|frontend| (frontend.addr, frontend.port)).collect();
    assert_eq!(places, [(ip("127.0.0.1"), 30_080), (ip("::1"), 30_080)]);
    let flagged = flags::NODE_PORT | flags::ONLY_SOCKETS | flags::OWN_ADDRESS;
    for frontend in loopback {
        assert_eq!(frontend.flags & (flagged | flags::POD_SOCKETS), flagged);
        assert_eq!(frontend.internal, Set::Cluster);
    }
}

#[test]
fn addresses_of_the_node_are_known_as_its_own() {
    let mut service = service();
    service.load_balancer_ips = vec![ip("198.51.100.11"), ip("203.0.113.9")];
    let own: Vec<_> = frontends(&service, &state())
        .into_iter()
        .filter(|frontend| frontend.flags & flags::OWN_ADDRESS != 0)
        .map(|frontend| frontend.addr)
        .collect();
    assert_eq!(own, ["198.51.100.11", "192.0.2.11", "127.0.0.1"].map(ip));
}

#[test]
fn ranges_choose_node_port_addresses_and_say_nothing_of_the_other_family() {
    let mut state = state();
    let mut dual = service();
    dual.cluster_ips.push(ip("fd00::41"));
    state.settings.node_port_addresses = NodePortAddresses::Within(vec![net("198.51.100.0/24")]);
    assert_eq!(node_ports(&dual, &state), ["198.51.100.11", "2001:db8::11"]);
    state.settings.node_port_addresses = NodePortAddresses::Within(vec![net("203.0.113.0/24"), net("::/0")]);
    assert_eq!(
        node_ports(&dual, &state),
        ["2001:db8::11"],
        "no match means nowhere, not everywhere"
    );
    state.settings.node_port_addresses = NodePortAddresses::Within(vec![net("0.0.0.0/0")]);
    assert_eq!(
        node_ports(&service(), &state),
        ["192.0.2.11", "198.51.100.11"],
        "never on loopback"
    );
}

#[test]
fn a_cluster_ip_masquerades_strangers_only_if_pods_can_be_told() {
    let all = flags::MASQUERADE_EXTERNAL | flags::MASQUERADE_POD | flags::MASQUERADE_NODE;
    let mut state = state();
    let masquerade = |state: &NodeState| frontends(&service(), state)[0].flags & all;
    assert_eq!(masquerade(&state), flags::MASQUERADE_NODE);
    state.settings.local_pods = LocalPods::Cidrs(vec![net("fd00:1::/64")]);
    assert_eq!(
        masquerade(&state),
        flags::MASQUERADE_NODE,
        "a range of the other family tells nothing"
    );
    state.settings.local_pods = LocalPods::Cidrs(vec![net("10.180.0.0/24")]);
    assert_eq!(masquerade(&state), flags::MASQUERADE_EXTERNAL | flags::MASQUERADE_NODE);
    state.settings.local_pods = LocalPods::OfNodeObject;
    assert_eq!(masquerade(&state), flags::MASQUERADE_NODE);
    state.settings.masquerade_all = true;
    assert_eq!(masquerade(&state), all);
}

#[test]
fn of_equal_copies_of_an_endpoint_a_local_one_wins_and_a_ready_one_beats_one_that_goes() {
    let remote = endpoint("10.180.0.1", "node-b");
    let local = endpoint("10.180.0.1", "node-a");
    let view = NodeView::new(&state());
    for copies in [vec![remote.clone(), local.clone()], vec![local.clone(), remote.clone()]] {
        let found = desired(&service(), &[&slice(copies)], &view);
        assert_eq!(found.ports[0].endpoints.cluster.len(), 1);
        assert_eq!(found.ports[0].endpoints.local.len(), 1);
    }
    let going = Endpoint {
        ready: false,
        terminating: true,
        ..local
    };
    let found = desired(&service(), &[&slice(vec![going, remote])], &view);
    assert_eq!(found.ports[0].endpoints.cluster.len(), 1);
    assert!(
        found.ports[0].endpoints.local.is_empty(),
        "what goes is not what is local"
    );
}

#[test]
fn hints_for_nodes_come_before_hints_for_zones_which_need_a_node_object() {
    let endpoints = vec![
        hinted("10.180.1.1", &["node-a"], &["zone-b"]),
        hinted("10.180.1.2", &["node-b"], &["zone-a"]),
    ];
    let mut state = state();
    assert_eq!(cluster(endpoints.clone(), &state), ["10.180.1.1"]);
    state.settings.node_name = "node-c".into();
    assert_eq!(cluster(endpoints.clone(), &state).len(), 2);
    state.object = Some(node_object("zone-a"));
    assert_eq!(cluster(endpoints, &state), ["10.180.1.2"]);
}

#[test]
fn only_slice_ports_of_the_same_name_and_protocol_count() {
    let mut other = slice(vec![endpoint("10.180.1.1", "node-b")]);
    other.ports[0].protocol = Protocol::Udp;
    let mut renamed = slice(vec![endpoint("10.180.1.2", "node-b")]);
    renamed.ports[0].name = "web".into();
    let found = desired(&service(), &[&other, &renamed], &NodeView::new(&state()));
    assert!(found.ports[0].endpoints.cluster.is_empty());
}

#[test]
fn a_source_range_that_holds_the_node_also_lets_the_load_balancer_addresses_in() {
    let mut service = service();
    service.load_balancer_ips = vec![ip("203.0.113.1"), ip("2001:db8:1::1")];
    service.source_ranges.nets = vec![net("192.0.2.0/24")];
    let view = NodeView::new(&state());
    let ranges = desired(&service, &[], &view).ports[0].source_ranges.clone();
    assert_eq!(ranges, Some(vec![net("192.0.2.0/24"), net("203.0.113.1/32")]));
    service.source_ranges.nets = vec![net("10.0.0.0/8")];
    let ranges = desired(&service, &[], &view).ports[0].source_ranges.clone();
    assert_eq!(ranges, Some(vec![net("10.0.0.0/8")]));
    service.source_ranges.nets = vec![net("2001:db8::/32")];
    assert_eq!(desired(&service, &[], &view).ports[0].source_ranges, None);
}

#[test]
fn sockets_of_pods_are_left_alone_where_a_backend_is_local_or_pods_are_masqueraded() {
    let pod_sockets = |endpoints: Vec<Endpoint>| {
        let found = desired(&service(), &[&slice(endpoints)], &NodeView::new(&state()));
        let flagged = found.ports[0]
            .frontends
            .iter()
            .map(|f| f.flags & flags::POD_SOCKETS != 0);
        flagged.collect::<Vec<_>>()
    };
    assert_eq!(
        pod_sockets(vec![endpoint("10.180.1.1", "node-b")]),
        [true, false, false]
    );
    assert_eq!(
        pod_sockets(vec![endpoint("10.180.0.1", "node-a")]),
        [false, false, false]
    );
}

#[test]
fn health_checks_count_ready_local_endpoints_by_address() {
    let mut service = service();
    service.health_check_node_port = 32_000;
    service.external_policy = Policy::Local;
    let going = Endpoint {
        ready: false,
        terminating: true,
        ..endpoint("10.180.0.2", "node-a")
    };
    let slices = slice(vec![
        endpoint("10.180.0.1", "node-a"),
        going,
        endpoint("10.180.1.1", "node-b"),
    ]);
    let health = desired(&service, &[&slices, &slices], &NodeView::new(&state())).health;
    assert_eq!(
        health,
        Some(HealthCheck {
            node_port: 32_000,
            local_endpoints: [Some(1), None],
        })
    );
}

/// An endpoint with these conditions: ready, serving, terminating.
fn with_conditions(addr: &str, [ready, serving, terminating]: [bool; 3]) -> Endpoint {
    Endpoint {
        ready,
        serving,
        terminating,
        ..endpoint(addr, "node-b")
    }
}

#[test]
fn of_copies_of_an_endpoint_one_that_is_not_terminating_counts() {
    let going = with_conditions("10.180.1.1", [false, true, true]);
    let starting = with_conditions("10.180.1.1", [false, false, false]);
    assert_eq!(cluster(vec![going.clone()], &state()), ["10.180.1.1"]);
    assert_eq!(cluster(vec![going.clone(), starting.clone()], &state()), [""; 0]);
    assert_eq!(cluster(vec![starting, going.clone()], &state()), [""; 0]);
    let ready = endpoint("10.180.1.1", "node-b");
    assert_eq!(cluster(vec![going, ready], &state()), ["10.180.1.1"]);
}

#[test]
fn flows_are_kept_to_every_endpoint_that_serves_a_udp_port_whatever_new_ones_do() {
    let mut dns = service();
    dns.internal_policy = Policy::Local;
    dns.ports[0].protocol = Protocol::Udp;
    let mut slice = slice(vec![
        endpoint("10.180.0.1", "node-a"),
        with_conditions("10.180.1.1", [true, true, false]),
        with_conditions("10.180.1.2", [false, true, true]),
        with_conditions("10.180.1.3", [false, true, false]),
        with_conditions("10.180.1.4", [false, false, true]),
        with_conditions("10.180.1.5", [false, false, false]),
    ]);
    slice.ports[0].protocol = Protocol::Udp;
    let serving = |service: &Service, slice: &EndpointSlice| -> Vec<String> {
        let desired = desired(service, &[slice], &NodeView::new(&state()));
        let serving = &desired.ports[0].endpoints.serving;
        serving.iter().map(|backend| backend.addr.to_string()).collect()
    };
    assert_eq!(
        serving(&dns, &slice),
        ["10.180.0.1", "10.180.1.1", "10.180.1.2", "10.180.1.3"]
    );
    slice.ports[0].protocol = Protocol::Tcp;
    dns.ports[0].protocol = Protocol::Tcp;
    assert_eq!(serving(&dns, &slice), [""; 0], "TCP connections end by themselves");
}

#[test]
fn a_proxy_with_a_name_serves_the_services_given_to_it_and_no_others() {
    let mut named = state();
    named.settings.proxy_name = Some("fairway".into());
    let mut given = service();
    given.proxy_name = Some("fairway".into());
    let mut of_another = service();
    of_another.proxy_name = Some("other".into());
    let is_served = |service: &Service, state: &NodeState| !frontends(service, state).is_empty();
    assert!(is_served(&service(), &state()) && is_served(&given, &named));
    assert!(!is_served(&service(), &named) && !is_served(&given, &state()));
    assert!(!is_served(&of_another, &named) && !is_served(&of_another, &state()));
}

#[test]
fn the_ranges_of_service_cidr_objects_come_before_those_that_were_set() {
    let mut state = state();
    state.settings.service_cidrs = vec![net("10.96.0.0/16")];
    assert_eq!(NodeView::new(&state).service_cidrs, [net("10.96.0.0/16")]);
    state.service_cidrs = Some(vec![net("172.30.0.0/16")]);
    assert_eq!(NodeView::new(&state).service_cidrs, [net("172.30.0.0/16")]);
}

#[test]
fn an_address_that_is_the_nodes_own_is_served_and_reported() {
    let mut web = service();
    web.external_ips = vec![ip("198.51.100.11"), ip("203.0.113.7")];
    let served = frontends(&web, &state());
    assert!(served.iter().any(|frontend| frontend.addr == ip("198.51.100.11")));
    let problems = desired(&web, &[], &NodeView::new(&state())).problems;
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(problems[0].field, "spec.externalIPs");
    assert!(
        problems[0]
            .message
            .starts_with("198.51.100.11 is an address of node node-a")
    );
}

#[test]
fn sockets_are_told_of_services_that_may_lead_to_the_node_itself() {
    let own_backend = |addr: &str| {
        let slice = slice(vec![endpoint(addr, "node-a")]);
        let desired = desired(&service(), &[&slice], &NodeView::new(&state()));
        let mut frontends = desired.ports[0].frontends.iter();
        frontends.all(|frontend| frontend.flags & flags::OWN_BACKEND != 0)
    };
    assert!(own_backend("192.0.2.11"), "a pod of the host's network");
    assert!(!own_backend("10.180.0.1"));
}
