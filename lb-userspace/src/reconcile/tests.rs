use std::collections::BTreeMap;

use lb_common::abi::{Config, FrontendKey, Port, backend_flags};

use super::*;
use crate::desired::{LocalPods, Settings};
use crate::maps::fake::{FakeMaps, FaultyMaps};
use crate::maps::{FamilyOp, Limits};
use crate::model::{
    Endpoint, EndpointSlice, IpFamily, Policy, Service, ServicePort, SlicePort, SourceRanges, Standing,
};

type Fake = Reconciler<FakeMaps, NoNextHops>;

fn node() -> NodeState {
    NodeState {
        settings: Settings {
            node_name: "node-a".into(),
            local_pods: LocalPods::Cidrs(vec!["10.180.0.0/24".parse().expect("range")]),
            service_cidrs: vec!["172.30.0.0/16".parse().expect("range")],
            datapath: Config {
                hz: 250,
                snat_port_min: 61_000,
                snat_port_max: 65_535,
                ..Config::default()
            },
            ..Settings::default()
        },
        local: LocalAddresses {
            all: vec!["192.0.2.11".parse().expect("address")],
            primary: vec!["192.0.2.11".parse().expect("address")],
        },
        object: None,
        service_cidrs: None,
    }
}

fn service(name: &str, cluster_ip: &str, node_port: u16) -> Service {
    Service {
        key: ObjectKey::new("default", name),
        created_s: 0,
        proxy_name: None,
        standing: Standing::Served,
        cluster_ips: vec![cluster_ip.parse().expect("address")],
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
            node_port,
        }],
        problems: Vec::new(),
    }
}

fn slice(service: &str, addrs: &[&str]) -> EndpointSlice {
    let endpoint = |addr: &&str| Endpoint {
        addr: addr.parse().expect("address"),
        ready: true,
        serving: true,
        terminating: false,
        node: Some(if addr.starts_with("10.180.0.") {
            "node-a".into()
        } else {
            "node-b".into()
        }),
        hints: None,
    };
    EndpointSlice {
        key: ObjectKey::new("default", &format!("{service}-1")),
        service: Some(ObjectKey::new("default", service)),
        family: IpFamily::V4,
        ports: vec![SlicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 8080,
        }],
        endpoints: addrs.iter().map(endpoint).collect(),
        last_change_ms: None,
        problems: Vec::new(),
    }
}

fn start(maps: FakeMaps, services: &[Service], slices: &[EndpointSlice]) -> Fake {
    let mut reconciler = Reconciler::restore(maps, NoNextHops, node()).expect("fake maps can be read");
    reconciler.take(Event::Services(services.to_vec()));
    reconciler.take(Event::EndpointSlices(slices.to_vec()));
    let report = reconciler.reconcile();
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    reconciler
}

fn lines(maps: &FakeMaps) -> Vec<String> {
    maps.contents.lines(&maps.maglev)
}

/// What packets meet: without ids, offsets and backends out of use.
fn behaviour(maps: &FakeMaps) -> Vec<String> {
    let keep = |line: &String| line.starts_with("FRONTENDS") || line.starts_with("POD") || line.starts_with("SERVICE");
    let without_port = |line: String| {
        let words: Vec<&str> = line.split(' ').collect();
        let place = words.iter().position(|word| *word == "port");
        let kept = words
            .iter()
            .enumerate()
            .filter(|(i, _)| place.is_none_or(|p| *i != p + 1));
        kept.map(|(_, word)| *word).collect::<Vec<_>>().join(" ")
    };
    lines(maps).into_iter().filter(keep).map(without_port).collect()
}

fn two_services() -> (Vec<Service>, Vec<EndpointSlice>) {
    let mut db = service("db", "172.30.0.42", 0);
    db.affinity_timeout_s = Some(600);
    (
        vec![service("web", "172.30.0.41", 30080), db],
        vec![
            slice("web", &["10.180.0.1", "10.180.1.1"]),
            slice("db", &["10.180.1.2", "10.180.1.3"]),
        ],
    )
}

