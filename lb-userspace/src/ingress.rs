//! The Ingress controller and its proxy: HTTP and HTTPS from outside the cluster, to Services, by Ingress objects.
//!
//! ```text
//!   objects ─ follow ─► table, certificates ── published as a whole ──┐
//!                          │ status, Events                          ▼
//!   clients ─ listen ─► TLS, PROXY protocol ─► engine ─ route ─ connect ─► Service or pod
//!                                                │
//!                                                └─► access log, metrics
//! ```
//!
//! One half follows objects and makes of them a routing table and certificates ([`table`], [`tls`]); the other one asks
//! these for every request and every handshake. A change is one pointer that is replaced: requests under way go on by what
//! they found, and no connection is lost.
//!
//! It ends in stages ([`Stage`]): first it says that it is not ready and goes on, so that whoever sends here learns of it;
//! then it takes no more connections and finishes what it has.

mod access_log;
mod answers;
mod engine;
pub mod follow;
mod forwarded;
mod listen;
mod metrics;
pub mod objects;
mod proxy_protocol;
mod status;
pub mod table;
mod target;
pub mod tls;
mod wire;
mod workers;

use std::hash::{BuildHasher as _, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use ipnet::IpNet;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use self::access_log::AccessLog;
pub use self::access_log::Target as AccessLogTarget;
use self::follow::Source;
use self::forwarded::Ids;
use self::listen::{Spoken, Tls};
use self::metrics::Metrics;
use self::table::{Config, Table};
use self::tls::Certificates;
use self::workers::Workers;
use crate::agent::Listen;
use crate::http;
use crate::model::Problem;

/// A source that failed is started again after this.
const SOURCE_AGAIN: Duration = Duration::from_secs(5);
/// Whether the last request has ended is looked at this often.
const LOOK: Duration = Duration::from_millis(20);
/// File descriptors that are neither a client's nor its backend's.
const OTHER_FILES: u64 = 256;

/// What it is started with.
#[derive(Debug)]
pub struct Settings {
    /// Where objects come from, and which of them count.
    pub source: Source,
    /// Where HTTP is served.
    pub http: Vec<SocketAddr>,
    /// Where HTTPS is served.
    pub https: Vec<SocketAddr>,
    /// Where health, readiness and metrics are told.
    pub metrics: Listen,
    /// Where the access log goes.
    pub access_log: AccessLogTarget,
    /// Of clients.
    pub clients: Clients,
    /// Of backends.
    pub backends: Backends,
    /// From being told to end until no more connections are taken.
    pub drain_delay: Duration,
    /// From being told to end until what is left is cut off.
    pub grace: Duration,
    /// Threads that carry requests.
    pub threads: usize,
}

/// How clients are served.
#[derive(Clone, Debug)]
pub struct Clients {
    /// Peers that begin every connection with a PROXY header.
    pub proxies: Vec<IpNet>,
    /// Peers whose X-Forwarded headers are believed.
    pub trusted: Vec<IpNet>,
    /// Connections at a time.
    pub connections: usize,
    /// A TLS handshake is done within this.
    pub handshake: Duration,
    /// A request's head is there within this, counted from its first byte.
    pub head: Duration,
    /// A client neither sends nor takes anything of a body for this long at most.
    pub silence: Duration,
    /// A connection without a request is kept for this long.
    pub idle: Duration,
    /// Requests of an HTTP/1.1 connection; `None`: any number.
    pub requests: Option<u32>,
}

/// How backends are used.
#[derive(Clone, Debug)]
pub struct Backends {
    /// A connection is made within this.
    pub connect: Duration,
    /// A backend is silent for this long at most, before its answer and within it.
    pub silence: Duration,
    /// A connection without a request is kept for this long.
    pub idle: Duration,
    /// A connection is used for this long.
    pub lifetime: Duration,
    /// Connections without a request that are kept, of all backends together.
    pub kept: usize,
}

/// How far the end is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Stage {
    /// It serves.
    Serving,
    /// It serves, but is not to be sent to any more: answers end their connections.
    Draining,
    /// No more connections are taken, those without a request end.
    Closing,
    /// What is left is cut off.
    Over,
}

/// What all threads share.
#[derive(Debug)]
struct Shared {
    config: Arc<ArcSwap<Config>>,
    clients: Clients,
    backends: Backends,
    metrics: Arc<Metrics>,
    access_log: Option<AccessLog>,
    ids: Ids,
    stage: watch::Sender<Stage>,
    /// Tells HTTP/2 connections that they are to end.
    over: watch::Sender<bool>,
    slots: Arc<Semaphore>,
    started: Instant,
    /// Spreads over time when connections to backends are renewed.
    spread: RandomState,
}

impl Shared {
    /// Whether answers are to end their connections.
    fn closing(&self) -> bool {
        *self.stage.borrow() >= Stage::Draining
    }

    /// Under which key connections to an HTTP/2 backend are shared now: another one for each lifetime.
    fn h2c_key(&self, backend: SocketAddr) -> u64 {
        let lifetime = u64::try_from(self.backends.lifetime.as_millis())
            .unwrap_or(u64::MAX)
            .max(1);
        let passed = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        passed.saturating_add(self.spread.hash_one(backend) % lifetime) / lifetime
    }
}

/// Tells the metrics of what was published.
struct Observer {
    config: Arc<ArcSwap<Config>>,
    metrics: Arc<Metrics>,
}

