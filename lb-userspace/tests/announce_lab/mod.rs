//! The network of `announce.rs`: a client, a switch, two nodes with real agents, and their pods.

pub mod api;
pub mod client;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use self::client::{Ears, Talk, answer, serve_tcp, serve_udp, unspecified};
use crate::support::namespaces::Namespaces;
use crate::support::node::{PATIENCE, binary, bpffs};
use crate::support::process::Program;
use crate::support::{poll, skip};

/// Times are measured: one test at a time.
pub static ALONE: Mutex<()> = Mutex::new(());

pub const INSIDE_V4: &str = "192.0.2.50";
pub const OUTSIDE_V4: &str = "198.51.100.50";
pub const INSIDE_V6: &str = "2001:db8::50";
pub const OUTSIDE_V6: &str = "2001:db8:b::50";
pub const ADDRESSES: [&str; 4] = [INSIDE_V4, OUTSIDE_V4, INSIDE_V6, OUTSIDE_V6];
/// In no pool.
pub const ELSEWHERE: &str = "198.51.100.250";
/// What leads to the network: a device, a VLAN on it, or a bridge that it is a port of.
pub const DEVICE: &str = "eth0";
pub const VLAN: &str = "eth0.7";
pub const BRIDGE: &str = "br-up";
pub const NODES: [&str; 2] = ["node1", "node2"];

pub const POOLS: &str = "
apiVersion: fairway.io/v1alpha1
kind: AddressPool
metadata: {name: default}
spec: {blocks: [{cidr: 192.0.2.48/28}, {start: 198.51.100.1, stop: 198.51.100.99}, {cidr: '2001:db8::50/124'}, {cidr: '2001:db8:b::/64'}]}
";

/// A Service with these addresses, and endpoints on these nodes.
pub fn service(name: &str, number: u8, policy: &str, addresses: &[&str], nodes: &[u8]) -> String {
    let slice = |family: &str, address: &dyn Fn(u8) -> String| {
        let endpoints: String = nodes
            .iter()
            .map(|n| format!("  - {{addresses: ['{}'], nodeName: node{n}}}\n", address(*n)))
            .collect();
        format!(
            "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-{}, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: {family}
ports: [{{name: tcp, port: 8080}}, {{name: udp, port: 8080, protocol: UDP}}]
endpoints:{}",
            family.to_lowercase(),
            if nodes.is_empty() {
                " []\n".to_owned()
            } else {
                format!("\n{endpoints}")
            }
        )
    };
    let ingress: Vec<String> = addresses.iter().map(|addr| format!("{{ip: '{addr}'}}")).collect();
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  type: LoadBalancer
  externalTrafficPolicy: {policy}
  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv4, IPv6]
  clusterIPs: [10.96.1.{number}, 'fd00:10:96::1:{number}']
  ports: [{{name: tcp, port: 80}}, {{name: udp, port: 80, protocol: UDP}}]
{}{}---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
status: {{loadBalancer: {{ingress: [{}]}}}}
",
        slice("IPv4", &|n| format!("10.244.{n}.10")),
        slice("IPv6", &|n| format!("fd00:10:244:{n}::10")),
        ingress.join(", ")
    )
}

/// The network and the nodes.
pub struct Lab {
    pub namespaces: Namespaces,
    folder: PathBuf,
    /// The flag that tells agents where their objects are.
    source: String,
    /// The device of nodes and client that leads to the network, see [`DEVICE`].
    pub uplink: &'static str,
    agents: [Option<Program>; 2],
    /// Further flags of agents that are started.
    pub flags: &'static str,
    _alone: MutexGuard<'static, ()>,
}

impl Lab {
    /// The lab, unless it cannot be here. Its nodes share a folder of manifests.
    pub fn new(test: &str, short: &str, uplink: &'static str) -> Option<Self> {
        let mut lab = Self::network(test, short, uplink)?;
        lab.source = format!("--manifests={}", lab.folder.join("manifests").display());
        lab.manifest("pools.yaml", POOLS);
        lab.manifest("web.yaml", &service("web", 1, "Cluster", &ADDRESSES, &[1, 2]));
        lab.start_all();
        Some(lab)
    }

