//! Announcement of load balancer addresses on the local network: for each address one node answers ARP and NDP.
//!
//! ```text
//!   Services, EndpointSlices, pools ─► demand ─┐
//!   devices, labels of the node ─► places ─────┴─► Wish ─► duty (a thread) ─► ANNOUNCED_V4/V6, ANNOUNCE_UNTIL
//!                                                           ▲    │                  └─ TC ingress answers
//!            Leases of all nodes, one a node ─► view ───────┘    └─► the own Lease
//! ```
//!
//! | module | what it does |
//! | --- | --- |
//! | [`demand`] | which addresses are to be announced, from objects |
//! | [`places`] | for which pools this node may, and on which devices |
//! | [`choose`] | which node announces an address |
//! | [`lease`], [`view`], [`tenure`] | what nodes say to each other, what follows from it, and the own Lease |
//! | [`duty`] | the loop |
//! | [`place`], [`tell`] | the maps; the network, told of a take-over |
//! | [`status`] | what people and programs are told |
//!
//! All nodes decide alike by the same objects and the same Leases; nobody is asked and nobody leads. docs/announcement.md
//! says what happens when something fails.

pub mod choose;
pub mod demand;
pub mod duty;
pub mod lease;
pub mod place;
pub mod places;
pub mod status;
pub mod tell;
pub mod tenure;
pub mod view;

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use tracing::{error, warn};

use self::choose::Name;
use self::demand::Demands;
use self::duty::{Duty, Told};
use self::lease::Leases;
use self::lease::api::InApi;
use self::lease::files::Files;
use self::place::Place;
use self::places::Places;
use self::status::Counts;
use crate::sources::kube::{self, Access};

/// How long the agent waits at its end for the Lease to be given up.
const FAREWELL: Duration = Duration::from_secs(2);

/// What is to be announced, and what this node could announce.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Wish {
    /// All objects are known: the rest can be relied on.
    pub is_known: bool,
    /// There are pools that are announced.
    pub has_pools: bool,
    /// What there is to announce: shared, since it is handed over at every change of any object.
    pub demands: Arc<Demands>,
    /// For which pools this node may, and on which devices.
    pub places: Places,
    /// Those of the addresses that this node has itself.
    pub owns: BTreeSet<IpAddr>,
    /// The addresses by which this node is known on the networks of these places.
    pub node_addresses: BTreeSet<IpAddr>,
}

/// Where nodes say to each other that they are there.
#[derive(Clone, Debug)]
pub enum Meeting {
    /// In the API, as Leases in this namespace.
    Api(Access, String),
    /// As files beside the manifests in this folder.
    Files(PathBuf),
}

impl Meeting {
    async fn leases(self) -> Result<Arc<dyn Leases>, kube::Error> {
        Ok(match self {
            Self::Files(manifests) => Arc::new(Files::new(&manifests)),
            Self::Api(access, namespace) => Arc::new(InApi::new(kube::client(&access).await?, &namespace)),
        })
    }
}

/// The thread that announces. It gives up the Lease when this is dropped; [`Announcer::stop`] waits for that.
pub struct Announcer {
    wishes: watch::Sender<Wish>,
    told: watch::Receiver<Told>,
    counts: Arc<Counts>,
    stop: oneshot::Sender<()>,
    ended: oneshot::Receiver<()>,
}

impl Announcer {
    /// Starts it.
    ///
    /// # Errors
    /// If there can be no thread.
    pub fn start(me: Name, duration: Duration, meeting: Meeting, place: Place) -> io::Result<Self> {
        let (wishes, wished) = watch::channel(Wish::default());
        let (telling, told) = watch::channel(Told::default());
        let (stop, stopped) = oneshot::channel();
        let (ending, ended) = oneshot::channel();
        let counts = Arc::new(Counts::default());
        let counting = Arc::clone(&counts);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let work = move || {
            runtime.block_on(async move {
                match meeting.leases().await {
                    Ok(leases) => {
                        let duty = Duty::new(me, duration, leases, place, counting, telling);
                        duty.run(wished, stopped).await;
                    }
                    Err(error) => error!(error = format!("{error:#}"), "nothing is announced"),
                }
            });
            // Whoever waits for it may have gone.
            let _gone = ending.send(());
        };
        std::thread::Builder::new().name("announce".to_owned()).spawn(work)?;
        Ok(Self {
            wishes,
            told,
            counts,
            stop,
            ended,
        })
    }

    /// Takes what is to be announced now.
    pub fn wish(&self, wish: Wish) {
        self.wishes.send_if_modified(|before| {
            let is_new = *before != wish;
            *before = wish;
            is_new
        });
    }

    /// What is announced, and what is wrong.
    pub fn told(&self) -> watch::Ref<'_, Told> {
        self.told.borrow()
    }

    /// Waits until something else is told.
    pub async fn changed(&mut self) {
        if self.told.changed().await.is_err() {
            // The thread has ended, and tells nothing any more.
            std::future::pending::<()>().await;
        }
    }

    /// How often things happened.
    pub fn counts(&self) -> &Arc<Counts> {
        &self.counts
    }

    /// Gives up the Lease and goes silent, so that others take over at once.
    pub async fn stop(self) {
        // It may have ended by itself.
        let _ended = self.stop.send(());
        if timeout(FAREWELL, self.ended).await.is_err() {
            warn!("announcing has not ended in time; others take over when the Lease ends");
        }
    }
}
