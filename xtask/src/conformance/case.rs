//! A case as it is written: see docs/conformance.md.
//!
//! What is not as it has to be is told by case and field, so whoever writes cases finds it at once.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context as _, anyhow, bail, ensure};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::world::{From, Protocol};

/// Kubernetes objects on one node, and what has to become of packets, health ports and old flows.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Its name.
    pub id: String,
    /// What it is about, in a word.
    pub area: String,
    /// What it is about, in a sentence.
    pub about: String,
    /// Where the behaviour is stated.
    pub source: String,
    /// The node.
    pub node: Node,
    /// What the proxy is started with.
    #[serde(default)]
    pub config: Config,
    /// Whether an API server takes the objects.
    #[serde(default = "yes")]
    pub api_valid: bool,
    /// The objects at first.
    pub objects: Vec<Value>,
    /// What has to become of packets then.
    #[serde(default)]
    pub packets: Vec<Packet>,
    /// The same of health check ports.
    #[serde(default)]
    pub health: Vec<Health>,
    /// The same of flows that there were before.
    #[serde(default)]
    pub conntrack: Vec<Entry>,
    /// Changes, one after the other.
    #[serde(default)]
    pub steps: Vec<Step>,
}

/// The node of a case.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// The zone that its Node object says, if no other Node object is given.
    #[serde(default)]
    pub zone: Option<String>,
    /// Its primary addresses.
    pub ips: Vec<IpAddr>,
    /// Its further addresses.
    #[serde(default)]
    pub other_ips: Vec<IpAddr>,
    /// Where its pods are.
    pub pod_cidrs: Vec<IpNet>,
}

/// What the proxy is started with.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where ClusterIPs are; none is known without it.
    #[serde(default)]
    pub service_cidrs: Vec<IpNet>,
    /// On which local addresses NodePorts are served; on the primary ones without it.
    #[serde(default)]
    pub nodeport_addresses: Option<Vec<IpNet>>,
}

/// A change, and what has to be so after it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Objects that go.
    #[serde(default)]
    pub delete: Vec<Reference>,
    /// Objects that come, or take the place of those of their name.
    #[serde(default)]
    pub apply: Vec<Value>,
    /// What has to become of packets then.
    #[serde(default)]
    pub packets: Vec<Packet>,
    /// The same of health check ports.
    #[serde(default)]
    pub health: Vec<Health>,
    /// The same of flows that there were before.
    #[serde(default)]
    pub conntrack: Vec<Entry>,
}

/// Kinds of objects.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum ObjectKind {
    /// v1
    Service,
    /// discovery.k8s.io/v1
    EndpointSlice,
    /// v1
    Node,
}

/// An object's name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    /// Its kind.
    pub kind: ObjectKind,
    /// Its namespace; Nodes have none.
    #[serde(default)]
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// New connections, and what has to become of them.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Packet {
    /// A name for later packets to refer to.
    #[serde(default)]
    pub name: Option<String>,
    /// Seconds since the case began.
    #[serde(default)]
    pub at: Option<u32>,
    /// Who sends it.
    pub from: Origin,
    /// From where.
    pub src: IpAddr,
    /// To where.
    pub dst: IpAddr,
    /// In which protocol.
    pub proto: Protocol,
    /// To which port.
    pub port: u16,
    /// How many connections it stands for, if that is said.
    #[serde(default)]
    pub flows: Option<Flows>,
    /// What has to become of them.
    pub expect: Expect,
}

/// Who sends a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// Someone off the node.
    External,
    /// A pod of the node.
    Pod,
    /// A process of the node.
    NodeProcess,
}

impl Origin {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::External => "external",
            Self::Pod => "pod",
            Self::NodeProcess => "node-process",
        }
    }
}

impl std::convert::From<Origin> for From {
    fn from(origin: Origin) -> Self {
        match origin {
            Origin::External => Self::External,
            Origin::Pod => Self::Pod,
            Origin::NodeProcess => Self::NodeProcess,
        }
    }
}

