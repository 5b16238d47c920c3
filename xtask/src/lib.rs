//! The parts of xtask that tests use too: the [`lab`], and the [`world`] of one node.

pub mod lab;
pub mod world;
