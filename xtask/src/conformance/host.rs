//! Cases on the host: objects go through the real control plane into maps in memory, and packets through the packet
//! logic of the kernel programs, built for the host, over these maps.
//!
//! That is another program, which knows the agent's and the data path's code: `lb-userspace/examples/conformance`.
//! This is its other end: a line of JSON each for what is asked and what is answered.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, bail};
use ipnet::IpNet;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::case::Case;
use super::subject::{Change, HealthSeen, Subject};
use crate::world::{Clients, From, Observation, Opening, Place, Probe, Protocol, Spec, is_alike, neighbours};

/// The program, running.
#[derive(Debug)]
pub struct Host {
    child: Child,
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
    spec: Spec,
    /// Addresses that are somebody's in this case.
    taken: BTreeSet<IpAddr>,
    /// Ranges of clients that are told apart.
    ranges: Vec<IpNet>,
}

/// [`Probe`], with all its clients.
#[derive(Debug, Serialize)]
struct Packets {
    from: From,
    clients: Vec<IpAddr>,
    dst: SocketAddr,
    protocol: Protocol,
    flows: u32,
}

/// [`Opening`], as far as it matters there.
#[derive(Debug, Serialize)]
struct Flow {
    from: From,
    client: SocketAddr,
    dst: SocketAddr,
    protocol: Protocol,
}

impl Host {
    /// Starts the program.
    pub fn start(program: &Path) -> anyhow::Result<Self> {
        let mut child = Command::new(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let (Some(asks), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("{} has no pipes", program.display())
        };
        Ok(Self {
            child,
            asks,
            answers: BufReader::new(answers),
            spec: Spec::default(),
            taken: BTreeSet::new(),
            ranges: Vec::new(),
        })
    }

    fn call<T: DeserializeOwned>(&mut self, what: &str, of: impl Serialize) -> anyhow::Result<T> {
        let mut line = serde_json::to_vec(&json!({ what: of }))?;
        line.push(b'\n');
        self.asks.write_all(&line).context("ask the node on the host")?;
        let mut answer = String::new();
        self.answers
            .read_line(&mut answer)
            .context("hear the node on the host")?;
        if answer.is_empty() {
            bail!("the node on the host has ended: its words are above");
        }
        let answer: Result<Value, String> = serde_json::from_str(&answer).context("understand the node on the host")?;
        let answer = answer.map_err(anyhow::Error::msg)?;
        serde_json::from_value(answer).with_context(|| format!("understand what the node on the host says of `{what}`"))
    }

    fn clients(&self, probe: &Probe) -> Vec<IpAddr> {
        let mut clients = vec![probe.src];
        if probe.clients == Clients::Many {
            let taken = |addr: &IpAddr| self.taken.contains(addr);
            let others: Vec<IpAddr> = if probe.from.is_pod() {
                self.spec.spare_pods(probe.src, |addr| taken(&addr))
            } else if probe.from.is_node_process() {
                let family = |addr: &IpAddr| addr.is_ipv4() == probe.src.is_ipv4();
                self.spec.node_addresses().into_iter().filter(family).collect()
            } else {
                let near = neighbours(probe.src);
                near.filter(|addr| self.spec.place(*addr) == Place::Outside && !taken(addr))
                    .collect()
            };
            let alike = others
                .into_iter()
                .filter(|addr| is_alike(&self.ranges, *addr, probe.src));
            clients.extend(alike.filter(|addr| *addr != probe.src));
        }
        clients
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

impl Subject for Host {
    fn name(&self) -> &'static str {
        "host"
    }

    fn begin(&mut self, case: &Case) -> anyhow::Result<()> {
        self.spec = Spec {
            ips: case.node.ips.clone(),
            other_ips: case.node.other_ips.clone(),
            pod_cidrs: case.node.pod_cidrs.clone(),
            ..Spec::default()
        };
        self.taken = case.backends().into_iter().map(|(at, _)| at.ip()).collect();
        let node = json!({"node": case.node, "config": case.config, "object": case.node.object()});
        self.call("begin", node)
    }

    fn change(&mut self, change: &Change<'_>) -> anyhow::Result<()> {
        self.call("change", json!({"delete": change.delete, "apply": change.apply}))
    }

    fn tell_apart(&mut self, ranges: &[IpNet]) {
        self.ranges = ranges.to_vec();
    }

    fn set_time(&mut self, seconds: u32) -> anyhow::Result<()> {
        self.call("time", seconds)
    }

    fn probe(&mut self, probes: &[Probe]) -> anyhow::Result<Vec<Vec<Observation>>> {
        let packets: Vec<Packets> = probes
            .iter()
            .map(|probe| Packets {
                from: probe.from,
                clients: self.clients(probe),
                dst: probe.dst,
                protocol: probe.protocol,
                flows: probe.flows,
            })
            .collect();
        self.call("probe", packets)
    }

    fn health(&mut self, node_port: u16) -> anyhow::Result<HealthSeen> {
        self.call("health", node_port)
    }

    fn open(&mut self, opening: &Opening) -> anyhow::Result<Observation> {
        self.call(
            "open",
            Flow {
                from: opening.from,
                client: opening.src,
                dst: opening.dst,
                protocol: opening.protocol,
            },
        )
    }

    fn forget_last(&mut self) -> anyhow::Result<()> {
        self.call("forget", ())
    }

    fn ask(&mut self, flows: &[usize]) -> anyhow::Result<Vec<Observation>> {
        self.call("ask", flows)
    }

    fn known(&mut self, flows: &[usize]) -> anyhow::Result<Option<Vec<bool>>> {
        self.call("known", flows).map(Some)
    }

    fn takes_time(&self) -> bool {
        false
    }
}
