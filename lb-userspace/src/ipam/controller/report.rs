//! What the controller tells of itself: health, metrics, and what is wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse as _;
use axum::routing::get;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tracing::info;

use super::api::Written;
use crate::ipam::allocate::{Decision, Plan};
use crate::model::{ObjectKey, Problem, log_changes};
use crate::observe::metrics::text;

/// A loop that has not come round for this long is stuck. A request may take ten seconds.
const STUCK: Duration = Duration::from_secs(60);

type Labels = Vec<(&'static str, String)>;
type Level = Gauge<f64, AtomicU64>;

/// What is told to whoever asks.
pub(super) struct Report {
    registry: Registry,
    began: Instant,
    /// When the loop came round last, in milliseconds since the beginning.
    alive_ms: AtomicU64,
    ready: AtomicBool,
    used: Family<Labels, Level>,
    free: Family<Labels, Level>,
    services: Level,
    waiting: Family<Labels, Level>,
    leader: Level,
    duration: Histogram,
    writes: Family<Labels, Counter>,
}

impl Report {
    pub(super) fn new() -> Self {
        let mut registry = Registry::default();
        let report = Self {
            began: Instant::now(),
            alive_ms: AtomicU64::new(0),
            ready: AtomicBool::new(false),
            used: Family::default(),
            free: Family::default(),
            services: Level::default(),
            waiting: Family::default(),
            leader: Level::default(),
            duration: Histogram::new(exponential_buckets(0.000_1, 2.0, 18)),
            writes: Family::default(),
            registry: Registry::default(),
        };
        macro_rules! add {
            ($name:literal, $help:literal, $metric:ident) => {
                registry.register($name, $help, report.$metric.clone())
            };
        }
        add!(
            "fairway_pool_addresses_used",
            "Addresses of a pool that are in use",
            used
        );
        add!(
            "fairway_pool_addresses_free",
            "Addresses of a pool that may be given",
            free
        );
        add!(
            "fairway_load_balancers",
            "Services that have the addresses they ask for",
            services
        );
        add!(
            "fairway_load_balancers_waiting",
            "Services that do not, by reason",
            waiting
        );
        add!(
            "fairway_controller_leader",
            "1 on the instance that leads, else 0",
            leader
        );
        add!(
            "fairway_controller_reconcile_duration_seconds",
            "Time to decide about all Services",
            duration
        );
        add!(
            "fairway_controller_writes",
            "Statuses of Services that were to be written, by what became of that",
            writes
        );
        Self { registry, ..report }
    }

    /// The loop has come round.
    pub(super) fn alive(&self) {
        let passed = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.alive_ms.store(passed, Ordering::Relaxed);
    }

    /// Another instance leads, and this one could.
    pub(super) fn standby(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }

    /// It could not lead now.
    pub(super) fn unready(&self) {
        self.ready.store(false, Ordering::Relaxed);
    }

    /// This instance leads, or does so no longer. It is ready when it has decided once.
    pub(super) fn leads(&self, leads: bool) {
        self.leader.set(f64::from(u8::from(leads)));
        self.unready();
        if !leads {
            // Who leads now tells the same numbers better.
            for family in [&self.used, &self.free, &self.waiting] {
                family.clear();
            }
            self.services.set(0.0);
        }
    }

    /// A write has ended.
    pub(super) fn written(&self, written: &Written) {
        self.writes
            .get_or_create(&vec![("result", written.name().to_owned())])
            .inc();
    }

    /// It has been decided.
    pub(super) fn decided(&self, plan: &Plan, took: Duration) {
        self.duration.observe(took.as_secs_f64());
        self.ready.store(true, Ordering::Relaxed);
        for family in [&self.used, &self.free, &self.waiting] {
            family.clear();
        }
        for (name, tally) in &plan.pools {
            let labels = vec![("pool", name.clone())];
            // There may be more of IPv6 than this can tell exactly.
            self.used.get_or_create(&labels).set(tally.used as f64);
            self.free.get_or_create(&labels).set(tally.free as f64);
        }
        let mut waiting: BTreeMap<&str, usize> = BTreeMap::new();
        let mut assigned = 0;
        for decision in plan.services.values() {
            match decision {
                Decision::Ours { finding, .. } if finding.assigned => assigned += 1,
                Decision::Ours { finding, .. } => *waiting.entry(finding.reason).or_default() += 1,
                Decision::Withdrawn(_) => {}
            }
        }
        self.services.set(f64::from(assigned));
        for (reason, services) in waiting {
            let labels = vec![("reason", reason.to_owned())];
            self.waiting.get_or_create(&labels).set(services as f64);
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _written = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text::from_open_metrics(&text)
    }

    fn is_alive(&self) -> bool {
        let alive = Duration::from_millis(self.alive_ms.load(Ordering::Relaxed));
        self.began.elapsed().saturating_sub(alive) < STUCK
    }
}

/// `/healthz`, `/readyz` and `/metrics`.
pub(super) fn routes(report: &Arc<Report>) -> Router {
    let answer = |good: bool, text: &'static str| match good {
        true => (StatusCode::OK, "ok\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, text),
    };
    let (health, ready, metrics) = (Arc::clone(report), Arc::clone(report), Arc::clone(report));
    let healthz = move || async move { answer(health.is_alive(), "the loop does not come round\n") };
    let readyz = move || async move {
        let good = ready.is_alive() && ready.ready.load(Ordering::Relaxed);
        answer(good, "objects have not been listed, or the Lease cannot be read\n")
    };
    let metrics = move || {
        let text = metrics.text();
        async move { ([(CONTENT_TYPE, text::CONTENT_TYPE)], text).into_response() }
    };
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
}

/// What has been told to the log.
#[derive(Default)]
pub(super) struct Tidings {
    problems: Vec<Problem>,
    addresses: BTreeMap<ObjectKey, BTreeSet<std::net::IpAddr>>,
}

impl Tidings {
    /// Logs which Services have other addresses than before, which problems are new and which are gone; tells whether any is.
    pub(super) fn tell(&mut self, plan: &Plan) -> bool {
        let first = self.addresses.is_empty();
        let decided = plan.services.iter().map(|(key, decision)| {
            let addresses = match decision {
                Decision::Ours { addresses, .. } => addresses.iter().copied().collect(),
                Decision::Withdrawn(_) => BTreeSet::new(),
            };
            (key.clone(), addresses)
        });
        let addresses: BTreeMap<_, BTreeSet<_>> = decided.collect();
        let with = addresses.values().filter(|addresses| !addresses.is_empty()).count();
        if first && with > 0 {
            info!(services = with, "these have addresses");
        }
        for (key, addresses) in addresses.iter().filter(|_| !first) {
            let before = self.addresses.get(key);
            if before != Some(addresses) && !(addresses.is_empty() && before.is_none_or(BTreeSet::is_empty)) {
                info!(service = %key, ?addresses, "a Service has other addresses");
            }
        }
        self.addresses = addresses;
        self.tell_problems(&plan.problems)
    }

    fn tell_problems(&mut self, problems: &[Problem]) -> bool {
        if problems == self.problems {
            return false;
        }
        log_changes(&self.problems, problems);
        self.problems = problems.to_vec();
        true
    }
}
