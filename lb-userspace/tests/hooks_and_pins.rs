//! Where the agent's programs run, what of them outlives it, and what `fairway cleanup` leaves: a real agent in a
//! network namespace of its own, without any Service.

mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use fairway::datapath::pin::PinDir;
use fairway::maps::bpf::BpfMap;
use serde_json::Value;
use support::node::{Node, PATIENCE};
use support::poll;

#[test]
fn programs_run_on_every_device_and_on_those_that_appear() {
    let Some(mut node) = Node::new("programs_run_on_every_device_and_on_those_that_appear", "devices") else {
        return;
    };
    node.ip("link add name skipped0 type bridge");
    node.start(&["--exclude-devices", "skip*"]);
    let uplink = node.attached("eth0");
    assert_eq!(
        (&uplink["ingress"], &uplink["egress"]),
        (&"tcx".into(), &"tcx".into()),
        "{uplink}"
    );
    assert_eq!(
        (&uplink["xdp"], &uplink["uplink"]),
        (&Value::Null, &true.into()),
        "XDP is not for veth devices unless it is asked for: {uplink}"
    );

    node.ip("link add name cni0 type bridge");
    node.ip("link add name veth0.5 type veth peer name veth1.5");
    node.ip("tuntap add dev tun0 mode tun");
    for device in ["cni0", "veth0.5", "veth1.5", "tun0"] {
        let attached = node.attached(device);
        assert_eq!(
            (&attached["ingress"], &attached["egress"]),
            (&"tcx".into(), &"tcx".into()),
            "{attached}"
        );
        assert_eq!(attached["problems"], Value::Array(Vec::new()));
    }
    assert!(node.device("skipped0").is_none() && node.device("lo").is_none());

    let index = node.attached("cni0")["ifindex"].to_string();
    node.ip("link del cni0");
    poll("the links of a device that is gone are removed", PATIENCE, || {
        let left = node
            .links()
            .iter()
            .any(|(name, ..)| name.ends_with(&format!("_{index}")));
        (!left && node.device("cni0").is_none()).then_some(())
    });
    let status = node.status().expect("there is a status");
    if node.cgroup.is_some() {
        assert_eq!(status["agent"]["sockets"].as_array().map(Vec::len), Some(8), "{status}");
    }
    assert_eq!(status["agent"]["problems"], Value::Array(Vec::new()));
}

#[test]
fn xdp_runs_on_veth_uplinks_where_it_is_asked_for_and_on_no_other_device() {
    let Some(mut node) = Node::new(
        "xdp_runs_on_veth_uplinks_where_it_is_asked_for_and_on_no_other_device",
        "xdp",
    ) else {
        return;
    };
    node.start(&["--xdp", "native"]);
    assert_eq!(node.attached("eth0")["xdp"], "native");
    assert!(node.attached("peer0")["xdp"].is_null());
    node.kill();
    node.start(&[]);
    assert!(node.attached("eth0")["xdp"].is_null());
    let left: Vec<_> = node.links().into_iter().map(|(name, ..)| name).collect();
    assert!(!left.iter().any(|name| name.starts_with("xdp")), "{left:?}");
}

#[test]
fn a_killed_agent_leaves_its_programs_and_the_next_replaces_them_in_place() {
    let name = "a_killed_agent_leaves_its_programs_and_the_next_replaces_them_in_place";
    let Some(mut node) = Node::new(name, "restart") else {
        return;
    };
    node.start(&["--xdp", "native"]);
    let before = node.links();
    assert!(before.len() >= 5, "{before:?}");
    node.kill();
    assert_eq!(node.links(), before);
    let status = node.status().expect("the status can be seen without an agent");
    assert!(status["agent"].is_null() && status["agent_error"].is_string());

    node.start(&["--xdp", "native"]);
    let after = node.links();
    let ids = |links: &[(String, u32, u32)]| {
        links
            .iter()
            .map(|(name, id, _)| (name.clone(), *id))
            .collect::<Vec<_>>()
    };
    assert_eq!(ids(&after), ids(&before), "links were made anew");
    assert!(
        before.iter().zip(&after).all(|(b, a)| b.2 != a.2),
        "programs were not replaced"
    );

    let other = node.fails(&[]);
    assert!(other.contains("is running already (process "), "{other}");
    let refused = node.fairway(&["cleanup"]);
    assert!(!refused.status.success() && !node.links().is_empty());
    node.kill();

    let sizes = node.fails(&["--max-connections", "4096"]);
    assert!(
        sizes.contains("start with the --max-connections of the last time"),
        "{sizes}"
    );

    node.start(&["--xdp", "off", "--exclude-devices", "peer0"]);
    let left: Vec<_> = node.links().into_iter().map(|(name, ..)| name).collect();
    assert!(!left.iter().any(|name| name.starts_with("xdp")), "{left:?}");
    assert_eq!(
        left.iter().filter(|name| name.starts_with("ingress")).count(),
        1,
        "{left:?}"
    );
}