#[test]
fn nothing_is_written_before_both_lists_are_complete() {
    let (services, slices) = two_services();
    let mut reconciler = Reconciler::restore(FakeMaps::default(), NoNextHops, node()).expect("restore");
    reconciler.take(Event::Services(services));
    assert!(reconciler.reconcile().waiting);
    assert!(reconciler.maps().log.is_empty());
    reconciler.take(Event::EndpointSlices(slices));
    assert!(!reconciler.reconcile().waiting);
    assert!(!reconciler.maps().log.is_empty());
}

#[test]
fn a_restart_changes_nothing() {
    let (services, slices) = two_services();
    let first = start(FakeMaps::default(), &services, &slices);
    let mut maps = first.maps().clone();
    maps.log.clear();
    let (mut services, mut slices) = (services, slices);
    services.reverse();
    slices.reverse();
    let second = start(maps, &services, &slices);
    assert_eq!(second.maps().log, []);
    assert_eq!(lines(second.maps()), lines(first.maps()));
}

#[test]
fn the_smallest_change_writes_only_what_it_touches() {
    let (services, slices) = two_services();
    let mut reconciler = start(FakeMaps::default(), &services, &slices);
    reconciler.maps_mut().log.clear();
    reconciler.take(Event::EndpointSlice(slice(
        "web",
        &["10.180.0.1", "10.180.1.1", "10.180.1.9"],
    )));
    let report = reconciler.reconcile();
    assert_eq!(report.services, 1);
    let ops = &reconciler.maps().log;
    let kinds: Vec<&str> = ops
        .iter()
        .map(|op| match op {
            Op::V4(FamilyOp::SetBackend(..)) => "backend",
            Op::V4(FamilyOp::SetFrontend(..)) => "frontend",
            Op::SetFilter { .. } => "filter",
            Op::SetMaglev { .. } => "maglev",
            _ => "other",
        })
        .collect();
    assert_eq!(
        kinds,
        ["backend", "filter", "maglev", "frontend", "frontend", "frontend"],
        "in this order"
    );
    reconciler.take(Event::EndpointSlice(slice(
        "web",
        &["10.180.0.1", "10.180.1.1", "10.180.1.9"],
    )));
    assert_eq!(reconciler.reconcile().services, 0, "the same slice again is no change");
}

#[test]
fn a_table_in_use_is_never_overwritten() {
    let (services, slices) = two_services();
    let mut reconciler = start(FakeMaps::default(), &services, &slices);
    for n in 0..20u8 {
        let in_use = tables_in(&reconciler.maps().contents);
        reconciler.maps_mut().log.clear();
        let addr = format!("10.180.1.{n}");
        reconciler.take(Event::EndpointSlice(slice("web", &["10.180.0.1", &addr])));
        reconciler.reconcile();
        for op in &reconciler.maps().log {
            if let Op::SetMaglev { offset, slots } = op {
                let end = offset + slots.len() as u32;
                assert!(
                    in_use
                        .iter()
                        .all(|set| end <= set.offset || set.offset + set.size <= *offset)
                );
            }
        }
    }
    let used = reconciler.maps().maglev.len();
    assert!(used < 4 * 509, "room is used again: {used} slots");
}

#[test]
fn services_of_equal_backends_share_a_table() {
    let services = [service("a", "172.30.0.1", 0), service("b", "172.30.0.2", 0)];
    let addrs = ["10.180.0.1", "10.180.1.1"];
    let reconciler = start(
        FakeMaps::default(),
        &services,
        &[slice("a", &addrs), slice("b", &addrs)],
    );
    assert_eq!(tables_in(&reconciler.maps().contents).len(), 1);
    assert_eq!(reconciler.maps().maglev.len(), 509);
}

#[test]
fn a_backend_keeps_its_id_and_is_marked_when_nobody_uses_it() {
    let (services, slices) = two_services();
    let mut reconciler = start(FakeMaps::default(), &services, &slices);
    let find = |reconciler: &Fake| {
        let backends = &reconciler.maps().contents.v4.backends;
        backends
            .iter()
            .position(|b| IpAddr::from(b.addr) == IpAddr::from([10, 180, 1, 1]))
            .expect("it is there")
    };
    let id = find(&reconciler);
    reconciler.take(Event::EndpointSlice(slice("web", &["10.180.0.1"])));
    reconciler.reconcile();
    assert_eq!(find(&reconciler), id);
    assert_eq!(reconciler.maps().contents.v4.backends[id].flags, 0);
    reconciler.take(Event::EndpointSlice(slice("web", &["10.180.0.1", "10.180.1.1"])));
    reconciler.reconcile();
    assert_eq!(find(&reconciler), id);
    assert_eq!(reconciler.maps().contents.v4.backends[id].flags, backend_flags::LIVE);
}

