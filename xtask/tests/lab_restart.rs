//! The agents crash and come back under traffic, and nobody notices.

mod common;

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use xtask::lab::plan::{NODES, Network, Place};
use xtask::lab::{Asked, Form, Lab, Outcome, Protocol, Request, Task};

/// Load balancer addresses and ClusterIPs of `my-spring-app-dual`.
const LOAD_BALANCER: [&str; 2] = ["198.51.100.81", "2001:db8:100::81"];
const CLUSTER_IP: [&str; 2] = ["10.96.0.81", "fd00:10:96::81"];

fn port_80(addr: &str) -> SocketAddr {
    let ip: IpAddr = addr.parse().expect("an address");
    SocketAddr::new(ip, 80)
}

/// Who asks whom: the outside client a load balancer address, a pod and a node process a ClusterIP.
fn askers() -> Vec<(Place, SocketAddr)> {
    let mut askers = Vec::new();
    for family in [0, 1] {
        askers.push((Place::Client, port_80(LOAD_BALANCER[family])));
        askers.push((Place::Pod(0), port_80(CLUSTER_IP[family])));
        askers.push((Place::Node(1), port_80(CLUSTER_IP[family])));
    }
    askers
}

fn begin(lab: &Lab, task: impl Fn(SocketAddr) -> Task) -> Vec<(Place, SocketAddr, Asked)> {
    let begin = |(place, target)| (place, target, lab.begin(place, &task(target)).expect("a client starts"));
    askers().into_iter().map(begin).collect()
}

fn crash_and_come_back(lab: &mut Lab) {
    thread::sleep(Duration::from_secs(1));
    for node in 0..NODES.len() {
        lab.kill_agent(node).expect("the agent was there");
    }
    thread::sleep(Duration::from_secs(1));
    for node in 0..NODES.len() {
        lab.start_agent(node).expect("the agent starts");
    }
    lab.wait_for_services(Form::LoadBalancer)
        .expect("the agents work again");
}

#[test]
fn a_long_download_outlives_a_crash_of_the_agents() {
    let Some(mut lab) = common::lab(Network::Routed, "a_long_download_outlives_a_crash_of_the_agents") else {
        return;
    };
    lab.wait_for_services(Form::LoadBalancer).expect("the agents work");
    let (bytes, rate) = (8_000_000, 1_000_000);
    let asked = begin(&lab, |target| Task::Download { target, bytes, rate });
    crash_and_come_back(&mut lab);
    for (place, target, asked) in asked {
        let outcome = asked.finish().expect("the client ends");
        let Outcome::Download {
            bytes: right,
            error: None,
            ..
        } = outcome
        else {
            panic!("{place:?} -> {target}: {outcome:?}")
        };
        assert_eq!(right, bytes, "{place:?} -> {target}");
    }
}

#[test]
fn no_request_is_lost_while_the_agents_crash_and_come_back() {
    let test = "no_request_is_lost_while_the_agents_crash_and_come_back";
    for network in [Network::Routed, Network::Vxlan] {
        let Some(mut lab) = common::lab(network, test) else {
            return;
        };
        lab.wait_for_services(Form::LoadBalancer).expect("the agents work");
        // Two hundred a second among all of them.
        let per_second = 200 / askers().len() as u32 + 1;
        let duration_ms = 8_000;
        let asked = begin(&lab, |target| {
            let request = Request {
                target,
                protocol: Protocol::Http,
            };
            Task::Rate {
                request,
                per_second,
                duration_ms,
            }
        });
        crash_and_come_back(&mut lab);
        for (place, target, asked) in asked {
            let outcome = asked.finish().expect("the client ends");
            let Outcome::Rate {
                answered,
                failed,
                failures,
                slowest_us,
            } = outcome
            else {
                panic!("{outcome:?}")
            };
            assert_eq!(failed, 0, "{network:?}, {place:?} -> {target}: {failures:?}");
            assert!(
                answered > u64::from(per_second) * duration_ms / 1000 * 9 / 10,
                "only {answered} were sent"
            );
            // A lost SYN would have been sent again after a second.
            assert!(
                slowest_us < 1_000_000,
                "{network:?}, {place:?} -> {target}: one took {slowest_us} us"
            );
        }
    }
}
