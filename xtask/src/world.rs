//! A world: one node out of network namespaces, whatever runs on it, and everyone who could talk to it.
//!
//! ```text
//!   outside ══ eth0 node ── pod, pod, ...          one namespace each
//!   clients with any address,                      the node: its addresses, strict reverse path filters
//!   other nodes and their pods,                    a pod: made when its address is first used
//!   the way to everything else
//! ```
//!
//! What a packet meets there is observed, not believed: raw sockets in every namespace see what is delivered to its
//! stack, and each request carries a number ([`wire`]). So it makes no difference what translates on the node:
//!
//! ```no_run
//! # use xtask::world::{Clients, From, Observation, Probe, Protocol, Spec, World};
//! # fn main() -> anyhow::Result<()> {
//! let mut world = World::up(&Spec {
//!     name: format!("example-{}", std::process::id()),
//!     xtask: std::env::current_exe()?,
//!     ips: vec!["192.0.2.11".parse()?, "2001:db8::11".parse()?],
//!     other_ips: vec![],
//!     pod_cidrs: vec!["10.180.0.0/24".parse()?],
//!     pods_in_cgroup: true,
//! })?;
//! // A process of the node; with `--cgroup` and a pin directory of its own it would be an agent.
//! let proxy = world.command("kube-proxy".as_ref()).arg("--version").spawn()?;
//! // Servers: on the node, in a pod of it, or outside, which their addresses tell.
//! world.backends(&[("10.180.0.1:8080".parse()?, Protocol::Tcp), ("10.180.1.1:8080".parse()?, Protocol::Tcp)])?;
//! let seen = world.probe(&[Probe {
//!     from: From::External,
//!     src: "198.51.100.7".parse()?,
//!     dst: "203.0.113.10:80".parse()?,
//!     protocol: Protocol::Tcp,
//!     flows: 50,
//!     clients: Clients::One,
//! }])?;
//! assert!(seen[0].iter().all(|flow| matches!(flow, Observation::Forward { .. })));
//! # Ok(())
//! # }
//! ```
//!
//! Worlds are told apart by their names, so several can stand in one process. Addresses in them are whatever is
//! wanted, in each the same.

mod client;
mod network;
mod observer;
mod plan;
mod probe;
mod sctp;
mod sockets;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use ipnet::IpNet;
use socket2::Socket;

use self::observer::Observer;
use self::plan::Names;
pub use self::plan::{From, Place, Protocol, Spec};
pub(crate) use self::plan::{is_alike, neighbours};
pub use self::probe::{Clients, Flow, Observation, Opening, Probe};
pub use self::sockets::make_sockets;
use self::sockets::{Kind, Maker, Order};
use crate::lab::{cgroup, pass, shell};

/// The command, hidden in `xtask`, that makes sockets in the node's cgroup.
pub const SOCKETS_COMMAND: &str = "world-sockets";

/// A world that stands. It is removed when the value is dropped.
#[derive(Debug)]
pub struct World {
    spec: Spec,
    names: Names,
    cgroup: PathBuf,
    maker: Option<Maker>,
    observer: Observer,
    /// Namespaces of pods, by what is in them.
    pods: BTreeMap<Place, String>,
    /// Pods that are led to the crowd's namespace.
    crowd: BTreeSet<IpAddr>,
    /// What serves, and under which number it is observed.
    servers: BTreeMap<(SocketAddr, Protocol), u64>,
    /// Ranges of clients that are told apart.
    ranges: Vec<IpNet>,
    next_token: u64,
    flows: u32,
    ports: u16,
    patience: Duration,
}

impl World {
    /// Sets up a world; what an earlier one of this name has left is removed first.
    pub fn up(spec: &Spec) -> anyhow::Result<Self> {
        let names = Names::new(&spec.name)?;
        ensure!(
            nix::unistd::geteuid().is_root(),
            "a world is made of network namespaces, which needs root: use sudo"
        );
        remove(&names)?;
        sockets::many_files();
        let mut world = Self {
            spec: spec.clone(),
            cgroup: cgroup::mount_point()?.join(names.root()),
            names,
            maker: None,
            observer: Observer::start()?,
            pods: BTreeMap::new(),
            crowd: BTreeSet::new(),
            servers: BTreeMap::new(),
            ranges: Vec::new(),
            next_token: 0,
            flows: 0,
            ports: 0,
            patience: probe::PATIENCE,
        };
        world.build()?;
        Ok(world)
    }

