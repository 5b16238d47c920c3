//! What `desired` has to know of the node.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use lb_common::abi::Config;

use crate::model::{IpFamily, Node};

/// The node that the agent runs on.
#[derive(Clone, PartialEq, Debug)]
pub struct NodeState {
    /// What was set when the agent was started.
    pub settings: Settings,
    /// The addresses of the node's devices.
    pub local: LocalAddresses,
    /// The Node object.
    pub object: Option<Node>,
    /// The ranges in the cluster's ServiceCIDR objects, if these can be read.
    pub service_cidrs: Option<Vec<IpNet>>,
}

/// What is set when the agent is started.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Settings {
    /// The node's name.
    pub node_name: Arc<str>,
    /// The name under which Services are given to this proxy; `None`: those that are given to none are ours.
    pub proxy_name: Option<Arc<str>>,
    /// How pods of this node are told from other clients.
    pub local_pods: LocalPods,
    /// On which of the node's addresses NodePorts are served.
    pub node_port_addresses: NodePortAddresses,
    /// The ranges that ClusterIPs are taken from; addresses in them that no Service owns are dropped. Used unless
    /// [`NodeState::service_cidrs`] are known.
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
    /// By the devices that they come in by, whose names begin with one of these.
    Interfaces(Vec<String>),
    /// By the bridge that they come in by.
    Bridge(String),
}

impl LocalPods {
    /// Whether pods are known by devices, not by addresses.
    pub fn by_device(&self) -> bool {
        matches!(self, Self::Interfaces(_) | Self::Bridge(_))
    }
}

/// On which of the node's addresses NodePorts are served.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum NodePortAddresses {
    /// On the primary address of each family.
    #[default]
    Primary,
    /// On all local addresses within these ranges, loopback and link-local ones excepted. If no range is of a family, on all of the
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

/// What follows from the [`NodeState`], worked out once for all Services.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeView {
    /// The node's name.
    pub name: Arc<str>,
    /// The name under which Services are given to this proxy.
    pub proxy_name: Option<Arc<str>>,
    /// The node's zone; without one, hints for zones are ignored.
    pub zone: Option<Arc<str>>,
    /// All addresses of the node but loopback and link-local ones. (Every pod's device brings a link-local one; they
    /// lead to no Service.)
    pub addresses: HashSet<IpAddr>,
    /// The address of each family that the node is known by.
    pub primary: Vec<IpAddr>,
    /// The addresses on which NodePorts are served, in their order.
    pub node_port_addresses: Vec<IpAddr>,
    /// The ranges by which local pods are told from other clients.
    pub pod_cidrs: Vec<IpNet>,
    /// Local pods are told from other clients by their devices.
    pub pods_by_device: bool,
    /// The ranges that ClusterIPs are taken from.
    pub service_cidrs: Vec<IpNet>,
    /// Masquerade every connection to a ClusterIP.
    pub masquerade_all: bool,
}

impl NodeView {
    /// Works out what follows from this state.
    pub fn new(state: &NodeState) -> Self {
        let object = state.object.as_ref();
        let settings = &state.settings;
        let addresses: HashSet<IpAddr> = state.local.all.iter().filter(|addr| counts(addr)).copied().collect();
        let primary: Vec<IpAddr> = IpFamily::ALL
            .iter()
            .filter_map(|family| primary(state, *family))
            .collect();
        let pod_cidrs = match &settings.local_pods {
            LocalPods::Unknown | LocalPods::Interfaces(_) | LocalPods::Bridge(_) => Vec::new(),
            LocalPods::Cidrs(cidrs) => cidrs.clone(),
            LocalPods::OfNodeObject => object.map(|node| node.pod_cidrs.clone()).unwrap_or_default(),
        };
        let mut node_port_addresses: Vec<IpAddr> = match &settings.node_port_addresses {
            NodePortAddresses::Primary => primary.clone(),
            NodePortAddresses::Within(nets) => {
                let within = addresses.iter().filter(|addr| serves_node_ports(addr, nets));
                within.copied().collect()
            }
        };
        node_port_addresses.sort_unstable();
        Self {
            name: settings.node_name.clone(),
            proxy_name: settings.proxy_name.clone(),
            zone: object.and_then(|node| node.zone.clone()),
            addresses,
            primary,
            node_port_addresses,
            pod_cidrs,
            pods_by_device: settings.local_pods.by_device(),
            service_cidrs: state.service_cidrs.as_ref().unwrap_or(&settings.service_cidrs).clone(),
            masquerade_all: settings.masquerade_all,
        }
    }

    /// Whether the address is one of this node's.
    pub fn has_address(&self, addr: &IpAddr) -> bool {
        self.addresses.contains(addr) || self.primary.contains(addr)
    }

    /// Whether pods of this node can be told from other clients.
    pub fn tells_pods(&self, family: IpFamily) -> bool {
        self.pods_by_device || self.pod_cidrs.iter().any(|net| IpFamily::of(&net.addr()) == family)
    }
}

/// The address of the family that the node is known by: what the Node object says comes first.
fn primary(state: &NodeState, family: IpFamily) -> Option<IpAddr> {
    let listed = state.object.iter().flat_map(|node| &node.addresses);
    let found = listed
        .chain(&state.local.primary)
        .find(|addr| IpFamily::of(addr) == family);
    found.copied()
}

fn counts(addr: &IpAddr) -> bool {
    !addr.is_loopback() && !matches!(addr, IpAddr::V6(addr) if addr.is_unicast_link_local())
}

/// Ranges of one family say nothing about the other, of which then every address serves.
fn serves_node_ports(addr: &IpAddr, nets: &[IpNet]) -> bool {
    let family = IpFamily::of(addr);
    let mut of_family = nets.iter().filter(|net| IpFamily::of(&net.addr()) == family).peekable();
    of_family.peek().is_none() || of_family.any(|net| net.contains(addr))
}
