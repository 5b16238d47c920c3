//! What the agent tells of itself: health to load balancers and probes, metrics, and Events about objects.
//!
//! The loop says what it did; nothing here makes it wait. Servers are tasks of the runtime, so they answer also while
//! the loop is busy, and say so if it does not come round any more.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::watch;
use tracing::{debug, info};

use super::Origin;
use crate::announce::status::{Announcements, Counts};
use crate::datapath::pin::PinDir;
use crate::events;
use crate::health::{self, Health, Ports};
use crate::http::{self, Server};
use crate::maps::Maps;
use crate::model::{ObjectKey, ObjectKind, Problem, Reason};
use crate::observe::metrics::{self, Metrics};
use crate::observe::state::{Connections, Health as HealthState};
use crate::reconcile::{NextHops, Reconciler, Report};
use crate::sources::Event;

/// Where a server listens; `none`: it does not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Listen(pub Option<SocketAddr>);

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(None));
        }
        let form =
            |_| format!("`{text}` is not an address with a port, such as 0.0.0.0:10256 or [::1]:10249, nor `none`");
        text.parse().map(Some).map(Self).map_err(form)
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(at) => at.fmt(f),
            None => f.write_str("none"),
        }
    }
}

/// Where it is told.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// `/healthz` and `/livez`.
    pub healthz: Listen,
    /// `/metrics`.
    pub metrics: Listen,
}

/// What is told.
pub struct Telemetry {
    health: Arc<Health>,
    ports: Ports,
    metrics: Arc<Metrics>,
    healthz_server: Place,
    metrics_server: Place,
    /// To the task that writes Events, where objects come from an API.
    events: Option<watch::Sender<Vec<Problem>>>,
    /// The cluster has Nodes: one that is not there is not to be sent to.
    nodes_exist: bool,
}

impl Telemetry {
    /// Begins to tell. To be called within the runtime.
    pub fn start(
        settings: &Settings,
        node: &Arc<str>,
        origin: &Origin,
        pins: &PinDir,
        connections: Arc<Mutex<Vec<Connections>>>,
    ) -> Self {
        raise_file_limit();
        let health = Arc::new(Health::starting(Instant::now()));
        let metrics = Arc::new(Metrics::new(pins, connections));
        let events = match origin {
            Origin::Api(options) => {
                let (sender, problems) = watch::channel(Vec::new());
                tokio::spawn(events::write(options.access.clone(), Arc::clone(node), problems));
                Some(sender)
            }
            Origin::Manifests(_) => None,
        };
        let mut telemetry = Self {
            ports: Ports::new(Arc::clone(node), Arc::clone(&health)),
            healthz_server: Place::new(
                settings.healthz,
                health::routes(&health, &metrics),
                node,
                ("--healthz-address", Reason::FailedToStartProxierHealthcheck),
            ),
            metrics_server: Place::new(
                settings.metrics,
                metrics::routes(&metrics),
                node,
                ("--metrics-address", Reason::FailedToStartMetricServer),
            ),
            health,
            metrics,
            events,
            nodes_exist: matches!(origin, Origin::Api(_)),
        };
        telemetry.listen();
        telemetry
    }

    /// The loop has come round.
    pub fn round(&self) {
        self.health.alive(Instant::now());
    }

    /// The loop has heard of something.
    pub fn heard(&self, event: &Event) {
        if let Event::Node(node) = event {
            let stays = node.as_ref().map_or(!self.nodes_exist, |node| !node.leaving);
            self.health.node(stays);
        }
        self.metrics.queued();
    }

    /// Opens what could not be opened before; tells whether there was any.
    pub fn listen_again<M: Maps, H: NextHops>(&mut self, reconciler: &Reconciler<M, H>) -> bool {
        let incomplete = self.problems().next().is_some();
        if incomplete {
            self.listen();
            self.open_ports(reconciler);
        }
        incomplete
    }

    fn listen(&mut self) {
        self.healthz_server.listen();
        self.metrics_server.listen();
    }

    /// The maps were brought up to date.
    pub fn reconciled<M: Maps, H: NextHops>(&mut self, reconciler: &Reconciler<M, H>, report: &Report, took: Duration) {
        self.note(report);
        if report.waiting {
            return;
        }
        self.metrics
            .reconciled(report, took, reconciler.numbers(), reconciler.no_local());
        self.open_ports(reconciler);
    }