/// How many connections a packet stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flows {
    /// Many, from one address.
    Many,
    /// Many, from many addresses.
    ManyClients,
}

/// What has to become of connections.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// In a word.
    pub verdict: Verdict,
    /// Where they may go; unless there is affinity, each is to be seen.
    #[serde(default)]
    pub backends: Vec<SocketAddr>,
    /// Where they may go, and need not.
    #[serde(default)]
    pub unspecified_backends: Vec<SocketAddr>,
    /// Which source backends see.
    #[serde(default)]
    pub snat: Option<Snat>,
    /// How they are spread.
    #[serde(default)]
    pub share: Option<Share>,
    /// Whether all of a client go to one.
    #[serde(default)]
    pub sticky: bool,
    /// Whether they go where those of an earlier packet went.
    #[serde(default)]
    pub same_backend_as: Option<String>,
    /// Whether an earlier choice does not bind any more.
    #[serde(default)]
    pub repin: bool,
}

/// What becomes of a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It is sent to a backend.
    Forward,
    /// The client is told that there is nobody.
    Reject,
    /// Silence.
    Drop,
    /// Left alone.
    Pass,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Forward => "forward",
            Self::Reject => "reject",
            Self::Drop => "drop",
            Self::Pass => "pass",
        })
    }
}

/// Which source a backend sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Snat {
    /// An address of the node.
    Node,
    /// The client's.
    None,
    /// The node's if the client is the backend itself, else the client's.
    HairpinOnly,
    /// Any.
    Any,
}

/// How connections are spread.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Share {
    /// Each backend gets as many.
    Uniform,
}

/// What a health check port has to say.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// The port.
    pub node_port: u16,
    /// The status, or that nothing listens.
    pub status: Status,
    /// How many endpoints it tells.
    #[serde(default)]
    pub local_endpoints: Option<u32>,
    /// Of which Service, as namespace/name.
    #[serde(default)]
    pub service: Option<String>,
}

/// The status of a health check port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// There are local endpoints.
    Ok,
    /// There is none.
    Unavailable,
    /// Nothing listens.
    Closed,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "200",
            Self::Unavailable => "503",
            Self::Closed => "closed",
        })
    }
}

impl<'de> Deserialize<'de> for Status {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        match (value.as_u64(), value.as_str()) {
            (Some(200), _) | (_, Some("200")) => Ok(Self::Ok),
            (Some(503), _) | (_, Some("503")) => Ok(Self::Unavailable),
            (_, Some("closed")) => Ok(Self::Closed),
            _ => Err(serde::de::Error::custom(format!("{value} is none of 200, 503, closed"))),
        }
    }
}

/// A flow that there was before a step, and whether there still is after it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its protocol.
    pub proto: Protocol,
    /// The client.
    pub client: SocketAddr,
    /// Where the client sends.
    pub dst: SocketAddr,
    /// Where that goes; `dst` itself if it was not translated.
    pub backend: SocketAddr,
    /// What has to have become of it.
    pub expect: Fate,
}

/// What becomes of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// It does not steer packets any more.
    Flushed,
    /// It goes on as it was.
    Kept,
}

/// Of objects that name none.
const DEFAULT_NAMESPACE: &str = "default";

fn yes() -> bool {
    true
}

/// Reads the cases of a file.
///
/// # Errors
/// If it is not of their form; the text names the case and the field.
pub fn read(file: &Path) -> anyhow::Result<Vec<Case>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read the cases in {}", file.display()))?;
    parse(&text).with_context(|| format!("{} is not a file of cases", file.display()))
}

/// Reads cases from text.
pub fn parse(text: &str) -> anyhow::Result<Vec<Case>> {
    let budget =
        serde_saphyr::budget! { max_events: usize::MAX, max_nodes: usize::MAX, max_total_scalar_bytes: usize::MAX };
    let values: Vec<Value> = serde_saphyr::from_str_with_options(text, serde_saphyr::options! { budget: budget })
        .map_err(|error| anyhow!("{error}"))?;
    let mut ids = BTreeSet::new();
    let mut cases = Vec::new();
    for (number, value) in values.into_iter().enumerate() {
        let id = value.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
        ensure!(!id.is_empty(), "case {} of the file: `id` is missing", number + 1);
        ensure!(ids.insert(id.clone()), "case {id}: another one has the same `id`");
        let mut case: Case = serde_path_to_error::deserialize(value)
            .map_err(|error| anyhow!("case {id}: {}: {}", error.path(), error.inner()))?;
        case.settle();
        case.check().with_context(|| format!("case {id}"))?;
        cases.push(case);
    }
    Ok(cases)
}

