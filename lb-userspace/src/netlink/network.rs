//! The node's network as plain data, with the questions that the agent asks of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use lb_common::abi::Mac;

use crate::desired::LocalAddresses;

/// A snapshot of the node's network.
#[derive(Clone, Debug, Default)]
pub struct Network {
    /// By index.
    pub devices: BTreeMap<u32, Device>,
    /// In the kernel's order.
    pub addresses: Vec<LocalAddress>,
    /// By device and address.
    pub neighbours: HashMap<(u32, IpAddr), Neighbour>,
    routes: HashMap<IpNet, Route>,
    /// Lengths of prefixes that occur, longest first: of IPv4, of IPv6.
    lengths: [Vec<u8>; 2],
}

/// A device.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Device {
    /// Its index, never 0.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What its packets look like.
    pub kind: DeviceKind,
    /// It is one end of a veth pair.
    pub veth: bool,
    /// Index of the bridge that it is a port of; 0 if it is none's.
    pub bridge: u32,
    /// Whether it is set up.
    pub up: bool,
    /// Whether there is somebody at the other end: a cable, a switch that is on.
    pub carrier: bool,
    /// Its Ethernet address; zero if it has none.
    pub mac: Mac,
    /// Largest IP packet, bytes.
    pub mtu: u32,
    /// Whether an XDP program (of anyone) is attached.
    pub xdp: XdpState,
}

/// What the packets of a device look like.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DeviceKind {
    /// They have an Ethernet header.
    Ethernet,
    /// They begin with the IP header: WireGuard, tun, PPP, IP tunnels.
    Layer3,
    /// The loopback device.
    Loopback,
    /// Something that we do not know.
    #[default]
    Other,
}

/// How XDP runs on a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum XdpState {
    /// Not at all.
    #[default]
    None,
    /// In the driver.
    Native,
    /// In the stack, after the packet's buffer was made.
    Generic,
}

/// An address of the node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LocalAddress {
    /// The device that has it.
    pub device: u32,
    /// The address.
    pub address: IpAddr,
    /// Length of its network's prefix.
    pub prefix_len: u8,
    /// Of global scope.
    pub global: bool,
    /// IPv4: not the first of its network.
    pub secondary: bool,
    /// Neither tentative nor deprecated.
    pub usable: bool,
}

/// A route of the main table.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Route {
    /// The destinations.
    pub to: IpNet,
    /// The device it leads out of; 0 = nowhere (blackhole, unreachable, prohibit).
    pub device: u32,
    /// The next hop, if it is not the destination itself.
    pub gateway: Option<IpAddr>,
    /// The preferred source address.
    pub source: Option<IpAddr>,
    /// Of routes to the same destinations the lowest counts.
    pub metric: u32,
    /// Largest packet, if it is not the device's.
    pub mtu: Option<u32>,
    /// Packets are wrapped on this way (lightweight tunnels).
    pub encapsulated: bool,
}

/// A next hop that the kernel knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Neighbour {
    /// Its Ethernet address.
    pub mac: Mac,
    /// Whether the address may be used.
    pub resolved: bool,
    /// Somebody has set it for good, as CNIs do for their tunnels. Asking the kernel for it would make it an ordinary
    /// entry that expires (`NTF_USE` takes `NUD_PERMANENT` away, `net/core/neighbour.c`, Linux 5.16 and later).
    pub permanent: bool,
}

impl Neighbour {
    /// Whether the kernel is to be asked for it: where it is not known, or `all`, so that the kernel keeps it.
    pub const fn is_asked_for(&self, all: bool) -> bool {
        !self.permanent && (all || !self.resolved)
    }
}

impl Network {
    /// Takes all routes, in any order.
    pub fn set_routes(&mut self, routes: Vec<Route>) {
        self.routes.clear();
        for route in routes {
            let better = self
                .routes
                .get(&route.to)
                .is_none_or(|other| route.metric < other.metric);
            if better {
                self.routes.insert(route.to, route);
            }
        }
        let mut lengths = [BTreeSet::new(), BTreeSet::new()];
        for to in self.routes.keys() {
            lengths[usize::from(to.addr().is_ipv6())].insert(to.prefix_len());
        }
        self.lengths = lengths.map(|set| set.into_iter().rev().collect());
    }

    /// The route to an address: the longest prefix, then the lowest metric. `None` if there is none, or if it
    /// leads nowhere.
    pub fn route(&self, to: IpAddr) -> Option<&Route> {
        let lengths = &self.lengths[usize::from(to.is_ipv6())];
        let network = |length: &u8| IpNet::new(to, *length).ok().map(|net| net.trunc());
        lengths
            .iter()
            .filter_map(network)
            .find_map(|net| self.routes.get(&net))
            .filter(|route| route.device != 0)
    }

    /// The devices that default routes lead to.
    pub fn default_route_devices(&self) -> BTreeSet<u32> {
        let default = |route: &&Route| route.to.prefix_len() == 0 && route.device != 0;
        self.routes.values().filter(default).map(|route| route.device).collect()
    }

