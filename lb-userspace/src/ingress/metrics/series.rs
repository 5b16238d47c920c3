//! The numbers of requests, by Ingress and Service.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::model::ObjectKey;

/// Upper bounds of the buckets of durations, in microseconds: 1 ms to a minute.
pub(super) const BOUNDS: [u64; 15] = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000, 30_000_000, 60_000_000,
];
/// Classes of status: none, 1xx to 5xx.
pub(super) const CLASSES: [&str; 6] = ["0xx", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// What a client speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// HTTP/1.1 or 1.0.
    Http1,
    /// HTTP/2.
    Http2,
    /// WebSocket.
    Upgraded,
}

impl Protocol {
    pub(super) const ALL: [Self; 3] = [Self::Http1, Self::Http2, Self::Upgraded];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http/1",
            Self::Http2 => "http/2",
            Self::Upgraded => "websocket",
        }
    }
}

/// Requests by protocol and class of status.
#[derive(Debug, Default)]
pub(super) struct Counts([[AtomicU64; CLASSES.len()]; 3]);

impl Counts {
    pub(super) fn count(&self, protocol: Protocol, status: u16) {
        let class = usize::from(status / 100).min(CLASSES.len() - 1);
        self.0[protocol as usize][class].fetch_add(1, Ordering::Relaxed);
    }

    /// Those that are not 0.
    pub(super) fn seen(&self) -> impl Iterator<Item = (Protocol, &'static str, u64)> {
        Protocol::ALL.into_iter().flat_map(move |protocol| {
            let counts = self.0[protocol as usize].iter();
            let counts = counts
                .zip(CLASSES)
                .map(|(count, class)| (count.load(Ordering::Relaxed), class));
            counts
                .filter(|(count, _)| *count > 0)
                .map(move |(count, class)| (protocol, class, count))
        })
    }
}

/// The numbers of requests that an Ingress sends to a Service.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Whose turn it is among pods.
    pub turn: AtomicUsize,
    /// Connections to backends that could not be made.
    pub connect_failures: AtomicU64,
    /// Requests that were sent once more.
    pub retries: AtomicU64,
    pub(super) requests: Counts,
    pub(super) received: AtomicU64,
    pub(super) sent: AtomicU64,
    /// Durations by bucket; the last one has those above every bound.
    pub(super) durations: [AtomicU64; BOUNDS.len() + 1],
    pub(super) micros: AtomicU64,
}

impl Traffic {
    /// A request was answered.
    pub fn count(&self, protocol: Protocol, status: u16, took: Duration, received: u64, sent: u64) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.partition_point(|bound| *bound < micros);
        self.requests.count(protocol, status);
        self.durations[bucket].fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(micros, Ordering::Relaxed);
        self.received.fetch_add(received, Ordering::Relaxed);
        self.sent.fetch_add(sent, Ordering::Relaxed);
    }
}

/// Ingress to Service to numbers.
type Series = HashMap<ObjectKey, HashMap<ObjectKey, Arc<Traffic>>>;

/// Everything that has numbers. Reading takes no lock.
#[derive(Debug, Default)]
pub(super) struct Known {
    series: ArcSwap<Series>,
    /// Held by whoever changes it.
    writer: Mutex<()>,
}

impl Known {
    pub(super) fn get(&self, ingress: &ObjectKey, service: &ObjectKey) -> Arc<Traffic> {
        let find = |series: &Series| series.get(ingress)?.get(service).cloned();
        if let Some(traffic) = find(&self.series.load()) {
            return traffic;
        }
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.series.load_full();
        if let Some(traffic) = find(&before) {
            return traffic;
        }
        let mut series = Series::clone(&before);
        let traffic = Arc::<Traffic>::default();
        let services = series.entry(ingress.clone()).or_default();
        services.insert(service.clone(), Arc::clone(&traffic));
        self.series.store(Arc::new(series));
        traffic
    }

    /// Forgets all others.
    pub(super) fn keep(&self, kept: &HashSet<(&ObjectKey, &ObjectKey)>) {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.series.load_full();
        let gone = |(ingress, services): (&ObjectKey, &HashMap<ObjectKey, Arc<Traffic>>)| {
            services.keys().any(|service| !kept.contains(&(ingress, service)))
        };
        if !before.iter().any(gone) {
            return;
        }
        let mut series = Series::clone(&before);
        for (ingress, services) in &mut series {
            services.retain(|service, _| kept.contains(&(ingress, service)));
        }
        series.retain(|_, services| !services.is_empty());
        self.series.store(Arc::new(series));
    }

    pub(super) fn all(&self) -> Arc<Series> {
        self.series.load_full()
    }
}