impl Case {
    /// Writes what can be said in two ways in one.
    fn settle(&mut self) {
        for gone in self.steps.iter_mut().flat_map(|step| &mut step.delete) {
            match gone.kind {
                ObjectKind::Node => gone.namespace.clear(),
                _ if gone.namespace.is_empty() => gone.namespace = DEFAULT_NAMESPACE.to_owned(),
                _ => {}
            }
        }
        self.config.nodeport_addresses.take_if(|ranges| ranges.is_empty());
    }

    /// What its form alone does not say.
    fn check(&self) -> anyhow::Result<()> {
        ensure!(!self.node.ips.is_empty(), "node.ips: a node has an address");
        for (index, object) in self.objects.iter().enumerate() {
            reference(object).with_context(|| format!("objects[{index}]"))?;
        }
        let mut names = BTreeSet::new();
        let mut at = 0;
        self.check_packets("", &self.packets, &mut names, &mut at)?;
        check_entries("", &self.conntrack)?;
        for (index, step) in self.steps.iter().enumerate() {
            let place = format!("steps[{index}].");
            for (index, object) in step.apply.iter().enumerate() {
                reference(object).with_context(|| format!("{place}apply[{index}]"))?;
            }
            self.check_packets(&place, &step.packets, &mut names, &mut at)?;
            check_entries(&place, &step.conntrack)?;
        }
        Ok(())
    }

    /// Everything at which something may have to answer, in any step.
    pub fn backends(&self) -> BTreeSet<(SocketAddr, Protocol)> {
        let mut found = BTreeSet::new();
        for object in self
            .objects
            .iter()
            .chain(self.steps.iter().flat_map(|step| &step.apply))
        {
            endpoints(object, &mut found);
        }
        for packet in self.all_packets() {
            let expect = &packet.expect;
            let named = expect.backends.iter().chain(&expect.unspecified_backends);
            found.extend(named.map(|at| (*at, packet.proto)));
        }
        let entries = self.all_entries().filter(|entry| entry.backend != entry.dst);
        found.extend(entries.map(|entry| (entry.backend, entry.proto)));
        found.retain(|(at, _)| can_serve(at.ip()));
        found
    }

    /// The packets of all steps.
    pub fn all_packets(&self) -> impl Iterator<Item = &Packet> {
        self.packets
            .iter()
            .chain(self.steps.iter().flat_map(|step| &step.packets))
    }

    /// The pods that are clients.
    pub fn client_pods(&self) -> BTreeSet<IpAddr> {
        let packets = self.all_packets().map(|packet| packet.src);
        let entries = self.all_entries().map(|entry| entry.client.ip());
        let is_pod = |addr: &IpAddr| self.node.pod_cidrs.iter().any(|cidr| cidr.contains(addr));
        packets.chain(entries).filter(is_pod).collect()
    }

    /// Whether pods are clients of which there are to be many.
    pub fn has_many_pods(&self) -> bool {
        let mut packets = self.all_packets().filter(|packet| packet.from == Origin::Pod);
        packets.any(|packet| packet.flows == Some(Flows::ManyClients) || packet.expect.repin)
    }

    fn all_entries(&self) -> impl Iterator<Item = &Entry> {
        self.conntrack
            .iter()
            .chain(self.steps.iter().flat_map(|step| &step.conntrack))
    }