    /// Whether it is an address of the node.
    pub fn is_local(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|a| a.address == address)
    }

    /// The addresses of the node: all, and the primary one of each family, which is the first global address of
    /// the device that the family's default route leads to, else of any device.
    pub fn local_addresses(&self) -> LocalAddresses {
        let mut all: Vec<_> = self.addresses.iter().map(|a| a.address).collect();
        all.sort_unstable();
        all.dedup();
        let primary = [false, true].into_iter().filter_map(|v6| self.primary(v6)).collect();
        LocalAddresses { all, primary }
    }

    fn primary(&self, v6: bool) -> Option<IpAddr> {
        let default = self
            .routes
            .values()
            .find(|r| r.to.prefix_len() == 0 && r.to.addr().is_ipv6() == v6);
        let uplink = default.map_or(0, |route| route.device);
        let mut candidates = self
            .addresses
            .iter()
            .filter(|a| a.address.is_ipv6() == v6 && self.is_source(a));
        let first = candidates.clone().next();
        candidates.find(|a| a.device == uplink).or(first).map(|a| a.address)
    }

    /// Whether the node would use it as a source towards others.
    pub fn is_source(&self, address: &LocalAddress) -> bool {
        address.global && address.usable && !address.secondary && !address.address.is_loopback()
    }

    /// The devices called so.
    pub fn device_named(&self, name: &str) -> Option<&Device> {
        self.devices.values().find(|device| device.name == name)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A node with the uplink eth0 (2), the overlay vxlan0 (3), a pod's veth1 (4) and the bridge cni0 (5).
    pub(crate) fn node() -> Network {
        let device = |index, name: &str, last| Device {
            index,
            name: name.into(),
            kind: DeviceKind::Ethernet,
            veth: name.starts_with("veth"),
            bridge: 0,
            up: true,
            carrier: true,
            mac: Mac([2, 0, 0, 0, 0, last]),
            mtu: if name == "vxlan0" { 1450 } else { 1500 },
            xdp: XdpState::None,
        };
        let address = |device, text: &str| {
            let net: IpNet = text.parse().unwrap();
            LocalAddress {
                device,
                address: net.addr(),
                prefix_len: net.prefix_len(),
                global: true,
                secondary: false,
                usable: true,
            }
        };
        let mut network = Network {
            devices: [(2, "eth0"), (3, "vxlan0"), (4, "veth1"), (5, "cni0")]
                .map(|(i, name)| (i, device(i, name, i.to_be_bytes()[3])))
                .into(),
            addresses: vec![
                LocalAddress {
                    global: false,
                    ..address(1, "127.0.0.1/8")
                },
                address(2, "192.0.2.1/24"),
                address(2, "2001:db8::1/64"),
                address(3, "10.1.1.0/32"),
                address(5, "10.1.1.1/24"),
            ],
            ..Network::default()
        };
        network.set_routes(vec![
            route("0.0.0.0/0", 2, Some("192.0.2.254")),
            route("::/0", 2, Some("2001:db8::fe")),
            route("192.0.2.0/24", 2, None),
            route("2001:db8::/64", 2, None),
            route("10.1.2.0/24", 2, Some("192.0.2.2")),
            route("10.1.3.0/24", 3, Some("10.1.3.0")),
            route("10.1.1.0/24", 5, None),
            route("10.1.1.7/32", 4, None),
            route("10.9.0.0/16", 0, None),
        ]);
        let neighbour = |last| Neighbour {
            mac: Mac([6, 0, 0, 0, 0, last]),
            resolved: true,
            ..Neighbour::default()
        };
        network.neighbours = [
            ((2, "192.0.2.254".parse().unwrap()), neighbour(254)),
            ((2, "192.0.2.2".parse().unwrap()), neighbour(2)),
            ((2, "192.0.2.9".parse().unwrap()), Neighbour::default()),
            ((3, "10.1.3.0".parse().unwrap()), neighbour(3)),
        ]
        .into();
        network
    }

    pub(crate) fn route(to: &str, device: u32, gateway: Option<&str>) -> Route {
        Route {
            to: to.parse().unwrap(),
            device,
            gateway: gateway.map(|g| g.parse().unwrap()),
            ..Route::default()
        }
    }

    #[test]
    fn a_neighbour_that_somebody_set_for_good_is_never_asked_for() {
        let unknown = Neighbour::default();
        assert!(unknown.is_asked_for(false) && unknown.is_asked_for(true));
        let learnt = Neighbour {
            resolved: true,
            ..unknown
        };
        assert!(!learnt.is_asked_for(false) && learnt.is_asked_for(true));
        let set = Neighbour {
            permanent: true,
            ..learnt
        };
        assert!(!set.is_asked_for(false) && !set.is_asked_for(true));
    }

    #[test]
    fn the_longest_prefix_decides_and_a_blackhole_leads_nowhere() {
        let network = node();
        let device = |to: &str| network.route(to.parse().unwrap()).map(|r| r.device);
        assert_eq!(device("10.1.1.7"), Some(4));
        assert_eq!(device("10.1.1.8"), Some(5));
        assert_eq!(device("198.51.100.1"), Some(2));
        assert_eq!(device("10.9.1.1"), None);
    }

    #[test]
    fn of_two_default_routes_the_lower_metric_counts() {
        let mut network = node();
        let slow = Route {
            metric: 100,
            ..route("0.0.0.0/0", 3, None)
        };
        network.set_routes(vec![
            slow,
            Route {
                metric: 50,
                ..route("0.0.0.0/0", 2, None)
            },
        ]);
        assert_eq!(network.route("1.1.1.1".parse().unwrap()).map(|r| r.device), Some(2));
        assert_eq!(network.default_route_devices(), [2].into());
    }

    #[test]
    fn the_primary_address_is_the_one_of_the_default_route() {
        let primary = node().local_addresses().primary;
        assert_eq!(
            primary,
            ["192.0.2.1".parse::<IpAddr>().unwrap(), "2001:db8::1".parse().unwrap()]
        );
    }
}
