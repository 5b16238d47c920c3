//! A Service.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{IpFamily, ObjectKey, Problem, Protocol};

/// A Service, as far as it decides about traffic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// Namespace and name.
    pub key: ObjectKey,
    /// When it was created, Unix seconds. Where two Services claim one address and port, the older one has it.
    pub created_s: i64,
    /// The proxy that it is given to by the label `service.kubernetes.io/service-proxy-name`; `None` = the cluster's
    /// default one.
    pub proxy_name: Option<Arc<str>>,
    /// Whether there is anything to serve.
    pub standing: Standing,
    /// Its ClusterIPs, at most one of each family. A family without one is a family without the Service.
    pub cluster_ips: Vec<IpAddr>,
    /// Its external IPs.
    pub external_ips: Vec<IpAddr>,
    /// Load balancer addresses that are served here: those in its status whose mode is not `Proxy`.
    pub load_balancer_ips: Vec<IpAddr>,
    /// Who may come to the load balancer addresses.
    pub source_ranges: SourceRanges,
    /// For ClusterIPs.
    pub internal_policy: Policy,
    /// For NodePorts, load balancer addresses and external IPs.
    pub external_policy: Policy,
    /// Session affinity by client address, with its timeout in seconds.
    pub affinity_timeout_s: Option<u32>,
    /// Port on which the number of local endpoints is told to load balancers; 0 = none.
    pub health_check_node_port: u16,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

/// Whether a Service has anything to serve, and if not, why.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Standing {
    /// It is served.
    Served,
    /// It has no ClusterIP.
    Headless,
    /// It is only a name.
    ExternalName,
}

/// Which endpoints may be chosen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Policy {
    /// Those of the whole cluster.
    #[default]
    Cluster,
    /// Those on this node only.
    Local,
}

/// A port of a Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePort {
    /// Its name; empty if it has none.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number on ClusterIPs, load balancer addresses and external IPs.
    pub port: u16,
    /// Its number on the node's addresses; 0 = none.
    pub node_port: u16,
}

/// The field `loadBalancerSourceRanges`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SourceRanges {
    /// The ranges that could be read.
    pub nets: Vec<IpNet>,
    /// Some range could not be read. It may have been of either family, so both are then restricted to `nets`:
    /// a misspelt range must not open what it was to close.
    pub unreadable: bool,
}

impl SourceRanges {
    /// Whether clients of this family are restricted. Ranges of one family leave the other open, as kube-proxy
    /// has it.
    pub fn restrict(&self, family: IpFamily) -> bool {
        self.unreadable || self.nets.iter().any(|net| IpFamily::of(&net.addr()) == family)
    }
}
