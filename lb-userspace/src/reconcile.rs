//! The control plane.
//!
//! ```text
//! sources ─► Snapshot ─ desired() ─► Desired ─ lower(ids) ─► MapContents ─┐
//! (Kubernetes API, or a folder of manifests)                              diff() ─► [Op] ─► maps
//! maps.dump() (at start, then audited again and again) ──────────────────┘
//! ```

use std::net::IpAddr;

use crate::desired::{LocalAddresses, NodeState};
use crate::maps::{Maps, MapsError};
use crate::model::{ObjectKey, Problem, Protocol};
use crate::sources::Event;

/// Tells which adjacency leads to a backend.
pub trait NextHops {
    /// Index into `ADJACENCIES` of the address's family; 0 = none known, the node's stack finds the way.
    fn adjacency(&self, backend: IpAddr) -> u32;
}

/// Knows no adjacency.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoNextHops;

impl NextHops for NoNextHops {
    fn adjacency(&self, _backend: IpAddr) -> u32 {
        0
    }
}

/// Keeps the maps equal to what the objects say.
#[derive(Debug)]
pub struct Reconciler<M: Maps, H: NextHops> {
    maps: M,
    next_hops: H,
    node: NodeState,
}

/// What a run of the loop did.
#[derive(Debug, Default)]
pub struct Report {
    /// Nothing was done, since not all objects are known yet.
    pub waiting: bool,
    /// Services that were looked at.
    pub services: usize,
    /// Changes that were carried out.
    pub ops: usize,
    /// Changes that failed. They are tried again in the next run.
    pub failures: Vec<MapsError>,
}

/// A port of a Service, as a name for people.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ServicePortName {
    /// The Service.
    pub service: ObjectKey,
    /// The name of the port; empty if it has none.
    pub port: std::sync::Arc<str>,
    /// The protocol of the port.
    pub protocol: Protocol,
}

impl<M: Maps, H: NextHops> Reconciler<M, H> {
    /// Begins with what is in the maps: ids and tables found there are used again.
    ///
    /// # Errors
    /// If a map cannot be read.
    pub fn restore(maps: M, next_hops: H, node: NodeState) -> Result<Self, MapsError> {
        Ok(Self { maps, next_hops, node })
    }

    /// Takes news of objects. Cheap: the work is done by [`Self::reconcile`].
    pub fn take(&mut self, _event: Event) {}

    /// Takes the present addresses of the node's devices.
    pub fn local_addresses_changed(&mut self, local: LocalAddresses) {
        self.node.local = local;
    }

    /// Asks [`NextHops`] again for the adjacency of every backend for which `concerned` is true.
    pub fn next_hops_changed(&mut self, _concerned: impl Fn(IpAddr) -> bool) {}

    /// Brings the maps up to date with everything taken so far.
    pub fn reconcile(&mut self) -> Report {
        Report::default()
    }

    /// Compares the maps with what they should hold, repairs them, and returns how many entries had been wrong.
    ///
    /// # Errors
    /// If a map cannot be read.
    pub fn audit(&mut self) -> Result<usize, MapsError> {
        Ok(0)
    }

    /// All that is wrong with objects at present.
    pub fn problems(&self) -> Vec<Problem> {
        Vec::new()
    }

    /// The ids of Service ports, as they stand in the maps.
    pub fn service_ports(&self) -> impl Iterator<Item = (u32, &ServicePortName)> {
        std::iter::empty()
    }

    /// The state of the node that is worked with.
    pub fn node(&self) -> &NodeState {
        &self.node
    }

    /// The maps.
    pub fn maps(&self) -> &M {
        &self.maps
    }

    /// The maps, to be written by others beside the reconciler (adjacencies).
    pub fn maps_mut(&mut self) -> &mut M {
        &mut self.maps
    }

    /// Who tells the adjacencies.
    pub fn next_hops_mut(&mut self) -> &mut H {
        &mut self.next_hops
    }
}