    /// From here on the value owns what it makes, so a failure removes it.
    fn build(&mut self) -> anyhow::Result<()> {
        let node_cgroup = self.cgroup();
        fs::create_dir_all(&node_cgroup).with_context(|| format!("make the cgroup {}", node_cgroup.display()))?;
        let pass_object = self.names.pass_object();
        fs::write(&pass_object, pass::object()).with_context(|| format!("write {}", pass_object.display()))?;
        shell::run(None, &network::links(&self.names))?;
        self.script(&network::node(&self.spec))?;
        shell::run(Some(&self.outside_netns()), &network::outside(&pass_object))?;
        let xtask = self.spec.xtask.clone();
        let mut maker = self.command(&xtask);
        maker.arg(SOCKETS_COMMAND);
        self.maker = Some(Maker::start(maker)?);
        for place in [Place::Node, Place::Outside] {
            self.observe(place)?;
        }
        Ok(())
    }

    /// What it was made from.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The node's cgroup, on which an agent hangs its socket hooks.
    pub fn cgroup(&self) -> PathBuf {
        self.cgroup.join("node")
    }

    /// The file by which the node's network namespace is entered.
    pub fn netns(&self) -> PathBuf {
        self.names.netns_path("node")
    }

    /// The same of everything off the node.
    pub fn outside_netns(&self) -> PathBuf {
        self.names.netns_path("outside")
    }

    /// Among [`Clients::Many`], addresses are of one kind only if they are in the same of these ranges.
    pub fn tell_apart(&mut self, ranges: &[IpNet]) {
        self.ranges = ranges.to_vec();
    }

