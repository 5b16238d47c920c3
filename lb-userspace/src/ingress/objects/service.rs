//! Services and their endpoints, as far as a proxy needs them.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;

use super::Address;
use crate::model::ObjectKey;

/// Names the Service of a slice.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// A Service. Only its TCP ports can be backends of an Ingress.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// Namespace and name.
    pub key: ObjectKey,
    /// Where it is reached.
    pub kind: ServiceKind,
    /// Its TCP ports.
    pub ports: Box<[ServicePort]>,
    /// Where its clients reach it: at its load balancer's addresses, else its external IPs, else, if it is for nobody
    /// outside, its ClusterIPs.
    pub addresses: Box<[Address]>,
}

/// Where a Service is reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ServiceKind {
    /// At its ClusterIPs, that of its first family first.
    ClusterIps(Box<[IpAddr]>),
    /// At its endpoints only.
    Headless,
    /// It is a name for something else.
    ExternalName,
}

/// A TCP port of a Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePort {
    /// Its name; empty if it has none.
    pub name: Arc<str>,
    /// Its number.
    pub port: u16,
    /// What is spoken there, as its owner says (KEP-1507).
    pub app_protocol: Option<Arc<str>>,
}

impl From<&core::Service> for Service {
    fn from(object: &core::Service) -> Self {
        let meta = &object.metadata;
        let spec = object.spec.as_ref();
        let listed = spec.into_iter().flat_map(|spec| spec.cluster_ips.iter().flatten());
        let mut cluster_ips: Vec<IpAddr> = listed.filter_map(|text| text.parse().ok()).collect();
        if cluster_ips.is_empty() {
            let single = spec.and_then(|spec| spec.cluster_ip.as_deref());
            cluster_ips.extend(single.and_then(|text| text.parse::<IpAddr>().ok()));
        }
        let kind = if spec.and_then(|spec| spec.type_.as_deref()) == Some("ExternalName") {
            ServiceKind::ExternalName
        } else if cluster_ips.is_empty() {
            ServiceKind::Headless
        } else {
            ServiceKind::ClusterIps(cluster_ips.into())
        };
        Self {
            key: ObjectKey::new(
                meta.namespace.as_deref().unwrap_or_default(),
                meta.name.as_deref().unwrap_or_default(),
            ),
            ports: spec.map(ports).unwrap_or_default(),
            addresses: addresses(object, &kind),
            kind,
        }
    }
}

fn ports(spec: &core::ServiceSpec) -> Box<[ServicePort]> {
    let ports = spec.ports.iter().flatten();
    let tcp = ports.filter(|port| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP"));
    tcp.filter_map(|port| {
        Some(ServicePort {
            name: port.name.as_deref().unwrap_or_default().into(),
            port: u16::try_from(port.port).ok().filter(|port| *port > 0)?,
            app_protocol: port.app_protocol.as_deref().map(Into::into),
        })
    })
    .collect()
}

fn addresses(object: &core::Service, kind: &ServiceKind) -> Box<[Address]> {
    let status = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let entries = status.into_iter().flat_map(|status| status.ingress.iter().flatten());
    let mut addresses: Vec<Address> = entries
        .filter_map(|entry| Address::read(entry.ip.as_deref(), entry.hostname.as_deref()))
        .collect();
    let spec = object.spec.as_ref();
    if addresses.is_empty() {
        let external = spec.into_iter().flat_map(|spec| spec.external_ips.iter().flatten());
        addresses.extend(external.filter_map(|ip| Address::read(Some(ip), None)));
    }
    let of_cluster = spec.is_some_and(|spec| matches!(spec.type_.as_deref(), None | Some("ClusterIP")));
    if let ServiceKind::ClusterIps(ips) = kind
        && addresses.is_empty()
        && of_cluster
    {
        addresses.extend(ips.iter().copied().map(Address::Ip));
    }
    addresses.into()
}

/// An EndpointSlice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slice {
    /// Namespace and name.
    pub key: ObjectKey,
    /// The Service that it belongs to.
    pub service: ObjectKey,
    /// The names and numbers of its TCP ports.
    pub ports: Box<[(Arc<str>, u16)]>,
    /// Its endpoints that may be used.
    pub endpoints: Box<[Endpoint]>,
}

/// An endpoint that may be used.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Endpoint {
    /// Its address.
    pub addr: IpAddr,
    /// It is going away but still serves: to be used if no endpoint is ready (KEP-1669).
    pub terminating: bool,
}

impl From<&discovery::EndpointSlice> for Slice {
    fn from(object: &discovery::EndpointSlice) -> Self {
        let meta = &object.metadata;
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let service = meta.labels.as_ref().and_then(|labels| labels.get(SERVICE_LABEL));
        let ports = object.ports.iter().flatten();
        let tcp = ports.filter(|port| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP"));
        Self {
            key: ObjectKey::new(namespace, meta.name.as_deref().unwrap_or_default()),
            service: ObjectKey::new(namespace, service.map(String::as_str).unwrap_or_default()),
            ports: tcp
                .filter_map(|port| {
                    let number = u16::try_from(port.port?).ok().filter(|number| *number > 0)?;
                    Some((port.name.as_deref().unwrap_or_default().into(), number))
                })
                .collect(),
            endpoints: object.endpoints.iter().flatten().filter_map(endpoint).collect(),
        }
    }
}

/// The endpoint, if it may be used. Addresses that are names, of slices of type FQDN, may not.
fn endpoint(object: &discovery::Endpoint) -> Option<Endpoint> {
    let addr = object.addresses.first()?.parse::<IpAddr>().ok()?.to_canonical();
    let conditions = object.conditions.as_ref();
    let ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
    let serving = conditions.and_then(|conditions| conditions.serving).unwrap_or(true);
    let terminating = conditions
        .and_then(|conditions| conditions.terminating)
        .unwrap_or(false);
    let usable = ready || (serving && terminating);
    usable.then_some(Endpoint {
        addr,
        terminating: !ready,
    })
}