    /// An object as the node sees it: its own Node tells its addresses, as a kubelet would have written them.
    pub fn complete(&self, object: &Value) -> Value {
        let mut object = object.clone();
        let is_own = reference(&object).is_ok_and(|name| name.kind == ObjectKind::Node && name.name == self.node.name);
        if is_own && object.pointer("/status/addresses").is_none() {
            let addresses = self.node.object().pointer("/status/addresses").cloned();
            if let (Some(map), Some(addresses)) = (object.as_object_mut(), addresses) {
                let status = map.entry("status").or_insert_with(|| json!({}));
                if let Some(status) = status.as_object_mut() {
                    status.insert("addresses".to_owned(), addresses);
                }
            }
        }
        object
    }

    fn check_packets<'a>(
        &self,
        place: &str,
        packets: &'a [Packet],
        names: &mut BTreeSet<&'a str>,
        now: &mut u32,
    ) -> anyhow::Result<()> {
        for (index, packet) in packets.iter().enumerate() {
            let place = format!("{place}packets[{index}]");
            ensure!(
                packet.src.is_ipv4() == packet.dst.is_ipv4(),
                "{place}.dst: {} is not of the family of {}",
                packet.dst,
                packet.src
            );
            let at = packet.at.unwrap_or(*now);
            ensure!(at >= *now, "{place}.at: {at} is before {now}: time does not go back");
            *now = at;
            let expect = &packet.expect;
            let inside = self.node.pod_cidrs.iter().any(|cidr| cidr.contains(&packet.src));
            match packet.from {
                Origin::Pod => ensure!(
                    inside,
                    "{place}.src: a pod's address is in node.pod_cidrs, {} is not",
                    packet.src
                ),
                Origin::External => ensure!(!inside, "{place}.src: {} is a pod's, in node.pod_cidrs", packet.src),
                Origin::NodeProcess => {
                    let own = self
                        .node
                        .ips
                        .iter()
                        .chain(&self.node.other_ips)
                        .any(|addr| *addr == packet.src);
                    ensure!(own, "{place}.src: {} is none of the node's addresses", packet.src);
                }
            }
            if expect.verdict == Verdict::Forward {
                ensure!(
                    !expect.backends.is_empty(),
                    "{place}.expect.backends: `forward` needs them"
                );
            } else {
                let alone = expect.backends.is_empty()
                    && expect.unspecified_backends.is_empty()
                    && expect.snat.is_none()
                    && expect.share.is_none()
                    && expect.same_backend_as.is_none()
                    && !(expect.sticky || expect.repin);
                ensure!(alone, "{place}.expect: what is said of backends belongs to `forward`");
            }
            if let Some(name) = &expect.same_backend_as {
                ensure!(
                    names.contains(&**name),
                    "{place}.expect.same_backend_as: no packet before is named {name}"
                );
            }
            if let Some(name) = &packet.name {
                ensure!(names.insert(name), "{place}.name: another packet is named {name}");
            }
        }
        Ok(())
    }
}

impl Node {
    /// The Node object, where the case gives none.
    pub fn object(&self) -> Value {
        let addresses: Vec<Value> = self
            .ips
            .iter()
            .map(|ip| json!({"type": "InternalIP", "address": ip}))
            .collect();
        let mut labels = serde_json::Map::new();
        labels.insert("kubernetes.io/hostname".to_owned(), json!(self.name));
        if let Some(zone) = &self.zone {
            labels.insert("topology.kubernetes.io/zone".to_owned(), json!(zone));
        }
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.name, "labels": labels},
            "spec": {"podCIDRs": self.pod_cidrs},
            "status": {"addresses": addresses},
        })
    }
}

/// Whether a server can have that address at all.
fn can_serve(addr: IpAddr) -> bool {
    let special = match addr {
        IpAddr::V4(addr) => addr.is_broadcast() || addr.is_link_local(),
        IpAddr::V6(addr) => addr.is_unicast_link_local() || addr.to_ipv4_mapped().is_some(),
    };
    !(special || addr.is_unspecified() || addr.is_multicast())
}