    /// How long a client waits for a word: at first 300 ms.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// A process of the node: in its network namespace and in its cgroup, with this machine's files.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("sh");
        command
            .args(["-c", "echo 0 >\"$0/cgroup.procs\" && exec nsenter --net=\"$@\""])
            .arg(self.cgroup())
            .arg(self.netns())
            .arg(program);
        command
    }

    /// Runs a script on the node, outside its cgroup.
    pub fn script(&self, script: &str) -> anyhow::Result<String> {
        shell::run(Some(&self.netns()), script)
    }

    /// Lets exactly these serve from now on. Those that did so before stay as they are, with their connections;
    /// connections to those that are gone stay too, as a process that is about to end would keep them.
    pub fn backends(&mut self, wanted: &[(SocketAddr, Protocol)]) -> anyhow::Result<()> {
        let wanted: BTreeSet<_> = wanted.iter().copied().collect();
        let gone: Vec<_> = self
            .servers
            .keys()
            .filter(|server| !wanted.contains(server))
            .copied()
            .collect();
        for server in gone {
            if let Some(token) = self.servers.remove(&server) {
                self.observer.forget(token)?;
            }
        }
        // So that their addresses are free.
        self.observer.settle()?;
        for (at, protocol) in wanted {
            if self.is_served(at, protocol) {
                continue;
            }
            let place = self.spec.place(at.ip());
            self.need(place)?;
            let in_cgroup = place != Place::Outside;
            let socket = self
                .sockets(place, in_cgroup, at.is_ipv6(), Kind::Of(protocol), 1)?
                .pop();
            let watched = observer::serve(socket.context("a socket was made")?, at, protocol)?;
            let token = self.token();
            self.observer.watch(token, watched)?;
            self.servers.insert((at, protocol), token);
        }
        self.observer.settle()
    }

    /// A TCP connection, for whoever wants to say more than a probe does.
    pub fn connect(&mut self, from: From, src: IpAddr, dst: SocketAddr) -> anyhow::Result<std::io::Result<TcpStream>> {
        let opening = Opening {
            from,
            src: SocketAddr::new(src, 0),
            dst,
            protocol: Protocol::Tcp,
            connected: true,
        };
        let socket = self.client_socket(&opening)?;
        let connect = || {
            if from == From::External {
                sockets::any_address(&socket, src.is_ipv6())?;
            }
            socket.bind(&opening.src.into())?;
            socket.connect_timeout(&dst.into(), Duration::from_secs(1))?;
            socket.set_nonblocking(false)
        };
        Ok(connect().map(|()| socket.into()))
    }

    /// Makes the pods with these addresses, as far as they are not there, and with `crowd` the namespace of
    /// [`Clients::Many`] pods. Else they are made when they are first used, and whatever runs on the node may not have
    /// noticed their devices when their first packets come.
    pub fn prepare_pods(&mut self, addrs: &[IpAddr], crowd: bool) -> anyhow::Result<()> {
        for addr in addrs {
            self.need(self.spec.place(*addr))?;
        }
        if crowd {
            self.need(Place::Crowd)?;
        }
        Ok(())
    }

    /// The node's devices to pods.
    pub fn pod_devices(&self) -> impl Iterator<Item = &str> {
        self.pods.values().map(String::as_str)
    }

    fn is_served(&self, at: SocketAddr, protocol: Protocol) -> bool {
        self.servers.contains_key(&(at, protocol))
    }

    /// Makes a pod, or the crowd, that is not there yet.
    fn need(&mut self, place: Place) -> anyhow::Result<()> {
        if self.pods.contains_key(&place) {
            return Ok(());
        }
        let addr = match place {
            Place::Pod(addr) => addr,
            Place::Crowd => return self.add_pods(place, &self.spec.pod_cidrs.clone()),
            Place::Node | Place::Outside => return Ok(()),
        };
        self.add_pods(place, &[addr.into()])?;
        self.crowd.remove(&addr);
        let script = network::pod_routes(&self.pods[&place], &[addr]);
        self.script(&script)?;
        Ok(())
    }

    /// Makes a namespace for pods with these addresses.
    fn add_pods(&mut self, place: Place, local: &[IpNet]) -> anyhow::Result<()> {
        let part = format!("pod{}", self.pods.len());
        shell::run(None, &network::pod_link(&self.names, &part))?;
        shell::run(Some(&self.names.netns_path(&part)), &network::pod(local))?;
        self.script(&network::pod_device(&part))?;
        self.pods.insert(place, part);
        self.observe(place)
    }

    /// Pods like this one that are nobody yet but clients.
    fn crowd(&mut self, like: IpAddr) -> anyhow::Result<Vec<IpAddr>> {
        self.need(Place::Crowd)?;
        let spare = self
            .spec
            .spare_pods(like, |addr| self.pods.contains_key(&Place::Pod(addr)));
        let new: Vec<IpAddr> = spare
            .iter()
            .filter(|addr| !self.crowd.contains(addr))
            .copied()
            .collect();
        let script = network::pod_routes(&self.pods[&Place::Crowd], &new);
        self.script(&script)?;
        self.crowd.extend(new);
        Ok(spare)
    }

    fn in_crowd(&self, addr: IpAddr) -> bool {
        self.crowd.contains(&addr)
    }

    /// Addresses near to one off the node that nobody serves at.
    fn neighbours(&self, of: IpAddr) -> Vec<IpAddr> {
        let serves = |addr: &IpAddr| self.servers.keys().any(|(at, _)| at.ip() == *addr);
        let near = neighbours(of);
        near.filter(|addr| self.spec.place(*addr) == Place::Outside && !serves(addr))
            .collect()
    }

    /// Observes whatever is delivered in a place.
    fn observe(&mut self, place: Place) -> anyhow::Result<()> {
        for protocol in Protocol::ALL {
            for v6 in [false, true] {
                let socket = self.sockets(place, false, v6, Kind::Every(protocol), 1)?.pop();
                let watched = observer::every(socket.context("a socket was made")?, protocol, v6)?;
                let token = self.token();
                self.observer.watch(token, watched)?;
            }
        }
        Ok(())
    }

    fn sockets(
        &mut self,
        place: Place,
        in_cgroup: bool,
        v6: bool,
        kind: Kind,
        count: usize,
    ) -> anyhow::Result<Vec<Socket>> {
        let netns = match place {
            Place::Node => self.netns(),
            Place::Outside => self.outside_netns(),
            Place::Pod(_) | Place::Crowd => self.names.netns_path(self.pods.get(&place).context("no such pod")?),
        };
        let order = Order { netns, v6, kind, count };
        match &mut self.maker {
            Some(maker) if in_cgroup => maker.make(&order),
            _ => order.make(),
        }
    }

    fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    /// Numbers of flows look random, as first sequence numbers do, and none is 0.
    fn next_flow(&mut self) -> u32 {
        self.flows = self.flows.wrapping_add(1).max(1);
        self.flows.wrapping_mul(0x9e37_79b1)
    }

    /// Ports of clients: none again before all had their turn, and none that could be a NodePort.
    fn next_port(&mut self) -> u16 {
        const FIRST: u16 = 33_000;
        const COUNT: u16 = 27_000;
        self.ports = (self.ports + 1) % COUNT;
        FIRST + self.ports
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.maker = None;
        if let Err(error) = remove(&self.names) {
            eprintln!("the world {} could not be removed: {error:#}", self.spec.name);
        }
    }
}

/// Removes the worlds that processes have left which ended without doing so. Their names are `PREFIX-PID` and anything
/// behind another hyphen. Returns these names.
pub fn remove_abandoned(prefix: &str) -> anyhow::Result<Vec<String>> {
    let mut removed = Vec::new();
    for names in Names::existing(&cgroup::mount_point()?) {
        let owner = names
            .name()
            .strip_prefix(prefix)
            .and_then(|rest| rest.strip_prefix('-'));
        let owner = owner.and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            remove(&names)?;
            removed.push(names.name().to_owned());
        }
    }
    Ok(removed)
}

/// Removes whatever there is of a world.
fn remove(names: &Names) -> anyhow::Result<()> {
    cgroup::remove(&cgroup::mount_point()?.join(names.root()))?;
    let script: String = names
        .existing_netns()
        .iter()
        .map(|netns| format!("ip netns del {netns}\n"))
        .collect();
    if !script.is_empty() {
        shell::run(None, &format!("set -e\n{script}"))?;
    }
    match fs::remove_file(names.pass_object()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context("remove the world's object file")
        }
        _ => Ok(()),
    }
}