#[test]
fn a_cluster_ip_beats_an_external_ip_and_the_loser_is_reported_and_gets_it_when_it_is_free() {
    let mut thief = service("aaa", "172.30.0.50", 0);
    thief.external_ips = vec!["172.30.0.41".parse().expect("address")];
    let (mut services, mut slices) = two_services();
    services.push(thief);
    slices.push(slice("aaa", &["10.180.1.7"]));
    let mut reconciler = start(FakeMaps::default(), &services, &slices);
    let key = FrontendKey {
        addr: [172, 30, 0, 41].map(u8::from).into_addr(),
        port: Port::new(80),
        protocol: 6,
        pad: 0,
    };
    let owner = |reconciler: &Fake| {
        let id = reconciler.maps().contents.v4.frontends[&key].service_port;
        let names: BTreeMap<u32, &ServicePortName> = reconciler.service_ports().collect();
        names[&id].service.to_string()
    };
    assert_eq!(owner(&reconciler), "default/web");
    let problems: Vec<String> = reconciler.problems().iter().map(ToString::to_string).collect();
    assert_eq!(
        problems,
        [
            "Service default/aaa: spec.externalIPs: 172.30.0.41 port 80 is served for default/web, which also claims it; \
          let only one Service have it"
        ]
    );
    reconciler.take(Event::ServiceGone(ObjectKey::new("default", "web")));
    reconciler.reconcile();
    assert_eq!(owner(&reconciler), "default/aaa");
    assert!(reconciler.problems().is_empty());
}

trait IntoAddr {
    fn into_addr(self) -> lb_common::abi::Addr4;
}

impl IntoAddr for [u8; 4] {
    fn into_addr(self) -> lb_common::abi::Addr4 {
        lb_common::abi::Addr4::from_octets(self)
    }
}

#[test]
fn an_audit_repairs_what_others_changed_and_counts_it() {
    let (services, slices) = two_services();
    let mut reconciler = start(FakeMaps::default(), &services, &slices);
    let good = lines(reconciler.maps());
    assert_eq!(reconciler.audit().expect("audit").ops, 0);
    let maps = reconciler.maps_mut();
    let key = *maps.contents.v4.frontends.keys().next().expect("a frontend");
    maps.contents.v4.frontends.remove(&key);
    maps.contents.v4.backends[1].flags = 0;
    maps.maglev[7] ^= 1;
    maps.contents.pod_cidr_lost();
    assert_eq!(reconciler.audit().expect("audit").ops, 4);
    assert_eq!(lines(reconciler.maps()), good);
}

impl MapContents {
    fn pod_cidr_lost(&mut self) {
        self.v4.pod_cidrs.clear();
    }
}

#[test]
fn a_service_without_room_for_its_table_is_reported_and_the_others_are_served() {
    let limits = Limits {
        frontends: 100,
        backends: 100,
        maglev: 509,
    };
    let (services, slices) = two_services();
    let mut reconciler = Reconciler::restore(FakeMaps::new(limits), NoNextHops, node()).expect("restore");
    reconciler.take(Event::Services(services));
    reconciler.take(Event::EndpointSlices(slices));
    assert!(reconciler.reconcile().failures.is_empty());
    let problems: Vec<String> = reconciler.problems().iter().map(ToString::to_string).collect();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains("no room is left in MAGLEV"));
}

#[test]
fn a_change_of_next_hops_writes_the_backends_concerned_only() {
    #[derive(Default)]
    struct Table(BTreeMap<IpAddr, u16>);
    impl NextHops for Table {
        fn adjacency(&self, backend: IpAddr) -> u16 {
            self.0.get(&backend).copied().unwrap_or(0)
        }
    }
    let (services, slices) = two_services();
    let mut reconciler = Reconciler::restore(FakeMaps::default(), Table::default(), node()).expect("restore");
    reconciler.take(Event::Services(services));
    reconciler.take(Event::EndpointSlices(slices));
    reconciler.reconcile();
    reconciler.maps_mut().log.clear();
    let addr = IpAddr::from([10, 180, 1, 2]);
    reconciler.next_hops_mut().0.insert(addr, 9);
    reconciler.next_hops_changed(|backend, _| backend == addr);
    assert_eq!(reconciler.reconcile().ops, 1);
    assert!(matches!(&reconciler.maps().log[..], [Op::V4(FamilyOp::SetBackend(_, b))] if b.adjacency == 9));
}