impl follow::Observer for Observer {
    fn published(&self, hosts: usize, routes: usize, problems: &[Problem], took: Duration) {
        let config = self.config.load();
        self.metrics.published(config.table.all(), hosts, problems, took);
        debug!(hosts, routes, problems = problems.len(), ?took, "routes are in force");
    }
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// If it cannot start: the text says what is missing.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let connections = files_for(settings.clients.connections);
    let metrics = Arc::<Metrics>::default();
    let certificate = tls::self_signed().context("make a certificate for hosts that have none")?;
    let config = Arc::new(ArcSwap::from_pointee(Config {
        table: Table::default(),
        certificates: Arc::new(Certificates::new(certificate)),
    }));
    let tls = Tls::new(Arc::clone(&config)).context("set up TLS")?;
    let access_log = AccessLog::start(&settings.access_log, metrics.dropped())
        .with_context(|| format!("write the access log to {}", settings.access_log))?;
    let mut listeners = Vec::new();
    let all = settings.http.iter().map(|at| (at, Spoken::Http));
    for (at, spoken) in all.chain(settings.https.iter().map(|at| (at, Spoken::Https(tls.clone())))) {
        let listener = listen::bind(*at).with_context(|| format!("listen on {at}"))?;
        listeners.push((listener, spoken));
    }
    let _told = match settings.metrics.0 {
        Some(at) => {
            let listener = http::listen_all(at).with_context(|| format!("listen on {at} for --metrics-address"))?;
            Some(http::serve(listener, metrics::router(&metrics)))
        }
        None => None,
    };
    let shared = Arc::new(Shared {
        config: Arc::clone(&config),
        clients: settings.clients,
        backends: settings.backends,
        metrics: Arc::clone(&metrics),
        access_log,
        ids: Ids::default(),
        stage: watch::Sender::new(Stage::Serving),
        over: watch::Sender::new(false),
        slots: Arc::new(Semaphore::new(connections)),
        started: Instant::now(),
        spread: RandomState::new(),
    });
    info!(
        version = env!("CARGO_PKG_VERSION"),
        http = ?settings.http,
        https = ?settings.https,
        threads = settings.threads,
        connections,
        "starting"
    );

    let observer = Arc::new(Observer {
        config: Arc::clone(&config),
        metrics: Arc::clone(&metrics),
    });
    let ready = watch::Sender::new(false);
    let mut known = ready.subscribe();
    let mut followed = tokio::spawn(follow_always(settings.source, config, ready, observer));
    tokio::select! {
        // Clients that came before wait in the listeners' queues.
        _ = known.wait_for(|ready| *ready) => {}
        ended = &mut followed => return ended.context("follow objects")?,
        () = signals.next() => return Ok(()),
    }
    let workers = Workers::start(settings.threads, &listeners, &shared).context("start threads")?;
    // Each thread has its own handle of them.
    drop(listeners);
    metrics.set_ready(true);
    info!("serving");
    tokio::select! {
        () = signals.next() => {}
        ended = &mut followed => return ended.context("follow objects")?,
    }
    end(&shared, &workers, &mut signals, settings.drain_delay, settings.grace).await;
    Ok(())
}

/// Ends in stages.
async fn end(shared: &Shared, workers: &Workers, signals: &mut Signals, delay: Duration, grace: Duration) {
    let began = Instant::now();
    shared.metrics.set_ready(false);
    shared.stage.send_replace(Stage::Draining);
    info!(
        open = shared.metrics.open(),
        "ending: not ready any more, still serving"
    );
    tokio::select! {
        () = sleep(delay.min(grace)) => {}
        () = signals.next() => {
            info!("ended at once");
            return;
        }
    }
    shared.stage.send_replace(Stage::Closing);
    shared.over.send_replace(true);
    let finished = async {
        while !workers.ended() {
            sleep(LOOK).await;
        }
    };
    let rest = grace.saturating_sub(began.elapsed());
    tokio::select! {
        finished = timeout(rest, finished) => match finished {
            Ok(()) => info!("ended: every request was answered"),
            Err(_) => warn!(open = shared.metrics.open(), ?grace, "ended: connections were cut off"),
        },
        () = signals.next() => info!("ended at once"),
    }
    shared.stage.send_replace(Stage::Over);
    if let Some(log) = &shared.access_log {
        log.flush();
    }
}

/// Follows objects, again and again once it was ready.
async fn follow_always(
    source: Source,
    config: Arc<ArcSwap<Config>>,
    ready: watch::Sender<bool>,
    observer: Arc<Observer>,
) -> anyhow::Result<()> {
    loop {
        let observer = Arc::clone(&observer) as Arc<dyn follow::Observer>;
        let ended = follow::run(source.clone(), Arc::clone(&config), ready.clone(), observer).await;
        if !*ready.borrow() {
            return ended;
        }
        let error = ended.err().map(|error| format!("{error:#}"));
        warn!(
            error,
            "objects are not followed at present; requests go on by what is known"
        );
        sleep(SOURCE_AGAIN).await;
    }
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("handle SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("handle SIGINT")?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Makes room for the file descriptors of that many connections and their backends', and says how many there is room for.
fn files_for(connections: usize) -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return connections;
    };
    let wanted = (connections as u64).saturating_mul(2).saturating_add(OTHER_FILES);
    let soft = if soft < wanted && setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard).is_ok() {
        wanted.min(hard)
    } else {
        soft
    };
    let room = usize::try_from(soft.saturating_sub(OTHER_FILES) / 2)
        .unwrap_or(usize::MAX)
        .max(1);
    if room < connections {
        warn!(
            connections = room,
            wanted = connections,
            "the limit of open files (ulimit -n) leaves room for fewer connections than --max-connections"
        );
    }
    room.min(connections)
}
