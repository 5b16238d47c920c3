//! Follows the objects and publishes what they mean for requests.
//!
//! ```text
//! API ────── a task for each kind ─┐
//!                                  ├─► State ─► Config (swapped in as a whole)
//! folder ─── all objects at once ──┘       ├──► status of Ingresses
//!                                          └──► Events, log, Observer
//! ```
//!
//! Nothing is published before every kind has been listed completely, so no request is refused because half of the
//! objects are missing. When the origin is lost nothing is published any more: what is known stays in force. A change
//! that comes alone is published at once; while many come, those that have arrived are taken together, with a rest between
//! two times.

mod api;
mod folder;
mod state;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use ipnet::IpNet;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep_until};
use tracing::info;

use self::state::{News, State};
use super::objects::ClassOptions;
use super::status;
use super::table::{Config, Upstream};
use crate::events;
use crate::model::{ObjectKey, Problem};
use crate::sources::kube::Access;

/// How often everything is looked at again, since certificates expire without a word.
const LOOK_AGAIN: Duration = Duration::from_secs(10 * 60);
/// After building, the next building waits for so many times what it took ...
const REST: u32 = 2;
/// ... but no longer than this.
const LONGEST_REST: Duration = Duration::from_millis(50);
/// Changes on their way.
const QUEUE: usize = 256;

/// Where objects come from, and what to make of them.
#[derive(Clone, Debug)]
pub struct Source {
    /// Where they come from.
    pub origin: Origin,
    /// Which Ingresses are ours.
    pub class: ClassOptions,
    /// Where requests are sent.
    pub upstream: Upstream,
    /// The Secret with the certificate for clients that ask for a name without one.
    pub default_certificate: Option<ObjectKey>,
    /// The Service whose addresses go to the status of Ingresses; `None`: their status is left alone.
    pub publish_service: Option<ObjectKey>,
    /// Who this is, in Events.
    pub instance: Arc<str>,
}

/// Where objects come from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// A folder of manifests.
    Manifests {
        /// The folder.
        dir: PathBuf,
        /// Ranges for ClusterIPs, as the agent of the same folder has them.
        service_cidrs: Vec<IpNet>,
    },
    /// The Kubernetes API.
    Api(Access),
}

/// Is told of what is published.
pub trait Observer: Send + Sync {
    /// A configuration with so many hosts and routes has been published. `problems` are all that there are now; `took` is
    /// how long it took to build.
    fn published(&self, hosts: usize, routes: usize, problems: &[Problem], took: Duration);
}

/// Follows all objects until the task is ended: publishes a new [`Config`] on every change, and writes the status of
/// Ingresses and Events. `ready` becomes true when all objects have been read once and the first one is published.
///
/// # Errors
/// If the credentials for the API cannot be used, or the folder cannot be read at the start. An API that does not answer
/// is waited for.
pub async fn run(
    source: Source,
    config: Arc<ArcSwap<Config>>,
    ready: watch::Sender<bool>,
    observer: Arc<dyn Observer>,
) -> anyhow::Result<()> {
    // Its tasks end with this function.
    let mut tasks = JoinSet::new();
    let (news, inbox) = mpsc::channel(QUEUE);
    let (problems, problems_now) = watch::channel(Vec::new());
    let (wanted, wanted_now) = watch::channel(status::Wanted::default());
    match &source.origin {
        Origin::Api(access) => {
            let client = crate::sources::kube::client(access).await?;
            api::follow(&mut tasks, &client, source.upstream, &news);
            tasks.spawn(status::write_to_api(client, wanted_now));
            tasks.spawn(events::write(
                access.clone(),
                Arc::clone(&source.instance),
                problems_now,
            ));
        }
        Origin::Manifests { dir, service_cidrs } => {
            let mut folder = folder::Folder::new(dir.clone(), service_cidrs.clone());
            let first = folder
                .read()
                .context("cannot read the manifests of the Ingress controller")?;
            news.send(first).await.context("nobody listens")?;
            tasks.spawn(async move { folder.follow(news).await });
            tasks.spawn(status::write_to_folder(dir.clone(), wanted_now));
        }
    }
    let publisher = Publisher {
        state: State::new(&source, config.load().certificates.default_certificate()),
        source,
        config,
        ready,
        observer,
        problems,
        wanted,
        told: HashSet::new(),
        ours: HashSet::new(),
        leaving: HashSet::new(),
    };
    publisher.run(inbox).await;
    Ok(())
}

struct Publisher {
    state: State,
    source: Source,
    config: Arc<ArcSwap<Config>>,
    ready: watch::Sender<bool>,
    observer: Arc<dyn Observer>,
    problems: watch::Sender<Vec<Problem>>,
    wanted: watch::Sender<status::Wanted>,
    /// The problems that the log has.
    told: HashSet<Problem>,
    /// The Ingresses that were ours at the last time.
    ours: HashSet<ObjectKey>,
    /// Those that were ours, are not any more, and still have our addresses in their status.
    leaving: HashSet<ObjectKey>,
}

impl Publisher {
    async fn run(mut self, mut inbox: mpsc::Receiver<News>) {
        let mut look_again = interval(LOOK_AGAIN);
        let mut rest_until = Instant::now();
        loop {
            tokio::select! {
                news = inbox.recv() => match news {
                    Some(news) => if !self.state.take(news) {
                        continue;
                    },
                    None => return,
                },
                _ = look_again.tick() => {}
            }
            sleep_until(rest_until).await;
            while let Ok(news) = inbox.try_recv() {
                self.state.take(news);
            }
            if self.state.complete() {
                let took = self.publish();
                rest_until = Instant::now() + (took * REST).min(LONGEST_REST);
            }
        }
    }

    /// Builds and publishes; returns how long it took.
    fn publish(&mut self) -> Duration {
        let began = Instant::now();
        let now_s = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
        let built = self.state.build(now_s);
        let (hosts, routes) = (built.config.table.hosts(), built.config.table.routes());
        self.config.store(Arc::new(built.config));
        let took = began.elapsed();
        self.tell(&built.problems);
        self.observer.published(hosts, routes, &built.problems, took);
        if !self.ready.send_replace(true) {
            info!(hosts, routes, "all objects are known, requests are served");
        }
        self.problems.send_if_modified(|known| {
            let new = *known != built.problems;
            *known = built.problems;
            new
        });
        if let Some(service) = &self.source.publish_service {
            let service = self.state.objects.services.get(service);
            let addresses = service.map(|service| service.addresses.to_vec()).unwrap_or_default();
            let has_ours = |key: &ObjectKey| {
                let ingress = self.state.objects.ingresses.get(key);
                ingress.is_some_and(|ingress| *ingress.status == *addresses)
            };
            self.leaving.extend(self.ours.difference(&built.ours).cloned());
            self.leaving.retain(|key| !built.ours.contains(key) && has_ours(key));
            let wanted = status::Wanted::of(&self.state.objects, &built.ours, &self.leaving, &addresses);
            self.wanted.send_replace(wanted);
        }
        self.ours = built.ours;
        took
    }

    /// Writes into the log what was not wrong before, and how much was mended.
    fn tell(&mut self, problems: &[Problem]) {
        for problem in problems.iter().filter(|problem| !self.told.contains(problem)) {
            problem.warn();
        }
        let now: HashSet<Problem> = problems.iter().cloned().collect();
        let mended = self.told.difference(&now).count();
        if mended > 0 {
            info!(mended, "problems are gone");
        }
        self.told = now;
    }
}

#[cfg(test)]
mod tests;
