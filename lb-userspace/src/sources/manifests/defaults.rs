//! What an API server would have filled in: defaults, ClusterIPs, NodePorts.
//!
//! What is assigned depends on the objects alone, so that every agent that reads the same folder comes to the same
//! result, at any time. The hash of an object's name says where to look first; if the place is taken, the next one
//! is looked at. What is written in a manifest is never given to another object.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{ClientIPConfig, Service, ServiceSpec, SessionAffinityConfig};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::model::{IpFamily, ObjectKey, ObjectKind, Problem, Reason};

/// The API server's default `--service-node-port-range`.
const NODE_PORTS: std::ops::RangeInclusive<i32> = 30_000..=32_767;
/// Of a range, at most so many addresses are looked at.
const ADDRESSES: u128 = 1 << 32;

/// Fills in the Services.
pub(super) fn fill_in(services: &mut BTreeMap<ObjectKey, Service>, cidrs: &[IpNet], problems: &mut Vec<Problem>) {
    for (key, service) in &mut *services {
        service.metadata.namespace = Some(key.namespace.to_string());
        fill_in_constants(service.spec.get_or_insert_default());
    }
    let mut addresses = Addresses::taken_by(services.values());
    let mut ports = Ports::taken_by(services.values());
    for (key, service) in services {
        let Some(spec) = &mut service.spec else {
            continue;
        };
        if spec.type_.as_deref() == Some("ExternalName") || is_headless(spec) {
            continue;
        }
        if let Err(problem) = addresses.assign(key, spec, cidrs) {
            problems.push(problem);
        }
        if let Err(problem) = ports.assign(key, spec) {
            problems.push(problem);
        }
    }
}

/// Fills in a slice.
pub(super) fn fill_in_slice(slice: &mut EndpointSlice) {
    slice.metadata.namespace.get_or_insert_with(|| "default".into());
    for port in slice.ports.iter_mut().flatten() {
        port.name.get_or_insert_default();
        port.protocol.get_or_insert_with(|| "TCP".into());
    }
}

fn is_headless(spec: &ServiceSpec) -> bool {
    let listed = spec.cluster_ips.iter().flatten().map(String::as_str);
    spec.cluster_ip
        .as_deref()
        .into_iter()
        .chain(listed)
        .any(|ip| ip == "None")
}

/// Defaults that are the same for every Service (`pkg/apis/core/v1/defaults.go` of Kubernetes).
fn fill_in_constants(spec: &mut ServiceSpec) {
    let cluster = || "Cluster".to_owned();
    let kind = spec.type_.get_or_insert_with(|| "ClusterIP".into()).clone();
    let affinity = spec.session_affinity.get_or_insert_with(|| "None".into());
    if affinity == "ClientIP" {
        let config: &mut SessionAffinityConfig = spec.session_affinity_config.get_or_insert_default();
        let client: &mut ClientIPConfig = config.client_ip.get_or_insert_default();
        client.timeout_seconds.get_or_insert(10_800);
    }
    if kind != "ExternalName" {
        spec.internal_traffic_policy.get_or_insert_with(cluster);
    }
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
        spec.external_traffic_policy.get_or_insert_with(cluster);
    }
    if kind == "LoadBalancer" {
        spec.allocate_load_balancer_node_ports.get_or_insert(true);
    }
    for port in spec.ports.iter_mut().flatten() {
        port.protocol.get_or_insert_with(|| "TCP".into());
        port.target_port.get_or_insert(IntOrString::Int(port.port));
    }
}

/// ClusterIPs that are taken.
struct Addresses(HashSet<IpAddr>);

impl Addresses {
    fn taken_by<'a>(services: impl Iterator<Item = &'a Service>) -> Self {
        let specs = services.filter_map(|service| service.spec.as_ref());
        Self(specs.flat_map(explicit).collect())
    }

    /// Gives the Service an address of each family that it is to have and has none of.
    fn assign(&mut self, key: &ObjectKey, spec: &mut ServiceSpec, cidrs: &[IpNet]) -> Result<(), Problem> {
        if unreadable(spec) {
            // The conversion reports it; an assigned address would hide it.
            return Ok(());
        }
        let mut addrs = explicit(spec);
        let families = families(key, spec, &addrs, cidrs)?;
        for family in families.iter().skip(addrs.len()) {
            let mut of_family = cidrs.iter().filter(|net| IpFamily::of(&net.addr()) == *family);
            let addr = of_family.find_map(|net| self.free(key, net)).ok_or_else(|| {
                let message = format!("it has no {family} address, and no range of addresses has one left for it");
                no_address(key, message)
            })?;
            self.0.insert(addr);
            addrs.push(addr);
        }
        spec.ip_families = Some(families.iter().map(ToString::to_string).collect());
        spec.cluster_ip = addrs.first().map(ToString::to_string);
        spec.cluster_ips = Some(addrs.iter().map(ToString::to_string).collect());
        Ok(())
    }

    /// The first free address of the range from where the hash points on. Its first and last are never given.
    fn free(&self, key: &ObjectKey, net: &IpNet) -> Option<IpAddr> {
        let bits = u32::from(net.max_prefix_len() - net.prefix_len());
        let size = 1u128.checked_shl(bits).unwrap_or(u128::MAX).min(ADDRESSES);
        let usable = size.checked_sub(2).filter(|usable| *usable > 0)?;
        let start = u128::from(hash(&[&key.namespace, &key.name])) % usable;
        let taken = u128::try_from(self.0.len()).unwrap_or(u128::MAX);
        let places = (0..=taken.min(usable - 1)).map(|step| 1 + (start + step) % usable);
        let mut addrs = places.map(|place| match net.network() {
            IpAddr::V4(first) => IpAddr::V4(Ipv4Addr::from_bits(first.to_bits() + place as u32)),
            IpAddr::V6(first) => IpAddr::V6(Ipv6Addr::from_bits(first.to_bits() + place)),
        });
        addrs.find(|addr| !self.0.contains(addr))
    }
}

