//! What came of the requests, as a table: for each path one row, with one answer to look at.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::net::SocketAddr;

use serde_json::Value;

use super::paths::{Case, Door, Way};
use super::plan::{NODES, Network, Place};
use super::wire::{Answer, Protocol, Seen};

/// The connections that both agents show, by whom they belong to.
#[derive(Debug, Default)]
pub struct Flows {
    by_client: BTreeMap<(usize, String, String), String>,
    sockets: BTreeMap<(usize, String, String), String>,
}

impl Flows {
    /// Adds what `fairway flows -o json` says on a node.
    pub fn add(&mut self, node: usize, flows: &Value) {
        for flow in flows.as_array().into_iter().flatten() {
            let text = |name: &str| flow.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
            let (protocol, hook) = (text("protocol").to_ascii_uppercase(), text("hook"));
            if hook == "socket" {
                self.sockets.insert((node, text("frontend"), text("backend")), hook);
            } else {
                self.by_client.insert((node, protocol, text("client")), hook);
            }
        }
    }

    /// The hook that translated a request.
    fn hook(&self, case: &Case, answer: &Answer, seen: &Seen) -> Option<&str> {
        let node = case.translator();
        let target = case.request.target;
        let local = answer
            .local
            .map(|local| SocketAddr::new(case.from.addr(target.is_ipv6()), local.port()));
        let protocol = case.request.protocol.transport().to_owned();
        // A node process may be known by any of the node's addresses.
        let by_client = local
            .into_iter()
            .chain(answer.local)
            .chain(Some(seen.source))
            .find_map(|client| self.by_client.get(&(node, protocol.clone(), client.to_string())));
        let socket = || {
            self.sockets
                .get(&(node, target.to_string(), seen.destination.to_string()))
        };
        by_client.or_else(socket).map(String::as_str)
    }
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    from: u8,
    door: Door,
    local: bool,
    way: Option<Way>,
    v6: bool,
}

struct Row {
    http: Count,
    udp: Count,
    hooks: BTreeMap<String, usize>,
    example: Option<(usize, Seen)>,
    slowest_us: u64,
}

/// How many requests of a kind were answered as they have to be, of how many.
#[derive(Clone, Copy, Default)]
struct Count {
    right: usize,
    all: usize,
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.all == 0 {
            return write!(f, "-");
        }
        write!(f, "{}/{}", self.right, self.all)
    }
}

/// All rows, and what was wrong.
#[derive(Default)]
pub struct Report {
    rows: BTreeMap<Key, Row>,
    /// Sentences about requests that were not answered as they have to be.
    pub failures: Vec<String>,
    /// Requests answered rightly.
    pub answered: usize,
}

impl Report {
    /// Judges an answer and adds it.
    pub fn add(&mut self, network: Network, case: &Case, answer: &Answer, flows: &Flows) {
        let verdict = case.judge(network, answer);
        let from = match case.from {
            Place::Client | Place::Neighbour | Place::Router => 0,
            Place::Pod(_) => 1,
            Place::Node(_) => 2,
        };
        let key = Key {
            from,
            door: case.shown_door(),
            local: case.local && case.door != Door::ClusterIp,
            way: verdict.as_ref().ok().copied(),
            v6: case.request.target.is_ipv6(),
        };
        let row = self.rows.entry(key).or_insert_with(|| Row {
            http: Count::default(),
            udp: Count::default(),
            hooks: BTreeMap::new(),
            example: None,
            slowest_us: 0,
        });
        let count = match case.request.protocol {
            Protocol::Http => &mut row.http,
            Protocol::Udp | Protocol::UdpUnconnected => &mut row.udp,
        };
        count.all += 1;
        count.right += usize::from(verdict.is_ok());
        row.slowest_us = row.slowest_us.max(answer.took_us);
        match (&verdict, &answer.result) {
            (Ok(_), Ok(seen)) => {
                self.answered += 1;
                let hook = flows.hook(case, answer, seen).unwrap_or("?");
                *row.hooks.entry(hook.to_owned()).or_default() += 1;
                if row.example.is_none() {
                    row.example = Some((case.translator(), seen.clone()));
                }
            }
            (verdict, _) => {
                let why = verdict.as_ref().err().cloned().unwrap_or_default();
                let (name, protocol) = (case.from.name(), case.request.protocol.name());
                let target = case.request.target;
                self.failures
                    .push(format!("{name} -> {target} {protocol}, {}: {why}", case.door_name()));
            }
        }
    }

    /// The table.
    pub fn table(&self) -> String {
        let heads = [
            "PATH",
            "IP",
            "HTTP",
            "UDP",
            "POD",
            "SOURCE SEEN",
            "DESTINATION SEEN",
            "TRANSLATED BY",
            "SLOWEST",
        ];
        let mut lines = vec![heads.map(str::to_owned)];
        for (key, row) in &self.rows {
            let seen = row.example.as_ref().map(|(_, seen)| seen);
            let node = row.example.as_ref().map_or("-", |(node, _)| NODES[*node].name);
            let show = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
            let hooks: Vec<String> = row.hooks.keys().cloned().collect();
            lines.push([
                key.path(),
                if key.v6 { "v6".to_owned() } else { "v4".to_owned() },
                row.http.to_string(),
                row.udp.to_string(),
                show(seen.map(|seen| seen.pod.clone())),
                show(seen.map(|seen| seen.source.to_string())),
                show(seen.map(|seen| seen.destination.to_string())),
                format!("{node} {}", hooks.join("+")),
                format!("{:.1} ms", row.slowest_us as f64 / 1000.0),
            ]);
        }
        columns(&lines)
    }
}

/// Lines of cells, padded so that columns stand below each other.
pub fn columns<const N: usize>(lines: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for line in lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for line in lines {
        let mut row = String::new();
        for (width, cell) in widths.iter().zip(line) {
            _ = write!(row, "{cell:width$}  ");
        }
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

impl Key {
    fn path(&self) -> String {
        let asker = match self.from {
            0 => "client",
            1 => "pod",
            _ => "node process",
        };
        let door = match self.door {
            Door::LoadBalancer(node) => {
                if self.from == 0 {
                    format!("LoadBalancer at {}", NODES[node].name)
                } else {
                    "LoadBalancer".to_owned()
                }
            }
            Door::NodePort(node) => {
                if self.from == 0 {
                    format!("NodePort of {}", NODES[node].name)
                } else {
                    "own NodePort".to_owned()
                }
            }
            Door::ClusterIp => "ClusterIP".to_owned(),
        };
        let local = if self.local { ", policy Local" } else { "" };
        let way = match self.way {
            Some(Way::SameNode) => "pod on this node",
            Some(Way::OtherNode) => "pod on the other",
            Some(Way::Itself) => "itself",
            None => "FAILED",
        };
        format!("{asker} -> {door}{local} -> {way}")
    }
}

impl Case {
    /// Rows of pods and of nodes are not told apart by which of them asked.
    fn shown_door(&self) -> Door {
        match (self.from, self.door) {
            (Place::Node(_) | Place::Pod(_), Door::LoadBalancer(_)) => Door::LoadBalancer(0),
            (Place::Node(_) | Place::Pod(_), Door::NodePort(_)) => Door::NodePort(0),
            (_, door) => door,
        }
    }

    fn door_name(&self) -> String {
        let local = if self.local { ", policy Local" } else { "" };
        match self.door {
            Door::LoadBalancer(node) => format!("LoadBalancer announced by {}{local}", NODES[node].name),
            Door::NodePort(node) => format!("NodePort of {}{local}", NODES[node].name),
            Door::ClusterIp => "ClusterIP".to_owned(),
        }
    }
}
