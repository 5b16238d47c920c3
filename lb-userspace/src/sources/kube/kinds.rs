//! The kinds that are followed: what is asked for, and what becomes of it.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as api;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use kube::Resource;
use kube::runtime::watcher;
use serde::de::DeserializeOwned;

use super::Event;
use crate::ipam::pool::AddressPool;
use crate::model::{EndpointSlice, Node, Pool, Service, ServiceCidr, ranges_of};

/// Gives a Service to the proxy of that name (KEP-2447).
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Marks the slices of a headless Service.
const HEADLESS: &str = "service.kubernetes.io/headless";

/// A kind of objects that is followed.
pub(crate) trait Kind: Send + 'static {
    /// As the API has it.
    type Object: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static;
    /// As we have it.
    type Light: Send;
    /// Name for the log.
    const NAME: &'static str;
    /// Whether one can do without: older servers do not know it, and the agent's role need not allow it.
    const OPTIONAL: bool = false;

    /// How to ask for those that count: the best way first, then ways that older servers understand; the last one is
    /// a plain list. A list that is streamed is never in memory as a whole.
    fn requests(&self) -> Vec<watcher::Config>;
    /// As we have it.
    fn light(&self, object: &Self::Object) -> Self::Light;
    /// The server does not have it, or does not show it to us. Asked of optional kinds only.
    fn unavailable(&mut self) -> Option<Event> {
        None
    }
    /// These are all.
    fn all(&mut self, list: Vec<Self::Light>) -> Option<Event>;
    /// One was added or changed.
    fn changed(&mut self, object: Self::Light) -> Option<Event>;
    /// One is gone, or does not count any more.
    fn gone(&mut self, object: Self::Light) -> Option<Event>;
}

/// Services but for headless ones and those of another proxy.
pub(super) struct Services {
    /// The name under which Services are given to us; `None`: ours are those that are given to no proxy.
    pub(super) proxy_name: Option<Arc<str>>,
}

impl Kind for Services {
    type Object = api::Service;
    type Light = Service;
    const NAME: &'static str = "Services";

    fn requests(&self) -> Vec<watcher::Config> {
        let all = watcher::Config::default().labels(&match &self.proxy_name {
            Some(name) => format!("{PROXY_NAME}={name}"),
            None => format!("!{PROXY_NAME}"),
        });
        // Servers before 1.32 cannot select by this field; `desired` leaves headless Services out as well.
        let selected = all.clone().fields("spec.clusterIP!=None");
        vec![selected.clone().streaming_lists(), selected, all]
    }

    fn light(&self, object: &api::Service) -> Service {
        Service::from(object)
    }

    fn all(&mut self, list: Vec<Service>) -> Option<Event> {
        Some(Event::Services(list))
    }

    fn changed(&mut self, object: Service) -> Option<Event> {
        Some(Event::Service(object))
    }

    fn gone(&mut self, object: Service) -> Option<Event> {
        Some(Event::ServiceGone(object.key))
    }
}

/// EndpointSlices but for those of headless Services.
pub(super) struct EndpointSlices;

impl Kind for EndpointSlices {
    type Object = discovery::EndpointSlice;
    type Light = EndpointSlice;
    const NAME: &'static str = "EndpointSlices";

    fn requests(&self) -> Vec<watcher::Config> {
        let all = watcher::Config::default().labels(&format!("!{HEADLESS}"));
        vec![all.clone().streaming_lists(), all]
    }

    fn light(&self, object: &discovery::EndpointSlice) -> EndpointSlice {
        EndpointSlice::from(object)
    }

    fn all(&mut self, list: Vec<EndpointSlice>) -> Option<Event> {
        Some(Event::EndpointSlices(list))
    }

    fn changed(&mut self, object: EndpointSlice) -> Option<Event> {
        Some(Event::EndpointSlice(object))
    }

    fn gone(&mut self, object: EndpointSlice) -> Option<Event> {
        Some(Event::EndpointSliceGone(object.key))
    }
}

