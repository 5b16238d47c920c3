//! The scripts that build the lab's network: one for links, one for each namespace, all of them for `sh`.
//!
//! They are text so that a reader can run any line by hand, and few so that a lab stands within two seconds.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

use super::plan::{CLUSTER_CIDRS, LOAD_BALANCER_CIDRS, NEIGHBOUR_V4, NEIGHBOUR_V6, NODES, Names, Network, PODS, Place};

/// Makes the namespaces and the links between them.
pub fn links(names: &Names) -> String {
    let mut script = String::from("ip -batch - <<'END'\n");
    for place in Place::ALL {
        _ = writeln!(script, "netns add {}", names.netns(place));
    }
    let mut veth = |a: Place, a_dev: &str, b: Place, b_dev: &str| {
        let (a, b) = (names.netns(a), names.netns(b));
        _ = writeln!(
            script,
            "link add name {a_dev} netns {a} type veth peer name {b_dev} netns {b}"
        );
    };
    veth(Place::Client, "eth0", Place::Router, "client");
    veth(Place::Neighbour, "eth0", Place::Router, "neighbour");
    for (i, node) in NODES.iter().enumerate() {
        veth(Place::Node(i), "eth0", Place::Router, node.name);
    }
    for (i, pod) in PODS.iter().enumerate() {
        veth(Place::Pod(i), "eth0", Place::Node(pod.node), pod.name);
    }
    script.push_str("END\n");
    script
}