/// Waits until the devices of pods, as the programs know them, are these.
fn until_pod_devices(node: &Node, names: &[&str]) {
    let index = |name: &&str| {
        let file = format!("/sys/class/net/{name}/ifindex");
        let text = Command::new("ip")
            .args(["netns", "exec", &node.namespaces.name("node"), "cat", &file])
            .output()
            .expect("ip runs");
        let text = String::from_utf8_lossy(&text.stdout).into_owned();
        text.trim().parse().expect("an index")
    };
    let wanted: BTreeSet<u32> = names.iter().map(index).collect();
    poll(&format!("pods are known by {names:?}"), PATIENCE, || {
        let map: BpfMap<u32, u32> = BpfMap::open(&node.pins, "POD_DEVICES").expect("the map is pinned");
        let entries: Vec<(u32, u32)> = map.entries().expect("it can be read");
        let found: BTreeSet<u32> = entries.into_iter().map(|(index, _)| index).collect();
        (found == wanted).then_some(())
    });
}

#[test]
fn pods_are_known_by_the_devices_that_the_agent_is_told_of() {
    let name = "pods_are_known_by_the_devices_that_the_agent_is_told_of";
    let Some(mut node) = Node::new(name, "pods") else {
        return;
    };
    node.ip("link add name cni0 type bridge");
    node.ip("link add name cali1 type veth peer name other1");
    node.ip("link add name port1 type veth peer name other2");
    node.ip("link set port1 master cni0");
    node.start(&["--pod-interface-prefix", "cali,cni"]);
    until_pod_devices(&node, &["cali1", "cni0", "port1"]);
    node.ip("link add name cali2 type veth peer name other3");
    until_pod_devices(&node, &["cali1", "cali2", "cni0", "port1"]);
    node.ip("link set port1 nomaster");
    node.ip("link del cali2");
    until_pod_devices(&node, &["cali1", "cni0"]);
    node.kill();

    node.ip("link set port1 master cni0");
    node.start(&["--pod-bridge", "cni0"]);
    until_pod_devices(&node, &["cni0", "port1"]);
    node.kill();
    node.start(&[]);
    until_pod_devices(&node, &[]);
    node.kill();

    let both = node.fails(&["--pod-bridge", "cni0", "--cluster-cidr", "10.244.0.0/16"]);
    assert!(both.contains("cannot be used with"), "{both}");
    let both = node.fails(&["--pod-bridge", "cni0", "--pod-interface-prefix", "cali"]);
    assert!(both.contains("cannot be used with"), "{both}");
    let long = node.fails(&["--pod-bridge", "a-name-that-is-no-devices"]);
    assert!(long.contains("1 to 15 characters"), "{long}");
}

/// A Service of type NodePort with one endpoint elsewhere.
const NODE_PORT: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, clusterIP: 10.96.0.1, ports: [{port: 80, nodePort: 30080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.244.9.10], nodeName: elsewhere}]
";

#[test]
fn an_agent_that_is_started_with_other_flags_puts_them_in_force_on_what_the_last_one_left() {
    let name = "an_agent_that_is_started_with_other_flags_puts_them_in_force_on_what_the_last_one_left";
    let Some(mut node) = Node::new(name, "flags") else {
        return;
    };
    node.ip("addr add 198.51.100.7/24 dev eth0");
    node.manifest("web.yaml", Some(NODE_PORT));
    let served_at = |node: &mut Node, wanted: &[&str]| {
        poll(&format!("NodePorts are served at {wanted:?}"), PATIENCE, || {
            node.must_run();
            let output = node.fairway(&["services", "-o", "json"]);
            let rows: Vec<Value> = serde_json::from_slice(&output.stdout).ok()?;
            let ports = rows
                .iter()
                .filter(|row| row["kind"] == "NodePort" && row["only_sockets"] == false);
            let addresses: BTreeSet<&str> = ports.filter_map(|row| row["address"].as_str()).collect();
            (addresses == wanted.iter().copied().collect()).then_some(())
        });
    };
    // Without the flag: at the node's primary addresses.
    let (primary, other) = ("192.0.2.1:30080", "198.51.100.7:30080");
    node.start(&[]);
    served_at(&mut node, &[primary]);
    for (ranges, wanted) in [
        ("198.51.100.0/24", &[other][..]),
        ("203.0.113.0/24", &[]),
        ("0.0.0.0/0", &[primary, other]),
        ("primary", &[primary]),
    ] {
        node.kill();
        node.start(&["--nodeport-addresses", ranges]);
        served_at(&mut node, wanted);
    }
}

