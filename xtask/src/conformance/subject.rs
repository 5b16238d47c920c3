//! What cases are tried on.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::case::{Case, Reference};
use crate::world::{Observation, Opening, Probe};

/// A node with a proxy, to which objects are fed, and what can be seen of it.
pub trait Subject {
    /// Its name on the command line.
    fn name(&self) -> &'static str;

    /// Becomes the node of this case, with its Node object and no Services.
    fn begin(&mut self, case: &Case) -> anyhow::Result<()>;

    /// Takes a change, and returns when it is in force.
    fn change(&mut self, change: &Change<'_>) -> anyhow::Result<()>;

    /// Among many clients, addresses are of one kind only if they are in the same of these ranges.
    fn tell_apart(&mut self, ranges: &[IpNet]);

    /// Lets it be so many seconds since the case began.
    fn set_time(&mut self, seconds: u32) -> anyhow::Result<()>;

    /// Opens new connections; for each probe it tells what became of each.
    fn probe(&mut self, probes: &[Probe]) -> anyhow::Result<Vec<Vec<Observation>>>;

    /// What a health check port says.
    fn health(&mut self, node_port: u16) -> anyhow::Result<HealthSeen>;

    /// Opens a connection that stays until the case ends. Its number is that of the connections before it.
    fn open(&mut self, opening: &Opening) -> anyhow::Result<Observation>;

    /// Gives up the connection that was opened last: its port is free for the next one.
    fn forget_last(&mut self) -> anyhow::Result<()>;

    /// Sends one more packet of each of these connections.
    fn ask(&mut self, flows: &[usize]) -> anyhow::Result<Vec<Observation>>;

    /// Which of these connections are known to it, if it can tell: asked before their next packet.
    fn known(&mut self, flows: &[usize]) -> anyhow::Result<Option<Vec<bool>>>;

    /// Whether stale flows may outlive a change for a moment, so that it is worth to ask again.
    fn takes_time(&self) -> bool;
}

/// Objects that go, then objects that come.
#[derive(Clone, Debug, Default)]
pub struct Change<'a> {
    /// Those that go.
    pub delete: Vec<&'a Reference>,
    /// Those that come.
    pub apply: Vec<&'a Value>,
}

/// What a health check port says.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct HealthSeen {
    /// The status; none if nothing listens.
    pub status: Option<u16>,
    /// `localEndpoints`.
    pub local_endpoints: Option<u32>,
    /// `service`, as namespace/name.
    pub service: Option<String>,
}
