//! Load balancer addresses on a local network: two nodes with real agents, and a client that finds the addresses by ARP
//! and NDP alone.
//!
//! ```text
//!                 ┌─ switch (a bridge) ─┐
//!   client .100 ──┤                     ├── node1 .1 ── pod1 10.244.1.10
//!                 │                     ├── node2 .2 ── pod2 10.244.2.10
//!                 └─────────────────────┘   192.0.2.0/24, 2001:db8::/64; 198.51.100.0/24 and 2001:db8:b::/64 are on the link
//! ```
//!
//! The nodes share a folder of manifests. Reverse paths are filtered strictly everywhere. Each take-over prints how long the
//! client went without an answer.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt};
use nix::sys::time::TimeVal;
use nix::unistd::Pid;
use serde_json::Value;
use support::namespaces::Namespaces;
use support::node::{PATIENCE, binary, bpffs};
use support::process::Program;
use support::{poll, skip};

/// Times are measured: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

const INSIDE_V4: &str = "192.0.2.50";
const OUTSIDE_V4: &str = "198.51.100.50";
const INSIDE_V6: &str = "2001:db8::50";
const OUTSIDE_V6: &str = "2001:db8:b::50";
const ADDRESSES: [&str; 4] = [INSIDE_V4, OUTSIDE_V4, INSIDE_V6, OUTSIDE_V6];
/// In no pool.
const ELSEWHERE: &str = "198.51.100.250";
/// What leads to the network: a device, a VLAN on it, or a bridge that it is a port of.
const DEVICE: &str = "eth0";
const VLAN: &str = "eth0.7";
const BRIDGE: &str = "br-up";
const NODES: [&str; 2] = ["node1", "node2"];

const POOLS: &str = "
apiVersion: fairway.io/v1alpha1
kind: AddressPool
metadata: {name: default}
spec: {blocks: [{cidr: 192.0.2.48/28}, {start: 198.51.100.1, stop: 198.51.100.99}, {cidr: '2001:db8::50/124'}, {cidr: '2001:db8:b::/64'}]}
";

