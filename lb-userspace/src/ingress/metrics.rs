//! What is measured: requests by Ingress and Service, connections, the routing table.
//!
//! Labels are names of objects, never anything that a client sends, and what is gone from the routing table loses its
//! series. A request adds to a few numbers in the [`Traffic`] of its Ingress and Service.

mod names;
mod scrape;
mod series;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse as _;
use axum::routing::get;
use prometheus_client::registry::Registry;

use self::scrape::Scrape;
use self::series::{Counts, Known};
pub use self::series::{Protocol, Traffic};
use super::table::Route;
use crate::model::{ObjectKey, Problem};
use crate::observe::metrics::text;

/// What is measured.
#[derive(Debug, Default)]
pub struct Metrics {
    known: Known,
    /// Requests that no rule has.
    unrouted: Counts,
    /// Connections of clients: without TLS, with TLS.
    open: [AtomicU64; 2],
    accepted: [AtomicU64; 2],
    /// TLS handshakes and PROXY headers that failed.
    refused: AtomicU64,
    /// Lines of the access log that were dropped.
    dropped: Arc<AtomicU64>,
    generation: AtomicU64,
    hosts: AtomicU64,
    routes: AtomicU64,
    publish_micros: AtomicU64,
    problems: Mutex<Vec<Problem>>,
    ready: AtomicBool,
}

/// A connection that is counted as long as this lives.
#[derive(Debug)]
pub struct Open {
    metrics: Arc<Metrics>,
    tls: bool,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.metrics.open[usize::from(self.tls)].fetch_sub(1, Ordering::Relaxed);
    }
}

impl Metrics {
    /// The numbers of requests that an Ingress sends to a Service.
    pub fn traffic(&self, ingress: &ObjectKey, service: &ObjectKey) -> Arc<Traffic> {
        self.known.get(ingress, service)
    }

    /// A request that no rule has was answered.
    pub fn unrouted(&self, protocol: Protocol, status: u16) {
        self.unrouted.count(protocol, status);
    }

    /// A client has connected.
    pub fn opened(self: &Arc<Self>, tls: bool) -> Open {
        self.open[usize::from(tls)].fetch_add(1, Ordering::Relaxed);
        self.accepted[usize::from(tls)].fetch_add(1, Ordering::Relaxed);
        Open {
            metrics: Arc::clone(self),
            tls,
        }
    }

    /// A connection was given up before its first request.
    pub fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Connections of clients.
    pub fn open(&self) -> u64 {
        self.open.iter().map(|open| open.load(Ordering::Relaxed)).sum()
    }

    /// Where dropped lines of the access log are counted.
    pub fn dropped(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.dropped)
    }

    /// A new routing table is in force.
    pub fn published<'a>(
        &self,
        table: impl Iterator<Item = &'a Arc<Route>>,
        hosts: usize,
        problems: &[Problem],
        took: Duration,
    ) {
        let mut routes = 0;
        let mut kept = HashSet::new();
        for route in table {
            routes += 1;
            kept.insert((&route.ingress, &route.backend.service));
        }
        self.known.keep(&kept);
        self.routes.store(routes, Ordering::Relaxed);
        self.hosts.store(hosts as u64, Ordering::Relaxed);
        self.generation.fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.publish_micros.store(micros, Ordering::Relaxed);
        *self.problems.lock().unwrap_or_else(PoisonError::into_inner) = problems.to_vec();
    }

    /// Whether load balancers are to send clients here.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }
}

/// All of them, as text.
pub fn text(metrics: &Arc<Metrics>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape(Arc::clone(metrics))));
    let mut text = String::new();
    // Writing to a string does not fail.
    let _written = prometheus_client::encoding::text::encode(&mut text, &registry);
    text::from_open_metrics(&text)
}

/// `/metrics`, `/healthz` (the process answers) and `/readyz` (it serves, and is to be sent to).
pub fn router(metrics: &Arc<Metrics>) -> Router {
    let (scraped, asked) = (Arc::clone(metrics), Arc::clone(metrics));
    let metrics = move || {
        let text = text(&scraped);
        async move { ([(CONTENT_TYPE, text::CONTENT_TYPE)], text).into_response() }
    };
    let readyz = move || {
        let ready = asked.ready.load(Ordering::Relaxed);
        async move {
            if ready {
                (StatusCode::OK, "ok\n")
            } else {
                (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
            }
        }
    };
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
}

#[cfg(test)]
mod tests;