    /// The lab without agents.
    fn network(test: &str, short: &str, uplink: &'static str) -> Option<Self> {
        if let Some(reason) = Namespaces::missing().or_else(|| (!bpffs()).then(|| "needs bpffs".to_owned())) {
            skip(test, &reason);
            return None;
        }
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = std::env::temp_dir().join(format!("fw-{short}-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("manifests")).expect("a folder can be made");
        let names = ["client", "switch", "node1", "node2", "pod1", "pod2"];
        let lab = Self {
            namespaces: Namespaces::new(short, &names, &script(uplink)),
            folder,
            source: String::new(),
            uplink,
            agents: [None, None],
            flags: "",
            _alone: alone,
        };
        for (pod, name) in [("pod1", "pod1"), ("pod2", "pod2")] {
            lab.namespaces.spawn(pod, move || serve_udp(name));
            lab.namespaces.spawn(pod, move || serve_tcp(name));
        }
        Some(lab)
    }

    /// Puts a file into the folder of manifests, at once.
    pub fn manifest(&self, name: &str, content: &str) {
        let new = self.folder.join(name);
        std::fs::write(&new, content).expect("a file can be written");
        std::fs::rename(&new, self.folder.join("manifests").join(name)).expect("a file can be renamed");
    }

    pub fn pins(&self, node: usize) -> String {
        format!("/sys/fs/bpf/{}-{}", self.namespaces.name(NODES[node]), "pins")
    }

    /// Starts all agents, and waits until each counts with all: the first announces alone until the next has held its
    /// Lease for long enough, and addresses move then.
    fn start_all(&mut self) {
        (0..NODES.len()).for_each(|node| self.start(node));
        poll("the nodes count with each other", PATIENCE, || {
            let counts_with_all = |node| {
                let told = self.announcements(node)?;
                let candidates = told["nodes"]
                    .as_array()?
                    .iter()
                    .filter(|node| node["lease"] == "candidate");
                Some(candidates.count() == NODES.len())
            };
            (0..NODES.len())
                .all(|node| counts_with_all(node) == Some(true))
                .then_some(())
        });
    }

    pub fn start(&mut self, node: usize) {
        let name = NODES[node];
        let net = format!("--net={}", self.namespaces.path(name));
        let (fairway, pins) = (binary().display().to_string(), self.pins(node));
        let (source, flags) = (&self.source, self.flags);
        let words = format!(
            "nsenter {net} {fairway} agent --node-name {name} {source} --cgroup none --pin-dir {pins} \
             --cluster-cidr 10.244.0.0/16,fd00:10:244::/48 --max-connections 8192 --max-backends 1024 \
             --max-maglev-slots 65536 {flags}"
        );
        let words: Vec<&str> = words.split(' ').filter(|word| !word.is_empty()).collect();
        let log = self.folder.join(format!("{name}.log"));
        let mut agent = Program::start(name, &words, &log);
        poll("the agent answers", PATIENCE, || {
            agent.must_run();
            self.announcements(node)
        });
        self.agents[node] = Some(agent);
    }

    pub fn fairway(&self, node: usize, command: &str) -> Option<Value> {
        let output = Command::new("nsenter")
            .arg(format!("--net={}", self.namespaces.path(NODES[node])))
            .arg(binary())
            .args([command, "-o", "json", "--pin-dir", &self.pins(node)])
            .output()
            .expect("fairway runs");
        let told = output.status.success();
        told.then(|| serde_json::from_slice(&output.stdout).expect("it is JSON"))
    }

    /// What a node says of announcements, if its agent answers.
    pub fn announcements(&self, node: usize) -> Option<Value> {
        self.fairway(node, "announcements")
    }

    pub fn pid(&self, node: usize) -> Pid {
        let status = self.fairway(node, "status").expect("the agent answers");
        let pid = status["agent"]["pid"].as_i64().expect("it has a process");
        Pid::from_raw(i32::try_from(pid).expect("it is one"))
    }

    pub fn signal(&self, node: usize, signal: Signal) {
        kill(self.pid(node), signal).expect("it runs");
    }

    /// Waits until the agent has ended.
    pub fn ended(&mut self, node: usize) {
        let mut agent = self.agents[node].take().expect("it was started");
        poll("the agent ends", PATIENCE, || agent.ended());
    }

    /// The node that announces an address by what both say, once they say the same.
    pub fn announcer(&mut self, address: &str) -> usize {
        poll(&format!("{address} is announced"), PATIENCE, || {
            let mut said = BTreeSet::new();
            for (node, own_name) in NODES.iter().enumerate() {
                let Some(agent) = &mut self.agents[node] else { continue };
                agent.must_run();
                let told = self.announcements(node)?;
                let row = row(&told, address)?;
                let name = row["node"].as_str()?.to_owned();
                if (row["here"] == true) != (name == *own_name) {
                    return None;
                }
                said.insert(name);
            }
            let only = said.pop_first().filter(|_| said.is_empty())?;
            NODES.iter().position(|name| *name == only)
        })
    }

    /// Waits until this node announces the address.
    pub fn until_announced_by(&mut self, address: &str, node: usize) {
        poll(&format!("{} announces {address}", NODES[node]), PATIENCE, || {
            (self.announcer(address) == node).then_some(())
        });
    }

    pub fn ip(&self, namespace: &str, words: &str) -> String {
        let output = Command::new("ip")
            .args(["-n", &self.namespaces.name(namespace)])
            .args(words.split(' '))
            .output()
            .expect("ip runs");
        assert!(
            output.status.success(),
            "ip {words}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn mac(&self, namespace: &str) -> [u8; 6] {
        let shown = self.ip(namespace, &format!("-j link show dev {}", self.uplink));
        let shown: Value = serde_json::from_str(&shown).expect("it is JSON");
        let text = shown[0]["address"].as_str().expect("it has one");
        let bytes: Vec<u8> = text
            .split(':')
            .map(|b| u8::from_str_radix(b, 16).expect("a byte"))
            .collect();
        bytes.try_into().expect("six bytes")
    }

    /// Whom the client holds for the owner of an address, by the link address.
    pub fn known(&self, address: &str) -> Option<String> {
        let shown = self.ip("client", &format!("-j neigh show to {address} dev {}", self.uplink));
        let shown: Value = serde_json::from_str(&shown).ok()?;
        Some(shown[0]["lladdr"].as_str()?.to_owned())
    }

    /// Waits until the client has been told that this node has the address.
    pub fn until_known(&self, address: &str, node: usize) {
        let mac = self.mac(NODES[node]).map(|byte| format!("{byte:02x}")).join(":");
        poll("the client is told", PATIENCE, || {
            (self.known(address)? == mac).then_some(())
        });
    }

    /// Who answers the client's question for an address, by their link addresses, as often as they do.
    pub fn answers(&self, address: &str) -> Vec<[u8; 6]> {
        let address: IpAddr = address.parse().expect("an address");
        let (client, uplink) = (self.mac("client"), self.uplink);
        self.ip("client", &format!("neigh flush dev {}", self.uplink));
        self.namespaces.within("client", move || {
            let ears = Ears::open(uplink, Duration::from_millis(50));
            let socket = UdpSocket::bind(unspecified(address)).expect("a port is free");
            // It may not be reached: then nobody answers.
            let _ = socket.send_to(b"?", SocketAddr::new(address, 80));
            let until = Instant::now() + Duration::from_millis(700);
            let mut answers = Vec::new();
            while Instant::now() < until {
                answers.extend(
                    ears.hear()
                        .filter(|frame| frame[..6] == client)
                        .and_then(|f| answer(&f, address)),
                );
            }
            answers
        })
    }

    /// The pod that answers the client at an address, by a new TCP connection.
    pub fn ask(&self, address: &str) -> std::io::Result<String> {
        let to = SocketAddr::new(address.parse().expect("an address"), 80);
        self.namespaces.within("client", move || {
            let mut talk = Talk::open(to, Duration::from_secs(2))?;
            talk.say("x")
        })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for (node, agent) in self.agents.iter_mut().enumerate() {
            let Some(agent) = agent.take() else { continue };
            if std::thread::panicking() {
                eprintln!("log of {}:\n{}", NODES[node], agent.log_end());
            }
            agent.kill();
        }
        for (node, name) in NODES.iter().enumerate() {
            let _ = Command::new("nsenter")
                .arg(format!("--net={}", self.namespaces.path(name)))
                .arg(binary())
                .args(["cleanup", "--force", "--pin-dir", &self.pins(node)])
                .output();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

pub fn row<'a>(told: &'a Value, address: &str) -> Option<&'a Value> {
    told["addresses"]
        .as_array()?
        .iter()
        .find(|row| row["address"] == address)
}

pub fn script(uplink: &str) -> String {
    let mut lines = vec!["ip -n @switch link add br0 type bridge".to_owned()];
    let strict = "net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1";
    for name in ["client", "node1", "node2", "pod1", "pod2"] {
        lines.push(format!("ip netns exec @{name} sysctl -qw {strict}"));
    }
    for node in ["node1", "node2"] {
        let forward = "net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.icmp_ratelimit=0";
        lines.push(format!("ip netns exec @{node} sysctl -qw {forward}"));
    }
    for (name, host) in [("client", "100"), ("node1", "1"), ("node2", "2")] {
        lines.push(format!(
            "ip link add eth0 netns @{name} type veth peer name to-{name} netns @switch"
        ));
        lines.push(format!("ip -n @switch link set to-{name} master br0 up"));
        lines.push(format!("ip -n @{name} link set eth0 up"));
        match uplink {
            VLAN => lines.push(format!("ip -n @{name} link add link eth0 name {uplink} type vlan id 7")),
            BRIDGE => {
                lines.push(format!("ip -n @{name} link add {uplink} type bridge"));
                lines.push(format!("ip -n @{name} link set eth0 master {uplink}"));
            }
            _ => {}
        }
        lines.push(format!("ip -n @{name} link set {uplink} up"));
        lines.push(format!("ip -n @{name} addr add 192.0.2.{host}/24 dev {uplink}"));
        lines.push(format!("ip -n @{name} addr add 2001:db8::{host}/64 dev {uplink} nodad"));
        lines.push(format!("ip netns exec @{name} ethtool -K eth0 tx off >/dev/null"));
    }
    lines.push("ip -n @switch link set br0 up".to_owned());
    // The client finds these on the link, as it does its own network.
    lines.push(format!("ip -n @client route add 198.51.100.0/24 dev {uplink}"));
    lines.push(format!("ip -n @client route add 2001:db8:b::/64 dev {uplink}"));
    for (n, other) in [(1, 2), (2, 1)] {
        lines.extend([
            format!("ip -n @node{n} route add default via 192.0.2.254"),
            format!("ip -n @node{n} route add default via 2001:db8::fe"),
            format!("ip -n @node{n} route add 10.244.{other}.0/24 via 192.0.2.{other}"),
            format!("ip -n @node{n} route add fd00:10:244:{other}::/64 via 2001:db8::{other}"),
            format!("ip link add eth0 netns @pod{n} type veth peer name pod0 netns @node{n}"),
            format!("ip -n @node{n} addr add 10.244.{n}.1/24 dev pod0"),
            format!("ip -n @node{n} addr add fd00:10:244:{n}::1/64 dev pod0 nodad"),
            format!("ip -n @node{n} link set pod0 up"),
            format!("ip -n @pod{n} addr add 10.244.{n}.10/24 dev eth0"),
            format!("ip -n @pod{n} addr add fd00:10:244:{n}::10/64 dev eth0 nodad"),
            format!("ip -n @pod{n} link set eth0 up"),
            format!("ip -n @pod{n} route add default via 10.244.{n}.1"),
            format!("ip -n @pod{n} route add default via fd00:10:244:{n}::1"),
            format!("ip netns exec @pod{n} ethtool -K eth0 tx off >/dev/null"),
        ]);
    }
    lines.join("\n")
}