#[test]
fn of_two_services_with_one_external_address_the_older_has_it_and_the_other_is_reported() {
    let shared: IpAddr = "203.0.113.1".parse().expect("address");
    let mut older = service("older", "172.30.0.41", 0);
    older.external_ips = vec![shared];
    let mut younger = service("a-younger", "172.30.0.42", 0);
    younger.created_s = 100;
    younger.load_balancer_ips = vec![shared];
    let slices = [slice("older", &["10.180.1.1"]), slice("a-younger", &["10.180.1.2"])];
    let fake = start(FakeMaps::default(), &[younger, older], &slices);
    let problems = fake.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(*problems[0].object.name, *"a-younger");
    assert!(
        problems[0].message.contains("is served for default/older"),
        "{}",
        problems[0].message
    );
}

mod properties {
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Service(u8, bool, bool),
        Gone(u8),
        Slice(u8, Vec<u8>),
        SliceGone(u8),
        Zone,
        Reconcile,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => (0..6u8, any::<bool>(), any::<bool>()).prop_map(|(n, affinity, shared)| Step::Service(n, affinity, shared)),
            1 => (0..6u8).prop_map(Step::Gone),
            4 => (0..6u8, vec(0..12u8, 0..6)).prop_map(|(n, addrs)| Step::Slice(n, addrs)),
            1 => (0..6u8).prop_map(Step::SliceGone),
            1 => Just(Step::Zone),
            3 => Just(Step::Reconcile),
        ];
        vec(step, 1..40)
    }

    fn make_service(n: u8, affinity: bool, shared: bool) -> Service {
        let mut service = service(&format!("s{n}"), &format!("172.30.0.{}", n + 1), 30_000 + u16::from(n));
        service.affinity_timeout_s = affinity.then_some(100);
        if shared {
            service.external_ips = vec!["203.0.113.1".parse().expect("address")];
            service.load_balancer_ips = vec!["203.0.113.2".parse().expect("address")];
            service.source_ranges.nets = vec!["198.51.100.0/24".parse().expect("range")];
            service.external_policy = Policy::Local;
        }
        service
    }

    fn make_slice(n: u8, addrs: &[u8]) -> EndpointSlice {
        let addrs: Vec<String> = addrs.iter().map(|a| format!("10.180.{}.{a}", a % 2)).collect();
        let addrs: Vec<&str> = addrs.iter().map(String::as_str).collect();
        slice(&format!("s{n}"), &addrs)
    }

    /// Carries the steps out; tells the objects that are there in the end.
    fn run<M: Maps>(reconciler: &mut Reconciler<M, NoNextHops>, steps: &[Step]) -> (Vec<Service>, Vec<EndpointSlice>) {
        let mut services: BTreeMap<u8, Service> = BTreeMap::new();
        let mut slices: BTreeMap<u8, EndpointSlice> = BTreeMap::new();
        reconciler.take(Event::Services(Vec::new()));
        reconciler.take(Event::EndpointSlices(Vec::new()));
        for step in steps {
            match step {
                Step::Service(n, affinity, shared) => {
                    let service = make_service(*n, *affinity, *shared);
                    services.insert(*n, service.clone());
                    reconciler.take(Event::Service(service));
                }
                Step::Gone(n) => {
                    services.remove(n);
                    reconciler.take(Event::ServiceGone(ObjectKey::new("default", &format!("s{n}"))));
                }
                Step::Slice(n, addrs) => {
                    let slice = make_slice(*n, addrs);
                    slices.insert(*n, slice.clone());
                    reconciler.take(Event::EndpointSlice(slice));
                }
                Step::SliceGone(n) => {
                    slices.remove(n);
                    reconciler.take(Event::EndpointSliceGone(ObjectKey::new("default", &format!("s{n}-1"))));
                }
                Step::Zone => reconciler.local_addresses_changed(LocalAddresses {
                    all: vec![
                        "192.0.2.11".parse().expect("address"),
                        "192.0.2.12".parse().expect("address"),
                    ],
                    primary: vec!["192.0.2.11".parse().expect("address")],
                }),
                Step::Reconcile => {
                    reconciler.reconcile();
                }
            }
        }
        (services.into_values().collect(), slices.into_values().collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn step_by_step_or_all_at_once_packets_meet_the_same(steps in steps()) {
            let mut reconciler = Reconciler::restore(FakeMaps::default(), NoNextHops, node()).expect("restore");
            let (services, slices) = run(&mut reconciler, &steps);
            prop_assert!(reconciler.reconcile().failures.is_empty());
            prop_assert_eq!(reconciler.audit().expect("audit").ops, 0);
            let fresh = start(FakeMaps::default(), &services, &slices);
            prop_assert_eq!(behaviour(reconciler.maps()), behaviour(fresh.maps()));
        }

        #[test]
        fn whatever_happened_a_restart_changes_nothing(steps in steps()) {
            let mut reconciler = Reconciler::restore(FakeMaps::default(), NoNextHops, node()).expect("restore");
            let (services, slices) = run(&mut reconciler, &steps);
            reconciler.reconcile();
            let mut maps = reconciler.maps().clone();
            maps.log.clear();
            let again = start(maps, &services, &slices);
            prop_assert_eq!(&again.maps().log, &vec![]);
        }

        #[test]
        fn refused_writes_are_made_up_for(
            steps in steps(),
            refused in btree_map(0..200usize, Just(std::io::ErrorKind::OutOfMemory), 0..60),
        ) {
            let maps = FaultyMaps { refused, ..FaultyMaps::default() };
            let mut reconciler = Reconciler::restore(maps, NoNextHops, node()).expect("restore");
            let (services, slices) = run(&mut reconciler, &steps);
            for _ in 0..300 {
                if reconciler.reconcile().failures.is_empty() {
                    break;
                }
            }
            prop_assert!(reconciler.reconcile().failures.is_empty());
            prop_assert_eq!(reconciler.audit().expect("audit").ops, 0);
            let fresh = start(FakeMaps::default(), &services, &slices);
            prop_assert_eq!(behaviour(&reconciler.maps().maps), behaviour(fresh.maps()));
        }
    }
}