#[test]
fn cleanup_removes_what_is_fairways_and_nothing_else() {
    let Some(mut node) = Node::new("cleanup_removes_what_is_fairways_and_nothing_else", "cleanup") else {
        return;
    };
    node.tc("qdisc add dev eth0 clsact");
    node.tc("filter add dev eth0 ingress protocol ip prio 5 u32 match u32 0 0");
    let stranger = PinDir::new(format!("{}-of-another", node.pins.root().display()));
    std::fs::create_dir_all(stranger.root()).expect("a directory can be made");

    node.start(&[]);
    node.kill();
    let cleaned = node.fairway(&["cleanup"]);
    assert!(cleaned.status.success(), "{}", String::from_utf8_lossy(&cleaned.stderr));
    assert!(!node.pins.root().exists() && !node.pins.state_dir().exists());
    assert!(stranger.root().exists());
    assert!(node.tc("filter show dev eth0 ingress").contains("u32"));
    std::fs::remove_dir(stranger.root()).expect("it is empty");

    let again = node.fairway(&["cleanup"]);
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
}

#[test]
fn where_the_kernel_has_no_tcx_clsact_filters_do_it() {
    let Some(mut node) = Node::new("where_the_kernel_has_no_tcx_clsact_filters_do_it", "clsact") else {
        return;
    };
    node.tc("qdisc add dev eth0 clsact");
    node.tc("filter add dev eth0 ingress protocol ip prio 5 u32 match u32 0 0");
    node.start(&["--attach", "clsact"]);
    assert_eq!(node.attached("eth0")["egress"], "clsact");
    let ours = |node: &Node, way: &str| {
        node.tc(&format!("filter show dev eth0 {way}"))
            .matches("handle 0x4657")
            .count()
    };
    assert_eq!((ours(&node, "ingress"), ours(&node, "egress")), (1, 1));
    node.kill();
    node.start(&["--attach", "clsact"]);
    assert_eq!(
        (ours(&node, "ingress"), ours(&node, "egress")),
        (1, 1),
        "filters were added, not replaced"
    );
    node.kill();
    node.start(&["--attach", "tcx"]);
    assert_eq!(
        (ours(&node, "ingress"), ours(&node, "egress")),
        (0, 0),
        "filters stay beside TCX"
    );
    node.kill();
    node.start(&["--attach", "clsact"]);
    assert!(
        !node.links().iter().any(|(name, ..)| name.starts_with("ingress")),
        "links stay beside clsact"
    );
    node.kill();
    assert!(node.fairway(&["cleanup"]).status.success());
    assert_eq!((ours(&node, "ingress"), ours(&node, "egress")), (0, 0));
    assert!(
        node.tc("filter show dev eth0 ingress").contains("u32"),
        "a stranger's filter was removed"
    );
}

#[test]
fn an_agent_that_cannot_start_says_what_to_do() {
    let Some(node) = Node::new("an_agent_that_cannot_start_says_what_to_do", "errors") else {
        return;
    };
    let wrong = |flag: &str, value: &str| {
        let mut words = node.arguments(&[]);
        let at = words.iter().position(|word| word == flag).expect("the flag is given");
        words[at + 1] = value.to_owned();
        let output = Command::new(&words[0])
            .args(&words[1..])
            .output()
            .expect("the agent runs");
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(wrong("--pin-dir", "/tmp/fairway-not-bpffs").contains("mount -t bpf bpf /tmp"));
    assert!(wrong("--cgroup", "/tmp").contains("not a directory of a cgroup2 file system"));
    assert!(wrong("--manifests", "/nonexistent").contains("is not a folder"));
    let _ = std::fs::remove_dir_all(Path::new("/run/fairway-not-bpffs"));
}
