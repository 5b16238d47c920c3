//! What is measured, in Prometheus' text format: `GET /metrics`.
//!
//! The loop counts along as it works; packets, connections and problems are read when somebody asks. Every name is in
//! [`names`].

mod names;
pub(crate) mod samples;
mod scrape;
pub(crate) mod text;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse as _;
use axum::routing::get;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry};

use self::samples::Name;
use self::scrape::Scrape;
use super::state::Connections;
use crate::announce::status::{Announcements, Counts};
use crate::datapath::pin::PinDir;
use crate::model::{IpFamily, Problem};
use crate::reconcile::{NoLocal, Numbers, Report};

/// What `/proxyMode` answers, which Kubernetes' own tests ask kube-proxy.
const PROXY_MODE: &str = "ebpf";

/// Labels with their values.
type Labels<const N: usize> = [(&'static str, &'static str); N];
type Level = Gauge<f64, AtomicU64>;
type Number = Gauge<u64, AtomicU64>;

/// What is measured.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    started: SystemTime,
    problems: Arc<Mutex<Vec<Problem>>>,
    sync_duration: Family<Labels<1>, Histogram>,
    sync_last: Family<Labels<1>, Level>,
    sync_queued: Family<Labels<1>, Level>,
    programming_duration: Family<Labels<1>, Histogram>,
    endpoint_changes: Counter,
    service_changes: Counter,
    no_local_endpoints: Family<Labels<2>, Number>,
    healthz: Family<Labels<1>, Counter>,
    livez: Family<Labels<1>, Counter>,
    services: Number,
    slices: Number,
    endpoints: Number,
    map_changes: Counter,
    map_failures: Counter,
    map_repairs: Counter,
    announced: Number,
    take_overs: Counter,
    lease_renewals: Counter,
    lease_failures: Counter,
}

