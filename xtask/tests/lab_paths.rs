//! Every path from a client, a pod and a node process to a pod, in each of the lab's networks, in both families.

mod common;

use xtask::lab::Form;
use xtask::lab::plan::Network;

fn every_path_is_answered(network: Network, test: &str) {
    let Some(mut lab) = common::lab(network, test) else {
        return;
    };
    for form in [Form::LoadBalancer, Form::ClusterIp] {
        let report = lab.every_path(&common::examples(), form).expect("the lab works");
        println!("{}", report.table());
        assert!(report.failures.is_empty(), "{form:?}:\n{}", report.failures.join("\n"));
        assert!(report.answered > 100, "{form:?}: {} answers", report.answered);
    }
    assert_eq!(lab.martians().expect("counters can be read"), []);
}

#[test]
fn every_path_is_answered_between_routed_pods() {
    every_path_is_answered(Network::Routed, "every_path_is_answered_between_routed_pods");
}

#[test]
fn every_path_is_answered_through_an_overlay() {
    every_path_is_answered(Network::Vxlan, "every_path_is_answered_through_an_overlay");
}

#[test]
fn every_path_is_answered_between_pods_on_bridges() {
    every_path_is_answered(Network::Bridge, "every_path_is_answered_between_pods_on_bridges");
}
