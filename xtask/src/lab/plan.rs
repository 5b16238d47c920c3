//! Who is in the lab and which addresses they have. Nothing here touches the machine.
//!
//! ```text
//!   client ── router ══ LAN ══ node-1 ── pod-1a, pod-1b
//!   203.0.113.10        ╠═════ node-2 ── pod-2a, pod-2b
//!                       ║
//!                       ╚═════ neighbour, a host that finds addresses by ARP and NDP only
//!
//!   LAN 172.18.0.0/24, fd00:172:18::/64 · pods 10.244.N.0/24, fd00:10:244:N::/64 of node-N
//!   ClusterIPs 10.96.0.0/16, fd00:10:96::/112 · load balancer addresses 198.51.100.0/24, 2001:db8:100::/64
//! ```
//!
//! The addresses are the same in every lab: all of them live in network namespaces, which keep labs apart, and
//! the EndpointSlices in `examples/` name the pods by them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// How pods on different nodes are connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// Each pod has a routed veth, nodes have routes to each other's pods.
    #[default]
    Routed,
    /// Each pod has a routed veth, nodes reach each other's pods through a VXLAN device.
    Vxlan,
    /// The pods of a node are ports of a bridge, nodes have routes to each other's pods.
    Bridge,
}

impl Network {
    /// Every network there is.
    pub const ALL: [Self; 3] = [Self::Routed, Self::Vxlan, Self::Bridge];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Routed => "routed",
            Self::Vxlan => "vxlan",
            Self::Bridge => "bridge",
        }
    }
}

/// Where a process of the lab runs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Place {
    /// Outside the cluster, behind the router.
    Client,
    /// A host outside the cluster, on the nodes' own LAN.
    Neighbour,
    /// The router: the client's way to the nodes, and the switch that they are connected by.
    Router,
    /// A process of the node itself.
    Node(usize),
    /// A pod, by its index in [`PODS`].
    Pod(usize),
}

/// A node.
#[derive(Debug)]
pub struct Node {
    /// Its name, as in its Node object.
    pub name: &'static str,
    /// Its address on the LAN.
    pub v4: Ipv4Addr,
    /// Its address on the LAN.
    pub v6: Ipv6Addr,
}

/// A pod.
#[derive(Debug)]
pub struct Pod {
    /// Its name.
    pub name: &'static str,
    /// Index of its node in [`NODES`].
    pub node: usize,
    /// Its address.
    pub v4: Ipv4Addr,
    /// Its address.
    pub v6: Ipv6Addr,
}

const fn lan6(host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x172, 0x18, 0, 0, 0, 0, host)
}

const fn pod(name: &'static str, node: usize, host: u8) -> Pod {
    let n = node as u8 + 1;
    // Written the same in both families: 10.244.1.10 and fd00:10:244:1::10.
    let host6 = ((host as u16 / 10) << 4) | (host as u16 % 10);
    Pod {
        name,
        node,
        v4: Ipv4Addr::new(10, 244, n, host),
        v6: Ipv6Addr::new(0xfd00, 0x10, 0x244, n as u16, 0, 0, 0, host6),
    }
}

/// The nodes.
pub const NODES: [Node; 2] = [
    Node {
        name: "node-1",
        v4: Ipv4Addr::new(172, 18, 0, 11),
        v6: lan6(0x11),
    },
    Node {
        name: "node-2",
        v4: Ipv4Addr::new(172, 18, 0, 12),
        v6: lan6(0x12),
    },
];

/// The pods.
pub const PODS: [Pod; 4] = [
    pod("pod-1a", 0, 10),
    pod("pod-1b", 0, 11),
    pod("pod-2a", 1, 10),
    pod("pod-2b", 1, 11),
];

/// The client's IPv4 address.
pub const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// The client's IPv6 address.
pub const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 0x10);
/// The neighbour's IPv4 address.
pub const NEIGHBOUR_V4: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 50);
/// The neighbour's IPv6 address.
pub const NEIGHBOUR_V6: Ipv6Addr = lan6(0x50);
/// Where all pods are, for `--cluster-cidr`.
pub const CLUSTER_CIDRS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/48"];
/// Where ClusterIPs are, for `--service-cidrs`.
pub const SERVICE_CIDRS: [&str; 2] = ["10.96.0.0/16", "fd00:10:96::/112"];
/// Where load balancer addresses are.
pub const LOAD_BALANCER_CIDRS: [&str; 2] = ["198.51.100.0/24", "2001:db8:100::/64"];
/// The port on which each pod serves HTTP over TCP, and echoes over UDP.
pub const POD_PORT: u16 = 8080;

impl Node {
    /// Its address of one family.
    pub fn addr(&self, v6: bool) -> IpAddr {
        if v6 { self.v6.into() } else { self.v4.into() }
    }
}

