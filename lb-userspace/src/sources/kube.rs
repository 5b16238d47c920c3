//! The Kubernetes API as the source of objects.
//!
//! Five tasks follow the Services, the EndpointSlices, the ServiceCIDRs, the AddressPools and the own Node ([`follow`]). Each converts what it receives at
//! once into the light structs of [`crate::model`] and keeps nothing, so a cluster with hundreds of thousands of
//! endpoints exists once in the agent, not twice.
//!
//! ```text
//! API ── Services ───────┐
//!     ── EndpointSlices ─┼─► held until both lists are complete ─► events
//!     ── own Node ───────┤
//!     ── ServiceCIDRs ───┤
//!     ── AddressPools ───┘
//! ```
//!
//! What is none of ours is left out by the server: headless Services, those of another proxy, and slices of headless
//! Services ([`kinds`]). A label that is added or removed at run time arrives as a deletion or an addition.
//!
//! When the API is lost nothing is sent, so what is known stays in force. When it is back, each kind goes on where it
//! was; if the server no longer has what happened since, a new list replaces the old one as a whole.

pub(crate) mod contact;
pub(crate) mod follow;
mod kinds;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::Event;
use contact::Contact;
use follow::follow;
use kinds::{EndpointSlices, OwnNode, Pools, ServiceCidrs, Services};

/// How long the first lists wait for the own Node and the ServiceCIDRs, which may not exist.
const WAIT_FOR_NODE: Duration = Duration::from_secs(2);
/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the server may be silent. In a watch it speaks once a minute at least (a bookmark), so this is how
/// long a connection that died without a word goes unnoticed.
const READ_TIMEOUT: Duration = Duration::from_secs(100);
/// Events on their way from the tasks.
const QUEUE: usize = 256;

/// How to reach the API, and who asks.
#[derive(Clone, Debug)]
pub struct Options {
    /// How to reach the API.
    pub access: Access,
    /// Name of the own Node.
    pub node_name: Arc<str>,
    /// The name under which Services are given to this proxy; `None`: ours are those that are given to none.
    pub proxy_name: Option<Arc<str>>,
}

/// How to reach the API.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Access {
    /// As the current context of this kubeconfig file says.
    Kubeconfig(PathBuf),
    /// As a pod: with its service account, at the address in `KUBERNETES_SERVICE_HOST` and `_PORT`. That has to be an
    /// address which works without Services, since it is Fairway that makes them work.
    InCluster,
}

/// Why the API cannot be used. Not being able to reach it is none of these: that may change.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kubeconfig does not say how.
    #[error("cannot use the kubeconfig {}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: kube::config::KubeconfigError,
    },
    /// This is not a pod, or it has no service account.
    #[error("cannot use the service account of the pod (outside a cluster, give --kubeconfig)")]
    InCluster(#[source] kube::config::InClusterError),
    /// The credentials or certificates cannot be used.
    #[error("cannot use the credentials for the Kubernetes API")]
    Client(#[source] kube::Error),
}

/// Why a kind of objects cannot be followed.
pub(crate) struct Failure {
    /// The HTTP status, if the server gave one.
    pub(crate) code: Option<u16>,
    /// The error with its causes.
    pub(crate) text: String,
}

/// What a watcher's error says.
pub(crate) fn failure(error: &kube::runtime::watcher::Error) -> Failure {
    Failure {
        code: contact::status(error),
        text: contact::causes(error),
    }
}

/// A client for the API.
///
/// # Errors
/// If the configuration cannot be read or used. The API itself is not asked.
pub async fn client(access: &Access) -> Result<Client, Error> {
    let mut config = match access {
        Access::Kubeconfig(path) => {
            let failed = |source| Error::Kubeconfig {
                path: path.clone(),
                source,
            };
            let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                .await
                .map_err(failed)?
        }
        Access::InCluster => Config::incluster().map_err(Error::InCluster)?,
    };
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    config.reset_reader_on_write = true;
    // Following has its own pauses, and says when it fails.
    config.default_retry = false;
    Client::try_from(config).map_err(Error::Client)
}

/// Sends what the API holds, then every change, until the receiver is dropped.
///
/// Nothing is sent before the Services and the EndpointSlices have been listed completely. The own Node and the
/// ServiceCIDRs come before them if the API tells them in time.
///
/// # Errors
/// If the configuration cannot be read or used. A server that does not answer is waited for.
pub async fn run(options: Options, events: mpsc::Sender<Event>) -> Result<(), Error> {
    let client = client(&options.access).await?;
    let contact = Arc::new(Contact::default());
    let (news, inbox) = mpsc::channel(QUEUE);

    // Aborts the tasks when this function ends, or is dropped.
    let mut tasks = JoinSet::new();
    macro_rules! follow {
        ($kind:expr) => {
            tasks.spawn(follow($kind, client.clone(), Arc::clone(&contact), news.clone()))
        };
    }
    follow!(OwnNode::new(options.node_name));
    follow!(ServiceCidrs::default());
    follow!(Pools::default());
    follow!(EndpointSlices);
    follow!(Services {
        proxy_name: options.proxy_name
    });
    drop(news);

    // Fails only when nobody listens any more.
    let _ = pass_on(inbox, &events).await;
    Ok(())
}

/// Holds events back until there is one complete list of Services and one of EndpointSlices, then passes on all.
async fn pass_on(mut inbox: mpsc::Receiver<Event>, events: &mpsc::Sender<Event>) -> Result<(), NobodyListens> {
    let mut held = Held::default();
    let mut deadline = None;
    while !held.complete() {
        let event = if held.lists() {
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + WAIT_FOR_NODE);
            let Ok(event) = timeout_at(deadline, inbox.recv()).await else {
                tracing::warn!(
                    node = held.node.is_some(),
                    service_cidrs = held.service_cidrs.is_some(),
                    "the API has not told of the own Node or the ServiceCIDRs yet: going on without"
                );
                break;
            };
            event
        } else {
            tokio::select! {
                event = inbox.recv() => event,
                () = events.closed() => return Err(NobodyListens),
            }
        };
        match event {
            Some(event) => held.take(event),
            None => return Ok(()),
        }
    }
    for event in held.node.into_iter().chain(held.service_cidrs).chain(held.others) {
        events.send(event).await.map_err(|_| NobodyListens)?;
    }
    loop {
        tokio::select! {
            event = inbox.recv() => match event {
                Some(event) => events.send(event).await.map_err(|_| NobodyListens)?,
                None => return Ok(()),
            },
            () = events.closed() => return Err(NobodyListens),
        }
    }
}

