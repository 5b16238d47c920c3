//! The parts of xtask that tests use too: the [`lab`], the [`world`] of one node, the [`conformance`] of that node's
//! proxy to cases, and how it differs from kube-proxy ([`differential`]).

pub mod conformance;
pub mod differential;
pub mod lab;
pub mod world;