/// The Node with this name.
///
/// A kubelet writes its Node's status every few minutes at least; what changes nothing for us is not news.
pub(super) struct OwnNode {
    name: Arc<str>,
    told: Option<Option<Node>>,
}

impl OwnNode {
    /// The Node with this name.
    pub(super) fn new(name: Arc<str>) -> Self {
        Self { name, told: None }
    }

    fn tell(&mut self, node: Option<Node>) -> Option<Event> {
        if self.told.as_ref() == Some(&node) {
            return None;
        }
        self.told = Some(node.clone());
        Some(Event::Node(node))
    }
}

impl Kind for OwnNode {
    type Object = api::Node;
    type Light = Node;
    const NAME: &'static str = "Node";

    fn requests(&self) -> Vec<watcher::Config> {
        vec![watcher::Config::default().fields(&format!("metadata.name={}", self.name))]
    }

    fn light(&self, object: &api::Node) -> Node {
        Node::from(object)
    }

    fn all(&mut self, list: Vec<Node>) -> Option<Event> {
        self.tell(list.into_iter().next())
    }

    fn changed(&mut self, object: Node) -> Option<Event> {
        self.tell(Some(object))
    }

    fn gone(&mut self, _object: Node) -> Option<Event> {
        self.tell(None)
    }
}

/// The ranges that ClusterIPs are taken from (served from 1.33 on).
#[derive(Default)]
pub(super) struct ServiceCidrs {
    known: BTreeMap<Arc<str>, ServiceCidr>,
}

impl ServiceCidrs {
    fn tell(&self) -> Option<Event> {
        Some(Event::ServiceCidrs(Some(ranges_of(self.known.values()))))
    }
}

impl Kind for ServiceCidrs {
    type Object = networking::ServiceCIDR;
    type Light = ServiceCidr;
    const NAME: &'static str = "ServiceCIDRs";
    const OPTIONAL: bool = true;

    fn requests(&self) -> Vec<watcher::Config> {
        vec![watcher::Config::default()]
    }

    fn light(&self, object: &networking::ServiceCIDR) -> ServiceCidr {
        ServiceCidr::from(object)
    }

    fn unavailable(&mut self) -> Option<Event> {
        self.known.clear();
        Some(Event::ServiceCidrs(None))
    }

    fn all(&mut self, list: Vec<ServiceCidr>) -> Option<Event> {
        self.known = list.into_iter().map(|object| (object.name.clone(), object)).collect();
        self.tell()
    }

    fn changed(&mut self, object: ServiceCidr) -> Option<Event> {
        self.known.insert(object.name.clone(), object);
        self.tell()
    }

    fn gone(&mut self, object: ServiceCidr) -> Option<Event> {
        self.known.remove(&object.name);
        self.tell()
    }
}

/// The pools that load balancer addresses come from. Their definition need not be installed.
#[derive(Default)]
pub(super) struct Pools {
    known: BTreeMap<Arc<str>, Pool>,
}

impl Pools {
    fn tell(&self) -> Option<Event> {
        Some(Event::Pools(self.known.values().cloned().collect()))
    }
}

impl Kind for Pools {
    type Object = AddressPool;
    type Light = Pool;
    const NAME: &'static str = "AddressPools";
    const OPTIONAL: bool = true;

    fn requests(&self) -> Vec<watcher::Config> {
        vec![watcher::Config::default()]
    }

    fn light(&self, object: &AddressPool) -> Pool {
        Pool::from(object)
    }

    fn unavailable(&mut self) -> Option<Event> {
        self.known.clear();
        self.tell()
    }

    fn all(&mut self, list: Vec<Pool>) -> Option<Event> {
        self.known = list.into_iter().map(|object| (object.name.clone(), object)).collect();
        self.tell()
    }

    fn changed(&mut self, object: Pool) -> Option<Event> {
        self.known.insert(object.name.clone(), object);
        self.tell()
    }

    fn gone(&mut self, object: Pool) -> Option<Event> {
        self.known.remove(&object.name);
        self.tell()
    }
}
