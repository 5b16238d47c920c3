//! EndpointSlices.

use std::sync::Arc;

use k8s_openapi::api::discovery::v1 as api;

use super::Findings;
use crate::model::{Endpoint, EndpointSlice, Hints, IpFamily, ObjectKey, ObjectKind, SlicePort};

/// Names the Service of a slice.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// With this label, whatever its value, a slice is not for proxies.
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// When the change happened that led to this version of the slice.
const LAST_CHANGE_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";

impl From<&api::EndpointSlice> for EndpointSlice {
    fn from(object: &api::EndpointSlice) -> Self {
        let meta = &object.metadata;
        let key = ObjectKey::new(
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        );
        let mut findings = Findings::new(ObjectKind::EndpointSlice, &key);
        let family = match object.address_type.as_str() {
            "IPv4" => Some(IpFamily::V4),
            "IPv6" => Some(IpFamily::V6),
            "FQDN" => None,
            other => {
                findings.report(
                    "addressType",
                    format!("`{other}` is unknown and the slice is left out"),
                    "use IPv4 or IPv6",
                );
                None
            }
        };
        let label = |name| meta.labels.as_ref().and_then(|labels| labels.get(name));
        let service = label(SERVICE_LABEL).map(String::as_str).unwrap_or_default();
        let headless = label(HEADLESS_LABEL).is_some();
        if service.is_empty() && !headless {
            findings.report(
                format!("metadata.labels[{SERVICE_LABEL}]"),
                "it is missing, so the slice belongs to no Service and is left out",
                "set it to the name of the Service",
            );
        }
        let mut slice = Self {
            service: None,
            family: family.unwrap_or(IpFamily::V4),
            ports: Vec::new(),
            endpoints: Box::default(),
            last_change_ms: None,
            problems: Vec::new(),
            key,
        };
        if let Some(family) = family
            && !service.is_empty()
            && !headless
        {
            slice.service = Some(ObjectKey {
                namespace: slice.key.namespace.clone(),
                name: service.into(),
            });
            slice.ports = ports(object, &mut findings);
            slice.endpoints = endpoints(object, family, &mut findings);
            slice.last_change_ms = meta
                .annotations
                .as_ref()
                .and_then(|annotations| annotations.get(LAST_CHANGE_ANNOTATION))
                .and_then(|text| text.parse::<k8s_openapi::jiff::Timestamp>().ok())
                .map(k8s_openapi::jiff::Timestamp::as_millisecond);
        }
        slice.problems = findings.problems;
        slice
    }
}

fn ports(object: &api::EndpointSlice, findings: &mut Findings) -> Vec<SlicePort> {
    let mut ports = Vec::new();
    for (index, port) in object.ports.iter().flatten().enumerate() {
        let (Some(name), Some(number)) = (&port.name, port.port.filter(|number| *number != 0)) else {
            findings.report(
                format!("ports[{index}]"),
                "it has no name or no number (which means all ports) and is left out",
                "give it the name of the Service's port and a number",
            );
            continue;
        };
        let protocol = findings.protocol(|| format!("ports[{index}].protocol"), port.protocol.as_deref());
        let number = findings.port(|| format!("ports[{index}].port"), number);
        if let (Some(protocol), Some(port)) = (protocol, number) {
            ports.push(SlicePort {
                name: name.as_str().into(),
                protocol,
                port,
            });
        }
    }
    ports
}

fn endpoints(object: &api::EndpointSlice, family: IpFamily, findings: &mut Findings) -> Box<[Endpoint]> {
    let mut names = Names::default();
    let mut endpoints = Vec::with_capacity(object.endpoints.as_ref().map_or(0, Vec::len));
    for (index, endpoint) in object.endpoints.iter().flatten().enumerate() {
        let Some(text) = endpoint.addresses.first() else {
            continue;
        };
        let field = || format!("endpoints[{index}].addresses[0]");
        let Some(addr) = findings.address(field, text) else {
            continue;
        };
        if IpFamily::of(&addr) != family {
            findings.report(
                field(),
                format!("{addr} is not of the family {family} that addressType names and is left out"),
                "put it into a slice of its own family",
            );
            continue;
        }
        let conditions = endpoint.conditions.as_ref();
        endpoints.push(Endpoint {
            addr,
            ready: conditions.and_then(|c| c.ready).unwrap_or(true),
            serving: conditions.and_then(|c| c.serving).unwrap_or(true),
            terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
            node: endpoint
                .node_name
                .as_deref()
                .filter(|name| !name.is_empty())
                .map(|name| names.name(name)),
            hints: endpoint.hints.as_ref().and_then(|hints| names.hints(hints)),
        });
    }
    endpoints.into_boxed_slice()
}

/// The names and hints met in a slice so far: most endpoints share theirs with others.
#[derive(Default)]
struct Names {
    names: Vec<Arc<str>>,
    hints: Vec<Arc<Hints>>,
}

impl Names {
    fn name(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.names.iter().rev().find(|known| ***known == *name) {
            return known.clone();
        }
        let new: Arc<str> = name.into();
        self.names.push(new.clone());
        new
    }

    fn hints(&mut self, hints: &api::EndpointHints) -> Option<Arc<Hints>> {
        let nodes = hints
            .for_nodes
            .iter()
            .flatten()
            .map(|node| self.name(&node.name))
            .collect();
        let zones = hints
            .for_zones
            .iter()
            .flatten()
            .map(|zone| self.name(&zone.name))
            .collect();
        let hints = Hints { nodes, zones };
        if hints == Hints::default() {
            return None;
        }
        if let Some(known) = self.hints.iter().rev().find(|known| ***known == hints) {
            return Some(known.clone());
        }
        let new = Arc::new(hints);
        self.hints.push(new.clone());
        Some(new)
    }
}
