//! The objects that the control plane works on: Services, EndpointSlices, Nodes and ServiceCIDRs, as light structs.
//!
//! They are converted once from the API's types (`From<&k8s_openapi::...>`), and hold only what decides about
//! traffic: a slice of 100 endpoints takes a few kilobytes here and ten times that as API objects. A conversion
//! never fails. What is wrong with an object is part of the result: a list of [`Problem`]s that lives and dies
//! with the object, while everything else in it counts.

mod convert;
mod key;
mod node;
pub mod pool;
mod problem;
mod service;
mod service_cidr;
mod slice;

pub(crate) use convert::Findings;
pub use key::{IpFamily, ObjectKey, Protocol};
pub use node::Node;
pub use pool::Pool;
pub use problem::{ObjectKind, Problem, Reason, log_changes};
pub use service::{Policy, Service, ServicePort, SourceRanges, Standing};
pub use service_cidr::{ServiceCidr, ranges_of};
pub use slice::{Endpoint, EndpointSlice, Hints, SlicePort};
