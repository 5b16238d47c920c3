//! Cases in the lab: a real agent with its programs on the node of a [`World`], objects as files of manifests, and
//! real sockets.
//!
//! The world and the agent go on from case to case as long as the node and the configuration are the same; each
//! case begins with a node without Services. Hours are not waited for: when a packet is to be sent later than it is,
//! the pins of session affinity are made older by what is missing.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use ipnet::IpNet;
use serde_json::{Value, json};

use super::case::{Case, Config, Node, Reference};
use super::subject::{Change, HealthSeen, Subject};
use crate::lab::agent;
use crate::world::{Flow, From, Observation, Opening, Probe, Protocol, Spec, World, remove_abandoned};

/// How long an agent may take to start, and to take a change.
const PATIENCE: Duration = Duration::from_secs(60);
/// Sizes of its maps: enough for thousands of endpoints, and soon there.
const SIZES: [&str; 6] = [
    "--max-connections",
    "131072",
    "--max-backends",
    "16384",
    "--max-maglev-slots",
    "4194304",
];
/// How often it is asked whether it has.
const POLL: Duration = Duration::from_millis(5);
/// From where health ports are asked, like a load balancer would.
const CHECKERS: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::new(198, 18, 0, 7), Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 7));

/// How the names of its worlds begin.
const PREFIX: &str = "conf";

/// The programs that are needed.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The agent.
    pub fairway: PathBuf,
    /// `lb-userspace/examples/conformance`, which makes pins older.
    pub conformance: PathBuf,
    /// This one.
    pub xtask: PathBuf,
}

/// Nodes with a real agent.
#[derive(Debug)]
pub struct Lab {
    programs: Programs,
    name: String,
    stand: Option<Stand>,
    objects: BTreeMap<Reference, Value>,
    flows: Vec<(Flow, Opening)>,
    began: Instant,
    /// How much older pins were made than they are.
    aged: Duration,
    changes: u64,
}

/// A flow: its protocol, its client and where that sends.
type Tuple = (Protocol, SocketAddr, SocketAddr);

fn tuple((flow, opening): &(Flow, Opening)) -> Tuple {
    (opening.protocol, flow.client(), opening.dst)
}

/// What stands as long as node and configuration are the same.
#[derive(Debug)]
struct Stand {
    node: Node,
    config: Config,
    world: World,
    agent: Child,
    folder: PathBuf,
    pins: PathBuf,
    state: PathBuf,
}

impl Lab {
    /// Nothing stands before the first case. What killed processes have left is removed.
    ///
    /// # Errors
    /// If that fails: without root, or without cgroups.
    pub fn new(programs: Programs) -> anyhow::Result<Self> {
        static LABS: AtomicU32 = AtomicU32::new(0);
        for name in remove_abandoned(PREFIX)? {
            remove_folders(&name);
        }
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        Ok(Self {
            programs,
            name: format!("{PREFIX}-{}-{number}", std::process::id()),
            stand: None,
            objects: BTreeMap::new(),
            flows: Vec::new(),
            began: Instant::now(),
            aged: Duration::ZERO,
            changes: 0,
        })
    }

    fn stand(&mut self) -> anyhow::Result<&mut Stand> {
        self.stand.as_mut().context("no case has begun")
    }

    /// Which of these flows the agent lists.
    fn listed(&mut self, flows: &[Tuple]) -> anyhow::Result<Vec<bool>> {
        let fairway = self.programs.fairway.clone();
        let listed = self.stand()?.run(&fairway, &["flows", "-o", "json"])?;
        let listed: Vec<Value> = serde_json::from_slice(&listed).context("understand fairway flows -o json")?;
        let is_listed = |(protocol, client, frontend): &Tuple| {
            listed.iter().any(|entry| {
                let is = |field: &str, text: &str| {
                    let value = entry.get(field).and_then(Value::as_str);
                    value.is_some_and(|value| value.eq_ignore_ascii_case(text))
                };
                is("protocol", &format!("{protocol:?}"))
                    && is("client", &client.to_string())
                    && is("frontend", &frontend.to_string())
            })
        };
        Ok(flows.iter().map(is_listed).collect())
    }