#[test]
fn flows_are_cut_when_a_backend_stops_serving_a_udp_port_and_not_before() {
    let udp = |addrs: &[&str]| {
        let mut slice = slice("dns", addrs);
        slice.ports[0].protocol = Protocol::Udp;
        slice
    };
    let mut dns = service("dns", "172.30.0.43", 0);
    dns.ports[0].protocol = Protocol::Udp;
    let pairs = |fake: &Fake| fake.serving()[0].pairs().map(|pairs| pairs.len());

    let waiting = Reconciler::restore(FakeMaps::default(), NoNextHops, node()).expect("fake maps can be read");
    assert_eq!(pairs(&waiting), None, "nothing is known yet, so nothing may be cut");

    let mut fake = start(
        FakeMaps::default(),
        &[dns.clone()],
        &[udp(&["10.180.0.1", "10.180.1.1"])],
    );
    assert_eq!(pairs(&fake), Some(2));
    fake.take(Event::EndpointSlice(udp(&["10.180.0.1", "10.180.1.1", "10.180.1.2"])));
    assert!(!fake.reconcile().flows_to_cut, "one has come");
    fake.take(Event::EndpointSlice(udp(&["10.180.0.1", "10.180.1.2"])));
    assert!(fake.reconcile().flows_to_cut, "one has gone");
    assert_eq!(pairs(&fake), Some(2));
    assert!(!fake.reconcile().flows_to_cut);

    dns.internal_policy = Policy::Local;
    fake.take(Event::Service(dns.clone()));
    assert!(!fake.reconcile().flows_to_cut, "policies decide about new flows only");
    fake.take(Event::ServiceGone(dns.key.clone()));
    assert!(fake.reconcile().flows_to_cut, "nobody serves a Service that is gone");
    assert_eq!(pairs(&fake), Some(0));
}
