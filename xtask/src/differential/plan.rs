//! Who is who in a round: the addresses of the node under test, of its pods, of everybody else, and the names that
//! objects are given.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::model::Family;

/// Name of the node under test.
pub const NODE: &str = "node-a";
/// Names of the other nodes.
pub const OTHER_NODES: [&str; 2] = ["node-b", "node-c"];
/// The zones of the cluster.
pub const ZONES: [&str; 3] = ["zone-a", "zone-b", "zone-c"];
/// The pods of the node under test.
pub const POD_CIDRS: [&str; 2] = ["10.180.0.0/24", "2001:db8:180::/64"];
/// ClusterIPs that the API server was started with.
pub const SERVICE_CIDRS: [&str; 2] = ["172.30.0.0/16", "fd00:172:30::/112"];
/// Ranges for ServiceCIDR objects that come and go. No Service has an address in them.
pub const EXTRA_SERVICE_CIDRS: [&str; 2] = ["172.31.7.0/24", "fd00:172:31::/112"];
/// Namespaces of objects.
pub const NAMESPACES: [&str; 2] = ["default", "kube-public"];
/// How many pods of the node there are, and on the other nodes.
pub const PODS: u8 = 4;
/// Pods of the node that ask as well: endpoints, so that some ask themselves.
pub const CLIENT_PODS: u8 = 2;
/// How many clients there are outside, for each look at a stage of a round.
pub const CLIENTS: u8 = 24;
/// Ports on which endpoints serve.
pub const TARGET_PORTS: [u16; 4] = [8080, 8081, 8082, 9100];

/// An address in a range of each family.
fn addr(family: Family, v4: [u8; 4], v6: [u16; 8]) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::from(v4)),
        Family::V6 => IpAddr::V6(Ipv6Addr::from(v6)),
    }
}

/// The node's primary address.
pub fn node(family: Family) -> IpAddr {
    addr(family, [192, 0, 2, 11], [0x2001, 0xdb8, 0, 1, 0, 0, 0, 0x11])
}

/// Another address of the node.
pub fn other_of_node(family: Family) -> IpAddr {
    addr(family, [192, 0, 2, 12], [0x2001, 0xdb8, 0, 1, 0, 0, 0, 0x12])
}

/// The address of another node.
pub fn other_node(family: Family) -> IpAddr {
    addr(family, [192, 0, 2, 21], [0x2001, 0xdb8, 0, 1, 0, 0, 0, 0x21])
}

/// A pod of the node under test.
pub fn pod(family: Family, index: u8) -> IpAddr {
    let n = 11 + index;
    addr(
        family,
        [10, 180, 0, n],
        [0x2001, 0xdb8, 0x180, 0, 0, 0, 0, u16::from(n)],
    )
}

/// The node that slices name for a pod of the node under test. The last pod's they keep to themselves, so that it is
/// nobody's own. All slices say the same, since proxies need not agree on what contradicts itself.
pub const fn node_of_pod(index: u8) -> Option<&'static str> {
    if index + 1 == PODS { None } else { Some(NODE) }
}

/// A pod of another node.
pub fn remote_pod(family: Family, index: u8) -> IpAddr {
    let n = 21 + index;
    addr(
        family,
        [10, 180, 1, n],
        [0x2001, 0xdb8, 0x180, 1, 0, 0, 0, u16::from(n)],
    )
}

/// A client outside. Each stage of a round has clients of its own, and each look at it, so that affinity begins anew.
pub fn client(family: Family, stage: usize, look: usize, index: u8) -> IpAddr {
    let group = ((stage % 8) * 4 + look % 4) as u8;
    let n = 10 + index;
    addr(
        family,
        [198, 18, group, n],
        [0x2001, 0xdb8, 0x113, u16::from(group), 0, 0, 0, u16::from(n)],
    )
}

/// The ClusterIP of the Service with this number.
pub fn cluster_ip(family: Family, number: u8) -> IpAddr {
    let n = 40 + number;
    addr(family, [172, 30, 0, n], [0xfd00, 0x172, 0x30, 0, 0, 0, 0, u16::from(n)])
}

/// An address of the API server's range that no Service has.
pub fn unassigned(family: Family) -> IpAddr {
    addr(family, [172, 30, 9, 9], [0xfd00, 0x172, 0x30, 0, 0, 0, 0, 0x909])
}

/// An address in [`EXTRA_SERVICE_CIDRS`].
pub fn unassigned_extra(family: Family) -> IpAddr {
    addr(family, [172, 31, 7, 7], [0xfd00, 0x172, 0x31, 0, 0, 0, 0, 0x707])
}

/// A load balancer address of the Service with this number.
pub fn load_balancer_ip(family: Family, number: u8, index: u8) -> IpAddr {
    let n = 40 + number * 2 + index;
    addr(
        family,
        [203, 0, 113, n],
        [0x2001, 0xdb8, 0x203, 0, 0, 0, 0, u16::from(n)],
    )
}

/// An external IP of the Service with this number.
pub fn external_ip(family: Family, number: u8) -> IpAddr {
    let n = 140 + number;
    addr(
        family,
        [203, 0, 113, n],
        [0x2001, 0xdb8, 0x203, 0, 0, 0, 0, u16::from(n)],
    )
}

/// What loadBalancerSourceRanges are made from: clients, some of the clients of the first stage, the node, pods, nobody, everybody, and one
/// as people write it.
pub const SOURCE_RANGES: [&str; 13] = [
    "198.18.0.0/15",
    "198.18.0.0/28",
    "192.0.2.11/32",
    "192.0.2.0/24",
    "10.180.0.0/24",
    "240.0.0.0/8",
    " 198.18.0.0/24 ",
    "0.0.0.0/0",
    "2001:db8:113::/48",
    "2001:db8:113::/124",
    "2001:db8:0:1::11/128",
    "2001:db8:180::/64",
    "fd12::/64",
];
