//! One of the two labs that are compared: a node with a proxy on it, and everybody who asks.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;

use super::api::ApiServer;
use super::door;
use super::model::{Family, Protocol};
use super::plan::{self, NODE};
use super::probes::{Origin, Target};
use super::program::Program;
use super::seen::{Flow, Source, Verdict};
use crate::world::{self, Clients, From, Observation, Opening, Probe, World};

/// A lab with its proxy.
#[derive(Debug)]
pub struct Side {
    // The proxy ends before its world.
    proxy: Program,
    world: World,
    pins: Option<PathBuf>,
}

/// Connections that one client opens.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Who asks.
    pub origin: Origin,
    /// From which address.
    pub client: IpAddr,
    /// To where.
    pub addr: SocketAddr,
    /// How.
    pub protocol: Protocol,
    /// How many times.
    pub times: u32,
}

impl Ask {
    /// Where it goes.
    pub const fn target(&self) -> Target {
        Target {
            addr: self.addr,
            protocol: self.protocol,
        }
    }
}

/// A connection that stays.
#[derive(Debug)]
pub struct Held {
    flow: world::Flow,
    origin: Origin,
    client: IpAddr,
}

/// The proxies that are compared.
pub const KUBE_PROXY: &str = "kube-proxy";
/// See [`KUBE_PROXY`].
pub const FAIRWAY: &str = "fairway";

impl Side {
    /// Sets up a world for kube-proxy and starts it there.
    pub fn with_kube_proxy(program: &Path, api: &ApiServer, folder: &Path) -> anyhow::Result<Self> {
        let world = new_world(KUBE_PROXY)?;
        let kubeconfig = api.kubeconfig(KUBE_PROXY, door::open(&world.netns(), api.port())?)?;
        let config = folder.join("kube-proxy.yaml");
        fs::write(&config, kube_proxy_config(&kubeconfig)).with_context(|| format!("write {}", config.display()))?;
        let mut command = world.command(program);
        command.arg("--config").arg(&config).args(["--hostname-override", NODE]);
        let proxy = Program::start(KUBE_PROXY, &command, folder)?;
        Ok(Self {
            proxy,
            world,
            pins: None,
        })
    }

    /// Sets up a world for Fairway's agent and starts it there.
    pub fn with_fairway(program: &Path, api: &ApiServer, folder: &Path) -> anyhow::Result<Self> {
        let world = new_world(FAIRWAY)?;
        let kubeconfig = api.kubeconfig(FAIRWAY, door::open(&world.netns(), api.port())?)?;
        let pins = PathBuf::from(format!("/sys/fs/bpf/fairway-differential-{}", std::process::id()));
        let mut command = world.command(program);
        command
            .args(["agent", "--node-name", NODE, "--kubeconfig"])
            .arg(&kubeconfig)
            .arg("--cgroup")
            .arg(world.cgroup())
            .arg("--pin-dir")
            .arg(&pins)
            .args([
                "--max-connections",
                "65536",
                "--max-backends",
                "4096",
                "--max-maglev-slots",
                "262144",
            ]);
        let proxy = Program::start(FAIRWAY, &command, folder)?;
        Ok(Self {
            proxy,
            world,
            pins: Some(pins),
        })
    }

    /// An error if the proxy has ended.
    pub fn must_run(&mut self) -> anyhow::Result<()> {
        self.proxy.must_run()
    }

    /// The last words of the proxy.
    pub fn log_end(&self) -> String {
        self.proxy.log_end()
    }

    /// Has backends listen at exactly these addresses.
    pub fn listen(&mut self, at: &[(SocketAddr, Protocol)]) -> anyhow::Result<()> {
        let at: Vec<_> = at
            .iter()
            .map(|(addr, protocol)| (*addr, transport(*protocol)))
            .collect();
        self.world.backends(&at)
    }

    /// Asks, all at the same time, and tells for each what became of its connections.
    pub fn ask(&mut self, asks: &[Ask]) -> anyhow::Result<Vec<Vec<Flow>>> {
        let probes: Vec<Probe> = asks
            .iter()
            .map(|ask| Probe {
                from: from(ask.origin),
                src: ask.client,
                dst: ask.addr,
                protocol: transport(ask.protocol),
                flows: ask.times,
                clients: Clients::One,
            })
            .collect();
        let observed = self.world.probe(&probes)?;
        let flows = observed.into_iter().zip(asks).map(|(observations, ask)| {
            let observations = observations.into_iter();
            observations
                .map(|seen| self.flow(seen, ask.origin, ask.client))
                .collect()
        });
        Ok(flows.collect())
    }

