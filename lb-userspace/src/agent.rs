//! The node agent: one loop that hears of objects, of the node's network and of time, and writes maps.
//!
//! ```text
//!   manifests or API ─ events ─► ┌──────┐ ─ reconcile ─► maps
//!   rtnetlink ─ changes ───────► │ loop │ ─ attach ────► hooks of devices
//!   clocks ─ audit, next hops ─► │      │ ─ adjacencies, next hops kept resolved
//!   socket ─ GET /state ───────► └──────┘
//!   a thread of its own: removes connections that are over
//!   another: announces addresses (crate::announce)
//! ```
//!
//! Nothing is undone at the end: programs and maps stay pinned, and traffic goes on. The next agent takes over.

mod announcing;
mod collector;
mod lock;
mod retry;
mod telemetry;

pub use announcing::Settings as AnnounceSettings;
pub use telemetry::{Listen, Settings as TelemetrySettings};

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use lb_common::abi::{Addr4, Addr6, Adjacency, Config};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{debug, error, info, warn};

use crate::datapath::attach::{self, Attacher};
use crate::datapath::load::{self, Drops};
use crate::datapath::pin::PinDir;
use crate::datapath::probe;
use crate::desired::{self, LocalAddresses, NodeState};
use crate::maps::bpf::{BpfMap, BpfMaps};
use crate::maps::table::Sizes;
use crate::model::{Problem, log_changes};
use crate::netlink::next_hops::{AdjacencyMap, AdjacencyTable, Moved};
use crate::netlink::pod_devices::PodDevices;
use crate::netlink::{self, Kind, Watcher, network::Network};
use crate::observe::state::{self, ServicePort, State};
use crate::reconcile::{NODE_FLAGS, Reconciler, Report};
use crate::sources::{Event, kube, manifests};
use announcing::Announcing;
use collector::Collector;
use retry::Retry;
use telemetry::Telemetry;

/// What is wrong is looked for this often, whether or not anything was heard.
const AUDIT: Duration = Duration::from_secs(60);
/// Next hops are checked this often, so that the kernel keeps them.
const RESOLVE: Duration = Duration::from_secs(15);
/// A next hop that does not answer is asked for again after this.
const RESOLVE_AGAIN: Duration = Duration::from_secs(2);
/// A source that failed is started again after this.
const SOURCE_AGAIN: Duration = Duration::from_secs(5);
/// Adjacencies of the agent before that nobody claimed after this are not used any more.
const CLAIM: Duration = Duration::from_secs(10);

/// What the agent is started with.
#[derive(Debug)]
pub struct Settings {
    /// Of the node.
    pub node: desired::Settings,
    /// Where objects come from.
    pub origin: Origin,
    /// Where maps and links lie.
    pub pins: PinDir,
    /// What is attached where.
    pub hooks: attach::Options,
    /// Sizes of maps.
    pub sizes: Sizes,
    /// What is told of dropped packets.
    pub drops: Drops,
    /// How addresses are announced; `None`: this node announces none.
    pub announce: Option<AnnounceSettings>,
    /// Where health and metrics are told.
    pub telemetry: TelemetrySettings,
}

/// Where objects come from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// A folder.
    Manifests(manifests::Options),
    /// The Kubernetes API.
    Api(kube::Options),
}

impl Origin {
    fn name(&self) -> String {
        match self {
            Self::Manifests(options) => format!("manifests in {}", options.dir.display()),
            Self::Api(options) => match &options.access {
                kube::Access::Kubeconfig(file) => format!("Kubernetes API by {}", file.display()),
                kube::Access::InCluster => "Kubernetes API of this cluster".to_owned(),
            },
        }
    }

    async fn run(self, events: mpsc::Sender<Event>) -> anyhow::Result<()> {
        match self {
            Self::Manifests(options) => manifests::run(options, events).await.map_err(Into::into),
            Self::Api(options) => kube::run(options, events).await.map_err(Into::into),
        }
    }
}

type Table = Arc<AdjacencyTable<BpfMap<u32, Adjacency<Addr4>>, BpfMap<u32, Adjacency<Addr6>>>>;