/// The addresses and ports of a slice.
fn endpoints(object: &Value, found: &mut BTreeSet<(SocketAddr, Protocol)>) {
    let list = |name: &str| object.get(name).and_then(Value::as_array).into_iter().flatten();
    for port in list("ports") {
        let number = port
            .get("port")
            .and_then(Value::as_u64)
            .and_then(|number| u16::try_from(number).ok());
        let protocol = match port.get("protocol").and_then(Value::as_str) {
            None | Some("TCP") => Protocol::Tcp,
            Some("UDP") => Protocol::Udp,
            Some("SCTP") => Protocol::Sctp,
            Some(_) => continue,
        };
        let Some(number) = number.filter(|number| *number != 0) else {
            continue;
        };
        let addresses = list("endpoints").filter_map(|endpoint| endpoint.get("addresses")?.as_array());
        let texts = addresses.flatten().filter_map(Value::as_str);
        found.extend(texts.filter_map(|text| Some((SocketAddr::new(text.parse().ok()?, number), protocol))));
    }
}

fn check_entries(place: &str, entries: &[Entry]) -> anyhow::Result<()> {
    for (index, entry) in entries.iter().enumerate() {
        let family = entry.client.is_ipv4();
        let same = [entry.dst, entry.backend].iter().all(|addr| addr.is_ipv4() == family);
        ensure!(same, "{place}conntrack[{index}]: its addresses are of two families");
    }
    Ok(())
}

/// The name of an object.
pub fn reference(object: &Value) -> anyhow::Result<Reference> {
    let text = |path: &str| object.pointer(path).and_then(Value::as_str);
    let version = text("/apiVersion").context("apiVersion is missing")?;
    let kind = text("/kind").context("kind is missing")?;
    let kind = match (version, kind) {
        ("v1", "Service") => ObjectKind::Service,
        ("v1", "Node") => ObjectKind::Node,
        ("discovery.k8s.io/v1", "EndpointSlice") => ObjectKind::EndpointSlice,
        _ => bail!("{version} {kind} is none of: v1 Service, v1 Node, discovery.k8s.io/v1 EndpointSlice"),
    };
    let namespace = match kind {
        ObjectKind::Node => "",
        _ => text("/metadata/namespace").unwrap_or(DEFAULT_NAMESPACE),
    };
    Ok(Reference {
        kind,
        namespace: namespace.to_owned(),
        name: text("/metadata/name").context("metadata.name is missing")?.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CASE: &str = "
- id: one
  area: clusterip
  about: it works
  source: here
  node: {name: node-a, ips: [192.0.2.11], pod_cidrs: [10.180.0.0/24]}
  objects: []
  packets:
    - {from: pod, src: 10.180.0.9, dst: 172.30.0.1, proto: tcp, port: 80, expect: {verdict: drop}}
  health:
    - {node_port: 32000, status: closed}
";

    fn error(from: &str, to: &str) -> String {
        assert!(CASE.contains(from));
        format!("{:#}", parse(&CASE.replace(from, to)).expect_err("a wrong case"))
    }

    #[test]
    fn a_case_is_read() {
        let cases = parse(CASE).expect("a case");
        assert_eq!(cases[0].packets[0].expect.verdict, Verdict::Drop);
        assert_eq!(cases[0].health[0].status, Status::Closed);
    }

    #[test]
    fn what_is_wrong_is_told_by_case_and_field() {
        assert!(error("proto: tcp", "proto: dccp").starts_with("case one: packets[0].proto: unknown variant `dccp`"));
        assert!(error("port: 80,", "port: 80, ttl: 1,").starts_with("case one: packets[0].ttl: unknown field `ttl`"));
        assert!(error("verdict: drop", "verdict: forward").contains("packets[0].expect.backends"));
        assert!(error("src: 10.180.0.9", "src: 10.1.0.9").contains("packets[0].src"));
        assert!(error("status: closed", "status: 404").starts_with("case one: health[0].status: 404"));
        assert!(
            error("objects: []", "objects: [{apiVersion: v1, kind: Pod}]").contains("case one: objects[0]: v1 Pod")
        );
        assert!(error("id: one", "name: one").contains("case 1 of the file: `id` is missing"));
    }
}
