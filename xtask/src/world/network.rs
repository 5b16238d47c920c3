//! The scripts that build a world's network, for `sh`: text, so that a reader can run any line by hand.
//!
//! Neighbours are permanent and addresses stand alone (/32, /128), so nothing waits for ARP or neighbour discovery.
//! Devices to pods have no address of their own: a source translated there is one of the node's.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;

use super::plan::{Names, Spec};

/// The node's side of each link, and the other one.
const NODE_MAC: &str = "02:fa:00:00:00:01";
const OTHER_MAC: &str = "02:fa:00:00:00:02";
/// By which a default route leads to the other side of a link. Nobody has these addresses.
const NEXT_HOPS: [&str; 2] = ["169.254.1.1", "fe80::1:1"];
/// The device of the outside that leads to the node.
pub const TO_NODE: &str = "node0";

/// Settings of every namespace: no duplicate address detection, no limit to ICMP errors, so that each refusal is
/// seen; redirects neither sent nor followed.
const SYSCTLS: &str = "set -e
w() { if [ -e /proc/sys/net/$1 ]; then echo $2 >/proc/sys/net/$1; fi; }
for d in all default lo; do
  w ipv6/conf/$d/accept_dad 0; w ipv6/conf/$d/dad_transmits 0; w ipv6/conf/$d/accept_ra 0; w ipv6/conf/$d/router_solicitations 0
  w ipv6/conf/$d/accept_redirects 0; w ipv4/conf/$d/accept_redirects 0; w ipv4/conf/$d/send_redirects 0
done
w ipv4/icmp_ratelimit 0; w ipv4/icmp_msgs_per_sec 1000000; w ipv4/icmp_msgs_burst 1000000
w ipv6/icmp/ratelimit 0; w ipv6/icmp/ratemask ''
";

/// Makes the namespaces of the node and of the outside, and the link between them.
pub fn links(names: &Names) -> String {
    let (node, outside) = (names.netns("node"), names.netns("outside"));
    format!(
        "ip -batch - <<'END'
netns add {node}
netns add {outside}
link add name eth0 netns {node} address {NODE_MAC} type veth peer name {TO_NODE} netns {outside} address {OTHER_MAC}
END
"
    )
}

fn family(addr: IpAddr) -> (usize, &'static str, u8) {
    if addr.is_ipv4() { (0, "-4", 32) } else { (1, "-6", 128) }
}

fn default_route(batch: &mut String, device: &str, mac: &str) {
    for next_hop in NEXT_HOPS {
        _ = writeln!(batch, "neigh add {next_hop} lladdr {mac} nud permanent dev {device}");
        _ = writeln!(batch, "route add default via {next_hop} dev {device} onlink");
    }
}

/// The node: its addresses on `eth0`, and everything unknown to the outside.
pub fn node(spec: &Spec) -> String {
    let mut script = String::from(SYSCTLS);
    // Strict everywhere, also on devices that are made later.
    script.push_str(
        "for d in /proc/sys/net/ipv4/conf/*; do echo 1 >$d/rp_filter; done
w ipv4/ip_forward 1; w ipv6/conf/all/forwarding 1
",
    );
    let mut batch = String::from("link set lo up\nlink set eth0 up\n");
    for addr in spec.node_addresses() {
        let (_, flag, length) = family(addr);
        let nodad = if flag == "-6" { " nodad" } else { "" };
        _ = writeln!(batch, "addr add {addr}/{length} dev eth0{nodad}");
    }
    default_route(&mut batch, "eth0", OTHER_MAC);
    _ = write!(script, "ip -batch - <<'END'\n{batch}END\n");
    script
}

/// The outside: whatever comes from the node is for it, and whatever it sends goes to the node.
pub fn outside(pass_object: &Path) -> String {
    let mut script = String::from(SYSCTLS);
    script.push_str("for d in /proc/sys/net/ipv4/conf/*; do echo 0 >$d/rp_filter; echo 1 >$d/accept_local; done\n");
    let mut batch = format!("link set lo up\nlink set {TO_NODE} up\n");
    // A source address for packets that have none of their own.
    _ = writeln!(batch, "addr add 169.254.2.2/32 dev {TO_NODE}");
    default_route(&mut batch, TO_NODE, NODE_MAC);
    _ = write!(script, "ip -batch - <<'END'\n{batch}END\n");
    _ = write!(
        script,
        "for f in -4 -6; do
  ip $f route add local default dev lo table 100
  ip $f rule add iif {TO_NODE} lookup 100
done
ethtool -K {TO_NODE} tx off >/dev/null
ip link set dev {TO_NODE} xdp obj {} sec xdp
",
        pass_object.display()
    );
    script
}

/// Makes a namespace for pods with its link to the node.
pub fn pod_link(names: &Names, part: &str) -> String {
    let (node, pod) = (names.netns("node"), names.netns(part));
    format!(
        "ip -batch - <<'END'
netns add {pod}
link add name {part} netns {node} address {NODE_MAC} type veth peer name eth0 netns {pod} address {OTHER_MAC}
END
"
    )
}

/// In the namespace of one pod, or of many clients, which own `local`.
pub fn pod(local: &[IpNet]) -> String {
    let mut script = String::from(SYSCTLS);
    // Addresses that are local by a route only may be bound.
    script.push_str("w ipv6/ip_nonlocal_bind 1\n");
    let mut batch = String::from("link set lo up\nlink set eth0 up\n");
    for net in local {
        if net.prefix_len() == net.max_prefix_len() {
            let nodad = if net.addr().is_ipv6() { " nodad" } else { "" };
            _ = writeln!(batch, "addr add {net} dev eth0{nodad}");
        } else {
            _ = writeln!(batch, "route add local {net} dev lo");
        }
    }
    default_route(&mut batch, "eth0", NODE_MAC);
    _ = write!(script, "ip -batch - <<'END'\n{batch}END\n");
    script
}

/// On the node, before the first address is led to that namespace.
pub fn pod_device(part: &str) -> String {
    format!("echo 1 >/proc/sys/net/ipv4/conf/{part}/rp_filter\nip link set {part} up\n")
}

/// On the node: leads addresses to a namespace of pods.
pub fn pod_routes(part: &str, addrs: &[IpAddr]) -> String {
    let mut script = String::from("ip -batch - <<'END'\n");
    for addr in addrs {
        let (_, flag, length) = family(*addr);
        let scope = if flag == "-4" { " scope link" } else { "" };
        _ = writeln!(
            script,
            "neigh replace {addr} lladdr {OTHER_MAC} nud permanent dev {part}"
        );
        _ = writeln!(script, "route replace {addr}/{length} dev {part}{scope}");
    }
    script.push_str("END\n");
    script
}
