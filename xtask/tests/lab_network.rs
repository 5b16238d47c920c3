//! The lab's network without Fairway: what it shows later is Fairway's doing only if this works.

mod common;

use std::net::SocketAddr;

use xtask::lab::plan::{Network, POD_PORT, PODS, Place};
use xtask::lab::{Lab, Outcome, Protocol, Request, Task};

#[test]
fn every_place_reaches_every_pod_in_every_network() {
    for network in Network::ALL {
        let Some(lab) = common::plain_lab(network, "every_place_reaches_every_pod_in_every_network") else {
            return;
        };
        // The neighbour has no routes: it is there for what is on its own LAN.
        for place in Place::ALL.into_iter().filter(|place| *place != Place::Neighbour) {
            let mut requests = Vec::new();
            for pod in &PODS {
                for v6 in [false, true] {
                    let target = SocketAddr::new(pod.addr(v6), POD_PORT);
                    requests.extend([Protocol::Http, Protocol::Udp].map(|protocol| Request { target, protocol }));
                }
            }
            let sent = requests.len();
            let outcome = lab
                .ask(
                    place,
                    &Task::Spread {
                        requests,
                        pods: 1,
                        at_most: 1,
                    },
                )
                .expect("a client runs");
            let Outcome::Answers(answers) = outcome else {
                panic!("not answers: {outcome:?}")
            };
            assert_eq!(answers.len(), sent);
            for answer in &answers {
                let seen = answer.result.as_ref();
                let seen = seen.unwrap_or_else(|error| panic!("{network:?}, {place:?}: {:?}: {error}", answer.request));
                assert_eq!(seen.destination, answer.request.target, "{network:?}, {place:?}");
                let source = place.addr(seen.source.is_ipv6());
                if !matches!(place, Place::Node(_) | Place::Router) {
                    assert_eq!(seen.source.ip(), source, "{network:?}, {place:?}");
                }
            }
        }
        assert_eq!(lab.martians().expect("counters can be read"), []);
    }
}

#[test]
fn two_labs_stand_side_by_side_and_leave_nothing_behind() {
    let name = "two_labs_stand_side_by_side_and_leave_nothing_behind";
    let (Some(one), Some(two)) = (
        common::plain_lab(Network::Routed, name),
        common::plain_lab(Network::Routed, name),
    ) else {
        return;
    };
    let names = [one.names().clone(), two.names().clone()];
    assert_ne!(names[0], names[1]);
    drop((one, two));
    for names in names {
        for place in Place::ALL {
            assert!(!names.netns_path(place).exists());
        }
        assert!(!names.state_dir().exists());
    }
}

#[test]
fn what_a_crashed_lab_has_left_is_found_by_its_name() {
    let Some(lab) = common::plain_lab(Network::Vxlan, "what_a_crashed_lab_has_left_is_found_by_its_name") else {
        return;
    };
    let names = lab.names().clone();
    lab.keep();
    let lab = Lab::open(names.lab()).expect("it stands");
    assert_eq!(lab.network(), Network::Vxlan);
    drop(lab);
    Lab::remove(&names).expect("it can be removed");
    assert!(Lab::open(names.lab()).is_err());
    assert!(!names.netns_path(Place::Pod(0)).exists());
    Lab::remove(&names).expect("removing nothing succeeds");
}