    /// Opens the health check ports of Services, and closes those that are not wanted any more.
    fn open_ports<M: Maps, H: NextHops>(&mut self, reconciler: &Reconciler<M, H>) {
        let addresses = health::listen_addresses(reconciler.node(), reconciler.view());
        self.ports.sync(reconciler.health_checks(), &addresses);
    }

    /// Addresses are announced.
    pub fn announced(&self, announcements: &Announcements, counts: Option<&Arc<Counts>>) {
        self.metrics.announced(announcements, counts.map(AsRef::as_ref));
    }

    /// The maps were audited.
    pub fn audited(&self, report: &Report) {
        self.note(report);
        self.metrics.audited(report);
    }

    fn note(&self, report: &Report) {
        if !report.failures.is_empty() {
            self.health.pending(Instant::now());
        } else if !report.waiting {
            self.health.applied(SystemTime::now());
        }
    }

    /// What is wrong with the servers.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        let places = [&self.healthz_server, &self.metrics_server];
        let places = places.into_iter().filter_map(|place| place.problem.as_ref());
        places.chain(self.ports.problems())
    }

    /// This is wrong now.
    pub fn tell(&self, problems: &[Problem]) {
        self.metrics.problems(problems);
        if let Some(events) = &self.events {
            // The task ends with the agent, or when it cannot write Events at all.
            let _ended = events.send(problems.to_vec());
        }
    }

    /// For people.
    pub fn state(&self) -> HealthState {
        let condition = self.health.condition(Instant::now());
        HealthState {
            healthy: condition.healthy,
            node_eligible: condition.node_eligible,
            healthz: self.healthz_server.served(),
            metrics: self.metrics_server.served(),
            ports: self.ports.state(),
        }
    }
}

/// Every health check port takes file descriptors, and service managers allow 1024 unless they are asked for more.
fn raise_file_limit() {
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        debug!(%error, "the number of file descriptors stays as it is");
    }
}

/// A server with the address that it should have.
struct Place {
    at: Listen,
    router: Router,
    node: Arc<str>,
    flag: &'static str,
    reason: Reason,
    server: Option<Server>,
    problem: Option<Problem>,
}

impl Place {
    fn new(at: Listen, router: Router, node: &Arc<str>, (flag, reason): (&'static str, Reason)) -> Self {
        Self {
            at,
            router,
            node: Arc::clone(node),
            flag,
            reason,
            server: None,
            problem: None,
        }
    }

    fn listen(&mut self) {
        let Some(at) = self.at.0.filter(|_| self.server.is_none()) else {
            return;
        };
        match http::listen_all(at).map(|listener| http::serve(listener, self.router.clone())) {
            Ok(server) => {
                info!(flag = self.flag, %at, "listening");
                self.server = Some(server);
                self.problem = None;
            }
            Err(error) => {
                self.problem = Some(Problem {
                    kind: ObjectKind::Node,
                    object: ObjectKey::new("", &self.node),
                    field: self.flag.into(),
                    message: format!("the agent cannot listen on {at} ({error}) and tries again"),
                    remedy: "end what uses the port (kube-proxy, if it runs beside), or give the agent another".into(),
                    reason: self.reason,
                });
            }
        }
    }

    fn served(&self) -> Option<String> {
        self.server.as_ref().and(self.at.0).map(|at| at.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_to_listen_is_an_address_with_a_port_or_none() {
        for text in ["0.0.0.0:10256", "[::1]:10249", "none"] {
            assert_eq!(
                text.parse::<Listen>().map(|listen| listen.to_string()),
                Ok(text.to_owned())
            );
        }
        for text in ["10256", "localhost:10256", ""] {
            assert!(
                text.parse::<Listen>()
                    .is_err_and(|error| error.contains("such as 0.0.0.0:10256"))
            );
        }
    }

    #[tokio::test]
    async fn an_address_in_use_is_reported_for_the_node_and_taken_once_it_is_free() {
        let foreign = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let at = Listen(Some(foreign.local_addr().expect("it is bound")));
        let names = ("--healthz-address", Reason::FailedToStartProxierHealthcheck);
        let mut place = Place::new(at, Router::new(), &"node-1".into(), names);
        place.listen();
        let problem = place.problem.clone().expect("it is reported");
        assert_eq!((problem.kind, &*problem.object.name), (ObjectKind::Node, "node-1"));
        assert_eq!(place.served(), None);
        drop(foreign);
        place.listen();
        assert_eq!((place.problem.as_ref(), place.served()), (None, Some(at.to_string())));
    }
}
