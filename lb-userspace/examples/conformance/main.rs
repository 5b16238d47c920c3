//! A node without a kernel, for `cargo xtask conformance --on host`: objects go through the whole control plane into
//! maps in memory, and packets through the packet logic of the kernel programs, built for the host, over these maps.
//!
//! It is asked by a line of JSON each, and answers by one; `xtask/src/conformance/host.rs` is the other end.
//!
//! `conformance age` makes the pins of session affinity of a running agent older, for the lab, where nobody waits for
//! hours.

mod age;
mod node;
mod packet;
mod path;

use std::io::{BufRead as _, Write as _};
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, bail, ensure};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use node::TestNode;

/// What is asked.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Question {
    /// Become this node, with nothing but its Node object.
    Begin(Begin),
    /// Take a change: deletes first.
    Change(Change),
    /// Let it be so many seconds since the beginning.
    Time(u32),
    /// Say what becomes of new connections.
    Probe(Vec<Probe>),
    /// Say what a health check port says.
    Health(u16),
    /// Open a connection that stays.
    Open(Opening),
    /// Give the last of them up.
    Forget(()),
    /// Send one more packet of each of these.
    Ask(Vec<usize>),
    /// Say which of these have entries.
    Known(Vec<usize>),
}

/// A node, and what its proxy is started with.
#[derive(Debug, Deserialize)]
pub struct Begin {
    node: Node,
    config: Config,
    object: Value,
}

#[derive(Debug, Deserialize)]
struct Node {
    name: String,
    ips: Vec<IpAddr>,
    other_ips: Vec<IpAddr>,
    pod_cidrs: Vec<IpNet>,
}

#[derive(Debug, Deserialize)]
struct Config {
    service_cidrs: Vec<IpNet>,
    nodeport_addresses: Option<Vec<IpNet>>,
}

/// Objects that go, and objects that come.
#[derive(Debug, Deserialize)]
pub struct Change {
    delete: Vec<Reference>,
    apply: Vec<Value>,
}

#[derive(Debug, Deserialize)]
struct Reference {
    kind: String,
    namespace: String,
    name: String,
}

/// New connections of one kind, from these clients in turn.
#[derive(Debug, Deserialize)]
struct Probe {
    from: From,
    clients: Vec<IpAddr>,
    dst: SocketAddr,
    protocol: Protocol,
    flows: u32,
}

/// A connection that stays.
#[derive(Debug, Deserialize)]
struct Opening {
    from: From,
    client: SocketAddr,
    dst: SocketAddr,
    protocol: Protocol,
}

/// Who opens connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum From {
    /// Someone off the node.
    External,
    /// A pod of the node, by a socket that the hooks see.
    Pod,
    /// A process of the node, likewise.
    NodeProcess,
    /// A pod whose packets are translated.
    PodOutsideCgroup,
    /// A process of the node whose packets are translated.
    NodeProcessOutsideCgroup,
}

/// In which protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// What became of a connection, or of a packet of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Observation {
    /// It was sent to a backend, and its answer came back.
    Forward {
        /// The backend.
        backend: SocketAddr,
        /// The source that it sees.
        source: SocketAddr,
        /// The client.
        client: SocketAddr,
    },
    /// The client is told that there is nobody.
    Reject,
    /// Silence.
    Drop,
    /// Left alone.
    Pass,
    /// Something that must not be.
    Other(String),
}

/// What a health check port says.
#[derive(Debug, Default, Serialize)]
pub struct HealthSeen {
    status: Option<u16>,
    local_endpoints: Option<usize>,
    service: Option<String>,
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("age") => return age::run(&arguments[1..]),
        Some(other) => bail!("unknown command `{other}`: `cargo xtask conformance` starts this program"),
        None => {}
    }
    let mut node: Option<TestNode> = None;
    for line in std::io::stdin().lock().lines() {
        let line = line.context("read a question")?;
        let answer = answer(&mut node, &line).map_err(|error| format!("{error:#}"));
        let mut text = serde_json::to_vec(&answer).context("write an answer")?;
        text.push(b'\n');
        std::io::stdout().write_all(&text).context("write an answer")?;
    }
    Ok(())
}

fn answer(node: &mut Option<TestNode>, line: &str) -> anyhow::Result<Value> {
    let ask: Question = serde_json::from_str(line).context("understand a question")?;
    if let Question::Begin(begin) = &ask {
        *node = Some(TestNode::new(begin)?);
        return Ok(Value::Null);
    }
    let node = node.as_mut().context("no case has begun")?;
    let answer = match ask {
        Question::Begin(_) => Value::Null,
        Question::Change(change) => {
            node.change(&change)?;
            Value::Null
        }
        Question::Time(seconds) => {
            node.set_time(seconds);
            Value::Null
        }
        Question::Probe(probes) => {
            let seen: anyhow::Result<Vec<_>> = probes.iter().map(|probe| probe_one(node, probe)).collect();
            serde_json::to_value(seen?)?
        }
        Question::Health(node_port) => serde_json::to_value(node.health(node_port))?,
        Question::Open(opening) => {
            let seen = node.open(opening.from, opening.client, opening.dst, opening.protocol);
            serde_json::to_value(seen)?
        }
        Question::Forget(()) => {
            node.forget_last();
            Value::Null
        }
        Question::Ask(flows) => {
            let seen: anyhow::Result<Vec<_>> = flows.iter().map(|flow| node.ask(*flow)).collect();
            serde_json::to_value(seen?)?
        }
        Question::Known(flows) => {
            let known: anyhow::Result<Vec<_>> = flows.iter().map(|flow| node.is_known(*flow)).collect();
            serde_json::to_value(known?)?
        }
    };
    Ok(answer)
}

fn probe_one(node: &mut TestNode, probe: &Probe) -> anyhow::Result<Vec<Observation>> {
    ensure!(!probe.clients.is_empty(), "a probe needs a client");
    let clients = probe.clients.iter().cycle().take(probe.flows as usize);
    Ok(clients
        .map(|client| node.connect(probe.from, *client, probe.dst, probe.protocol))
        .collect())
}
