//! An EndpointSlice.

use std::net::IpAddr;
use std::sync::Arc;

use super::{IpFamily, ObjectKey, Problem, Protocol};

/// An EndpointSlice, as far as it decides about traffic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointSlice {
    /// Namespace and name.
    pub key: ObjectKey,
    /// The Service that it belongs to. `None`: it is not ours to use (no label says whose it is, it is marked as
    /// headless, or its addresses are names).
    pub service: Option<ObjectKey>,
    /// Family of its addresses.
    pub family: IpFamily,
    /// Its ports; each endpoint has all of them.
    pub ports: Vec<SlicePort>,
    /// Its endpoints.
    pub endpoints: Box<[Endpoint]>,
    /// When the change that led to this version happened (annotation
    /// `endpoints.kubernetes.io/last-change-trigger-time`), Unix milliseconds.
    pub last_change_ms: Option<i64>,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

/// A port of an EndpointSlice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlicePort {
    /// Its name; empty if it has none. Matched with the name of the Service's port.
    pub name: Arc<str>,
    /// Its protocol. Matched with that of the Service's port.
    pub protocol: Protocol,
    /// Its number on the endpoints.
    pub port: u16,
}

/// An endpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// Its address.
    pub addr: IpAddr,
    /// It is to have new connections.
    pub ready: bool,
    /// It can serve, whether it is terminating or not.
    pub serving: bool,
    /// It is going away.
    pub terminating: bool,
    /// The node it is on.
    pub node: Option<Arc<str>>,
    /// Who should prefer it.
    pub hints: Option<Arc<Hints>>,
}

/// Hints of an endpoint. An empty list is the same as none.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Hints {
    /// Nodes that should prefer it.
    pub nodes: Box<[Arc<str>]>,
    /// Zones that should prefer it.
    pub zones: Box<[Arc<str>]>,
}