    /// Gives up the flows of the case before, and waits until their entries are gone: without Services those of UDP go
    /// at once, and a flow of the next case may have the same ports.
    fn give_up(&mut self, old: &[Tuple]) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let old: Vec<Tuple> = old
            .iter()
            .filter(|(protocol, ..)| *protocol == Protocol::Udp)
            .copied()
            .collect();
        while !old.is_empty() && self.listed(&old)?.contains(&true) {
            ensure!(
                Instant::now() < deadline,
                "UDP flows of a Service that is gone are still there"
            );
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Writes all objects, and waits until the agent has them in force.
    fn feed(&mut self) -> anyhow::Result<()> {
        self.changes += 1;
        let marker = format!("change-{}", self.changes);
        let mut text = String::new();
        for object in self.objects.values().chain([&marker_object(&marker)]) {
            text += &format!("---\n{object}\n");
        }
        let stand = self.stand()?;
        let (file, new) = (stand.folder.join("objects.yaml"), stand.folder.join("objects.new"));
        fs::write(&new, text).with_context(|| format!("write {}", new.display()))?;
        fs::rename(&new, &file).with_context(|| format!("write {}", file.display()))?;
        stand.wait_for(&marker)
    }
}

/// A Service that tells, once the agent serves it, that it has all objects of this change: they are taken together.
fn marker_object(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "fairway-conformance"},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": "198.18.255.254",
            "clusterIPs": ["198.18.255.254"],
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "ports": [{"port": 9, "protocol": "UDP"}],
        },
    })
}

impl Stand {
    fn up(programs: &Programs, name: &str, case: &Case) -> anyhow::Result<Self> {
        let mut world = World::up(&Spec {
            name: name.to_owned(),
            xtask: programs.xtask.clone(),
            ips: case.node.ips.clone(),
            other_ips: case.node.other_ips.clone(),
            pod_cidrs: case.node.pod_cidrs.clone(),
            pods_in_cgroup: true,
        })?;
        world.set_patience(Duration::from_millis(300));
        agent::mount_bpffs()?;
        let [folder, pins, state] = folders(name);
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let log = folder.join("agent.log");
        let log = File::create(&log).with_context(|| format!("make {}", log.display()))?;
        let list = |values: &[IpNet]| values.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let mut command = world.command(&programs.fairway);
        command
            .args(["agent", "--node-name", &case.node.name])
            .arg("--manifests")
            .arg(&folder)
            .args(["--cluster-cidr", &list(&case.node.pod_cidrs)])
            .arg("--cgroup")
            .arg(world.cgroup())
            .arg("--pin-dir")
            .arg(&pins)
            .args(["--xdp", "native"])
            .args(SIZES);
        if !case.config.service_cidrs.is_empty() {
            command.args(["--service-cidrs", &list(&case.config.service_cidrs)]);
        }
        if let Some(ranges) = &case.config.nodeport_addresses {
            command.args(["--nodeport-addresses", &list(ranges)]);
        }
        let agent = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start the agent")?;
        Ok(Self {
            node: case.node.clone(),
            config: case.config.clone(),
            world,
            agent,
            folder,
            pins,
            state,
        })
    }

    /// The agent's state, as it tells it.
    fn state(&self) -> anyhow::Result<Value> {
        let mut socket = UnixStream::connect(self.state.join("agent.sock"))?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.write_all(b"GET /state HTTP/1.0\r\nHost: agent\r\n\r\n")?;
        let answer = Answer::read(&mut socket)?;
        ensure!(answer.status == 200, "the agent answers {}", answer.status);
        Ok(answer.body)
    }

    /// Waits until the agent serves the Service with this name.
    fn wait_for(&mut self, marker: &str) -> anyhow::Result<()> {
        self.wait_until("has not taken a change", |_, state| {
            let names = state.get("names").and_then(Value::as_object).into_iter().flatten();
            let mut services = names.filter_map(|(_, name)| name.get("service")?.as_str());
            services.any(|service| service == marker)
        })
    }

