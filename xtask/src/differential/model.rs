//! The objects of a round as plain data: what the generator makes, changes alter and the shrinker takes apart.
//!
//! They say what matters to a proxy and nothing else; [`super::manifest`] writes them as the API has them. Names are the
//! keys: an object that a change names may be missing, then the change does nothing, which is what lets the shrinker drop
//! anything.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Everything that both proxies are told.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Cluster {
    /// The Services.
    pub services: Vec<Service>,
    /// The EndpointSlices.
    pub slices: Vec<Slice>,
    /// The zone in the labels of the node under test.
    pub zone: Option<String>,
    /// Ranges in ServiceCIDR objects of our own, beside the API server's.
    pub service_cidrs: BTreeSet<String>,
}

/// An address family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// As the API writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// The family of an address.
    pub const fn of(addr: &IpAddr) -> Self {
        match addr {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// What is above IP.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// As the API writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

/// What a Service is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Type {
    /// With a ClusterIP only.
    ClusterIp,
    /// With NodePorts as well.
    NodePort,
    /// With addresses of a load balancer as well.
    LoadBalancer,
    /// A name for another name.
    ExternalName,
    /// Without a ClusterIP.
    Headless,
}

/// A traffic policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    /// Every endpoint of the cluster.
    Cluster,
    /// Those of the node.
    Local,
}

impl Policy {
    /// As the API writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cluster => "Cluster",
            Self::Local => "Local",
        }
    }

    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Cluster => Self::Local,
            Self::Local => Self::Cluster,
        }
    }
}

/// Namespace and name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Key {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// What it is called.
    pub key: Key,
    /// What it is.
    pub kind: Type,
    /// The value of the label `service.kubernetes.io/service-proxy-name`.
    pub proxy_name: Option<String>,
    /// Its ClusterIPs, the primary one first, one for each family that it has.
    pub cluster_ips: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<Port>,
    /// Its external IPs.
    pub external_ips: Vec<IpAddr>,
    /// Addresses of its load balancer: its status.
    pub ingress: Vec<Ingress>,
    /// Who may use those, as written.
    pub source_ranges: Vec<String>,
    /// internalTrafficPolicy.
    pub internal: Policy,
    /// externalTrafficPolicy.
    pub external: Policy,
    /// Session affinity by client address, with its timeout in seconds.
    pub affinity_s: Option<u32>,
    /// allocateLoadBalancerNodePorts is false.
    pub without_node_ports: bool,
    /// healthCheckNodePort, where it has one.
    pub health_check_node_port: u16,
}

impl Service {
    /// Whether externalTrafficPolicy may be set.
    pub fn is_externally_accessible(&self) -> bool {
        matches!(self.kind, Type::NodePort | Type::LoadBalancer)
            || (self.kind == Type::ClusterIp && !self.external_ips.is_empty())
    }

    /// Whether it has ClusterIPs.
    pub const fn has_cluster_ips(&self) -> bool {
        matches!(self.kind, Type::ClusterIp | Type::NodePort | Type::LoadBalancer)
    }
}

/// A port of a Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Port {
    /// Its name; empty if it is the only one and has none.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number.
    pub port: u16,
    /// Its NodePort, where it has one.
    pub node_port: u16,
}

/// An entry of a load balancer's status.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ingress {
    /// Its address.
    pub ip: Option<IpAddr>,
    /// Its name.
    pub hostname: Option<String>,
    /// `VIP` or `Proxy`.
    pub mode: Option<&'static str>,
}

/// An EndpointSlice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slice {
    /// What it is called.
    pub key: Key,
    /// The Service that its label names.
    pub service: Option<String>,
    /// It has the label `service.kubernetes.io/headless`.
    pub headless: bool,
    /// `IPv4`, `IPv6` or `FQDN`.
    pub address_type: &'static str,
    /// Its ports.
    pub ports: Vec<SlicePort>,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// A port of a slice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlicePort {
    /// The name of the Service's port.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number.
    pub port: Option<u16>,
}

/// An endpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// Its addresses, of which the first counts.
    pub addresses: Vec<String>,
    /// The node that it is on.
    pub node: Option<String>,
    /// The zone that it is in.
    pub zone: Option<String>,
    /// Its conditions.
    pub conditions: Conditions,
    /// Zones that should use it.
    pub for_zones: Vec<String>,
    /// Nodes that should use it.
    pub for_nodes: Vec<String>,
}

/// Conditions of an endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Conditions {
    /// It is ready.
    pub ready: Option<bool>,
    /// It serves.
    pub serving: Option<bool>,
    /// It goes away.
    pub terminating: Option<bool>,
}

impl Conditions {
    /// Those of an ordinary endpoint.
    pub const READY: Self = Self {
        ready: Some(true),
        serving: Some(true),
        terminating: Some(false),
    };
    /// Those of one that goes away and still serves.
    pub const TERMINATING: Self = Self {
        ready: Some(false),
        serving: Some(true),
        terminating: Some(true),
    };
    /// Those of one that is not ready.
    pub const NOT_READY: Self = Self {
        ready: Some(false),
        serving: Some(false),
        terminating: Some(false),
    };
}

impl Cluster {
    /// The Service of this name.
    pub fn service(&self, key: &Key) -> Option<&Service> {
        self.services.iter().find(|service| service.key == *key)
    }

    /// The slices that name this Service.
    pub fn slices_of<'a>(&'a self, key: &'a Key) -> impl Iterator<Item = &'a Slice> {
        self.slices
            .iter()
            .filter(|slice| slice.key.namespace == key.namespace && slice.service.as_deref() == Some(key.name.as_str()))
    }
}
