//! The node agent and the command line of Fairway.

pub mod desired;
pub mod maglev;
pub mod maps;
pub mod model;
pub mod reconcile;
pub mod sources;
