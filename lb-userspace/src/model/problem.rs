//! What is wrong with an object, as data.

use std::collections::BTreeSet;
use std::fmt;

use tracing::{info, warn};

use super::ObjectKey;

/// What a [`Problem`] is about.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum ObjectKind {
    /// A Service.
    Service,
    /// An EndpointSlice.
    EndpointSlice,
    /// A Node.
    Node,
    /// A ServiceCIDR.
    ServiceCidr,
    /// An AddressPool.
    AddressPool,
    /// A Namespace.
    Namespace,
    /// An Ingress.
    Ingress,
    /// An IngressClass.
    IngressClass,
    /// A Secret.
    Secret,
    /// A manifest file; its path is the name.
    File,
}

/// What a [`Problem`] comes from, in one word: the reason of the Kubernetes Event that tells of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Reason {
    /// A field says what cannot be served.
    InvalidField,
    /// Another Service has the address and port.
    AddressConflict,
    /// An address of a Service is one of this node's own.
    NodeAddress,
    /// No node may announce an address.
    NotAnnounced,
    /// An address cannot be announced by this node as it should be.
    AnnouncementFailed,
    /// A map of the data path has no room left.
    MapFull,
    /// A field asks for what is not supported.
    NotSupported,
    /// Another Ingress has the host and path, or the host's certificate.
    RuleConflict,
    /// A Service, or a port of it, does not exist.
    BackendNotFound,
    /// A certificate cannot be used, or clients will refuse it.
    BadCertificate,
    /// No pool serves a Service.
    NoPool,
    /// No pool that serves a Service has a free address.
    Exhausted,
    /// The address that a Service asks for is another's.
    RequestedAddressTaken,
    /// The address that a Service asks for is of no pool that serves it.
    RequestedAddressNotInPool,
    /// Services with one share key cannot share an address.
    SharingRefused,
    /// A Service has an address that is of no pool any more.
    AddressOutsidePools,
    /// Another controller has written the status of a Service.
    OfAnotherController,
    /// An address is in two pools.
    PoolOverlap,
    /// A health check node port cannot be listened on; kube-proxy's word.
    FailedToStartServiceHealthcheck,
    /// `/healthz` cannot be served; kube-proxy's word.
    FailedToStartProxierHealthcheck,
    /// Metrics cannot be served; kube-proxy's word.
    FailedToStartMetricServer,
}

impl Reason {
    /// As it is written, in CamelCase.
    pub const fn name(self) -> &'static str {
        match self {
            Self::InvalidField => "InvalidField",
            Self::AddressConflict => "AddressConflict",
            Self::NodeAddress => "NodeAddress",
            Self::NotAnnounced => "NotAnnounced",
            Self::AnnouncementFailed => "AnnouncementFailed",
            Self::MapFull => "MapFull",
            Self::NotSupported => "NotSupported",
            Self::RuleConflict => "RuleConflict",
            Self::BackendNotFound => "BackendNotFound",
            Self::BadCertificate => "BadCertificate",
            Self::NoPool => "NoPool",
            Self::Exhausted => "Exhausted",
            Self::RequestedAddressTaken => "RequestedAddressTaken",
            Self::RequestedAddressNotInPool => "RequestedAddressNotInPool",
            Self::SharingRefused => "SharingRefused",
            Self::AddressOutsidePools => "AddressOutsidePools",
            Self::OfAnotherController => "OfAnotherController",
            Self::PoolOverlap => "PoolOverlap",
            Self::FailedToStartServiceHealthcheck => "FailedToStartServiceHealthcheck",
            Self::FailedToStartProxierHealthcheck => "FailedToStartProxierHealthcheck",
            Self::FailedToStartMetricServer => "FailedToStartMetricServer",
        }
    }

    /// Whether it comes from this node's own state, so that other nodes need not have it.
    pub const fn of_this_node(self) -> bool {
        match self {
            Self::InvalidField
            | Self::AddressConflict
            | Self::NotAnnounced
            | Self::NotSupported
            | Self::RuleConflict
            | Self::BackendNotFound
            | Self::BadCertificate
            | Self::NoPool
            | Self::Exhausted
            | Self::RequestedAddressTaken
            | Self::RequestedAddressNotInPool
            | Self::SharingRefused
            | Self::AddressOutsidePools
            | Self::OfAnotherController
            | Self::PoolOverlap => false,
            Self::NodeAddress
            | Self::AnnouncementFailed
            | Self::MapFull
            | Self::FailedToStartServiceHealthcheck
            | Self::FailedToStartProxierHealthcheck
            | Self::FailedToStartMetricServer => true,
        }
    }
}

/// Something that is wrong with an object. The rest of the object, and all other objects, are served.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Problem {
    /// The kind of object.
    pub kind: ObjectKind,
    /// The object.
    pub object: ObjectKey,
    /// Path of the field within the object, such as `spec.ports[0].nodePort`.
    pub field: String,
    /// What is wrong and what follows from it, one sentence without a full stop.
    pub message: String,
    /// What an operator should do about it, one sentence without a full stop.
    pub remedy: String,
    /// What it comes from.
    pub reason: Reason,
}

impl Problem {
    /// Writes it into the log.
    pub fn warn(&self) {
        warn!(
            kind = %self.kind,
            object = %self.object,
            field = self.field,
            remedy = self.remedy,
            "{}",
            self.message
        );
    }
}

/// Logs the problems that are new, and those that are gone.
pub fn log_changes(before: &[Problem], now: &[Problem]) {
    let (before, now): (BTreeSet<&Problem>, BTreeSet<&Problem>) = (before.iter().collect(), now.iter().collect());
    for problem in now.difference(&before) {
        problem.warn();
    }
    for problem in before.difference(&now) {
        info!(kind = %problem.kind, object = %problem.object, field = problem.field, "no longer wrong");
    }
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
            Self::ServiceCidr => "ServiceCIDR",
            Self::AddressPool => "AddressPool",
            Self::Namespace => "Namespace",
            Self::Ingress => "Ingress",
            Self::IngressClass => "IngressClass",
            Self::Secret => "Secret",
            Self::File => "file",
        })
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}: {}: {}; {}",
            self.kind, self.object, self.field, self.message, self.remedy
        )
    }
}