fn texts(spec: &ServiceSpec) -> Vec<&str> {
    let listed = spec.cluster_ips.iter().flatten().map(String::as_str);
    let mut texts: Vec<&str> = listed.filter(|text| !text.is_empty()).collect();
    if texts.is_empty() {
        texts.extend(spec.cluster_ip.as_deref().filter(|text| !text.is_empty()));
    }
    texts
}

/// The ClusterIPs that are written down.
fn explicit(spec: &ServiceSpec) -> Vec<IpAddr> {
    texts(spec).iter().filter_map(|text| text.parse().ok()).collect()
}

fn unreadable(spec: &ServiceSpec) -> bool {
    texts(spec).iter().any(|text| text.parse::<IpAddr>().is_err())
}

/// The families that the Service is to have, as an API server decides it: one, if nothing else is said.
fn families(
    key: &ObjectKey,
    spec: &mut ServiceSpec,
    addrs: &[IpAddr],
    cidrs: &[IpNet],
) -> Result<Vec<IpFamily>, Problem> {
    let named = spec.ip_families.iter().flatten();
    let mut families: Vec<IpFamily> = named
        .filter_map(|name| IpFamily::ALL.into_iter().find(|family| family.to_string() == *name))
        .collect();
    for family in addrs.iter().map(IpFamily::of) {
        if !families.contains(&family) {
            families.push(family);
        }
    }
    if families.is_empty() {
        let first = cidrs
            .first()
            .ok_or_else(|| no_address(key, "it has no ClusterIP".into()))?;
        families.push(IpFamily::of(&first.addr()));
    }
    let dual = families.len() > 1;
    let policy = spec.ip_family_policy.get_or_insert_with(|| {
        let policy = if dual { "RequireDualStack" } else { "SingleStack" };
        policy.into()
    });
    let has = |family| cidrs.iter().any(|net| IpFamily::of(&net.addr()) == family);
    let other = IpFamily::ALL.into_iter().find(|family| !families.contains(family));
    match (policy.as_str(), other) {
        ("PreferDualStack", Some(other)) if has(other) => families.push(other),
        ("RequireDualStack", Some(other)) => families.push(other),
        _ => {}
    }
    Ok(families)
}

fn no_address(key: &ObjectKey, message: String) -> Problem {
    Problem {
        kind: ObjectKind::Service,
        object: key.clone(),
        field: "spec.clusterIPs".into(),
        message,
        remedy: "write one down, or start the agent with --service-cidrs to have it assigned".into(),
        reason: Reason::InvalidField,
    }
}

/// NodePorts that are taken, with their protocols.
struct Ports(HashSet<(i32, String)>);

impl Ports {
    fn taken_by<'a>(services: impl Iterator<Item = &'a Service>) -> Self {
        let mut taken = HashSet::new();
        for spec in services.filter_map(|service| service.spec.as_ref()) {
            for port in spec.ports.iter().flatten() {
                if let (Some(number), Some(protocol)) = (port.node_port, &port.protocol) {
                    taken.insert((number, protocol.clone()));
                }
            }
            taken.extend(spec.health_check_node_port.map(|number| (number, "TCP".to_owned())));
        }
        Self(taken)
    }

    fn assign(&mut self, key: &ObjectKey, spec: &mut ServiceSpec) -> Result<(), Problem> {
        let load_balancer = spec.type_.as_deref() == Some("LoadBalancer");
        let wanted = match spec.type_.as_deref() {
            Some("NodePort") => true,
            Some("LoadBalancer") => spec.allocate_load_balancer_node_ports != Some(false),
            _ => false,
        };
        let ports = spec.ports.iter_mut().flatten().filter(|_| wanted);
        for port in ports.filter(|port| port.node_port.unwrap_or(0) == 0) {
            let protocol = port.protocol.clone().unwrap_or_default();
            // Ports of one number in several protocols get one NodePort, where it is free, as an API server has it.
            let number = self.take(key, &port.port.to_string(), &protocol)?;
            port.node_port = Some(number);
        }
        let local = spec.external_traffic_policy.as_deref() == Some("Local");
        if load_balancer && local && spec.health_check_node_port.unwrap_or(0) == 0 {
            spec.health_check_node_port = Some(self.take(key, "health", "TCP")?);
        }
        Ok(())
    }

    fn take(&mut self, key: &ObjectKey, what: &str, protocol: &str) -> Result<i32, Problem> {
        let (first, last) = (*NODE_PORTS.start(), *NODE_PORTS.end());
        let count = last - first + 1;
        let start = (hash(&[&key.namespace, &key.name, what]) % u64::from(count.unsigned_abs())) as i32;
        let mut numbers = (0..count).map(|step| first + (start + step) % count);
        let number = numbers.find(|number| !self.0.contains(&(*number, protocol.to_owned())));
        let number = number.ok_or_else(|| Problem {
            kind: ObjectKind::Service,
            object: key.clone(),
            field: "spec.ports[].nodePort".into(),
            message: format!("no NodePort from {first} to {last} is left for it"),
            remedy: "remove Services of type NodePort or LoadBalancer".into(),
            reason: Reason::InvalidField,
        })?;
        self.0.insert((number, protocol.to_owned()));
        Ok(number)
    }
}

/// FNV-1a of the words, then mixed. What agents of different versions assign has to be the same: never change it.
fn hash(words: &[&str]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for word in words {
        for byte in word.bytes().chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    hash ^ (hash >> 29)
}
