//! The address controller: a loop that hears of objects, decides ([`allocate`](super::allocate)) and writes what differs.
//!
//! ```text
//!   API: Services, AddressPools, Namespaces ─► ┌──────┐ ─ allocate ─► Plan ─► status of Services and pools
//!   or a folder of manifests ────────────────► │ loop │               └────► log, Events, metrics
//!   Lease: who leads ────────────────────────► └──────┘
//! ```
//!
//! # Why no address is given twice
//!
//! `allocate` never gives an address that stands in a status it is shown. So what has to hold is that it is shown every
//! status that another instance has written, or may yet write. Several instances may run; any of them may be killed, or
//! stopped at any point and go on much later; no clock is relied upon:
//!
//! 1. Each address is announced in the Lease as an intent (Service, its resource version, addresses) before it is written to
//!    the Service. The Lease is written with its resource version, so this succeeds only for who still holds it.
//! 2. The address is then written with that resource version of the Service, so it succeeds only while nobody has changed
//!    the Service since.
//! 3. Who takes the Lease takes the intents with it. Requests of earlier leaders that are still under way are among them, since
//!    an announcement of a later one fails by (1).
//! 4. The new leader lists everything after that. The lists hold all writes that had succeeded before. An intent whose Service
//!    has another resource version by now has succeeded, and is in the list, or never will, by (2); of the others the Service is
//!    treated as if it had the address already, until its resource version changes.
//! 5. The same goes for a leader's own requests whose answers are lost.
//!
//! That leases expire by time only decides when another instance may try, and a leader stops writing before that; if clocks
//! are wrong two instances may take turns, but not give one address to two Services.
//!
//! With a folder there is one instance, which a lock on a file sees to.

mod api;
mod election;
mod files;
mod objects;
mod report;

pub use election::{LEASE, Timing};
pub use files::FILE;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use ipnet::IpNet;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::info;

use self::report::Report;
use super::allocate;
use crate::http;
use crate::sources::kube::Access;

/// What the controller is started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where objects come from, and statuses go.
    pub origin: Origin,
    /// Which Services are ours.
    pub services: allocate::Settings,
    /// Where health and metrics are told; `None` = nowhere.
    pub telemetry: Option<SocketAddr>,
}

/// Where objects come from, and statuses go.
#[derive(Clone, Debug)]
pub enum Origin {
    /// A folder.
    Manifests {
        /// The folder.
        dir: PathBuf,
        /// The ranges of ClusterIPs, see [`crate::sources::manifests::Options::service_cidrs`].
        service_cidrs: Vec<IpNet>,
    },
    /// The Kubernetes API.
    Api {
        /// How to reach it.
        access: Access,
        /// The namespace of the Lease.
        lease_namespace: String,
        /// How long the Lease is good for.
        timing: Timing,
    },
}

/// Runs the controller until SIGTERM or SIGINT.
///
/// # Errors
/// If it cannot start: the text says what is missing.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;
    let (stop, stopping) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        // Whoever listens has ended already, otherwise.
        let _ended = stop.send(true);
    });
    let identity = election::identity();
    info!(version = env!("CARGO_PKG_VERSION"), identity, "starting");
    let report = Arc::new(Report::new());
    let _server = match settings.telemetry {
        Some(at) => {
            let listener = http::listen_all(at).with_context(|| {
                format!("listen on {at}: end what uses the port, or give another --metrics-address")
            })?;
            info!(%at, "listening");
            Some(http::serve(listener, report::routes(&report)))
        }
        None => None,
    };
    match settings.origin {
        Origin::Manifests { dir, service_cidrs } => {
            files::run(&dir, service_cidrs, &settings.services, &report, stopping).await?;
        }
        Origin::Api {
            access,
            lease_namespace,
            timing,
        } => {
            let place = api::Place {
                access,
                lease_namespace,
                timing,
                identity,
            };
            api::run(&place, &settings.services, &report, stopping).await?;
        }
    }
    info!("ending; the addresses stay");
    Ok(())
}

/// Ends when the controller is to end.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // The sender says so before it goes.
    let _gone = stopping.wait_for(|stop| *stop).await;
}
