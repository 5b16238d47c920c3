//! The whole path of a request, from an address out of a pool to a pod and back, in each of the lab's networks.

mod common;

use xtask::lab::plan::Network;

fn a_request_finds_its_way(network: Network, test: &str) {
    let Some(mut lab) = common::lab(network, test) else {
        return;
    };
    let account = lab
        .request_path(&common::examples())
        .expect("each request goes as it has to");
    println!("{account}");
    // By the Ingress: two families, with TLS and without; directly: two families.
    assert_eq!(account.matches("200 OK").count(), 6);
    assert_eq!(account.matches("announced").count(), 6);
    assert_eq!(
        account
            .matches("fairway ingress: host myapp.example.com, path /:")
            .count(),
        4
    );
    assert_eq!(lab.martians().expect("counters can be read"), []);
}

#[test]
fn a_request_from_outside_finds_its_way_to_routed_pods() {
    a_request_finds_its_way(Network::Routed, "a_request_from_outside_finds_its_way_to_routed_pods");
}

#[test]
fn a_request_from_outside_finds_its_way_through_an_overlay() {
    a_request_finds_its_way(
        Network::Vxlan,
        "a_request_from_outside_finds_its_way_through_an_overlay",
    );
}

#[test]
fn a_request_from_outside_finds_its_way_to_pods_on_bridges() {
    a_request_finds_its_way(
        Network::Bridge,
        "a_request_from_outside_finds_its_way_to_pods_on_bridges",
    );
}