/// The agent's parts.
struct Agent {
    started: Instant,
    source: String,
    attacher: Attacher,
    watcher: Watcher,
    pod_devices: PodDevices,
    network: Network,
    local: LocalAddresses,
    table: Table,
    reconciler: Reconciler<BpfMaps, Table>,
    collector: Collector,
    telemetry: Telemetry,
    announcing: Announcing,
    /// When next hops were asked for last.
    asked: HashMap<(u32, IpAddr), Instant>,
    waiting: bool,
    problems: Vec<Problem>,
    retry: Retry,
    /// When unclaimed adjacencies of the agent before are to be dropped.
    claim_until: Option<Instant>,
}

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// If it cannot start: the text says what is missing.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    let started = Instant::now();
    let Settings {
        node,
        origin,
        pins,
        hooks,
        sizes,
        drops,
        announce,
        telemetry,
    } = settings;
    probe::privilege()?;
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;
    std::fs::create_dir_all(pins.state_dir()).with_context(|| format!("make {}", pins.state_dir().display()))?;
    let _lock = lock::take(&pins)?;
    info!(version = env!("CARGO_PKG_VERSION"), node = %node.node_name, pins = %pins.root().display(), "starting");

    same_namespace(&pins, &node.datapath)?;
    let mut ebpf = load::load(&pins, &sizes, drops)?;
    if drops == Drops::Logged {
        load::log_drops(&mut ebpf)?;
    }
    write_config(&pins, &node.datapath)?;
    let attacher = Attacher::new(ebpf, pins.clone(), hooks);
    let announcing = Announcing::start(announce.as_ref(), &node.node_name, &origin, &pins)?;
    let mut agent = Agent::start(attacher, &pins, node, &origin, &telemetry, announcing).await?;
    agent.started = started;
    info!(after_ms = millis(started), "the data path is loaded and attached");

    let (requests, mut questions) = mpsc::channel(8);
    tokio::spawn(state::serve(lock::listen(&pins)?, requests));
    let (events, mut news) = mpsc::channel(1024);
    let mut source = source(&origin, &events, Duration::ZERO);
    let mut audit = interval(AUDIT);
    let mut resolve = interval(RESOLVE);
    let mut resolve_again = interval(RESOLVE_AGAIN);
    for clock in [&mut audit, &mut resolve, &mut resolve_again] {
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        clock.reset();
    }
    loop {
        agent.telemetry.round();
        tokio::select! {
            Some(event) = news.recv() => {
                agent.take(event);
                while let Ok(event) = news.try_recv() {
                    agent.take(event);
                }
                agent.reconcile().await;
            }
            changed = agent.watcher.changed() => agent.network_changed(&changed?).await,
            ended = &mut source => {
                if let Err(error) = ended {
                    ensure!(!agent.waiting, "{error:#}");
                    warn!(error = format!("{error:#}"), "objects cannot be followed; what is known stays in force");
                }
                source = self::source(&origin, &events, SOURCE_AGAIN);
            }
            () = agent.announcing.changed() => agent.announced().await,
            () = agent.retry.due() => agent.reconcile().await,
            _ = audit.tick() => agent.audit().await,
            _ = resolve.tick() => agent.resolve(true).await,
            _ = resolve_again.tick() => agent.again().await,
            Some(answer) = questions.recv() => {
                // Whoever asked may have gone.
                let _gone = answer.send(agent.state());
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    agent.announcing.stop().await;
    info!("ending; programs and connections stay, `fairway cleanup` removes them");
    Ok(())
}

type Source = Pin<Box<dyn Future<Output = anyhow::Result<()>>>>;

/// Follows objects, after a while.
fn source(origin: &Origin, events: &mpsc::Sender<Event>, after: Duration) -> Source {
    let (origin, events) = (origin.clone(), events.clone());
    Box::pin(async move {
        sleep(after).await;
        tokio::spawn(origin.run(events))
            .await
            .context("the task that follows objects ended")?
    })
}

/// Fails if the pins belong to an agent of another network namespace: its devices would be taken for ours.
fn same_namespace(pins: &PinDir, config: &Config) -> anyhow::Result<()> {
    let Ok(found) = BpfMap::<u32, Config>::open(pins, "CONFIG").and_then(|map| map.get(&0)) else {
        return Ok(());
    };
    let cookie = |config: &Config| (config.netns_cookie_low, config.netns_cookie_high);
    let other = found.is_some_and(|found| cookie(&found) != (0, 0) && cookie(&found) != cookie(config));
    let path = pins.root().display();
    ensure!(
        !other,
        "the pins in {path} are of an agent in another network namespace: give --pin-dir another, or, if that \
         namespace is gone, remove them by `fairway cleanup --pin-dir {path}`"
    );
    Ok(())
}

/// Tells the programs what they have to know before they see a packet; the rest comes with the first objects.
fn write_config(pins: &PinDir, config: &Config) -> anyhow::Result<()> {
    let map = BpfMap::<u32, Config>::open(pins, "CONFIG")?;
    let before = map.get(&0)?.unwrap_or_default();
    Ok(map.set(
        &0,
        &Config {
            flags: before.flags & NODE_FLAGS | config.flags,
            ..*config
        },
    )?)
}

impl Agent {
    async fn start(
        mut attacher: Attacher,
        pins: &PinDir,
        node: desired::Settings,
        origin: &Origin,
        telemetry: &TelemetrySettings,
        announcing: Announcing,
    ) -> anyhow::Result<Self> {
        let watcher = Watcher::subscribe()?;
        let mut network = Network::default();
        watcher.read(&netlink::ALL.into(), &mut network).await?;
        // Before the programs run on them: a pod's first packet is not to be taken for an outsider's.
        let pod_devices = PodDevices::open(pins, node.local_pods.clone())?;
        pod_devices.sync(&network)?;
        attacher.sync(&network);
        attacher.attach_sockets();
        attacher.prune(&network);
        if let Err(error) = attacher.pin_program("fairway_clock") {
            warn!(%error, "the data path's clock is estimated");
        }
        let table = Arc::new(AdjacencyTable::new(
            BpfMap::open(pins, "ADJACENCIES_V4")?,
            BpfMap::open(pins, "ADJACENCIES_V6")?,
        ));
        table.network_changed(&network, &attacher.fast_devices(), false);
        let local = network.local_addresses();
        let state = NodeState {
            settings: node,
            local: local.clone(),
            object: None,
            service_cidrs: None,
        };
        let maps = BpfMaps::open(pins)?;
        let arrays = maps.arrays();
        let reconciler = Reconciler::restore(maps, Arc::clone(&table), state)?;
        let collector = Collector::start(pins, arrays, reconciler.serving())?;
        let name = &reconciler.node().settings.node_name;
        let telemetry = Telemetry::start(telemetry, name, origin, pins, collector.shared());
        Ok(Self {
            started: Instant::now(),
            source: origin.name(),
            attacher,
            watcher,
            pod_devices,
            network,
            local,
            table,
            reconciler,
            collector,
            telemetry,
            announcing,
            asked: HashMap::new(),
            waiting: true,
            problems: Vec::new(),
            retry: Retry::default(),
            claim_until: None,
        })
    }

    fn take(&mut self, event: Event) {
        self.telemetry.heard(&event);
        self.announcing.take(&event);
        self.reconciler.take(event);
    }

    /// Tries again what did not succeed before.
    async fn again(&mut self) {
        self.resolve(false).await;
        if self.telemetry.listen_again(&self.reconciler) {
            self.tell_problems();
        }
        self.measure_announcing();
    }

    /// Something else is announced, or wrong with announcing, or another node has come or gone.
    async fn announced(&mut self) {
        self.measure_announcing();
        let moved = self.table.nodes_changed(self.announcing.others());
        if moved.is_empty() {
            self.tell_problems();
        } else {
            self.next_hops_changed(&moved);
            self.reconcile().await;
        }
    }

    fn next_hops_changed(&mut self, moved: &Moved) {
        self.reconciler
            .next_hops_changed(|backend, node| moved.concerns(backend, node));
    }

    fn measure_announcing(&self) {
        let counts = self.announcing.counts();
        self.telemetry.announced(&self.announcing.announcements(), counts);
    }

    async fn reconcile(&mut self) {
        let began = Instant::now();
        let report = self.reconciler.reconcile();
        self.telemetry.reconciled(&self.reconciler, &report, began.elapsed());
        self.done(&report, "programmed");
        if self.waiting && !report.waiting {
            self.waiting = false;
            self.claim_until = Some(Instant::now() + CLAIM);
            info!(
                services = report.services,
                changes = report.ops,
                after_ms = millis(self.started),
                "the first complete lists are programmed"
            );
        }
        if report.flows_to_cut {
            self.collector.cut_now();
        }
        self.announce();
        self.tell_problems();
        self.resolve(false).await;
    }

    /// Says what is to be announced, once all objects are known.
    fn announce(&mut self) {
        if !self.waiting {
            let attached = self.attacher.attached();
            self.announcing.wish(&self.reconciler, &self.network, &attached);
        }
    }

    fn done(&mut self, report: &Report, what: &'static str) {
        self.retry.after(!report.failures.is_empty());
        if report.ops > 0 {
            debug!(services = report.services, changes = report.ops, "{what}");
        }
        for failure in &report.failures {
            error!(error = %failure, cause = cause(failure), "a map could not be written; it is tried again");
        }
    }

    /// Logs problems that are new, and those that are gone.
    fn tell_problems(&mut self) {
        let mut problems = self.reconciler.problems();
        problems.extend(self.telemetry.problems().cloned());
        problems.extend(self.announcing.problems());
        if problems == self.problems {
            return;
        }
        log_changes(&self.problems, &problems);
        self.telemetry.tell(&problems);
        self.problems = problems;
    }

    async fn network_changed(&mut self, kinds: &BTreeSet<Kind>) {
        if let Err(error) = self.watcher.read(kinds, &mut self.network).await {
            // The next event or audit reads again.
            warn!(%error, "the node's network could not be read");
            return;
        }
        if kinds.contains(&Kind::Links)
            && let Err(error) = self.pod_devices.sync(&self.network)
        {
            warn!(%error, "the devices of pods could not be written; the next audit tries again");
        }
        if kinds.contains(&Kind::Links) || kinds.contains(&Kind::Routes) {
            self.attacher.sync(&self.network);
        }
        let neighbours_only = kinds.iter().all(|kind| *kind == Kind::Neighbours);
        let moved = self
            .table
            .network_changed(&self.network, &self.attacher.fast_devices(), neighbours_only);
        let mut reconcile = false;
        if !moved.is_empty() {
            self.next_hops_changed(&moved);
            reconcile = true;
        }
        let local = self.network.local_addresses();
        if local != self.local {
            info!(primary = ?local.primary, addresses = local.all.len(), "the node's addresses changed");
            self.local = local.clone();
            self.reconciler.local_addresses_changed(local);
            reconcile = true;
        }
        if reconcile {
            self.reconcile().await;
        } else {
            if !neighbours_only {
                self.announce();
            }
            self.resolve(false).await;
        }
    }

    /// Has the kernel resolve the next hops that XDP sends to: those unknown, or `all`, so that it keeps them.
    async fn resolve(&mut self, all: bool) {
        let now = Instant::now();
        if self.claim_until.is_some_and(|until| until <= now) {
            self.claim_until = None;
            self.table.forget_unclaimed();
        }
        let direct = self.table.direct();
        self.asked.retain(|hop, _| direct.contains(hop));
        for hop in direct {
            let known = self.network.neighbours.get(&hop).copied().unwrap_or_default();
            let asked = self
                .asked
                .get(&hop)
                .is_some_and(|at| now.duration_since(*at) < RESOLVE_AGAIN);
            if asked || !known.is_asked_for(all) {
                continue;
            }
            self.asked.insert(hop, now);
            if let Err(error) = self.watcher.resolve(hop.0, hop.1).await {
                debug!(%error, device = hop.0, next_hop = %hop.1, "the next hop cannot be asked for");
            }
        }
    }

    async fn audit(&mut self) {
        self.network_changed(&netlink::ALL.into()).await;
        match self.reconciler.audit() {
            Ok(report) => {
                self.telemetry.audited(&report);
                self.done(&report, "repaired");
                if report.ops > 0 {
                    warn!(
                        entries = report.ops,
                        "maps were not as they should be, and were repaired"
                    );
                }
            }
            Err(error) => warn!(%error, cause = cause(&error), "the maps could not be audited"),
        }
        self.tell_problems();
    }

    fn state(&self) -> State {
        let names = self.reconciler.service_ports().map(|(id, name)| {
            let port = ServicePort {
                namespace: name.service.namespace.to_string(),
                service: name.service.name.to_string(),
                port: name.port.to_string(),
            };
            (id, port)
        });
        let mut problems = self.attacher.problems();
        problems.extend(self.problems.iter().map(ToString::to_string));
        State {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.reconciler.node().settings.node_name.to_string(),
            pid: std::process::id(),
            uptime_s: self.started.elapsed().as_secs(),
            source: self.source.clone(),
            waiting: self.waiting,
            devices: self.attacher.attached(),
            cgroup: self.attacher.cgroup().map(|path| path.display().to_string()),
            sockets: self.attacher.sockets().iter().map(ToString::to_string).collect(),
            names: names.collect(),
            problems,
            connections: self.collector.seen(),
            health: self.telemetry.state(),
            announcements: self.announcing.announcements(),
        }
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn cause(error: &dyn std::error::Error) -> String {
    error.source().map(ToString::to_string).unwrap_or_default()
}

impl<A: lb_common::abi::Address> AdjacencyMap<A> for BpfMap<u32, Adjacency<A>> {
    fn read(&self) -> Vec<Adjacency<A>> {
        let mut entries = vec![Adjacency::default(); self.capacity() as usize];
        let read = self.walk(|chunk| {
            for (id, entry) in chunk {
                if let Some(known) = entries.get_mut(*id as usize) {
                    *known = *entry;
                }
            }
        });
        if let Err(error) = read {
            warn!(%error, cause = cause(&error), "adjacencies of the agent before could not be read");
        }
        entries
    }

    fn write(&self, id: u32, adjacency: &Adjacency<A>) {
        if let Err(error) = self.set(&id, adjacency) {
            error!(%error, cause = cause(&error), "an adjacency could not be written");
        }
    }
}

/// The file that only one agent can hold locked.
fn lock_file(state: &Path) -> std::path::PathBuf {
    state.join("agent.lock")
}
