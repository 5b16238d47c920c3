//! Services.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as api;

use super::{Findings, range};
use crate::model::{IpFamily, ObjectKey, ObjectKind, Policy, Service, ServicePort, SourceRanges, Standing};

/// With this label a Service belongs to the proxy of that name, and to no other (KEP-2447).
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// The API's default for `sessionAffinityConfig.clientIP.timeoutSeconds`.
const AFFINITY_TIMEOUT_S: u32 = 10_800;
/// The API's largest value for it: one day.
const AFFINITY_TIMEOUT_MAX_S: u32 = 86_400;

impl From<&api::Service> for Service {
    fn from(object: &api::Service) -> Self {
        let meta = &object.metadata;
        let key = ObjectKey::new(
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        );
        let mut service = Self {
            created_s: meta.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
            proxy_name: meta
                .labels
                .as_ref()
                .and_then(|labels| labels.get(PROXY_NAME_LABEL))
                .map(|name| name.as_str().into()),
            standing: Standing::Headless,
            cluster_ips: Vec::new(),
            external_ips: Vec::new(),
            load_balancer_ips: Vec::new(),
            source_ranges: SourceRanges::default(),
            internal_policy: Policy::Cluster,
            external_policy: Policy::Cluster,
            affinity_timeout_s: None,
            health_check_node_port: 0,
            ports: Vec::new(),
            problems: Vec::new(),
            key,
        };
        let Some(spec) = &object.spec else {
            return service;
        };
        let mut findings = Findings::new(ObjectKind::Service, &service.key);
        service.standing = if spec.type_.as_deref() == Some("ExternalName") {
            Standing::ExternalName
        } else {
            service.cluster_ips = cluster_ips(spec, &mut findings);
            if service.cluster_ips.is_empty() {
                Standing::Headless
            } else {
                Standing::Served
            }
        };
        if service.standing == Standing::Served {
            let load_balancer = spec.type_.as_deref() == Some("LoadBalancer");
            service.external_ips = external_ips(spec, &mut findings);
            if load_balancer {
                service.load_balancer_ips = load_balancer_ips(object, &mut findings);
                service.source_ranges = source_ranges(spec, &mut findings);
            }
            service.internal_policy = policy(
                "internalTrafficPolicy",
                spec.internal_traffic_policy.as_deref(),
                &mut findings,
            );
            service.external_policy = policy(
                "externalTrafficPolicy",
                spec.external_traffic_policy.as_deref(),
                &mut findings,
            );
            service.affinity_timeout_s = affinity(spec, &mut findings);
            if load_balancer && service.external_policy == Policy::Local {
                service.health_check_node_port = match spec.health_check_node_port.unwrap_or(0) {
                    0 => 0,
                    port => findings.port(|| "spec.healthCheckNodePort".into(), port).unwrap_or(0),
                };
            }
            service.ports = ports(spec, &mut findings);
        }
        service.problems = findings.problems;
        service
    }
}

/// The ClusterIP of each family: the address whose place in `clusterIPs` is that of the family in `ipFamilies`.
fn cluster_ips(spec: &api::ServiceSpec, findings: &mut Findings) -> Vec<IpAddr> {
    let single = spec.cluster_ip.as_deref().unwrap_or_default();
    let texts: Vec<&str> = match spec.cluster_ips.as_deref() {
        Some(list) if !list.is_empty() => list.iter().map(String::as_str).collect(),
        _ => vec![single],
    };
    let families: Vec<&str> = spec.ip_families.iter().flatten().map(String::as_str).collect();
    let mut addrs: Vec<IpAddr> = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        if text.is_empty() || *text == "None" {
            continue;
        }
        let field = || format!("spec.clusterIPs[{index}]");
        let Some(addr) = findings.address(field, text) else {
            continue;
        };
        let family = IpFamily::of(&addr);
        if families
            .get(index)
            .map_or(!families.is_empty(), |name| *name != family.to_string())
        {
            findings.report(
                field(),
                format!("{addr} is not of the family that spec.ipFamilies has in its place and is left out"),
                "list addresses and families in the same order",
            );
        } else if addrs.iter().any(|other| IpFamily::of(other) == family) {
            findings.report(
                field(),
                format!("{addr} is the second {family} address and is left out"),
                "give at most one address of each family",
            );
        } else {
            addrs.push(addr);
        }
    }
    addrs
}

fn external_ips(spec: &api::ServiceSpec, findings: &mut Findings) -> Vec<IpAddr> {
    let mut addrs = Vec::new();
    for (index, text) in spec.external_ips.iter().flatten().enumerate() {
        if let Some(addr) = findings.address(|| format!("spec.externalIPs[{index}]"), text)
            && !addrs.contains(&addr)
        {
            addrs.push(addr);
        }
    }
    addrs
}

