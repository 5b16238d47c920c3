//! Path MTU discovery through a Service: routers on either side of the node have less room than the ends believe, and
//! say so by ICMP errors about packets that the node has translated. Without the errors' translation large
//! transfers would stand still.
//!
//! ```text
//! client ── router1 ── node ── router2 ── pod
//!     ◄── 1300 bytes         1300 bytes ──►
//! ```

mod support;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use support::node::{Node, PATIENCE};
use support::poll;

const NAMES: [&str; 5] = ["client", "router1", "node", "router2", "pod"];
const NETWORK: &str = "
    ip link add eth0 netns @client type veth peer name client0 netns @router1
    ip link add node0 netns @router1 type veth peer name eth0 netns @node
    ip link add eth1 netns @node type veth peer name node0 netns @router2
    ip link add pod0 netns @router2 type veth peer name eth0 netns @pod
    ip -n @client link set eth0 up
    ip -n @router1 link set client0 up
    ip -n @router1 link set node0 up
    ip -n @node link set eth0 up
    ip -n @node link set eth1 up
    ip -n @router2 link set node0 up
    ip -n @router2 link set pod0 up
    ip -n @pod link set eth0 up
    ip -n @client addr add 192.0.2.2/24 dev eth0
    ip -n @client addr add fd00:c::2/64 dev eth0 nodad
    ip -n @router1 addr add 192.0.2.1/24 dev client0
    ip -n @router1 addr add fd00:c::1/64 dev client0 nodad
    ip -n @router1 addr add 10.1.0.1/24 dev node0
    ip -n @router1 addr add fd00:1::1/64 dev node0 nodad
    ip -n @node addr add 10.1.0.2/24 dev eth0
    ip -n @node addr add fd00:1::2/64 dev eth0 nodad
    ip -n @node addr add 10.2.0.2/24 dev eth1
    ip -n @node addr add fd00:2::2/64 dev eth1 nodad
    ip -n @router2 addr add 10.2.0.1/24 dev node0
    ip -n @router2 addr add fd00:2::1/64 dev node0 nodad
    ip -n @router2 addr add 10.244.1.1/24 dev pod0
    ip -n @router2 addr add fd00:244:1::1/64 dev pod0 nodad
    ip -n @pod addr add 10.244.1.10/24 dev eth0
    ip -n @pod addr add fd00:244:1::10/64 dev eth0 nodad
    ip -n @client route add default via 192.0.2.1
    ip -n @client route add default via fd00:c::1
    ip -n @router1 route add default via 10.1.0.2
    ip -n @router1 route add default via fd00:1::2
    ip -n @node route add default via 10.1.0.1
    ip -n @node route add default via fd00:1::1
    ip -n @node route add 10.244.1.0/24 via 10.2.0.1
    ip -n @node route add fd00:244:1::/64 via fd00:2::1
    ip -n @router2 route add default via 10.2.0.2
    ip -n @router2 route add default via fd00:2::2
    ip -n @pod route add default via 10.244.1.1
    ip -n @pod route add default via fd00:244:1::1
    ip -n @router1 route add 192.0.2.2/32 dev client0 mtu lock 1300
    ip -n @router1 route add fd00:c::2/128 dev client0 mtu lock 1300
    ip -n @router2 route add 10.244.1.10/32 dev pod0 mtu lock 1300
    ip -n @router2 route add fd00:244:1::10/128 dev pod0 mtu lock 1300
    ip netns exec @router1 sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.icmp_ratelimit=0
    ip netns exec @router2 sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.icmp_ratelimit=0
    ip netns exec @node sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
    ip netns exec @node sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1
    ip netns exec @client sysctl -qw net.ipv4.tcp_mtu_probing=0
    ip netns exec @pod sysctl -qw net.ipv4.tcp_mtu_probing=0
";
const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv4, IPv6]
  clusterIPs: [10.96.0.1, 'fd00:96::1']
  ports: [{port: 80}]
status: {loadBalancer: {ingress: [{ip: 198.51.100.10}, {ip: '2001:db8:b::10'}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-4, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.244.1.10], nodeName: elsewhere}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-6, labels: {kubernetes.io/service-name: web}}
addressType: IPv6
ports: [{port: 8080}]
endpoints: [{addresses: ['fd00:244:1::10'], nodeName: elsewhere}]
";
/// Bytes each way.
const AMOUNT: usize = 400_000;

/// What is sent.
fn data() -> Vec<u8> {
    (0..AMOUNT).map(|at| (at % 251) as u8).collect()
}

/// Gives every client back what it sends, once it has all of it.
fn give_back(listener: &TcpListener) {
    for connection in listener.incoming() {
        let Ok(mut connection) = connection else { continue };
        let mut all = Vec::new();
        if connection.read_to_end(&mut all).is_ok() {
            let _gone = connection.write_all(&all);
        }
    }
}

/// Sends the data and reads it back.
fn there_and_back(to: SocketAddr) -> std::io::Result<Vec<u8>> {
    let limit = Duration::from_secs(10);
    let mut connection = TcpStream::connect_timeout(&to, limit)?;
    connection.set_read_timeout(Some(limit))?;
    connection.set_write_timeout(Some(limit))?;
    connection.write_all(&data())?;
    connection.shutdown(Shutdown::Write)?;
    let mut all = Vec::new();
    connection.read_to_end(&mut all)?;
    Ok(all)
}

/// The path MTU that a namespace has learnt for a destination.
fn learnt(node: &Node, namespace: &str, to: &str) -> Option<u32> {
    let output = Command::new("ip")
        .args(["-n", &node.namespaces.name(namespace), "route", "get", to])
        .output()
        .expect("ip runs");
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut words = shown.split_whitespace();
    words.find(|word| *word == "mtu")?;
    words.next()?.parse().ok()
}

#[test]
fn both_ends_learn_what_the_path_has_room_for() {
    let Some(mut node) = Node::within("both_ends_learn_what_the_path_has_room_for", "mtu", &NAMES, NETWORK) else {
        return;
    };
    let listen = || TcpListener::bind((Ipv6Addr::UNSPECIFIED, 8080)).expect("the port is free");
    let listener = node.namespaces.within("pod", listen);
    std::thread::spawn(move || give_back(&listener));
    node.manifest("web.yaml", Some(SERVICE));
    node.start(&["--cluster-cidr", "10.244.0.0/16,fd00:244::/48"]);

    // The pod answers the node, which the client's packets come from as policy Cluster has it.
    for (address, from) in [("198.51.100.10", "10.2.0.2"), ("2001:db8:b::10", "fd00:2::2")] {
        let to = SocketAddr::new(address.parse::<IpAddr>().expect("an address"), 80);
        let connect = move || TcpStream::connect_timeout(&to, Duration::from_secs(1)).is_ok();
        poll("the Service is served", PATIENCE, || {
            node.must_run();
            node.namespaces.within("client", connect).then_some(())
        });
        assert_eq!(learnt(&node, "client", address), None, "nothing large was sent yet");
        assert_eq!(learnt(&node, "pod", from), None, "nothing large was sent yet");
        let back = node.namespaces.within("client", move || there_and_back(to));
        let back = back.unwrap_or_else(|error| panic!("{address}: {error}"));
        assert!(back == data(), "{address}: {} bytes came back", back.len());
        assert_eq!(learnt(&node, "client", address), Some(1300));
        assert_eq!(learnt(&node, "pod", from), Some(1300));
    }
}