impl Metrics {
    /// Those of an agent that starts.
    pub fn new(pins: &PinDir, connections: Arc<Mutex<Vec<Connections>>>) -> Self {
        let started = SystemTime::now();
        let problems = Arc::new(Mutex::new(Vec::new()));
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Scrape {
            pins: pins.clone(),
            started,
            connections,
            problems: Arc::clone(&problems),
        }));
        let registry = &mut registry;
        Self {
            sync_duration: add(
                registry,
                names::SYNC_DURATION,
                Family::new_with_constructor(sync_buckets),
            ),
            sync_last: add(registry, names::SYNC_LAST, Family::default()),
            sync_queued: add(registry, names::SYNC_QUEUED, Family::default()),
            programming_duration: add(
                registry,
                names::PROGRAMMING_DURATION,
                Family::new_with_constructor(programming_buckets),
            ),
            endpoint_changes: add(registry, names::ENDPOINT_CHANGES, Counter::default()),
            service_changes: add(registry, names::SERVICE_CHANGES, Counter::default()),
            no_local_endpoints: add(registry, names::NO_LOCAL_ENDPOINTS, Family::default()),
            healthz: add(registry, names::HEALTHZ, Family::default()),
            livez: add(registry, names::LIVEZ, Family::default()),
            services: add(registry, names::SERVICES, Number::default()),
            slices: add(registry, names::SLICES, Number::default()),
            endpoints: add(registry, names::ENDPOINTS, Number::default()),
            map_changes: add(registry, names::MAP_CHANGES, Counter::default()),
            map_failures: add(registry, names::MAP_FAILURES, Counter::default()),
            map_repairs: add(registry, names::MAP_REPAIRS, Counter::default()),
            announced: add(registry, names::ANNOUNCED, Number::default()),
            take_overs: add(registry, names::TAKE_OVERS, Counter::default()),
            lease_renewals: add(registry, names::LEASE_RENEWALS, Counter::default()),
            lease_failures: add(registry, names::LEASE_FAILURES, Counter::default()),
            registry: std::mem::take(registry),
            started,
            problems,
        }
    }

    /// Something has changed, now.
    pub fn queued(&self) {
        for family in IpFamily::ALL {
            self.sync_queued.get_or_create(&of(family)).set(now());
        }
    }

    /// The maps were brought up to date.
    pub fn reconciled(&self, report: &Report, took: Duration, numbers: Numbers, no_local: [NoLocal; 2]) {
        for (family, no_local) in IpFamily::ALL.into_iter().zip(no_local) {
            self.sync_duration.get_or_create(&of(family)).observe(seconds(took));
            if report.failures.is_empty() {
                self.sync_last.get_or_create(&of(family)).set(now());
            }
            for (policy, ports) in [("internal", no_local.internal), ("external", no_local.external)] {
                let labels = [("traffic_policy", policy), of(family)[0]];
                self.no_local_endpoints.get_or_create(&labels).set(ports as u64);
            }
        }
        let started = since_epoch(self.started).as_millis();
        for (family, at) in &report.triggers {
            let at = u64::try_from(*at).unwrap_or(0);
            // What happened before was another agent's to program.
            if u128::from(at) > started {
                let passed = since_epoch(SystemTime::now()).saturating_sub(Duration::from_millis(at));
                self.programming_duration
                    .get_or_create(&of(*family))
                    .observe(seconds(passed));
            }
        }
        // These are counted elsewhere.
        self.service_changes
            .inner()
            .store(numbers.service_changes, Ordering::Relaxed);
        self.endpoint_changes
            .inner()
            .store(numbers.slice_changes, Ordering::Relaxed);
        self.services.set(numbers.services as u64);
        self.slices.set(numbers.slices as u64);
        self.endpoints.set(numbers.endpoints as u64);
        self.map_changes.inc_by(report.ops as u64);
        self.map_failures.inc_by(report.failures.len() as u64);
    }

    /// The maps were audited.
    pub fn audited(&self, report: &Report) {
        self.map_repairs.inc_by(report.ops as u64);
        self.map_failures.inc_by(report.failures.len() as u64);
    }

    /// Addresses are announced; without counts this node announces none.
    pub fn announced(&self, announcements: &Announcements, counts: Option<&Counts>) {
        let here = announcements.addresses.iter().filter(|announcement| announcement.here);
        self.announced.set(here.count() as u64);
        // These are counted elsewhere.
        for (metric, count) in counts.into_iter().flat_map(|counts| {
            [
                (&self.take_overs, &counts.take_overs),
                (&self.lease_renewals, &counts.renewals),
                (&self.lease_failures, &counts.failures),
            ]
        }) {
            metric.inner().store(count.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// This is wrong now.
    pub fn problems(&self, problems: &[Problem]) {
        let mut known = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        *known = problems.to_vec();
    }

    /// `/healthz` has answered so.
    pub fn healthz_answered(&self, status: StatusCode) {
        self.healthz.get_or_create(&[code(status)]).inc();
    }

    /// `/livez` has answered so.
    pub fn livez_answered(&self, status: StatusCode) {
        self.livez.get_or_create(&[code(status)]).inc();
    }

    /// All of them, as text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _written = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text::from_open_metrics(&text)
    }
}

/// `/metrics` and `/proxyMode`.
pub fn routes(metrics: &Arc<Metrics>) -> Router {
    let metrics = Arc::clone(metrics);
    let text = move || {
        let text = metrics.text();
        async move { ([(CONTENT_TYPE, text::CONTENT_TYPE)], text).into_response() }
    };
    Router::new()
        .route("/metrics", get(text))
        .route("/proxyMode", get(|| async { PROXY_MODE }))
}

fn add<M: Metric + Clone>(registry: &mut Registry, Name { name, help, .. }: Name, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

fn of(family: IpFamily) -> Labels<1> {
    let name = match family {
        IpFamily::V4 => "IPv4",
        IpFamily::V6 => "IPv6",
    };
    [("ip_family", name)]
}

fn code(status: StatusCode) -> (&'static str, &'static str) {
    ("code", if status == StatusCode::OK { "200" } else { "503" })
}

/// kube-proxy's buckets (1 ms to 16 s), and some below them: most changes take less than its first.
fn sync_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.001 / 32.0, 2.0, 20))
}

/// kube-proxy's buckets.
fn programming_buckets() -> Histogram {
    let steps = |first: u32, step: u32, count: u32| (0..count).map(move |n| f64::from(first + n * step));
    let below_a_second = [0.0, 0.25, 0.5].into_iter();
    let seconds = steps(1, 1, 59).chain(steps(60, 5, 12)).chain(steps(120, 30, 7));
    Histogram::new(below_a_second.chain(seconds))
}

fn now() -> f64 {
    seconds(since_epoch(SystemTime::now()))
}

fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

const fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

#[cfg(test)]
mod tests;
