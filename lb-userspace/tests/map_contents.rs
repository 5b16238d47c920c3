//! Manifests in, the contents of the maps out, one line an entry.
//!
//! Each folder in `map_contents` is read as an agent reads its folder of manifests; what then stands in the maps is
//! compared with the snapshot of the same name. `INSTA_UPDATE=always cargo test` writes the snapshots anew.

use std::path::Path;

use fairway::desired::{LocalAddresses, LocalPods, NodeState, Settings};
use fairway::maps::fake::FakeMaps;
use fairway::reconcile::{NoNextHops, Reconciler};
use fairway::sources::{Event, manifests};
use lb_common::abi::Config;

/// What stands in the maps of node-1, and what is reported.
fn lines(folder: &str) -> String {
    let nets = |texts: &[&str]| {
        texts
            .iter()
            .map(|text| text.parse().expect("range"))
            .collect::<Vec<_>>()
    };
    let service_cidrs = nets(&["10.96.0.0/16", "fd00:96::/108"]);
    let objects = manifests::read(&manifests::Options {
        dir: Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/map_contents")
            .join(folder),
        node_name: "node-1".into(),
        service_cidrs: service_cidrs.clone(),
    })
    .expect("the folder is there");
    let addresses: Vec<std::net::IpAddr> = ["192.0.2.11", "2001:db8::11"]
        .map(|text| text.parse().expect("address"))
        .into();
    let node = NodeState {
        settings: Settings {
            node_name: "node-1".into(),
            local_pods: LocalPods::Cidrs(nets(&["10.1.0.0/24", "fd00:1::/64"])),
            service_cidrs,
            datapath: Config {
                hz: 250,
                snat_port_min: 61_000,
                snat_port_max: 65_535,
                ..Config::default()
            },
            ..Settings::default()
        },
        local: LocalAddresses {
            all: addresses.clone(),
            primary: addresses,
        },
        object: None,
        service_cidrs: None,
    };
    let mut reconciler = Reconciler::restore(FakeMaps::default(), NoNextHops, node).expect("fake maps can be read");
    let file_problems = objects.problems.clone();
    reconciler.take(Event::Node(objects.node));
    reconciler.take(Event::ServiceCidrs(objects.service_cidrs));
    reconciler.take(Event::Problems(objects.problems));
    reconciler.take(Event::EndpointSlices(objects.slices));
    reconciler.take(Event::Services(objects.services));
    assert!(reconciler.reconcile().failures.is_empty());
    assert!(
        file_problems
            .iter()
            .all(|problem| reconciler.problems().contains(problem))
    );
    let maps = reconciler.maps();
    let mut lines = maps.contents.lines(&maps.maglev);
    let here = env!("CARGO_MANIFEST_DIR");
    lines.extend(
        reconciler
            .problems()
            .iter()
            .map(|problem| format!("problem: {problem}").replace(here, "")),
    );
    lines.join("\n")
}

macro_rules! snapshots {
    ($($name:ident: $folder:literal,)*) => {
        $(#[test]
        fn $name() {
            insta::assert_snapshot!($folder, lines($folder));
        })*
    };
}

snapshots! {
    a_load_balancer_service_has_frontends_of_every_kind_in_both_families: "load-balancer",
    policies_decide_who_gets_which_backends: "policies",
    hints_narrow_the_choice_to_the_zone: "topology",
    affinity_and_source_ranges_have_maps_of_their_own: "affinity-and-ranges",
    what_is_wrong_is_reported_and_the_rest_is_served: "invalid",
}
