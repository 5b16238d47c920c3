//! The part of xtask that tests use too: the [`lab`].

pub mod lab;