/// The receiver of the events is gone.
struct NobodyListens;

/// What came before both lists were complete.
#[derive(Default)]
struct Held {
    services: bool,
    slices: bool,
    node: Option<Event>,
    service_cidrs: Option<Event>,
    others: Vec<Event>,
}

impl Held {
    fn take(&mut self, event: Event) {
        match event {
            Event::Node(_) => self.node = Some(event),
            Event::ServiceCidrs(_) => self.service_cidrs = Some(event),
            _ => {
                self.services |= matches!(event, Event::Services(_));
                self.slices |= matches!(event, Event::EndpointSlices(_));
                self.others.push(event);
            }
        }
    }

    fn lists(&self) -> bool {
        self.services && self.slices
    }

    fn complete(&self) -> bool {
        self.lists() && self.node.is_some() && self.service_cidrs.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectKey;

    fn gone() -> Event {
        Event::ServiceGone(ObjectKey::new("shop", "web"))
    }

    /// Gives the events to [`pass_on`], and returns what it has passed on when it waits for more.
    async fn passed_on(given: Vec<Event>) -> Vec<Event> {
        let (news, inbox) = mpsc::channel(16);
        let (events, mut received) = mpsc::channel(16);
        for event in given {
            news.send(event).await.expect("there is room");
        }
        let task = tokio::spawn(async move { pass_on(inbox, &events).await.is_ok() });
        let mut seen = Vec::new();
        // The clock stands still while there is work, and jumps over every pause.
        while let Ok(Some(event)) = tokio::time::timeout(Duration::from_secs(60), received.recv()).await {
            seen.push(event);
        }
        drop(received);
        assert!(!task.await.expect("it does not panic"), "it ends when nobody listens");
        drop(news);
        seen
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_passed_on_before_both_lists_are_complete() {
        let services = Event::Services(Vec::new());
        let slices = Event::EndpointSlices(Vec::new());
        let node = Event::Node(None);
        let cidrs = Event::ServiceCidrs(None);
        assert_eq!(passed_on(vec![services.clone(), node.clone(), gone()]).await, []);
        assert_eq!(passed_on(vec![slices.clone(), node.clone(), cidrs.clone()]).await, []);
        assert_eq!(
            passed_on(vec![
                services.clone(),
                cidrs.clone(),
                gone(),
                slices.clone(),
                node.clone()
            ])
            .await,
            [node, cidrs, services, gone(), slices]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_is_not_told_is_not_waited_for_long() {
        let lists = vec![Event::Services(Vec::new()), Event::EndpointSlices(Vec::new())];
        let began = Instant::now();
        assert_eq!(passed_on(lists.clone()).await, lists);
        assert!(began.elapsed() < WAIT_FOR_NODE + Duration::from_secs(61));
    }
}
