//! The packet logic on the host, for tests: an environment on ordinary collections, packets in vectors, a named
//! cast of addresses, and **the scenario table**: each packet case written once, and run on the host build and on
//! the loaded object alike.
//!
//! | module | what is in it |
//! | --- | --- |
//! | [`env`] | the maps as plain data ([`World`]), and the environment on them |
//! | [`packet`] | packets at each hook |
//! | [`build`] | packets from their parts |
//! | [`sums`] | their checksums, computed once more, another way |
//! | [`cast`] | who is who: clients, nodes, Services, pods |
//! | [`flow`] | connections, and the entries that they have |
//! | [`frontends`] | frontends, as the agent would write them |
//! | [`scenario`] | what a scenario is, and its run on the host |
//! | [`scene`] | how a scenario is written |
//! | [`scenarios`] | the table |
//! | [`damage`] | scenarios with bytes changed |
//! | [`show`] | differences, readable |
#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a panic here fails a test, which is what it is for"
)]

pub mod build;
pub mod cast;
pub mod damage;
pub mod env;
pub mod flow;
pub mod frontends;
pub mod packet;
pub mod scenario;
pub mod scenarios;
pub mod scene;
pub mod show;
pub mod sums;

pub use build::Frame;
pub use cast::Cast;
pub use env::{FakeEnv, World};
pub use flow::Flow;
pub use packet::{FakePacket, Ran, run};
pub use scenario::{Expected, Input, Output, Scenario};
pub use scene::Scene;
