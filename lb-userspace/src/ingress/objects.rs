//! The objects that decide where a request goes, as light structs: Ingresses, IngressClasses, Services, EndpointSlices
//! and TLS Secrets.
//!
//! They are converted once from the API's types and hold only what decides. A conversion never fails: what is wrong with
//! an object is a list of [`Problem`](crate::model::Problem)s that lives and dies with it, while everything else in it counts. The API server
//! would have refused some of it; a folder of manifests has nobody who does, so the API's own rules are checked here.

mod backend;
mod class;
mod ingress;
mod names;
mod secret;
mod service;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use backend::{BackendRef, PortRef};
pub use class::{Class, ClassName, ClassOptions};
pub use ingress::{Address, Host, Ingress, PathKind, PathRule, Rule, Tls};
pub(crate) use names::{label_behind, lower};
pub use secret::{Certificate, Secret, Unusable, Validity};
pub use service::{Endpoint, Service, ServiceKind, ServicePort, Slice};

pub(crate) use crate::model::Findings;
use crate::model::ObjectKey;

/// Everything that is known, by name.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// All Ingresses, ours or not.
    pub ingresses: BTreeMap<ObjectKey, Arc<Ingress>>,
    /// All IngressClasses, ours or not.
    pub classes: BTreeMap<ObjectKey, Arc<Class>>,
    /// All Services.
    pub services: BTreeMap<ObjectKey, Arc<Service>>,
    /// The EndpointSlices that may be needed.
    pub slices: BTreeMap<ObjectKey, Arc<Slice>>,
    /// The Secrets that may be needed.
    pub secrets: BTreeMap<ObjectKey, Arc<Secret>>,
}

#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod tests;