impl Pod {
    /// Its address of one family.
    pub fn addr(&self, v6: bool) -> IpAddr {
        if v6 { self.v6.into() } else { self.v4.into() }
    }
}

impl Place {
    /// Every place of a lab.
    pub const ALL: [Self; 9] = [
        Self::Client,
        Self::Neighbour,
        Self::Router,
        Self::Node(0),
        Self::Node(1),
        Self::Pod(0),
        Self::Pod(1),
        Self::Pod(2),
        Self::Pod(3),
    ];

    /// Its name, on the command line and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Neighbour => "neighbour",
            Self::Router => "router",
            Self::Node(i) => NODES[i].name,
            Self::Pod(i) => PODS[i].name,
        }
    }

    /// The place with this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|place| place.name() == name)
    }

    /// The address that its processes send from.
    pub fn addr(self, v6: bool) -> IpAddr {
        match self {
            Self::Client if v6 => CLIENT_V6.into(),
            Self::Client => CLIENT_V4.into(),
            Self::Neighbour if v6 => NEIGHBOUR_V6.into(),
            Self::Neighbour => NEIGHBOUR_V4.into(),
            Self::Router if v6 => lan6(1).into(),
            Self::Router => Ipv4Addr::new(172, 18, 0, 1).into(),
            Self::Node(i) => NODES[i].addr(v6),
            Self::Pod(i) => PODS[i].addr(v6),
        }
    }

    /// Index of the node that it is on.
    pub fn node(self) -> Option<usize> {
        match self {
            Self::Client | Self::Neighbour | Self::Router => None,
            Self::Node(i) => Some(i),
            Self::Pod(i) => Some(PODS[i].node),
        }
    }
}

/// The names of one lab on the machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Names {
    lab: String,
}

impl Names {
    /// Where labs keep their files.
    pub const STATE_ROOT: &str = "/run/fairway-lab";

    /// The names of the lab with this name: short, of letters, digits and hyphens.
    pub fn new(lab: &str) -> anyhow::Result<Self> {
        let fine = !lab.is_empty() && lab.len() <= 40 && lab.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        anyhow::ensure!(
            fine,
            "lab name {lab:?}: up to 40 letters, digits and hyphens are allowed"
        );
        Ok(Self { lab: lab.to_owned() })
    }

    /// The lab's name.
    pub fn lab(&self) -> &str {
        &self.lab
    }

    /// Name of the network namespace of a place.
    pub fn netns(&self, place: Place) -> String {
        format!("fw-{}-{}", self.lab, place.name())
    }

    /// The file by which that namespace is entered.
    pub fn netns_path(&self, place: Place) -> PathBuf {
        PathBuf::from("/run/netns").join(self.netns(place))
    }

    /// The pin directory of a node's agent.
    pub fn pin_dir(&self, node: usize) -> PathBuf {
        PathBuf::from(format!("/sys/fs/bpf/fairway-{}-{}", self.lab, NODES[node].name))
    }

    /// The folder of a node's agent, with its lock and its socket: named after its pins.
    pub fn agent_dir(&self, node: usize) -> PathBuf {
        Path::new("/run").join(self.pin_dir(node).file_name().unwrap_or_default())
    }

    /// The cgroup of a place, relative to the lab's own: pods are inside their node's.
    pub fn cgroup(&self, place: Place) -> PathBuf {
        let lab = PathBuf::from(self.cgroup_root());
        match place {
            Place::Pod(i) => lab.join(NODES[PODS[i].node].name).join(PODS[i].name),
            other => lab.join(other.name()),
        }
    }

    /// The lab's cgroup, relative to the cgroup2 mount.
    pub fn cgroup_root(&self) -> String {
        format!("fairway-lab-{}", self.lab)
    }

    /// The object file of the program on the other side of each uplink.
    pub fn pass_object(&self) -> PathBuf {
        self.state_dir().join("pass.o")
    }

    /// The folder of the lab's own files: manifests, logs, its description.
    pub fn state_dir(&self) -> PathBuf {
        PathBuf::from(Self::STATE_ROOT).join(&self.lab)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pod_addresses_read_alike_in_both_families() {
        let last = &PODS[3];
        assert_eq!(last.v4.to_string(), "10.244.2.11");
        assert_eq!(last.v6.to_string(), "fd00:10:244:2::11");
    }

    #[test]
    fn a_place_is_found_by_its_name() {
        for place in Place::ALL {
            assert_eq!(Place::parse(place.name()), Some(place));
        }
        assert_eq!(Place::parse("pod-3a"), None);
    }

    #[test]
    fn a_lab_name_that_leads_out_of_its_folder_is_refused() {
        assert!(Names::new("../x").is_err());
        assert!(Names::new("").is_err());
        assert!(Names::new("run-12").is_ok());
    }
}
