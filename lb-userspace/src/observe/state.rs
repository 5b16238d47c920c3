//! The agent's state, over a Unix socket: `GET /state` gives it as JSON.

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use crate::announce::status::Announcements;
use crate::connections::Pressure;
use crate::datapath::attach::Attached;
use crate::datapath::pin::PinDir;

/// Names of Service ports, by id.
pub type Names = HashMap<u32, ServicePort>;

/// The name of a Service port.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServicePort {
    /// The Service's namespace.
    pub namespace: String,
    /// The Service's name.
    pub service: String,
    /// The port's name; empty if it has none.
    pub port: String,
}

impl std::fmt::Display for ServicePort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.service)?;
        if self.port.is_empty() {
            Ok(())
        } else {
            write!(f, ":{}", self.port)
        }
    }
}

/// What the agent tells of itself.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// Its version.
    pub version: String,
    /// The node's name.
    pub node: String,
    /// Its process.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// Where objects come from.
    pub source: String,
    /// The first complete lists have not come yet: nothing has been programmed by this agent.
    pub waiting: bool,
    /// What is attached where.
    pub devices: Vec<Attached>,
    /// The cgroup whose sockets are translated.
    pub cgroup: Option<String>,
    /// The socket programs that are attached.
    pub sockets: Vec<String>,
    /// Names of Service ports.
    pub names: Names,
    /// What is wrong.
    pub problems: Vec<String>,
    /// Connections, when they were last counted.
    pub connections: Vec<Connections>,
    /// What load balancers and probes are told.
    pub health: Health,
    /// Which addresses are announced, and by whom.
    #[serde(default)]
    pub announcements: Announcements,
}

/// What load balancers and probes are told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// What was heard of is in force, or was heard of a short while ago.
    pub healthy: bool,
    /// The node is not about to go away.
    pub node_eligible: bool,
    /// Where `/healthz` and `/livez` are answered.
    pub healthz: Option<String>,
    /// Where metrics are told.
    pub metrics: Option<String>,
    /// The health check node ports that are open.
    pub ports: Vec<HealthPort>,
}

/// A health check node port on one of the node's addresses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HealthPort {
    /// The Service's namespace.
    pub namespace: String,
    /// The Service's name.
    pub service: String,
    /// Address and port.
    pub address: String,
    /// Ready endpoints on this node in the family of the address; 200 is answered if there are any.
    pub local_endpoints: usize,
}

/// What the last pass over a connection table found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connections {
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// Connections.
    pub connections: usize,
    /// Entries of the table.
    pub entries: usize,
    /// How many it takes.
    pub capacity: u32,
    /// Connections removed since the agent started.
    pub removed: u64,
    /// Whether timeouts are shortened, since the table is filling up.
    pub pressed: bool,
}

impl Connections {
    /// Notes the pressure that the fill means.
    pub fn pressure(&self) -> Pressure {
        Pressure::of(self.entries, self.capacity)
    }
}

/// Asks of the agent's loop: it answers with its state.
pub type Request = oneshot::Sender<State>;

/// Serves the socket until the agent ends.
pub async fn serve(listener: UnixListener, requests: mpsc::Sender<Request>) {
    let state = move || {
        let requests = requests.clone();
        async move {
            let (answer, state) = oneshot::channel();
            requests
                .send(answer)
                .await
                .map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
            state.await.map(Json).map_err(|_| StatusCode::SERVICE_UNAVAILABLE)
        }
    };
    let router = Router::new().route("/state", get(state));
    if let Err(error) = axum::serve(listener, router).await {
        warn!(%error, "the agent's socket is not served any more");
    }
}

/// Asks the running agent with these pins.
///
/// # Errors
/// If there is none, or it does not answer within two seconds.
pub fn fetch(pins: &PinDir) -> io::Result<State> {
    let mut socket = UnixStream::connect(pins.socket())?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    // By HTTP/1.0 the answer comes in one piece, and ends with the connection.
    socket.write_all(b"GET /state HTTP/1.0\r\nHost: agent\r\n\r\n")?;
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer)?;
    let body = answer
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .map(|at| &answer[at + 4..]);
    let ok = answer.starts_with(b"HTTP/1.0 200") || answer.starts_with(b"HTTP/1.1 200");
    match body {
        Some(body) if ok => serde_json::from_slice(body).map_err(io::Error::from),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the agent refused")),
    }
}
