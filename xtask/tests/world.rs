//! That a world tells truly what becomes of connections: plain routing and rules of nftables are judged by it.

mod common;

use std::net::{IpAddr, SocketAddr};

use xtask::world::{Clients, From, Observation, Opening, Probe, Protocol, Spec, World};

const POD: &str = "10.180.0.1:8080";
const POD_6: &str = "[2001:db8:180::1]:8080";
const REMOTE: &str = "10.180.1.1:8080";
const REMOTE_6: &str = "[2001:db8:180:1::1]:8080";

/// Leads one address to the node's pod.
const TO_THE_POD: &str = "table ip proxy {
  chain prerouting {
    type nat hook prerouting priority dstnat
    ip daddr 203.0.113.10 dnat to 10.180.0.1
  }
}";

/// Who asks: each with an address of either family.
const CLIENTS: [(From, &str, &str); 3] = [
    (From::External, "198.51.100.7", "2001:db8:c11e::7"),
    (From::Pod, "10.180.0.200", "2001:db8:180::c8"),
    (From::NodeProcess, "192.0.2.11", "2001:db8:0:1::11"),
];

fn addr(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn socket(text: &str) -> SocketAddr {
    text.parse().expect("an address with a port")
}

/// A world with a server on the node's pod and on another one; none if the test cannot run here.
fn world(test: &str, pods_in_cgroup: bool) -> Option<World> {
    if !nix::unistd::geteuid().is_root() {
        common::skip(test, "needs root for network namespaces");
        return None;
    }
    let mut world = World::up(&Spec {
        name: format!("test-{}-{}", std::process::id(), test.len()),
        xtask: env!("CARGO_BIN_EXE_xtask").into(),
        ips: vec![addr("192.0.2.11"), addr("2001:db8:0:1::11")],
        other_ips: vec![addr("192.0.2.111")],
        pod_cidrs: vec![
            "10.180.0.0/24".parse().expect("a range"),
            "2001:db8:180::/64".parse().expect("a range"),
        ],
        pods_in_cgroup,
    })
    .expect("a world can be set up");
    let servers: Vec<_> = [POD, POD_6, REMOTE, REMOTE_6]
        .into_iter()
        .flat_map(|at| Protocol::ALL.map(|protocol| (socket(at), protocol)))
        .collect();
    world.backends(&servers).expect("servers start");
    Some(world)
}

/// Probes from each client to an address of its family.
fn from_each(v4: &str, v6: &str, flows: u32) -> Vec<Probe> {
    let mut probes = Vec::new();
    for (from, src, src_6) in CLIENTS {
        for (src, dst) in [(src, v4), (src_6, v6)] {
            probes.extend(Protocol::ALL.map(|protocol| Probe {
                from,
                src: addr(src),
                dst: socket(dst),
                protocol,
                flows,
                clients: Clients::One,
            }));
        }
    }
    probes
}

fn nft(world: &World, rules: &str) {
    let script = format!("nft -f - <<'END'\n{rules}\nEND\n");
    world.script(&script).expect("nftables takes the rules");
}

#[test]
fn what_nothing_translates_passes_to_pods_and_to_the_outside_and_to_the_node_s_own_stack() {
    let test = "what_nothing_translates_passes_to_pods_and_to_the_outside_and_to_the_node_s_own_stack";
    let Some(mut world) = world(test, false) else { return };
    for (v4, v6) in [
        (POD, POD_6),
        (REMOTE, REMOTE_6),
        ("10.180.1.1:9999", "[2001:db8:180:1::1]:9999"),
        ("203.0.113.10:80", "[2001:db8:ffff::10]:80"),
        ("192.0.2.11:30080", "[2001:db8:0:1::11]:30080"),
    ] {
        let probes = from_each(v4, v6, 3);
        for (probe, seen) in probes.iter().zip(world.probe(&probes).expect("probes are sent")) {
            assert_eq!(seen, vec![Observation::Pass; 3], "{probe:?}");
        }
    }
}

#[test]
fn translated_rejected_and_dropped_connections_are_told_apart() {
    let test = "translated_rejected_and_dropped_connections_are_told_apart";
    let Some(mut world) = world(test, true) else { return };
    nft(
        &world,
        "table inet proxy {
  chain services {
    ip daddr 203.0.113.10 meta l4proto { tcp, udp, sctp } th dport 80 meta mark set 1 dnat ip to numgen inc mod 2 map { 0 : 10.180.0.1 . 8080, 1 : 10.180.1.1 . 8080 }
    ip6 daddr 2001:db8:ffff::10 meta l4proto { tcp, udp, sctp } th dport 80 meta mark set 1 dnat ip6 to numgen inc mod 2 map { 0 : 2001:db8:180::1 . 8080, 1 : 2001:db8:180:1::1 . 8080 }
  }
  chain refusals {
    th dport 81 reject
    th dport 82 drop
  }
  chain prerouting {
    type nat hook prerouting priority dstnat
    jump services
  }
  chain output {
    type nat hook output priority -100
    jump services
  }
  chain forward {
    type filter hook forward priority filter
    jump refusals
  }
  chain outgoing {
    type filter hook output priority filter
    jump refusals
  }
  chain postrouting {
    type nat hook postrouting priority srcnat
    meta mark 1 masquerade
  }
}",
    );
    let probes = from_each("203.0.113.10:80", "[2001:db8:ffff::10]:80", 8);
    for (probe, seen) in probes.iter().zip(world.probe(&probes).expect("probes are sent")) {
        for wanted in if probe.src.is_ipv4() {
            [POD, REMOTE]
        } else {
            [POD_6, REMOTE_6]
        } {
            let reached = seen.iter().filter(
                |seen| matches!(seen, Observation::Forward { backend, source, client }
                    if *backend == socket(wanted) && world.spec().ips.contains(&source.ip()) && client.ip() == probe.src),
            );
            assert_eq!(reached.count(), 4, "{probe:?}: {seen:?}");
        }
    }
    for (port, wanted) in [(81, Observation::Reject), (82, Observation::Drop)] {
        let probes = from_each(
            &format!("203.0.113.10:{port}"),
            &format!("[2001:db8:ffff::10]:{port}"),
            4,
        );
        for (probe, seen) in probes.iter().zip(world.probe(&probes).expect("probes are sent")) {
            assert_eq!(seen, vec![wanted.clone(); 4], "{probe:?}");
        }
    }
}

