//! What `desired` has to know of the node.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use lb_common::abi::Config;

use crate::model::Node;

/// The node that the agent runs on.
#[derive(Clone, PartialEq, Debug)]
pub struct NodeState {
    /// What was set when the agent was started.
    pub settings: Settings,
    /// The addresses of the node's devices.
    pub local: LocalAddresses,
    /// The Node object.
    pub object: Option<Node>,
}

/// What is set when the agent is started.
#[derive(Clone, PartialEq, Debug)]
pub struct Settings {
    /// The node's name.
    pub node_name: Arc<str>,
    /// How pods of this node are told from other clients.
    pub local_pods: LocalPods,
    /// On which of the node's addresses NodePorts are served.
    pub node_port_addresses: NodePortAddresses,
    /// The ranges that ClusterIPs are taken from; addresses in them that no Service owns are dropped.
    pub service_cidrs: Vec<IpNet>,
    /// Masquerade every connection to a ClusterIP.
    pub masquerade_all: bool,
    /// The part of `CONFIG` that does not come from objects.
    pub datapath: Config,
}

/// How pods of this node are told from other clients.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum LocalPods {
    /// They are not: connections to ClusterIPs keep their source, and pods are external clients.
    #[default]
    Unknown,
    /// By these ranges.
    Cidrs(Vec<IpNet>),
    /// By the ranges in the Node object (`spec.podCIDRs`).
    OfNodeObject,
}

/// On which of the node's addresses NodePorts are served.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum NodePortAddresses {
    /// On the primary address of each family.
    #[default]
    Primary,
    /// On all local addresses within these ranges, loopback excepted. If no range is of a family, on all of the
    /// family's.
    Within(Vec<IpNet>),
}

/// The addresses of the node's devices.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LocalAddresses {
    /// All of them, loopback included.
    pub all: Vec<IpAddr>,
    /// The one of each family that the node is known by, if the Node object does not say: the address of the device
    /// that the default route leads to.
    pub primary: Vec<IpAddr>,
}
