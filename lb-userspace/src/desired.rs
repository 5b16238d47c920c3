//! What the data path should do, from objects alone: pure functions, one Service at a time.
//!
//! `desired()` answers every question of policy, topology, readiness and address for one Service:
//! its result depends on that Service, its slices and the [`NodeState`] only.

pub mod node;

pub use node::{LocalAddresses, LocalPods, NodePortAddresses, NodeState, Settings};
