//! The own Node.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::Problem;

/// The Node object of the node that the agent runs on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Its name.
    pub name: Arc<str>,
    /// Its zone (label `topology.kubernetes.io/zone`).
    pub zone: Option<Arc<str>>,
    /// Its addresses: internal ones first, then external ones, each in the order of the object.
    pub addresses: Vec<IpAddr>,
    /// The ranges of its pods' addresses.
    pub pod_cidrs: Vec<IpNet>,
    /// It is being deleted, or the cluster autoscaler is about to: load balancers should turn away.
    pub leaving: bool,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}
