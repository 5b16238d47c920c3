//! From a backend's address to the next hop on the way there: route, masquerade address, Ethernet addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;

use lb_common::abi::{Address, Adjacency, Mac, adjacency_flags};

use super::network::{DeviceKind, Network};

/// A way out of the node. Backends that share it share the adjacency.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Way {
    /// The device the packet leaves by.
    pub device: u32,
    /// Who gets it, where packets may be sent at once: from an uplink, or to another node; `None` where the node's stack
    /// finds out.
    pub next_hop: Option<IpAddr>,
    /// The address that masquerading uses on this way.
    pub masquerade: Option<IpAddr>,
    /// Largest packet on this way, bytes.
    pub mtu: u16,
}

/// The way to a backend. `None` if no route leads there or it is the node itself.
///
/// `fast` are the devices with our XDP program.
pub fn way(network: &Network, backend: IpAddr, fast: &BTreeSet<u32>) -> Option<Way> {
    if network.is_local(backend) {
        return None;
    }
    let route = network.route(backend)?;
    let device = network.devices.get(&route.device)?;
    let next_hop = route.gateway.unwrap_or(backend);
    let direct = fast.contains(&route.device) && !route.encapsulated && device.kind == DeviceKind::Ethernet;
    let mtu = route.mtu.unwrap_or(device.mtu).min(device.mtu);
    Some(Way {
        device: route.device,
        next_hop: direct.then_some(next_hop),
        masquerade: route
            .source
            .or_else(|| masquerade(network, route.device, next_hop, backend)),
        mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
    })
}

/// The way to another node on a network that this one is on, too: by its link address, without a router. `devices` are
/// all devices: what is passed on needs no XDP.
pub fn way_to_neighbour(network: &Network, node: IpAddr, devices: &BTreeSet<u32>) -> Option<Way> {
    way(network, node, devices).filter(|way| way.next_hop == Some(node))
}

/// The address that the kernel's masquerading would take (`inet_select_addr` of 6.18): of the outgoing device's
/// the one in the next hop's network, else its first; else the first of another device. For IPv6 the longest
/// prefix in common with the destination decides among other devices' addresses (RFC 6724, rule 8).
fn masquerade(network: &Network, device: u32, next_hop: IpAddr, backend: IpAddr) -> Option<IpAddr> {
    let mut usable: Vec<_> = network
        .addresses
        .iter()
        .filter(|a| a.address.is_ipv4() == backend.is_ipv4() && network.is_source(a))
        .collect();
    usable.sort_by_key(|a| a.device);
    let own = || usable.iter().filter(|a| a.device == device);
    let in_network = |a: &&&super::network::LocalAddress| common_bits(a.address, next_hop) >= u32::from(a.prefix_len);
    let elsewhere = || {
        if backend.is_ipv4() {
            usable.first()
        } else {
            usable.iter().rev().max_by_key(|a| common_bits(a.address, backend))
        }
    };
    own()
        .find(in_network)
        .or_else(|| own().next())
        .or_else(elsewhere)
        .map(|a| a.address)
}

fn common_bits(a: IpAddr, b: IpAddr) -> u32 {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        _ => 0,
    }
}

/// What the data path is told of a way. `masquerade` is the way's, in the family's type.
pub fn entry<A: Address>(network: &Network, way: &Way, masquerade: A) -> Adjacency<A> {
    let mut entry = Adjacency {
        ifindex: way.device,
        mtu: way.mtu,
        masquerade,
        ..Adjacency::default()
    };
    let resolved = way
        .next_hop
        .and_then(|hop| network.neighbours.get(&(way.device, hop)))
        .filter(|neighbour| neighbour.resolved);
    let own = network
        .devices
        .get(&way.device)
        .filter(|d| d.up && d.mac != Mac::default());
    if let (Some(neighbour), Some(device)) = (resolved, own) {
        entry.flags = adjacency_flags::FAST;
        entry.dst_mac = neighbour.mac;
        entry.src_mac = device.mac;
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::super::network::tests::{node, route};
    use super::*;
    use lb_common::abi::Addr4;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_pod_behind_another_node_is_reached_fast_over_the_uplink() {
        let network = node();
        let way = way(&network, ip("10.1.2.5"), &[2].into()).unwrap();
        assert_eq!(
            (way.device, way.next_hop, way.masquerade),
            (2, Some(ip("192.0.2.2")), Some(ip("192.0.2.1")))
        );
        let entry = entry(&network, &way, Addr4::from_octets([192, 0, 2, 1]));
        assert_eq!(
            (entry.flags, entry.dst_mac, entry.mtu),
            (adjacency_flags::FAST, Mac([6, 0, 0, 0, 0, 2]), 1500)
        );
        assert_eq!(entry.src_mac, Mac([2, 0, 0, 0, 0, 2]));
    }

    #[test]
    fn without_xdp_on_the_uplink_the_stack_finds_the_way() {
        let network = node();
        let way = way(&network, ip("10.1.2.5"), &BTreeSet::new()).unwrap();
        assert_eq!(way.next_hop, None);
        assert_eq!(entry(&network, &way, Addr4::default()).flags, 0);
    }

    #[test]
    fn through_an_overlay_the_overlay_address_masquerades() {
        let way = way(&node(), ip("10.1.3.5"), &[2].into()).unwrap();
        assert_eq!(
            (way.device, way.next_hop, way.masquerade),
            (3, None, Some(ip("10.1.1.0")))
        );
        assert_eq!(way.mtu, 1450);
    }

    #[test]
    fn a_pods_own_device_without_address_takes_the_first_of_another() {
        let way = way(&node(), ip("10.1.1.7"), &[2].into()).unwrap();
        assert_eq!((way.device, way.masquerade), (4, Some(ip("192.0.2.1"))));
    }

    #[test]
    fn pods_on_a_bridge_share_one_way() {
        let network = node();
        let way = |to| way(&network, ip(to), &[2].into()).unwrap();
        assert_eq!(way("10.1.1.20"), way("10.1.1.21"));
        assert_eq!(way("10.1.1.20").masquerade, Some(ip("10.1.1.1")));
    }

    #[test]
    fn an_unresolved_next_hop_is_not_fast() {
        let network = node();
        let way = way(&network, ip("192.0.2.9"), &[2].into()).unwrap();
        assert_eq!(way.next_hop, Some(ip("192.0.2.9")));
        assert_eq!(entry(&network, &way, Addr4::default()).flags, 0);
    }

    #[test]
    fn the_preferred_source_of_a_route_wins() {
        let mut network = node();
        let preferred = Some(ip("10.1.1.1"));
        network.set_routes(vec![super::super::network::Route {
            source: preferred,
            ..route("10.1.2.0/24", 2, None)
        }]);
        assert_eq!(
            way(&network, ip("10.1.2.5"), &[2].into()).unwrap().masquerade,
            preferred
        );
    }

    #[test]
    fn neither_the_node_itself_nor_a_blackhole_has_a_way() {
        assert_eq!(way(&node(), ip("192.0.2.1"), &[2].into()), None);
        assert_eq!(way(&node(), ip("10.9.1.1"), &[2].into()), None);
    }
}