    /// Waits until its programs hang on every pod's device.
    fn wait_for_devices(&mut self) -> anyhow::Result<()> {
        self.wait_until("has not attached to new devices", |world, state| {
            let devices = state.get("devices").and_then(Value::as_array).into_iter().flatten();
            let attached: Vec<&str> = devices.filter_map(|device| device.get("device")?.as_str()).collect();
            world.pod_devices().all(|device| attached.contains(&device))
        })
    }

    fn wait_until(&mut self, complaint: &str, is_so: impl Fn(&World, &Value) -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let state = self.state();
            if state.as_ref().is_ok_and(|state| is_so(&self.world, state)) {
                return Ok(());
            }
            let log = self.folder.join("agent.log");
            if let Some(status) = self.agent.try_wait()? {
                bail!("the agent has ended ({status}):\n{}", agent::tail(&log));
            }
            ensure!(
                Instant::now() < deadline,
                "the agent {complaint} within {} s: {}\n{}",
                PATIENCE.as_secs(),
                state.map_or_else(|error| error.to_string(), |state| state["problems"].to_string()),
                agent::tail(&log)
            );
            std::thread::sleep(POLL);
        }
    }

    /// What a health check port says at one address.
    fn health(&mut self, at: SocketAddr) -> anyhow::Result<HealthSeen> {
        let src = if at.is_ipv4() {
            IpAddr::V4(CHECKERS.0)
        } else {
            IpAddr::V6(CHECKERS.1)
        };
        let mut stream = match self.world.connect(From::External, src, at)? {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Ok(HealthSeen::default()),
            connected => connected.with_context(|| format!("connect to the health port {at}"))?,
        };
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        write!(stream, "GET / HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n")?;
        let answer = Answer::read(&mut stream).with_context(|| format!("read from the health port {at}"))?;
        let name = |field: &str| {
            answer
                .body
                .pointer(&format!("/service/{field}"))
                .and_then(Value::as_str)
        };
        let endpoints = answer.body.get("localEndpoints").and_then(Value::as_u64);
        Ok(HealthSeen {
            status: Some(answer.status),
            local_endpoints: endpoints.and_then(|count| u32::try_from(count).ok()),
            service: name("namespace")
                .zip(name("name"))
                .map(|(namespace, name)| format!("{namespace}/{name}")),
        })
    }

    /// Runs a command that looks into the maps.
    fn run(&self, program: &Path, arguments: &[&str]) -> anyhow::Result<Vec<u8>> {
        let output = Command::new(program)
            .args(arguments)
            .arg("--pin-dir")
            .arg(&self.pins)
            .output()
            .with_context(|| format!("run {}", program.display()))?;
        ensure!(
            output.status.success(),
            "{} {}: {}",
            program.display(),
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(output.stdout)
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        _ = self.agent.kill();
        _ = self.agent.wait();
        remove_folders(&self.world.spec().name);
    }
}

/// Of a world: the manifests, the agent's pins, and the folder of its socket, which is named after these.
fn folders(name: &str) -> [PathBuf; 3] {
    let name = format!("fairway-{name}");
    [std::env::temp_dir(), "/sys/fs/bpf".into(), "/run".into()].map(|folder: PathBuf| folder.join(&name))
}

fn remove_folders(name: &str) {
    for folder in folders(name) {
        if let Err(error) = fs::remove_dir_all(&folder)
            && error.kind() != ErrorKind::NotFound
        {
            eprintln!("{} could not be removed: {error}", folder.display());
        }
    }
}