/// Sets up one namespace, after [`links`].
pub fn namespace(names: &Names, network: Network, place: Place) -> String {
    let mut script = String::from(
        // Strict reverse path filtering and reports of martians everywhere, duplicate address detection (which
        // takes a second) nowhere; `default` is for devices that are made later.
        "set -e
for d in /proc/sys/net/ipv4/conf/*; do echo 1 >$d/rp_filter; echo 1 >$d/log_martians; done
for d in /proc/sys/net/ipv6/conf/*; do echo 0 >$d/accept_dad; echo 0 >$d/dad_transmits; echo 0 >$d/accept_ra; done
",
    );
    if matches!(place, Place::Router | Place::Node(_)) {
        script.push_str("echo 1 >/proc/sys/net/ipv4/ip_forward\necho 1 >/proc/sys/net/ipv6/conf/all/forwarding\n");
    }
    let mut batch = String::from("link set lo up\n");
    match place {
        Place::Client => client(&mut batch),
        Place::Neighbour => neighbour(&mut batch),
        Place::Router => router(&mut batch),
        Place::Node(i) => node(&mut batch, network, i),
        Place::Pod(i) => pod(&mut batch, network, i),
    }
    _ = write!(script, "ip -batch - <<'END'\n{batch}END\n");
    match place {
        Place::Client | Place::Neighbour => script.push_str(&whole_checksums(&["eth0"])),
        Place::Router => {
            let uplinks = [NODES[0].name, NODES[1].name];
            script.push_str(&whole_checksums(&uplinks));
            script.push_str(&pass_xdp(&names.pass_object(), &uplinks));
        }
        Place::Node(_) => script.push_str(&masquerade()),
        Place::Pod(_) => {}
    }
    script
}

/// XDP on the other side sees checksums as they are, so these devices complete theirs.
fn whole_checksums(devices: &[&str]) -> String {
    devices
        .iter()
        .map(|dev| format!("ethtool -K {dev} tx off >/dev/null\n"))
        .collect()
}

/// What XDP on the other side sends back is taken only by a device that has a program too.
fn pass_xdp(object: &Path, devices: &[&str]) -> String {
    let object = object.display();
    devices
        .iter()
        .map(|dev| format!("ip link set dev {dev} xdp obj {object} sec xdp\n"))
        .collect()
}

/// What CNIs install: pods that talk to the world outside do so with their node's address.
fn masquerade() -> String {
    let [v4, v6] = CLUSTER_CIDRS;
    format!(
        "if command -v nft >/dev/null; then nft -f - <<'END'
table inet cni {{
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {v4} ip daddr != {v4} ip daddr != 224.0.0.0/4 masquerade
    ip6 saddr {v6} ip6 daddr != {v6} ip6 daddr != ff00::/8 masquerade
  }}
}}
END
else
  iptables -t nat -A POSTROUTING -s {v4} ! -d {v4} -j MASQUERADE
  ip6tables -t nat -A POSTROUTING -s {v6} ! -d {v6} -j MASQUERADE
fi
"
    )
}

fn client(batch: &mut String) {
    batch.push_str(
        "link set eth0 up
addr add 203.0.113.10/24 dev eth0
addr add 2001:db8:113::10/64 dev eth0 nodad
route add default via 203.0.113.1
route add default via 2001:db8:113::1
",
    );
}

/// It has no route to anywhere: what it reaches, it has found on the LAN.
fn neighbour(batch: &mut String) {
    _ = write!(
        batch,
        "link set eth0 up
addr add {NEIGHBOUR_V4}/24 dev eth0
addr add {NEIGHBOUR_V6}/64 dev eth0 nodad
"
    );
}

fn router(batch: &mut String) {
    batch.push_str(
        "link set client up
addr add 203.0.113.1/24 dev client
addr add 2001:db8:113::1/64 dev client nodad
link add lan type bridge
link set lan up
addr add 172.18.0.1/24 dev lan
addr add fd00:172:18::1/64 dev lan nodad
",
    );
    for node in &NODES {
        _ = writeln!(batch, "link set {} master lan up", node.name);
    }
    batch.push_str("link set neighbour master lan up\n");
    batch.push_str(&announce(0));
    // Pods can be reached by their own addresses as well, to compare with plain routing.
    for (i, node) in NODES.iter().enumerate() {
        let n = i + 1;
        _ = writeln!(batch, "route add 10.244.{n}.0/24 via {}", node.v4);
        _ = writeln!(batch, "route add fd00:10:244:{n}::/64 via {}", node.v6);
    }
}

/// Lines for `ip -batch` in the router: load balancer addresses are reached by this node.
pub fn announce(node: usize) -> String {
    let [v4, v6] = LOAD_BALANCER_CIDRS;
    let node = &NODES[node];
    format!(
        "route replace {v4} via {}\nroute replace {v6} via {}\n",
        node.v4, node.v6
    )
}

fn node(batch: &mut String, network: Network, i: usize) {
    let (node, other) = (&NODES[i], &NODES[1 - i]);
    let (n, m) = (i + 1, 2 - i);
    _ = write!(
        batch,
        "link set eth0 up
addr add {}/24 dev eth0
addr add {}/64 dev eth0 nodad
route add default via 172.18.0.1
route add default via fd00:172:18::1
",
        node.v4, node.v6
    );
    match network {
        Network::Routed | Network::Bridge => {
            _ = writeln!(batch, "route add 10.244.{m}.0/24 via {}", other.v4);
            _ = writeln!(batch, "route add fd00:10:244:{m}::/64 via {}", other.v6);
        }
        Network::Vxlan => {
            // As flannel does it: one device, static entries for the other node, its pods behind that.
            _ = write!(
                batch,
                "link add vxlan0 address 0a:58:0a:f4:0{n}:00 type vxlan id 1 dstport 8472 local {} remote {} dev eth0 nolearning
link set vxlan0 mtu 1450 up
addr add 10.244.{n}.254/32 dev vxlan0
addr add fd00:10:244:{n}::254/128 dev vxlan0 nodad
neigh add 10.244.{m}.254 lladdr 0a:58:0a:f4:0{m}:00 nud permanent dev vxlan0
neigh add fd00:10:244:{m}::254 lladdr 0a:58:0a:f4:0{m}:00 nud permanent dev vxlan0
route add 10.244.{m}.0/24 via 10.244.{m}.254 dev vxlan0 onlink
route add fd00:10:244:{m}::254/128 dev vxlan0
route add fd00:10:244:{m}::/64 via fd00:10:244:{m}::254 dev vxlan0 onlink
",
                node.v4, other.v4
            );
        }
    }
    if network == Network::Bridge {
        _ = write!(
            batch,
            "link add cni0 type bridge
link set cni0 up
addr add 10.244.{n}.1/24 dev cni0
addr add fd00:10:244:{n}::1/64 dev cni0 nodad
"
        );
    }
    for pod in PODS.iter().filter(|pod| pod.node == i) {
        let dev = pod.name;
        if network == Network::Bridge {
            _ = writeln!(batch, "link set {dev} master cni0 up");
        } else {
            _ = write!(
                batch,
                "link set {dev} mtu {} up
addr add 10.244.{n}.1/32 dev {dev}
addr add fd00:10:244:{n}::1/128 dev {dev} nodad
route add {} dev {dev} scope link
route add {} dev {dev}
",
                mtu(network),
                pod.v4,
                pod.v6
            );
        }
    }
}

fn pod(batch: &mut String, network: Network, i: usize) {
    let pod = &PODS[i];
    let n = pod.node + 1;
    let (len4, len6) = if network == Network::Bridge {
        (24, 64)
    } else {
        (32, 128)
    };
    _ = write!(
        batch,
        "link set eth0 mtu {} up
addr add {}/{len4} dev eth0
addr add {}/{len6} dev eth0 nodad
",
        mtu(network),
        pod.v4,
        pod.v6
    );
    if network != Network::Bridge {
        _ = writeln!(batch, "route add 10.244.{n}.1 dev eth0 scope link");
        _ = writeln!(batch, "route add fd00:10:244:{n}::1 dev eth0");
    }
    _ = writeln!(batch, "route add default via 10.244.{n}.1");
    _ = writeln!(batch, "route add default via fd00:10:244:{n}::1");
}

const fn mtu(network: Network) -> u16 {
    match network {
        Network::Vxlan => 1450,
        Network::Routed | Network::Bridge => 1500,
    }
}

/// Runs a script with `sh`, in a network namespace or in this process's own.
pub fn run(netns: Option<&Path>, script: &str) -> anyhow::Result<String> {
    let mut command = match netns {
        // Not `ip netns exec`: that hides pinned objects behind a /sys of its own.
        Some(path) => {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net={}", path.display())).args(["sh", "-s"]);
            command
        }
        None => {
            let mut command = Command::new("sh");
            command.arg("-s");
            command
        }
    };
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {:?}", command.get_program()))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(script.as_bytes()).context("hand a script to sh")?;
    }
    let output = child.wait_with_output().context("wait for sh")?;
    let whole = netns.map_or_else(String::new, |path| format!(" in {}", path.display()));
    ensure!(
        output.status.success(),
        "a setup script{whole} failed ({}): {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        Names::new("test").expect("a name")
    }

    #[test]
    fn only_nodes_masquerade() {
        for place in Place::ALL {
            let script = namespace(&names(), Network::Routed, place);
            assert_eq!(
                script.contains("masquerade"),
                matches!(place, Place::Node(_)),
                "{place:?}"
            );
        }
    }

    #[test]
    fn the_overlay_is_there_only_when_asked_for() {
        assert!(namespace(&names(), Network::Vxlan, Place::Node(0)).contains("type vxlan"));
        assert!(!namespace(&names(), Network::Bridge, Place::Node(0)).contains("type vxlan"));
    }
}
