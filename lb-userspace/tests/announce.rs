//! Load balancer addresses on a local network: two nodes with real agents, and a client that finds the addresses by ARP
//! and NDP alone.
//!
//! ```text
//!                 ┌─ switch (a bridge) ─┐
//!   client .100 ──┤                     ├── node1 .1 ── pod1 10.244.1.10
//!                 │                     ├── node2 .2 ── pod2 10.244.2.10
//!                 └─────────────────────┘   192.0.2.0/24, 2001:db8::/64; 198.51.100.0/24 and 2001:db8:b::/64 are on the link
//! ```
//!
//! The nodes share a folder of manifests, in one test an API server. Reverse paths are filtered strictly everywhere. Each
//! take-over prints how long the client went without an answer.

mod announce_lab;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use announce_lab::client::{Asking, Ears, Talk, answer, question};
use announce_lab::{
    ADDRESSES, BRIDGE, DEVICE, ELSEWHERE, INSIDE_V4, INSIDE_V6, Lab, NODES, OUTSIDE_V6, POOLS, VLAN, row, service,
};
use nix::sys::signal::Signal;
use serde_json::Value;
use support::namespaces::Namespaces;
use support::node::PATIENCE;
use support::poll;

/// Each address is answered for once, by the node that both say, and served; what is not announced is not answered for.
fn exactly_one_answers(lab: &mut Lab) {
    let macs: BTreeMap<[u8; 6], usize> = [(lab.mac("node1"), 0), (lab.mac("node2"), 1)].into();
    let client = lab.mac("client");
    for address in ADDRESSES {
        let announcer = lab.announcer(address);
        let answers = lab.answers(address);
        let by: Vec<Option<&usize>> = answers.iter().map(|mac| macs.get(mac)).collect();
        assert_eq!(
            by,
            [Some(&announcer)],
            "{address}: {answers:02x?} (the client is {client:02x?})"
        );
        println!("{address}: one answer, by {}", NODES[announcer]);
        let pods: BTreeSet<String> = (0..24).map(|_| lab.ask(address).expect("it is served")).collect();
        assert_eq!(
            pods,
            BTreeSet::from(["pod1".to_owned(), "pod2".to_owned()]),
            "{address}"
        );
    }
    assert_eq!(lab.answers(ELSEWHERE), Vec::<[u8; 6]>::new());
}

