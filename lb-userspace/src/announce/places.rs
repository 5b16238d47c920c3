//! For which pools this node may announce, and on which of its devices.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use lb_common::abi::Mac;

use crate::datapath::attach::{Attached, Glob};
use crate::model::Pool;
use crate::netlink::network::{DeviceKind, Network};

/// A device on which addresses are announced.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Device {
    /// Its index.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// Its link address.
    pub mac: Mac,
}

/// By name of the pool: the devices on which this node may announce its addresses, at least one.
pub type Places = BTreeMap<Arc<str>, Vec<Device>>;

/// The addresses by which the node is known on the networks of these places.
pub fn addresses(places: &Places, network: &Network) -> BTreeSet<IpAddr> {
    let devices: BTreeSet<u32> = places.values().flatten().map(|device| device.ifindex).collect();
    let addresses = network.addresses.iter();
    let known_by = addresses.filter(|address| devices.contains(&address.device) && network.is_source(address));
    known_by.map(|address| address.address).collect()
}

/// The places of a node with these labels and devices.
///
/// A device counts that is up, has Ethernet, somebody at its other end and our program on its way in; and whose name the
/// pool asks for. A pool that asks for none means uplinks: pods' devices and bridges are none.
pub fn places<'a>(
    pools: impl IntoIterator<Item = &'a Pool>,
    labels: &BTreeMap<String, String>,
    network: &Network,
    attached: &[Attached],
) -> Places {
    let mut places = Places::new();
    for pool in pools.into_iter().filter(|pool| pool.nodes.selects(labels)) {
        let globs: Vec<Glob> = pool
            .interfaces
            .iter()
            .filter_map(|pattern| pattern.parse().ok())
            .collect();
        let is_asked_for = |attached: &&Attached| {
            if globs.is_empty() {
                attached.uplink
            } else {
                globs.iter().any(|glob| glob.matches(&attached.device))
            }
        };
        let answering = attached.iter().filter(|attached| attached.ingress.is_some());
        let devices: Vec<Device> = answering
            .filter(is_asked_for)
            .filter_map(|attached| network.devices.get(&attached.ifindex))
            .filter(|device| device.kind == DeviceKind::Ethernet && device.up && device.carrier)
            .map(|device| Device {
                ifindex: device.index,
                name: device.name.clone(),
                mac: device.mac,
            })
            .collect();
        if !devices.is_empty() {
            places.insert(pool.name.clone(), devices);
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::pool::{Requirement, Selector};
    use crate::netlink::network::tests::node;

    fn pool(interfaces: &[&str], requirements: &[Requirement]) -> Pool {
        Pool {
            name: "default".into(),
            ranges: Vec::new(),
            is_announced: true,
            nodes: Selector {
                requirements: requirements.to_vec(),
            },
            interfaces: interfaces.iter().map(ToString::to_string).collect(),
            problems: Vec::new(),
        }
    }

    fn attached(network: &Network) -> Vec<Attached> {
        let attached = |device: &crate::netlink::network::Device| Attached {
            device: device.name.clone(),
            ifindex: device.index,
            ingress: Some("tcx".into()),
            uplink: device.name == "eth0",
            ..Attached::default()
        };
        network.devices.values().map(attached).collect()
    }

    fn names(pool: &Pool, network: &Network, attached: &[Attached]) -> Vec<String> {
        let labels = BTreeMap::from([("role".to_owned(), "edge".to_owned())]);
        let mut places = places([pool], &labels, network, attached);
        let devices = places.remove("default").unwrap_or_default();
        devices.into_iter().map(|device| device.name).collect()
    }

    #[test]
    fn uplinks_announce_unless_the_pool_names_devices() {
        let network = node();
        let attached = attached(&network);
        assert_eq!(names(&pool(&[], &[]), &network, &attached), ["eth0"]);
        assert_eq!(
            names(&pool(&["vx*", "cni0"], &[]), &network, &attached),
            ["vxlan0", "cni0"]
        );
        assert!(names(&pool(&["bond*"], &[]), &network, &attached).is_empty());
    }

    #[test]
    fn a_node_announces_only_if_it_is_selected() {
        let network = node();
        let attached = attached(&network);
        let edge = Requirement::In("role".into(), vec!["edge".into()]);
        assert_eq!(names(&pool(&[], &[edge]), &network, &attached), ["eth0"]);
        let core = Requirement::In("role".into(), vec!["core".into()]);
        assert!(names(&pool(&[], &[core]), &network, &attached).is_empty());
    }

    #[test]
    fn a_device_that_is_down_or_has_nobody_at_its_other_end_or_no_program_announces_nothing() {
        let pool = pool(&[], &[]);
        let mut network = node();
        let mut attached = attached(&network);
        network.devices.get_mut(&2).expect("eth0").carrier = false;
        assert!(names(&pool, &network, &attached).is_empty());
        network.devices.get_mut(&2).expect("eth0").carrier = true;
        network.devices.get_mut(&2).expect("eth0").up = false;
        assert!(names(&pool, &network, &attached).is_empty());
        network.devices.get_mut(&2).expect("eth0").up = true;
        assert_eq!(names(&pool, &network, &attached), ["eth0"]);
        attached[0].ingress = None;
        assert!(names(&pool, &network, &attached).is_empty());
    }
}
