//! The contents of the maps as lines of text, sorted, for people and for snapshot tests.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::SocketAddr;

use lb_common::abi::{Backend, BackendSet, Frontend, backend_flags, frontend_flags as flags};

use super::{FamilyContents, MapContents, MapFamily};
use crate::model::Protocol;

/// Names of the flags of a frontend, in the order of their bits.
const FRONTEND_FLAGS: [(u32, &str); 15] = [
    (flags::CLUSTER_IP, "cluster-ip"),
    (flags::NODE_PORT, "node-port"),
    (flags::LOAD_BALANCER, "load-balancer"),
    (flags::EXTERNAL_IP, "external-ip"),
    (flags::MASQUERADE_EXTERNAL, "masquerade-external"),
    (flags::MASQUERADE_POD, "masquerade-pod"),
    (flags::MASQUERADE_NODE, "masquerade-node"),
    (flags::DROP_EXTERNAL, "drop-external"),
    (flags::DROP_INTERNAL, "drop-internal"),
    (flags::AFFINITY, "affinity"),
    (flags::SOURCE_RANGES, "source-ranges"),
    (flags::POD_SOCKETS, "pod-sockets"),
    (flags::OWN_BACKEND, "own-backend"),
    (flags::OWN_ADDRESS, "own-address"),
    (flags::ONLY_SOCKETS, "only-sockets"),
];

/// Names of the flags of a backend.
const BACKEND_FLAGS: [(u16, &str); 3] = [
    (backend_flags::LIVE, "live"),
    (backend_flags::LOCAL, "local"),
    (backend_flags::NODE_ADDRESS, "node-address"),
];

impl MapContents {
    /// One line for each entry of each map, sorted. `maglev` is the array `MAGLEV`; of its tables the backends are
    /// shown, with their shares in slots.
    pub fn lines(&self, maglev: &[u32]) -> Vec<String> {
        let mut lines = Vec::new();
        self.v4.lines(maglev, &mut lines);
        self.v6.lines(maglev, &mut lines);
        for member in &self.affinity_members {
            lines.push(format!(
                "AFFINITY_MEMBERS table {} backend {}",
                member.offset, member.backend
            ));
        }
        let buckets = self.filter.iter().filter(|byte| **byte != 0).count();
        lines.push(format!("FILTER {buckets} buckets"));
        for port in 0..=u16::MAX {
            if self.node_ports[usize::from(port >> 3)] & (1 << (port & 7)) != 0 {
                lines.push(format!("NODE_PORTS {port}"));
            }
        }
        let config = self.config;
        lines.push(format!(
            "CONFIG hz {} snat ports {}-{} flags {}",
            config.hz, config.snat_port_min, config.snat_port_max, config.flags
        ));
        lines.sort_unstable();
        lines
    }
}

impl<F: MapFamily> FamilyContents<F> {
    fn lines(&self, maglev: &[u32], lines: &mut Vec<String>) {
        let suffix = if F::IS_V6 { "V6" } else { "V4" };
        for (key, frontend) in &self.frontends {
            let place = if key.protocol == 0 {
                format!("{} every other port", key.addr.into())
            } else {
                let protocol = Protocol::from_number(key.protocol).map_or("?".into(), |p| p.to_string());
                format!("{} {protocol}", SocketAddr::new(key.addr.into(), key.port.get()))
            };
            lines.push(format!("FRONTENDS_{suffix} {place}{}", self.describe(frontend, maglev)));
        }
        for (id, backend) in self.backends.iter().enumerate() {
            if *backend != Backend::default() {
                let names = BACKEND_FLAGS.iter().filter(|(bit, _)| backend.flags & bit != 0);
                let names: Vec<&str> = names.map(|(_, name)| *name).collect();
                let addr = SocketAddr::new(backend.addr.into(), backend.port.get());
                let adjacency = backend.adjacency;
                let node = match backend.node {
                    0 => String::new(),
                    node => format!(" node {node}"),
                };
                lines.push(format!(
                    "BACKENDS_{suffix} {id}: {addr} {} adjacency {adjacency}{node}",
                    names.join(" ")
                ));
            }
        }
        for range in &self.source_ranges {
            let (port, addr, len) = (range.service_port, range.addr.into(), range.prefix_len - 32);
            lines.push(format!("SOURCE_RANGES_{suffix} port {port}: {addr}/{len}"));
        }
        for (map, keys) in [("POD_CIDRS", &self.pod_cidrs), ("SERVICE_CIDRS", &self.service_cidrs)] {
            for key in keys {
                lines.push(format!("{map}_{suffix} {}/{}", key.addr.into(), key.prefix_len));
            }
        }
    }

    fn describe(&self, frontend: &Frontend, maglev: &[u32]) -> String {
        let mut text = String::new();
        for (bit, name) in FRONTEND_FLAGS {
            if frontend.flags & bit != 0 {
                let _ = write!(text, " {name}");
            }
        }
        if frontend.affinity_timeout_s != 0 {
            let _ = write!(text, " timeout {}s", frontend.affinity_timeout_s);
        }
        if frontend.service_port != 0 {
            let _ = write!(text, " port {}", frontend.service_port);
        }
        let external = self.describe_set(frontend.external, maglev);
        if frontend.internal == frontend.external {
            let _ = write!(text, " -> {external}");
        } else {
            let internal = self.describe_set(frontend.internal, maglev);
            let _ = write!(text, " external -> {external} internal -> {internal}");
        }
        text
    }

    fn describe_set(&self, set: BackendSet, maglev: &[u32]) -> String {
        let slots = maglev.iter().skip(set.offset as usize).take(set.size as usize);
        let mut shares: BTreeMap<u32, u32> = BTreeMap::new();
        for id in slots {
            *shares.entry(*id).or_default() += 1;
        }
        let sizes: BTreeSet<u32> = shares.values().copied().collect();
        let backends: BTreeSet<SocketAddr> = shares
            .keys()
            .map(|id| {
                let backend = self.backend(*id);
                SocketAddr::new(backend.addr.into(), backend.port.get())
            })
            .collect();
        let mut text = String::from("[");
        for (index, backend) in backends.iter().enumerate() {
            let _ = write!(text, "{}{backend}", if index == 0 { "" } else { " " });
        }
        text.push(']');
        if let (Some(min), Some(max)) = (sizes.first(), sizes.last())
            && shares.len() > 1
        {
            let _ = write!(text, " of {min}..{max} slots");
        }
        text
    }
}