#[test]
fn each_address_is_answered_for_by_exactly_one_node() {
    let Some(mut lab) = Lab::new("each_address_is_answered_for_by_exactly_one_node", "one", DEVICE) else {
        return;
    };
    exactly_one_answers(&mut lab);
    // Somebody who wants to use the address himself finds it taken.
    lab.ip("client", &format!("addr add {INSIDE_V6}/64 dev eth0"));
    poll("the address is found to be taken", PATIENCE, || {
        let shown = lab.ip("client", "addr show dev eth0");
        shown.contains("dadfailed").then_some(())
    });
    lab.ip("client", &format!("addr del {INSIDE_V6}/64 dev eth0"));
    // Eight addresses more: each is announced by one node, and both announce some.
    let many: Vec<String> = (1..=8).map(|host| format!("198.51.100.{host}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    lab.manifest("many.yaml", &service("many", 2, "Cluster", &many, &[1, 2]));
    let by: BTreeSet<usize> = many.iter().map(|address| lab.announcer(address)).collect();
    assert_eq!(by, BTreeSet::from([0, 1]));
    // A pool that is not announced any more.
    lab.manifest(
        "pools.yaml",
        &POOLS.replace("spec: {", "spec: {announcement: {mode: None}, "),
    );
    poll("nothing is announced", PATIENCE, || {
        let told = lab.announcements(0)?;
        told["addresses"].as_array().is_some_and(Vec::is_empty).then_some(())
    });
    poll("nobody answers", PATIENCE, || {
        lab.answers(INSIDE_V4).is_empty().then_some(())
    });
}

#[test]
fn a_vlan_device_announces_within_its_vlan() {
    if !has_vlans() {
        // Not by `skip`: that another kernel has them helps nobody here.
        eprintln!("not tried: this kernel has no VLAN devices (8021q)");
        return;
    }
    let Some(mut lab) = Lab::new("a_vlan_device_announces_within_its_vlan", "vlan", VLAN) else {
        return;
    };
    exactly_one_answers(&mut lab);
    announces_on(&lab, VLAN);
}

/// Whether this kernel can have VLAN devices.
fn has_vlans() -> bool {
    if Namespaces::missing().is_some() {
        return true;
    }
    let namespaces = Namespaces::new("vlans", &["any"], "ip -n @any link add eth0 type veth peer name peer0");
    let added = Command::new("ip")
        .args(["-n", &namespaces.name("any")])
        .args("link add link eth0 name eth0.7 type vlan id 7".split(' '))
        .output();
    added.expect("ip runs").status.success()
}

#[test]
fn a_bridge_announces_and_not_its_ports() {
    let Some(mut lab) = Lab::new("a_bridge_announces_and_not_its_ports", "bridge", BRIDGE) else {
        return;
    };
    exactly_one_answers(&mut lab);
    announces_on(&lab, BRIDGE);
}

/// Whatever is announced is announced on this device alone.
fn announces_on(lab: &Lab, device: &str) {
    let told = lab.announcements(0).expect("the agent answers");
    let rows = told["addresses"].as_array().expect("there are some").clone();
    let here: Vec<&Value> = rows.iter().filter(|row| row["here"] == true).collect();
    assert!(
        !here.is_empty() && here.iter().all(|row| row["devices"] == serde_json::json!([device])),
        "{told}"
    );
}

#[test]
fn nodes_of_an_api_server_agree_and_one_that_is_cut_off_from_it_goes_silent() {
    const NAME: &str = "nodes_of_an_api_server_agree_and_one_that_is_cut_off_from_it_goes_silent";
    let Some((mut lab, mut api)) = announce_lab::api::lab(NAME, "api") else {
        return;
    };
    exactly_one_answers(&mut lab);
    let announcer = lab.announcer(INSIDE_V4);
    let other = 1 - announcer;

    lab.signal(announcer, Signal::SIGTERM);
    lab.ended(announcer);
    lab.until_announced_by(INSIDE_V4, other);
    lab.start(announcer);
    lab.until_announced_by(INSIDE_V4, announcer);

    // The cut-off node loses its right before the other takes over: at no time do both answer.
    let (its, others) = (lab.mac(NODES[announcer]), lab.mac(NODES[other]));
    api.cut(announcer);
    poll("the other node alone answers", PATIENCE, || {
        let answers = lab.answers(INSIDE_V4);
        assert!(
            !(answers.contains(&its) && answers.contains(&others)),
            "both answer: {answers:02x?}"
        );
        (answers == [others]).then_some(())
    });
    assert!(lab.ask(INSIDE_V4).is_ok(), "it is served");
    api.mend(&lab, announcer);
    lab.until_announced_by(INSIDE_V4, announcer);
    exactly_one_answers(&mut lab);
}

#[test]
fn policy_local_is_announced_where_the_endpoint_is_and_moves_with_it() {
    const ADDRESS: &str = "192.0.2.60";
    let name = "policy_local_is_announced_where_the_endpoint_is_and_moves_with_it";
    let Some(mut lab) = Lab::new(name, "local", DEVICE) else {
        return;
    };
    let to = SocketAddr::new(ADDRESS.parse().expect("an address"), 80);
    for (node, pod) in [(0, "pod1"), (1, "pod2"), (0, "pod1")] {
        let number = u8::try_from(node + 1).expect("it is small");
        lab.manifest("local.yaml", &service("local", 3, "Local", &[ADDRESS], &[number]));
        lab.until_announced_by(ADDRESS, node);
        let answered = poll("the pod answers", PATIENCE, || lab.ask(ADDRESS).ok());
        assert_eq!(answered, pod);
        assert_eq!(lab.answers(ADDRESS), [lab.mac(NODES[node])]);
    }
    // No other node may announce it: while the agent is replaced the data path goes on, and so do connections.
    let mut talk = lab.namespaces.within("client", move || {
        Talk::open(to, Duration::from_secs(2)).expect("it is served")
    });
    lab.signal(0, Signal::SIGTERM);
    lab.ended(0);
    assert_eq!(talk.say("x").expect("the connection goes on"), "pod1");
    lab.start(0);
    lab.until_announced_by(ADDRESS, 0);
    assert_eq!(talk.say("x").expect("the connection goes on"), "pod1");
    // Nobody has an endpoint: nobody announces, and it is said why.
    lab.manifest("local.yaml", &service("local", 3, "Local", &[ADDRESS], &[]));
    poll("nobody announces", PATIENCE, || {
        let told = lab.announcements(0)?;
        let row = row(&told, ADDRESS)?.clone();
        let reason = row["others"][0]["reason"].as_str()?.contains("no ready endpoint");
        (row["node"].is_null() && reason).then_some(())
    });
    assert_eq!(lab.answers(ADDRESS), Vec::<[u8; 6]>::new());
    poll("it is told as a problem", PATIENCE, || {
        let status = lab.fairway(1, "status")?;
        let problems = status["agent"]["problems"].as_array()?.clone();
        let told = |problem: &Value| {
            let text = problem.as_str().unwrap_or_default();
            text.starts_with("Service default/local: status.loadBalancer.ingress: no node may announce 192.0.2.60")
        };
        problems.iter().any(told).then_some(())
    });
}

#[test]
fn an_agent_that_is_stopped_hands_over_at_once_and_gets_back_without_loss() {
    let name = "an_agent_that_is_stopped_hands_over_at_once_and_gets_back_without_loss";
    let Some(mut lab) = Lab::new(name, "stop", DEVICE) else {
        return;
    };
    for address in [INSIDE_V4, OUTSIDE_V6] {
        let first = lab.announcer(address);
        let asking = Asking::start(&lab, address);
        std::thread::sleep(Duration::from_millis(500));
        lab.signal(first, Signal::SIGTERM);
        lab.ended(first);
        lab.until_announced_by(address, 1 - first);
        lab.until_known(address, 1 - first);
        std::thread::sleep(Duration::from_millis(1500));
        let gap = asking.longest_gap(&format!("SIGTERM of the agent that announces {address}"));
        assert!(gap < Duration::from_millis(200), "{gap:?}");

        let asking = Asking::start(&lab, address);
        lab.start(first);
        lab.until_announced_by(address, first);
        lab.until_known(address, first);
        std::thread::sleep(Duration::from_millis(1500));
        let gap = asking.longest_gap(&format!("the agent that announced {address} is back"));
        assert!(gap < Duration::from_millis(200), "{gap:?}");
    }
}

/// Opens a connection to an address, and says who answers.
fn open(lab: &Lab, address: &str) -> (Talk, String) {
    let to = SocketAddr::new(address.parse().expect("an address"), 80);
    lab.namespaces.within("client", move || {
        let mut talk = Talk::open(to, Duration::from_secs(2)).expect("it is served");
        let pod = talk.say("x").expect("it answers");
        (talk, pod)
    })
}

/// How many of the connections to an address this node has passed on to the other.
fn passed_on(lab: &Lab, node: usize, address: &str) -> Option<usize> {
    let flows = lab.fairway(node, "flows")?;
    let is_meant = |flow: &&Value| {
        let of_address = flow["frontend"].as_str().is_some_and(|text| text.contains(address));
        of_address && flow["passed_on"] == true
    };
    Some(flows.as_array()?.iter().filter(is_meant).count())
}

/// Waits until a node passes new connections on to the other: it has been told of it, and knows its link address.
fn until_passed_on(lab: &Lab, node: usize, address: &str) {
    poll("connections are passed on", PATIENCE, || {
        let _ended = open(lab, address);
        (passed_on(lab, node, address)? > 0).then_some(())
    });
}

#[test]
fn connections_to_the_pods_of_all_nodes_go_on_while_their_address_moves_there_and_back() {
    let name = "connections_to_the_pods_of_all_nodes_go_on_while_their_address_moves_there_and_back";
    let Some(mut lab) = Lab::new(name, "goon", DEVICE) else {
        return;
    };
    for address in ADDRESSES {
        let first = lab.announcer(address);
        until_passed_on(&lab, first, address);
        let mut talks: Vec<_> = (0..12).map(|_| open(&lab, address)).collect();
        let pods: BTreeSet<&str> = talks.iter().map(|(_, pod)| pod.as_str()).collect();
        assert_eq!(pods.len(), 2, "both pods are talked to");
        let mut go_on = |lab: &mut Lab, node: usize| {
            lab.until_announced_by(address, node);
            lab.until_known(address, node);
            for (talk, pod) in &mut talks {
                assert_eq!(talk.say("x").expect("the connection goes on"), *pod, "{address}");
                talk.say_much(16 << 10).expect("large packets arrive");
            }
        };
        lab.signal(first, Signal::SIGTERM);
        lab.ended(first);
        go_on(&mut lab, 1 - first);
        lab.start(first);
        go_on(&mut lab, first);
        println!(
            "{address}: 12 connections went on while it moved from {} and back",
            NODES[first]
        );
    }
    // Not where it is not wanted.
    let first = lab.announcer(INSIDE_V4);
    lab.signal(first, Signal::SIGTERM);
    lab.ended(first);
    lab.flags = "--announce-pass-on off";
    lab.start(first);
    lab.until_announced_by(INSIDE_V4, first);
    lab.until_known(INSIDE_V4, first);
    let before = passed_on(&lab, first, INSIDE_V4).expect("it has flows");
    let pods: BTreeSet<String> = (0..24).map(|_| open(&lab, INSIDE_V4).1).collect();
    assert_eq!(pods.len(), 2, "both pods answer");
    assert!(passed_on(&lab, first, INSIDE_V4).expect("it has flows") <= before);
}

/// The node that announces an address, and the client that asks for it. The pods of that node get nothing any more: they
/// go with it, which their readiness would tell much later; this is about the address.
fn asked_with_the_other_nodes_pods(lab: &mut Lab) -> (usize, Asking) {
    let first = lab.announcer(INSIDE_V4);
    let left = u8::try_from(2 - first).expect("it is small");
    lab.manifest("web.yaml", &service("web", 1, "Cluster", &ADDRESSES, &[left]));
    for node in 0..2 {
        poll("one endpoint is left", PATIENCE, || {
            let rows = lab.fairway(node, "services")?.to_string();
            (!rows.contains(&format!("10.244.{}.10", first + 1))).then_some(())
        });
    }
    let asking = Asking::start(lab, INSIDE_V4);
    std::thread::sleep(Duration::from_millis(500));
    (first, asking)
}

#[test]
fn when_a_node_dies_another_takes_over() {
    let Some(mut lab) = Lab::new("when_a_node_dies_another_takes_over", "dies", DEVICE) else {
        return;
    };
    let (first, asking) = asked_with_the_other_nodes_pods(&mut lab);
    until_passed_on(&lab, first, INSIDE_V4);
    let mut talks: Vec<_> = (0..8).map(|_| open(&lab, INSIDE_V4)).collect();
    // The agent has no time to tell anybody.
    let (pid, switch) = (lab.pid(first), lab.namespaces.name("switch"));
    let die = format!("kill -9 {pid}; exec ip -n {switch} link set to-{} down", NODES[first]);
    let died = Command::new("sh").args(["-c", &die]).status();
    assert!(died.expect("sh runs").success(), "{die}");
    lab.ended(first);
    lab.until_announced_by(INSIDE_V4, 1 - first);
    std::thread::sleep(Duration::from_millis(1500));
    let gap = asking.longest_gap("death of the node that announces 192.0.2.50");
    assert!(gap < Duration::from_secs(3), "{gap:?}");
    for (talk, pod) in &mut talks {
        assert_eq!(talk.say("x").expect("the connection goes on"), *pod);
    }
}

#[test]
fn when_a_cable_is_pulled_the_node_says_so_and_another_takes_over_at_once() {
    let name = "when_a_cable_is_pulled_the_node_says_so_and_another_takes_over_at_once";
    let Some(mut lab) = Lab::new(name, "cable", DEVICE) else {
        return;
    };
    let (first, asking) = asked_with_the_other_nodes_pods(&mut lab);
    lab.ip("switch", &format!("link set to-{} down", NODES[first]));
    lab.until_announced_by(INSIDE_V4, 1 - first);
    std::thread::sleep(Duration::from_millis(1500));
    let gap = asking.longest_gap("no carrier at the node that announces 192.0.2.50");
    assert!(gap < Duration::from_secs(1), "{gap:?}");
    lab.ip("switch", &format!("link set to-{} up", NODES[first]));
    lab.until_announced_by(INSIDE_V4, first);
    lab.until_known(INSIDE_V4, first);
}

#[test]
fn when_an_agent_is_killed_its_node_goes_silent_before_another_answers() {
    let name = "when_an_agent_is_killed_its_node_goes_silent_before_another_answers";
    let Some(mut lab) = Lab::new(name, "kill", DEVICE) else {
        return;
    };
    let first = lab.announcer(INSIDE_V4);
    let macs = [lab.mac("node1"), lab.mac("node2")];
    let client = lab.mac("client");
    let asking = Asking::start(&lab, INSIDE_V4);
    // Who answers a question, each 20 ms, all the time.
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let address: IpAddr = INSIDE_V4.parse().expect("an address");
    let answers = lab.namespaces.spawn("client", move || {
        let ears = Ears::open("eth0", Duration::from_millis(5));
        let index = nix::net::if_::if_nametoindex("eth0").expect("there is one");
        let mut heard = Vec::new();
        let mut next = Instant::now();
        while !stopped.load(Ordering::Relaxed) {
            if Instant::now() >= next {
                fairway::sys::send_frame(index, &question(client, address)).expect("root may send");
                next = Instant::now() + Duration::from_millis(20);
            }
            let frame = ears.hear().filter(|frame| frame[..6] == client);
            heard.extend(
                frame
                    .and_then(|frame| answer(&frame, address))
                    .map(|mac| (Instant::now(), mac)),
            );
        }
        heard
    });
    std::thread::sleep(Duration::from_millis(500));
    let killed = Instant::now();
    lab.signal(first, Signal::SIGKILL);
    lab.ended(first);
    lab.until_announced_by(INSIDE_V4, 1 - first);
    std::thread::sleep(Duration::from_millis(1500));
    stop.store(true, Ordering::Relaxed);
    let heard = answers.join().expect("the client goes on");
    let gap = asking.longest_gap("kill -9 of the agent that announces 192.0.2.50");
    assert!(gap < Duration::from_secs(3), "{gap:?}");

    let last = heard
        .iter()
        .filter(|(_, mac)| *mac == macs[first])
        .map(|(at, _)| *at)
        .max();
    let next = heard
        .iter()
        .filter(|(_, mac)| *mac == macs[1 - first])
        .map(|(at, _)| *at)
        .min();
    let (last, next) = (last.expect("it answered"), next.expect("the other answers"));
    println!(
        "kill -9 of the agent that announces 192.0.2.50: its node was silent after {} ms, the other answered after {} ms",
        last.saturating_duration_since(killed).as_millis(),
        next.saturating_duration_since(killed).as_millis()
    );
    assert!(last < next, "two nodes answered at the same time");
    assert!(next - killed < Duration::from_secs(3));
    // What is left of it counts what it leaves unanswered; the agent that comes back begins anew.
    lab.start(first);
    lab.until_announced_by(INSIDE_V4, first);
    exactly_one_answers(&mut lab);
}