#[test]
fn many_clients_have_many_addresses() {
    let Some(mut world) = world("many_clients_have_many_addresses", true) else {
        return;
    };
    nft(&world, TO_THE_POD);
    for (from, src) in [(From::External, "198.51.100.7"), (From::Pod, "10.180.0.200")] {
        let seen = world
            .probe(&[Probe {
                from,
                src: addr(src),
                dst: socket("203.0.113.10:8080"),
                protocol: Protocol::Tcp,
                flows: 40,
                clients: Clients::Many,
            }])
            .expect("probes are sent");
        let sources: std::collections::BTreeSet<_> = seen[0]
            .iter()
            .map(|seen| match seen {
                Observation::Forward { source, .. } => source.ip(),
                other => panic!("{from:?}: {other:?}"),
            })
            .collect();
        assert_eq!(sources.len(), 40, "{sources:?}");
    }
}

#[test]
fn an_open_flow_tells_where_its_next_request_goes_and_that_it_was_cut() {
    let test = "an_open_flow_tells_where_its_next_request_goes_and_that_it_was_cut";
    let Some(mut world) = world(test, true) else { return };
    nft(&world, TO_THE_POD);
    let openings = Protocol::ALL.map(|protocol| Opening {
        from: From::External,
        src: socket("198.51.100.7:40001"),
        dst: socket("203.0.113.10:8080"),
        protocol,
        connected: false,
    });
    let mut opened = world.open(&openings).expect("flows open");
    let forward = Observation::Forward {
        backend: socket(POD),
        source: socket("198.51.100.7:40001"),
        client: socket("198.51.100.7:40001"),
    };
    assert!(opened.iter().all(|(_, seen)| *seen == forward), "{opened:?}");
    let mut flows: Vec<_> = opened.iter_mut().map(|(flow, _)| flow).collect();
    assert_eq!(world.ask(&mut flows).expect("flows ask"), vec![forward; 3]);
    nft(
        &world,
        "table ip cut {
  chain forward {
    type filter hook forward priority filter
    ip daddr 10.180.0.1 ip protocol tcp reject with tcp reset
    ip daddr 10.180.0.1 drop
  }
}",
    );
    let [tcp, udp, _] = &mut flows[..] else {
        panic!("three flows")
    };
    let seen = world.ask(&mut [tcp, udp]).expect("flows ask");
    assert_eq!(seen, [Observation::Cut, Observation::Drop]);
}
