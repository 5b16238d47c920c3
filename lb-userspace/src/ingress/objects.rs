//! The objects that decide where a request goes, as light structs: Ingresses, IngressClasses, Services, EndpointSlices
//! and TLS Secrets.
//!
//! They are converted once from the API's types and hold only what decides. A conversion never fails: what is wrong with
//! an object is a list of [`Problem`]s that lives and dies with it, while everything else in it counts. The API server
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

use crate::model::{ObjectKey, ObjectKind, Problem, Reason};

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

/// Gathers what is wrong with one object.
#[derive(Debug)]
pub(crate) struct Findings {
    kind: ObjectKind,
    object: ObjectKey,
    pub(crate) problems: Vec<Problem>,
}

impl Findings {
    pub(crate) fn new(kind: ObjectKind, object: &ObjectKey) -> Self {
        Self {
            kind,
            object: object.clone(),
            problems: Vec::new(),
        }
    }

    /// A field that says what cannot be served.
    pub(crate) fn report(&mut self, field: impl Into<String>, message: impl Into<String>, remedy: impl Into<String>) {
        self.report_as(Reason::InvalidField, field, message, remedy);
    }

    pub(crate) fn report_as(
        &mut self,
        reason: Reason,
        field: impl Into<String>,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.problems.push(Problem {
            kind: self.kind,
            object: self.object.clone(),
            field: field.into(),
            message: message.into(),
            remedy: remedy.into(),
            reason,
        });
    }
}

#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod tests;