/// A Service with these addresses, and endpoints on these nodes.
fn service(name: &str, number: u8, policy: &str, addresses: &[&str], nodes: &[u8]) -> String {
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
struct Lab {
    namespaces: Namespaces,
    folder: PathBuf,
    /// The device of nodes and client that leads to the network, see [`DEVICE`].
    uplink: &'static str,
    agents: [Option<Program>; 2],
    _alone: MutexGuard<'static, ()>,
}

impl Lab {
    /// The lab, unless it cannot be here.
    fn new(test: &str, short: &str, uplink: &'static str) -> Option<Self> {
        if let Some(reason) = Namespaces::missing().or_else(|| (!bpffs()).then(|| "needs bpffs".to_owned())) {
            skip(test, &reason);
            return None;
        }
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = std::env::temp_dir().join(format!("fw-{short}-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("manifests")).expect("a folder can be made");
        let names = ["client", "switch", "node1", "node2", "pod1", "pod2"];
        let mut lab = Self {
            namespaces: Namespaces::new(short, &names, &script(uplink)),
            folder,
            uplink,
            agents: [None, None],
            _alone: alone,
        };
        for (pod, name) in [("pod1", "pod1"), ("pod2", "pod2")] {
            lab.namespaces.spawn(pod, move || serve_udp(name));
            lab.namespaces.spawn(pod, move || serve_tcp(name));
        }
        lab.manifest("pools.yaml", POOLS);
        lab.manifest("web.yaml", &service("web", 1, "Cluster", &ADDRESSES, &[1, 2]));
        for node in 0..2 {
            lab.start(node);
        }
        Some(lab)
    }

    /// Puts a file into the folder of manifests, at once.
    fn manifest(&self, name: &str, content: &str) {
        let new = self.folder.join(name);
        std::fs::write(&new, content).expect("a file can be written");
        std::fs::rename(&new, self.folder.join("manifests").join(name)).expect("a file can be renamed");
    }

    fn pins(&self, node: usize) -> String {
        format!("/sys/fs/bpf/{}-{}", self.namespaces.name(NODES[node]), "pins")
    }

    fn start(&mut self, node: usize) {
        let name = NODES[node];
        let net = format!("--net={}", self.namespaces.path(name));
        let (fairway, pins) = (binary().display().to_string(), self.pins(node));
        let manifests = self.folder.join("manifests").display().to_string();
        let words = format!(
            "nsenter {net} {fairway} agent --node-name {name} --manifests {manifests} --cgroup none --pin-dir {pins} \
             --cluster-cidr 10.244.0.0/16,fd00:10:244::/48 --max-connections 8192 --max-backends 1024 \
             --max-maglev-slots 65536"
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

    fn fairway(&self, node: usize, command: &str) -> Option<Value> {
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
    fn announcements(&self, node: usize) -> Option<Value> {
        self.fairway(node, "announcements")
    }

    fn pid(&self, node: usize) -> Pid {
        let status = self.fairway(node, "status").expect("the agent answers");
        let pid = status["agent"]["pid"].as_i64().expect("it has a process");
        Pid::from_raw(i32::try_from(pid).expect("it is one"))
    }

    fn signal(&self, node: usize, signal: Signal) {
        kill(self.pid(node), signal).expect("it runs");
    }

    /// Waits until the agent has ended.
    fn ended(&mut self, node: usize) {
        let mut agent = self.agents[node].take().expect("it was started");
        poll("the agent ends", PATIENCE, || agent.ended());
    }

    /// The node that announces an address by what both say, once they say the same.
    fn announcer(&mut self, address: &str) -> usize {
        poll(&format!("{address} is announced"), PATIENCE, || {
            let mut said = BTreeSet::new();
            for node in 0..2 {
                let Some(agent) = &mut self.agents[node] else { continue };
                agent.must_run();
                let told = self.announcements(node)?;
                let row = row(&told, address)?;
                let name = row["node"].as_str()?.to_owned();
                if (row["here"] == true) != (name == NODES[node]) {
                    return None;
                }
                said.insert(name);
            }
            let only = said.pop_first().filter(|_| said.is_empty())?;
            NODES.iter().position(|name| *name == only)
        })
    }

    /// Waits until this node announces the address.
    fn until_announced_by(&mut self, address: &str, node: usize) {
        poll(&format!("{} announces {address}", NODES[node]), PATIENCE, || {
            (self.announcer(address) == node).then_some(())
        });
    }

    fn ip(&self, namespace: &str, words: &str) -> String {
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

    fn mac(&self, namespace: &str) -> [u8; 6] {
        let shown = self.ip(namespace, &format!("-j link show dev {}", self.uplink));
        let shown: Value = serde_json::from_str(&shown).expect("it is JSON");
        let text = shown[0]["address"].as_str().expect("it has one");
        let bytes: Vec<u8> = text
            .split(':')
            .map(|b| u8::from_str_radix(b, 16).expect("a byte"))
            .collect();
        bytes.try_into().expect("six bytes")
    }

    /// Who answers the client's question for an address, by their link addresses, as often as they do.
    fn answers(&self, address: &str) -> Vec<[u8; 6]> {
        let address: IpAddr = address.parse().expect("an address");
        let client = self.mac("client");
        self.ip("client", &format!("neigh flush dev {}", self.uplink));
        self.namespaces.within("client", move || {
            let ears = Ears::open(Duration::from_millis(50));
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
    fn ask(&self, address: &str) -> std::io::Result<String> {
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
        for node in 0..2 {
            let _ = Command::new("nsenter")
                .arg(format!("--net={}", self.namespaces.path(NODES[node])))
                .arg(binary())
                .args(["cleanup", "--force", "--pin-dir", &self.pins(node)])
                .output();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn row<'a>(told: &'a Value, address: &str) -> Option<&'a Value> {
    told["addresses"]
        .as_array()?
        .iter()
        .find(|row| row["address"] == address)
}

fn unspecified(address: IpAddr) -> SocketAddr {
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    any.parse().expect("an address")
}

fn script(uplink: &str) -> String {
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

/// Answers every datagram with the pod's name and what it said.
fn serve_udp(name: &str) {
    let socket = UdpSocket::bind("[::]:8080").expect("the port is free");
    let mut buffer = [0; 64];
    while let Ok((len, from)) = socket.recv_from(&mut buffer) {
        let answer = [name.as_bytes(), b" ", &buffer[..len]].concat();
        let _gone = socket.send_to(&answer, from);
    }
}

/// Answers every byte of a connection with the pod's name.
fn serve_tcp(name: &'static str) {
    let listener = TcpListener::bind("[::]:8080").expect("the port is free");
    for connection in listener.incoming() {
        let Ok(mut connection) = connection else { continue };
        std::thread::spawn(move || {
            let mut byte = [0];
            while connection.read_exact(&mut byte).is_ok() && connection.write_all(name.as_bytes()).is_ok() {}
        });
    }
}

/// A connection to [`serve_tcp`].
struct Talk(TcpStream);

impl Talk {
    fn open(to: SocketAddr, limit: Duration) -> std::io::Result<Self> {
        let stream = TcpStream::connect_timeout(&to, limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_nodelay(true)?;
        Ok(Self(stream))
    }

    fn say(&mut self, byte: &str) -> std::io::Result<String> {
        self.0.write_all(byte.as_bytes())?;
        let mut name = [0; 4];
        self.0.read_exact(&mut name)?;
        Ok(String::from_utf8_lossy(&name).into_owned())
    }
}

/// Hears every frame in a namespace.
struct Ears(std::os::fd::OwnedFd);

impl Ears {
    fn open(limit: Duration) -> Self {
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::EthAll,
        );
        let socket = socket.expect("root may hear");
        let limit = TimeVal::new(0, i64::try_from(limit.as_micros()).expect("it is short"));
        setsockopt(&socket, sockopt::ReceiveTimeout, &limit).expect("a limit can be set");
        Self(socket)
    }

    fn hear(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 2048];
        let len = recv(self.0.as_raw_fd(), &mut frame, MsgFlags::empty()).ok()?;
        frame.truncate(len);
        (len >= 42).then_some(frame)
    }
}

/// The link address that a frame gives as an answer to who has the address, if it is one.
fn answer(frame: &[u8], address: IpAddr) -> Option<[u8; 6]> {
    let found: &[u8] = match address {
        IpAddr::V4(address) => {
            let is_answer = frame[12..14] == [8, 6] && frame[20..22] == [0, 2] && frame[28..32] == address.octets();
            is_answer.then(|| &frame[22..28])?
        }
        IpAddr::V6(address) => {
            let is_answer = frame.len() >= 86
                && frame[12..14] == [0x86, 0xdd]
                && (frame[20], frame[54]) == (58, 136)
                && frame[62..78] == address.octets();
            is_answer.then(|| &frame[80..86])?
        }
    };
    Some(found.try_into().expect("six bytes"))
}

/// A question of the client's for an IPv4 address.
fn question(client: [u8; 6], address: IpAddr) -> Vec<u8> {
    let IpAddr::V4(address) = address else {
        panic!("ARP is for IPv4")
    };
    let mut frame = [
        &[0xff; 6][..],
        &client,
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
        &client,
        &[192, 0, 2, 100],
    ]
    .concat();
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame
}

/// What a client that asks 200 times a second lives through.
struct Asking {
    stop: Arc<AtomicBool>,
    udp: JoinHandle<Trace>,
    tcp: JoinHandle<Trace>,
}

/// When it was asked, and whether that was answered.
type Trace = Vec<(Instant, bool)>;

const EVERY: Duration = Duration::from_millis(5);
/// An answer has to come within this.
const SOON: Duration = Duration::from_millis(400);

impl Asking {
    fn start(lab: &Lab, address: &str) -> Self {
        let to = SocketAddr::new(address.parse().expect("an address"), 80);
        let stop = Arc::new(AtomicBool::new(false));
        let (stop_udp, stop_tcp) = (Arc::clone(&stop), Arc::clone(&stop));
        Self {
            stop,
            udp: lab.namespaces.spawn("client", move || ask_by_udp(to, &stop_udp)),
            tcp: lab.namespaces.spawn("client", move || ask_by_tcp(to, &stop_tcp)),
        }
    }

    /// Stops, prints the longest times without an answer and returns the longer one.
    fn longest_gap(self, what: &str) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        let traces = [("UDP", self.udp), ("new TCP connections", self.tcp)];
        let gaps = traces.map(|(how, trace)| {
            let trace = trace.join().expect("the client goes on");
            let lost = trace.iter().filter(|(_, answered)| !answered).count();
            let gap = longest_gap(&trace);
            println!(
                "{what}: {how}: longest gap {} ms, {lost} of {} requests lost",
                gap.as_millis(),
                trace.len()
            );
            assert!(trace.len() > 100, "the client hardly asked");
            gap
        });
        gaps[0].max(gaps[1])
    }
}

/// From the last request that was answered before some were not, to the next that was.
fn longest_gap(trace: &Trace) -> Duration {
    let mut longest = Duration::ZERO;
    let mut last_answered: Option<Instant> = None;
    let mut lost = false;
    for (at, answered) in trace {
        if !answered {
            lost = true;
            continue;
        }
        if let Some(last) = last_answered.filter(|_| lost) {
            longest = longest.max(*at - last);
        }
        (last_answered, lost) = (Some(*at), false);
    }
    if let (true, Some(last), Some((end, _))) = (lost, last_answered, trace.last()) {
        // Not answered to the end, when the last requests had no time left.
        longest = longest.max(end.saturating_duration_since(last).saturating_sub(SOON));
    }
    longest
}

fn ask_by_udp(to: SocketAddr, stop: &AtomicBool) -> Trace {
    let socket = UdpSocket::bind(unspecified(to.ip())).expect("a port is free");
    socket.connect(to).expect("it has a route");
    let hears = socket.try_clone().expect("it can be cloned");
    hears.set_read_timeout(Some(SOON)).expect("a limit can be set");
    let (mut sent, done) = (Vec::new(), Arc::new(AtomicBool::new(false)));
    let ended = Arc::clone(&done);
    let answers = std::thread::spawn(move || {
        let mut answered = BTreeSet::new();
        let mut buffer = [0; 64];
        loop {
            match hears.recv(&mut buffer) {
                Ok(len) => {
                    let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
                    answered.extend(text.split(' ').nth(1).and_then(|number| number.parse::<usize>().ok()));
                }
                Err(_) if ended.load(Ordering::Relaxed) => return answered,
                Err(_) => {}
            }
        }
    });
    while !stop.load(Ordering::Relaxed) {
        let number = sent.len().to_string();
        sent.push(Instant::now());
        // An error that came back for an earlier one is this one's loss.
        let _lost = socket.send(number.as_bytes());
        std::thread::sleep(EVERY);
    }
    done.store(true, Ordering::Relaxed);
    let answered = answers.join().expect("it hears");
    let sent = sent.into_iter().enumerate();
    sent.map(|(number, at)| (at, answered.contains(&number))).collect()
}

fn ask_by_tcp(to: SocketAddr, stop: &AtomicBool) -> Trace {
    let mut asked = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let at = Instant::now();
        let answer = std::thread::spawn(move || Talk::open(to, SOON).and_then(|mut talk| talk.say("x")).is_ok());
        asked.push((at, answer));
        std::thread::sleep(EVERY);
    }
    let trace = asked
        .into_iter()
        .map(|(at, answer)| (at, answer.join().expect("it ends")));
    trace.collect()
}

/// Each address is answered for once, by the node that both say, and served; what is not announced is not answered for.
fn exactly_one_answers(lab: &mut Lab) {
    let macs: BTreeMap<[u8; 6], usize> = [(lab.mac("node1"), 0), (lab.mac("node2"), 1)].into();
    let client = lab.mac("client");
    for address in ADDRESSES {
        let announcer = lab.announcer(address);
        let answers = lab.answers(address);
        let by: Vec<Option<&usize>> = answers.iter().map(|mac| macs.get(mac)).collect();
        assert_eq!(
            by,
            [Some(&announcer)],
            "{address}: {answers:02x?} (the client is {client:02x?})"
        );
        println!("{address}: one answer, by {}", NODES[announcer]);
        let pods: BTreeSet<String> = (0..24).map(|_| lab.ask(address).expect("it is served")).collect();
        assert_eq!(
            pods,
            BTreeSet::from(["pod1".to_owned(), "pod2".to_owned()]),
            "{address}"
        );
    }
    assert_eq!(lab.answers(ELSEWHERE), Vec::<[u8; 6]>::new());
}

#[test]
fn each_address_is_answered_for_by_exactly_one_node() {
    let Some(mut lab) = Lab::new("each_address_is_answered_for_by_exactly_one_node", "one", DEVICE) else {
        return;
    };
    exactly_one_answers(&mut lab);
    // Somebody who wants to use the address himself finds it taken.
    lab.ip("client", &format!("addr add {INSIDE_V6}/64 dev eth0"));
    poll("the address is found to be taken", PATIENCE, || {
        let shown = lab.ip("client", "addr show dev eth0");
        shown.contains("dadfailed").then_some(())
    });
    lab.ip("client", &format!("addr del {INSIDE_V6}/64 dev eth0"));
    // Eight addresses more: each is announced by one node, and both announce some.
    let many: Vec<String> = (1..=8).map(|host| format!("198.51.100.{host}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    lab.manifest("many.yaml", &service("many", 2, "Cluster", &many, &[1, 2]));
    let by: BTreeSet<usize> = many.iter().map(|address| lab.announcer(address)).collect();
    assert_eq!(by, BTreeSet::from([0, 1]));
    // A pool that is not announced any more.
    lab.manifest(
        "pools.yaml",
        &POOLS.replace("spec: {", "spec: {announcement: {mode: None}, "),
    );
    poll("nothing is announced", PATIENCE, || {
        let told = lab.announcements(0)?;
        told["addresses"].as_array().is_some_and(Vec::is_empty).then_some(())
    });
    poll("nobody answers", PATIENCE, || {
        lab.answers(INSIDE_V4).is_empty().then_some(())
    });
}

#[test]
fn a_vlan_device_announces_within_its_vlan() {
    if !has_vlans() {
        // Not by `skip`: that another kernel has them helps nobody here.
        eprintln!("SKIPPED a_vlan_device_announces_within_its_vlan: this kernel has no VLAN devices (8021q)");
        return;
    }
    let Some(mut lab) = Lab::new("a_vlan_device_announces_within_its_vlan", "vlan", VLAN) else {
        return;
    };
    exactly_one_answers(&mut lab);
    announces_on(&lab, VLAN);
}

/// Whether this kernel can have VLAN devices.
fn has_vlans() -> bool {
    if Namespaces::missing().is_some() {
        return true;
    }
    let namespaces = Namespaces::new("vlans", &["any"], "ip -n @any link add eth0 type veth peer name peer0");
    let added = Command::new("ip")
        .args(["-n", &namespaces.name("any")])
        .args("link add link eth0 name eth0.7 type vlan id 7".split(' '))
        .output();
    added.expect("ip runs").status.success()
}

#[test]
fn a_bridge_announces_and_not_its_ports() {
    let Some(mut lab) = Lab::new("a_bridge_announces_and_not_its_ports", "bridge", BRIDGE) else {
        return;
    };
    exactly_one_answers(&mut lab);
    announces_on(&lab, BRIDGE);
}

/// Whatever is announced is announced on this device alone.
fn announces_on(lab: &Lab, device: &str) {
    let told = lab.announcements(0).expect("the agent answers");
    let rows = told["addresses"].as_array().expect("there are some").clone();
    let here: Vec<&Value> = rows.iter().filter(|row| row["here"] == true).collect();
    assert!(
        !here.is_empty() && here.iter().all(|row| row["devices"] == serde_json::json!([device])),
        "{told}"
    );
}

#[test]
fn policy_local_is_announced_where_the_endpoint_is_and_moves_with_it() {
    const ADDRESS: &str = "192.0.2.60";
    let name = "policy_local_is_announced_where_the_endpoint_is_and_moves_with_it";
    let Some(mut lab) = Lab::new(name, "local", DEVICE) else {
        return;
    };
    let to = SocketAddr::new(ADDRESS.parse().expect("an address"), 80);
    for (node, pod) in [(0, "pod1"), (1, "pod2"), (0, "pod1")] {
        let number = u8::try_from(node + 1).expect("it is small");
        lab.manifest("local.yaml", &service("local", 3, "Local", &[ADDRESS], &[number]));
        lab.until_announced_by(ADDRESS, node);
        let answered = poll("the pod answers", PATIENCE, || lab.ask(ADDRESS).ok());
        assert_eq!(answered, pod);
        assert_eq!(lab.answers(ADDRESS), [lab.mac(NODES[node])]);
    }
    // No other node may announce it: while the agent is replaced the data path goes on, and so do connections.
    let mut talk = lab.namespaces.within("client", move || {
        Talk::open(to, Duration::from_secs(2)).expect("it is served")
    });
    lab.signal(0, Signal::SIGTERM);
    lab.ended(0);
    assert_eq!(talk.say("x").expect("the connection goes on"), "pod1");
    lab.start(0);
    lab.until_announced_by(ADDRESS, 0);
    assert_eq!(talk.say("x").expect("the connection goes on"), "pod1");
    // Nobody has an endpoint: nobody announces, and it is said why.
    lab.manifest("local.yaml", &service("local", 3, "Local", &[ADDRESS], &[]));
    poll("nobody announces", PATIENCE, || {
        let told = lab.announcements(0)?;
        let row = row(&told, ADDRESS)?.clone();
        let reason = row["others"][0]["reason"].as_str()?.contains("no ready endpoint");
        (row["node"].is_null() && reason).then_some(())
    });
    assert_eq!(lab.answers(ADDRESS), Vec::<[u8; 6]>::new());
    poll("it is told as a problem", PATIENCE, || {
        let status = lab.fairway(1, "status")?;
        let problems = status["agent"]["problems"].as_array()?.clone();
        let told = |problem: &Value| {
            let text = problem.as_str().unwrap_or_default();
            text.starts_with("Service default/local: status.loadBalancer.ingress: no node may announce 192.0.2.60")
        };
        problems.iter().any(told).then_some(())
    });
}

#[test]
fn an_agent_that_is_stopped_hands_over_at_once_and_gets_back_without_loss() {
    let name = "an_agent_that_is_stopped_hands_over_at_once_and_gets_back_without_loss";
    let Some(mut lab) = Lab::new(name, "stop", DEVICE) else {
        return;
    };
    for address in [INSIDE_V4, OUTSIDE_V6] {
        let first = lab.announcer(address);
        let asking = Asking::start(&lab, address);
        std::thread::sleep(Duration::from_millis(500));
        lab.signal(first, Signal::SIGTERM);
        lab.ended(first);
        lab.until_announced_by(address, 1 - first);
        std::thread::sleep(Duration::from_millis(1500));
        let gap = asking.longest_gap(&format!("SIGTERM of the agent that announces {address}"));
        assert!(gap < Duration::from_millis(200), "{gap:?}");

        let asking = Asking::start(&lab, address);
        lab.start(first);
        lab.until_announced_by(address, first);
        std::thread::sleep(Duration::from_millis(1500));
        let gap = asking.longest_gap(&format!("the agent that announced {address} is back"));
        assert!(gap < Duration::from_millis(200), "{gap:?}");
    }
}

#[test]
fn when_a_node_dies_another_takes_over() {
    let Some(mut lab) = Lab::new("when_a_node_dies_another_takes_over", "dies", DEVICE) else {
        return;
    };
    let first = lab.announcer(INSIDE_V4);
    // Its pod dies with the node, which its readiness would tell much later; this is about the address.
    let left = u8::try_from(2 - first).expect("it is small");
    lab.manifest("web.yaml", &service("web", 1, "Cluster", &ADDRESSES, &[left]));
    poll("one endpoint is left", PATIENCE, || {
        let rows = lab.fairway(first, "services")?;
        let text = rows.to_string();
        (!text.contains(&format!("10.244.{}.10", first + 1))).then_some(())
    });
    let asking = Asking::start(&lab, INSIDE_V4);
    std::thread::sleep(Duration::from_millis(500));
    // The agent has no time to tell anybody.
    lab.signal(first, Signal::SIGKILL);
    lab.ip("switch", &format!("link set to-{} down", NODES[first]));
    lab.ended(first);
    lab.until_announced_by(INSIDE_V4, 1 - first);
    std::thread::sleep(Duration::from_millis(1500));
    let gap = asking.longest_gap("death of the node that announces 192.0.2.50");
    assert!(gap < Duration::from_secs(3), "{gap:?}");
}

#[test]
fn when_an_agent_is_killed_its_node_goes_silent_before_another_answers() {
    let name = "when_an_agent_is_killed_its_node_goes_silent_before_another_answers";
    let Some(mut lab) = Lab::new(name, "kill", DEVICE) else {
        return;
    };
    let first = lab.announcer(INSIDE_V4);
    let macs = [lab.mac("node1"), lab.mac("node2")];
    let client = lab.mac("client");
    let asking = Asking::start(&lab, INSIDE_V4);
    // Who answers a question, each 20 ms, all the time.
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let address: IpAddr = INSIDE_V4.parse().expect("an address");
    let answers = lab.namespaces.spawn("client", move || {
        let ears = Ears::open(Duration::from_millis(5));
        let index = nix::net::if_::if_nametoindex("eth0").expect("there is one");
        let mut heard = Vec::new();
        let mut next = Instant::now();
        while !stopped.load(Ordering::Relaxed) {
            if Instant::now() >= next {
                fairway::sys::send_frame(index, &question(client, address)).expect("root may send");
                next = Instant::now() + Duration::from_millis(20);
            }
            let frame = ears.hear().filter(|frame| frame[..6] == client);
            heard.extend(
                frame
                    .and_then(|frame| answer(&frame, address))
                    .map(|mac| (Instant::now(), mac)),
            );
        }
        heard
    });
    std::thread::sleep(Duration::from_millis(500));
    let killed = Instant::now();
    lab.signal(first, Signal::SIGKILL);
    lab.ended(first);
    lab.until_announced_by(INSIDE_V4, 1 - first);
    std::thread::sleep(Duration::from_millis(1500));
    stop.store(true, Ordering::Relaxed);
    let heard = answers.join().expect("the client goes on");
    let gap = asking.longest_gap("kill -9 of the agent that announces 192.0.2.50");
    assert!(gap < Duration::from_secs(3), "{gap:?}");

    let last = heard
        .iter()
        .filter(|(_, mac)| *mac == macs[first])
        .map(|(at, _)| *at)
        .max();
    let next = heard
        .iter()
        .filter(|(_, mac)| *mac == macs[1 - first])
        .map(|(at, _)| *at)
        .min();
    let (last, next) = (last.expect("it answered"), next.expect("the other answers"));
    println!(
        "kill -9 of the agent that announces 192.0.2.50: its node was silent after {} ms, the other answered after {} ms",
        last.saturating_duration_since(killed).as_millis(),
        next.saturating_duration_since(killed).as_millis()
    );
    assert!(last < next, "two nodes answered at the same time");
    assert!(next - killed < Duration::from_secs(3));
    // What is left of it counts what it leaves unanswered; the agent that comes back begins anew.
    lab.start(first);
    lab.until_announced_by(INSIDE_V4, first);
    exactly_one_answers(&mut lab);
}
