//! The parts of xtask that tests use too: the [`lab`], the [`world`] of one node, and the [`conformance`] of that
//! node's proxy to cases.

pub mod conformance;
pub mod lab;
pub mod world;