impl Subject for Lab {
    fn name(&self) -> &'static str {
        "lab"
    }

    fn begin(&mut self, case: &Case) -> anyhow::Result<()> {
        let old: Vec<Tuple> = self.flows.drain(..).map(|flow| tuple(&flow)).collect();
        self.objects.clear();
        let node = case.node.object();
        self.objects.insert(super::case::reference(&node)?, node);
        let stays = self
            .stand
            .as_ref()
            .is_some_and(|stand| stand.node == case.node && stand.config == case.config);
        if !stays {
            self.stand = None; // before another of its name is there
            self.stand = Some(Stand::up(&self.programs, &self.name, case)?);
        }
        self.feed()?;
        if stays {
            self.give_up(&old)?;
        }
        let servers: Vec<(SocketAddr, Protocol)> = case.backends().into_iter().collect();
        let clients: Vec<IpAddr> = case.client_pods().into_iter().collect();
        let stand = self.stand()?;
        stand.world.backends(&servers)?;
        stand.world.prepare_pods(&clients, case.has_many_pods())?;
        stand.wait_for_devices()?;
        (self.began, self.aged) = (Instant::now(), Duration::ZERO);
        Ok(())
    }

    fn change(&mut self, change: &Change<'_>) -> anyhow::Result<()> {
        for gone in &change.delete {
            self.objects.remove(gone);
        }
        for object in &change.apply {
            self.objects.insert(super::case::reference(object)?, (*object).clone());
        }
        self.feed()
    }

    fn tell_apart(&mut self, ranges: &[IpNet]) {
        if let Some(stand) = &mut self.stand {
            stand.world.tell_apart(ranges);
        }
    }

    fn set_time(&mut self, seconds: u32) -> anyhow::Result<()> {
        let missing = Duration::from_secs(seconds.into()).saturating_sub(self.began.elapsed() + self.aged);
        if missing.is_zero() {
            return Ok(());
        }
        let program = self.programs.conformance.clone();
        let milliseconds = missing.as_millis().to_string();
        self.stand()?.run(&program, &["age", "--milliseconds", &milliseconds])?;
        self.aged += missing;
        Ok(())
    }

    fn probe(&mut self, probes: &[Probe]) -> anyhow::Result<Vec<Vec<Observation>>> {
        self.stand()?.world.probe(probes)
    }

    fn health(&mut self, node_port: u16) -> anyhow::Result<HealthSeen> {
        let stand = self.stand()?;
        let mut seen = Vec::new();
        for ip in stand.node.ips.clone() {
            seen.push(stand.health(SocketAddr::new(ip, node_port))?);
        }
        // Each family has a count of its own, told at addresses of the family.
        let most = seen
            .into_iter()
            .max_by_key(|seen| (seen.status.is_some(), seen.local_endpoints));
        most.context("a node has an address")
    }

    fn open(&mut self, opening: &Opening) -> anyhow::Result<Observation> {
        let opened = self.stand()?.world.open(&[*opening])?;
        let (flow, seen) = opened.into_iter().next().context("a flow was opened")?;
        self.flows.push((flow, *opening));
        Ok(seen)
    }

    fn forget_last(&mut self) -> anyhow::Result<()> {
        self.flows.pop();
        Ok(())
    }

    fn ask(&mut self, flows: &[usize]) -> anyhow::Result<Vec<Observation>> {
        let stand = self.stand.as_mut().context("no case has begun")?;
        let mut seen = Vec::new();
        for number in flows {
            let (flow, _) = self.flows.get_mut(*number).context("no such flow")?;
            seen.extend(stand.world.ask(&mut [flow])?);
        }
        Ok(seen)
    }

    fn known(&mut self, flows: &[usize]) -> anyhow::Result<Option<Vec<bool>>> {
        let wanted: Option<Vec<Tuple>> = flows.iter().map(|number| self.flows.get(*number).map(tuple)).collect();
        self.listed(&wanted.context("no such flow")?).map(Some)
    }

    fn takes_time(&self) -> bool {
        true
    }
}

/// An answer in HTTP, whose body is JSON.
struct Answer {
    status: u16,
    body: Value,
}

impl Answer {
    fn read(from: &mut impl std::io::Read) -> anyhow::Result<Self> {
        let mut text = String::new();
        from.read_to_string(&mut text).context("read an answer")?;
        let (head, body) = text
            .split_once("\r\n\r\n")
            .context("the answer has no end of headers")?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok(Self {
            status: status.context("the answer has no status")?,
            body: serde_json::from_str(body).unwrap_or(Value::Null),
        })
    }
}
