//! The devices by which pods of this node come in, where the agent is told to know pods by their devices: kept in the
//! map `POD_DEVICES`.
//!
//! A packet of a pod behind a bridge is met on the port of the bridge; kube-proxy, whose rules these are
//! (`BridgeInterface`, `InterfaceNamePrefix`), meets it on the bridge. So a port counts by its bridge's name.

use std::collections::BTreeSet;

use super::network::{Device, Network};
use crate::datapath::pin::PinDir;
use crate::desired::LocalPods;
use crate::maps::MapsError;
use crate::maps::bpf::BpfMap;

/// The map, and what belongs into it.
#[derive(Debug)]
pub struct PodDevices {
    map: BpfMap<u32, u32>,
    by: LocalPods,
}

impl PodDevices {
    /// Opens the map.
    ///
    /// # Errors
    /// If it is not there or has another layout.
    pub fn open(pins: &PinDir, by: LocalPods) -> Result<Self, MapsError> {
        let map = BpfMap::open(pins, "POD_DEVICES")?;
        Ok(Self { map, by })
    }

    /// Makes the map hold the pods' devices of this snapshot, and no others.
    ///
    /// # Errors
    /// If it cannot be read or written.
    pub fn sync(&self, network: &Network) -> Result<(), MapsError> {
        let wanted = of_pods(&self.by, network);
        let entries: Vec<(u32, u32)> = self.map.entries()?;
        let found: BTreeSet<u32> = entries.into_iter().map(|(index, _)| index).collect();
        for index in wanted.difference(&found) {
            self.map.set(index, &1)?;
        }
        let gone: Vec<u32> = found.difference(&wanted).copied().collect();
        self.map.remove_all(&gone)
    }
}

/// The indices of the devices by which pods come in.
fn of_pods(by: &LocalPods, network: &Network) -> BTreeSet<u32> {
    let is_of_pods = |device: &&Device| {
        let bridge = network.devices.get(&device.bridge);
        let name = &bridge.unwrap_or(device).name;
        match by {
            LocalPods::Interfaces(prefixes) => prefixes.iter().any(|prefix| name.starts_with(prefix.as_str())),
            LocalPods::Bridge(bridge) => name == bridge,
            LocalPods::Unknown | LocalPods::Cidrs(_) | LocalPods::OfNodeObject => false,
        }
    };
    let devices = network.devices.values().filter(is_of_pods);
    devices.map(|device| device.index).collect()
}

#[cfg(test)]
mod tests {
    use super::super::network::tests::node;
    use super::*;

    #[test]
    fn a_device_counts_by_its_name_and_a_port_by_its_bridges() {
        let mut network = node();
        let of = |by: &LocalPods, network: &Network| of_pods(by, network).into_iter().collect::<Vec<_>>();
        let veths = LocalPods::Interfaces(vec!["cali".into(), "veth".into()]);
        let bridge = LocalPods::Bridge("cni0".into());
        assert_eq!(of(&veths, &network), [4]);
        assert_eq!(of(&bridge, &network), [5]);
        network.devices.get_mut(&4).expect("veth1").bridge = 5;
        assert_eq!(of(&bridge, &network), [4, 5]);
        assert!(of(&veths, &network).is_empty());
        assert_eq!(of(&LocalPods::Interfaces(vec!["cni".into()]), &network), [4, 5]);
        assert!(of(&LocalPods::OfNodeObject, &network).is_empty());
    }
}
