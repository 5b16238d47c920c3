//! Where objects come from: the Kubernetes API, or a folder of manifests.
//!
//! A source is a task that sends [`Event`]s. Nothing is programmed before it has sent one complete list of Services
//! and one of EndpointSlices. A source that loses its origin simply sends nothing more: the last state stays.

pub mod kube;
pub mod manifests;

use ipnet::IpNet;

use crate::model::{EndpointSlice, Node, ObjectKey, Pool, Problem, Service};

/// What a source tells the control plane.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// All Services there are; those not in the list are gone.
    Services(Vec<Service>),
    /// All EndpointSlices there are; those not in the list are gone.
    EndpointSlices(Vec<EndpointSlice>),
    /// The own Node; `None` = it does not exist.
    Node(Option<Node>),
    /// The ranges of all ServiceCIDR objects; `None` = they cannot be read.
    ServiceCidrs(Option<Vec<IpNet>>),
    /// All AddressPools there are; none where they cannot be read.
    Pools(Vec<Pool>),
    /// A Service was added or changed.
    Service(Service),
    /// A Service is gone.
    ServiceGone(ObjectKey),
    /// An EndpointSlice was added or changed.
    EndpointSlice(EndpointSlice),
    /// An EndpointSlice is gone.
    EndpointSliceGone(ObjectKey),
    /// All that is wrong at the origin itself (files that cannot be read), in place of what was said before.
    Problems(Vec<Problem>),
}