/// The addresses in the status but for those of mode `Proxy`, to which traffic is to leave the node (KEP-1860).
fn load_balancer_ips(object: &api::Service, findings: &mut Findings) -> Vec<IpAddr> {
    let status = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let mut addrs = Vec::new();
    for (index, entry) in status.iter().flat_map(|lb| lb.ingress.iter().flatten()).enumerate() {
        let Some(text) = entry.ip.as_deref().filter(|text| !text.is_empty()) else {
            continue;
        };
        if entry.ip_mode.as_deref().is_some_and(|mode| mode != "VIP") {
            continue;
        }
        if let Some(addr) = findings.address(|| format!("status.loadBalancer.ingress[{index}].ip"), text)
            && !addrs.contains(&addr)
        {
            addrs.push(addr);
        }
    }
    addrs
}

fn source_ranges(spec: &api::ServiceSpec, findings: &mut Findings) -> SourceRanges {
    let mut ranges = SourceRanges::default();
    for (index, text) in spec.load_balancer_source_ranges.iter().flatten().enumerate() {
        if let Some(net) = range(text) {
            if !ranges.nets.contains(&net) {
                ranges.nets.push(net);
            }
        } else {
            ranges.unreadable = true;
            findings.report(
                format!("spec.loadBalancerSourceRanges[{index}]"),
                format!("`{text}` is not a range of addresses and lets nobody in"),
                "write it as an address, a slash and a prefix length",
            );
        }
    }
    ranges
}

fn policy(field: &str, value: Option<&str>, findings: &mut Findings) -> Policy {
    match value {
        None | Some("" | "Cluster") => Policy::Cluster,
        Some("Local") => Policy::Local,
        Some(other) => {
            findings.report(
                format!("spec.{field}"),
                format!("`{other}` is unknown and taken for Cluster"),
                "use Cluster or Local",
            );
            Policy::Cluster
        }
    }
}

fn affinity(spec: &api::ServiceSpec, findings: &mut Findings) -> Option<u32> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return None,
        Some("ClientIP") => {}
        Some(other) => {
            findings.report(
                "spec.sessionAffinity",
                format!("`{other}` is unknown and taken for None"),
                "use ClientIP or None",
            );
            return None;
        }
    }
    let config = spec.session_affinity_config.as_ref();
    let timeout = config
        .and_then(|c| c.client_ip.as_ref())
        .and_then(|c| c.timeout_seconds);
    let Some(timeout) = timeout else {
        return Some(AFFINITY_TIMEOUT_S);
    };
    match u32::try_from(timeout) {
        Ok(seconds) if (1..=AFFINITY_TIMEOUT_MAX_S).contains(&seconds) => Some(seconds),
        _ => {
            findings.report(
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
                format!("{timeout} is out of range and {AFFINITY_TIMEOUT_S} is taken"),
                format!("use a number from 1 to {AFFINITY_TIMEOUT_MAX_S}"),
            );
            Some(AFFINITY_TIMEOUT_S)
        }
    }
}

fn ports(spec: &api::ServiceSpec, findings: &mut Findings) -> Vec<ServicePort> {
    let mut ports: Vec<ServicePort> = Vec::new();
    for (index, port) in spec.ports.iter().flatten().enumerate() {
        let protocol = findings.protocol(|| format!("spec.ports[{index}].protocol"), port.protocol.as_deref());
        let number = findings.port(|| format!("spec.ports[{index}].port"), port.port);
        let (Some(protocol), Some(number)) = (protocol, number) else {
            continue;
        };
        let node_port = match port.node_port.unwrap_or(0) {
            0 => 0,
            number => findings
                .port(|| format!("spec.ports[{index}].nodePort"), number)
                .unwrap_or(0),
        };
        let name = port.name.as_deref().unwrap_or_default();
        if ports.iter().any(|p| p.protocol == protocol && p.port == number) {
            findings.report(
                format!("spec.ports[{index}]"),
                format!("port {number}/{protocol} is there twice and the second is left out"),
                "remove one of them",
            );
            continue;
        }
        if ports.iter().any(|p| *p.name == *name && p.protocol == protocol) {
            findings.report(
                format!("spec.ports[{index}].name"),
                format!("the name `{name}` is there twice and the second port is left out"),
                "give each port a name of its own",
            );
            continue;
        }
        ports.push(ServicePort {
            name: name.into(),
            protocol,
            port: number,
            node_port,
        });
    }
    ports
}
