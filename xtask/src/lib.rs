//! The parts of xtask that tests use too: the [`lab`], the [`world`] of one node, the [`conformance`] of that node's
//! proxy to cases, how it differs from kube-proxy ([`differential`]), and [`ports`] to listen on.

pub mod conformance;
pub mod differential;
pub mod lab;
pub mod ports;
pub mod world;
