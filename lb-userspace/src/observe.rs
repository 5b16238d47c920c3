//! What the agent shows of itself: its state over a socket, and views of the maps for people and programs.
//!
//! Views are read from the pinned maps, so they work without the agent. What the maps do not hold (names of Services,
//! what is attached how, what is wrong) is asked of the agent.

pub mod announcements;
pub mod flows;
pub mod metrics;
pub mod services;
pub mod state;
pub mod status;
mod table;