    /// Opens connections that stay, all at the same time, and tells what became of each. `times` does not count.
    pub fn open(&mut self, asks: &[Ask]) -> anyhow::Result<Vec<(Held, Flow)>> {
        let openings: Vec<Opening> = asks
            .iter()
            .map(|ask| Opening {
                from: from(ask.origin),
                src: SocketAddr::new(ask.client, 0),
                dst: ask.addr,
                protocol: transport(ask.protocol),
                connected: true,
            })
            .collect();
        let opened = self.world.open(&openings)?;
        let held = opened.into_iter().zip(asks).map(|((flow, seen), ask)| {
            let held = Held {
                flow,
                origin: ask.origin,
                client: ask.client,
            };
            (held, self.flow(seen, ask.origin, ask.client))
        });
        Ok(held.collect())
    }

    /// Sends one more request on each of these.
    pub fn ask_again(&mut self, held: &mut [Held]) -> anyhow::Result<Vec<Flow>> {
        let mut flows: Vec<&mut world::Flow> = held.iter_mut().map(|held| &mut held.flow).collect();
        let observed = self.world.ask(&mut flows)?;
        Ok(observed
            .into_iter()
            .zip(held)
            .map(|(seen, held)| self.flow(seen, held.origin, held.client))
            .collect())
    }

    fn flow(&self, seen: Observation, origin: Origin, client: IpAddr) -> Flow {
        let unanswered = |verdict| Flow::Unanswered(verdict, String::new());
        match seen {
            Observation::Forward {
                backend,
                source,
                client: first,
            } => {
                let first = if first.ip().is_unspecified() {
                    client
                } else {
                    first.ip()
                };
                let nodes = self.world.spec().node_addresses().contains(&source.ip());
                let source = match origin {
                    // A process has all addresses of its node.
                    Origin::Node if nodes => Source::Node,
                    _ if source.ip() == first => Source::Kept,
                    _ if nodes => Source::Node,
                    _ => Source::Stranger,
                };
                Flow::Answered {
                    backend,
                    source,
                    client: first,
                }
            }
            Observation::Reject => unanswered(Verdict::Reject),
            Observation::Drop => unanswered(Verdict::Drop),
            Observation::Pass => unanswered(Verdict::Pass),
            Observation::Cut => unanswered(Verdict::Reset),
            Observation::Other(note) => Flow::Unanswered(Verdict::Other, note),
        }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // The agent may still be at it, and what it puts there last must go as well.
        self.proxy.end();
        if let Some(pins) = &self.pins {
            let _ = fs::remove_dir_all(pins);
        }
    }
}

/// Two worlds of one name would be one: this process's id makes it unique.
fn new_world(proxy: &str) -> anyhow::Result<World> {
    let short: String = proxy.chars().filter(char::is_ascii_alphabetic).take(4).collect();
    let ips = Family::ALL.map(plan::node).to_vec();
    let other_ips = Family::ALL.map(plan::other_of_node).to_vec();
    let pod_cidrs = plan::POD_CIDRS
        .iter()
        .map(|range| range.parse())
        .collect::<Result<_, _>>();
    let world = World::up(&world::Spec {
        name: format!("diff-{}-{short}", std::process::id()),
        xtask: std::env::current_exe().context("find this program's own file")?,
        ips,
        other_ips,
        pod_cidrs: pod_cidrs.context("the ranges of pods")?,
        pods_in_cgroup: true,
    })?;
    // Refusals are told by ICMP, of which the kernel sends few in a second by default.
    world.script(
        "echo 0 >/proc/sys/net/ipv4/icmp_ratelimit
for f in icmp_msgs_per_sec icmp_msgs_burst; do echo 1000000 >/proc/sys/net/ipv4/$f 2>/dev/null || true; done
echo 0 >/proc/sys/net/ipv6/icmp/ratelimit
",
    )?;
    Ok(world)
}

const fn from(origin: Origin) -> From {
    match origin {
        Origin::Outside => From::External,
        Origin::Pod => From::Pod,
        Origin::Node => From::NodeProcess,
    }
}

const fn transport(protocol: Protocol) -> world::Protocol {
    match protocol {
        Protocol::Tcp => world::Protocol::Tcp,
        Protocol::Udp => world::Protocol::Udp,
        Protocol::Sctp => world::Protocol::Sctp,
    }
}

/// Changes are taken at once, and the machine's limits are left alone. All else is as it is by default.
fn kube_proxy_config(kubeconfig: &Path) -> String {
    format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clientConnection: {{kubeconfig: '{}'}}
detectLocalMode: NodeCIDR
nftables: {{minSyncPeriod: {}ms}}
conntrack: {{maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}
",
        kubeconfig.display(),
        MIN_SYNC_PERIOD.as_millis()
    )
}

/// The least time between two of kube-proxy's syncs.
const MIN_SYNC_PERIOD: Duration = Duration::from_millis(5);
