//! The agent's part in announcement: what the loop hears becomes a wish, which [`Announcer`] fulfils on its own thread.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;

use super::Origin;
use crate::announce::choose::Name;
use crate::announce::demand::{Demands, Index};
use crate::announce::place::Place;
use crate::announce::places::{addresses, places};
use crate::announce::status::{Announcements, Counts};
use crate::announce::{Announcer, Meeting, Wish};
use crate::datapath::attach::Attached;
use crate::datapath::pin::PinDir;
use crate::maps::Maps;
use crate::model::Problem;
use crate::netlink::network::Network;
use crate::netlink::next_hops::Nodes;
use crate::reconcile::{NextHops, Reconciler};
use crate::sources::Event;

/// How addresses are announced.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long a Lease is good for after a renewal, whole seconds.
    pub lease_duration: Duration,
    /// The namespace of Leases, where there is an API.
    pub lease_namespace: String,
    /// What comes in for announced addresses is passed on to the nodes of the endpoints.
    pub passes_on: bool,
}

/// What the loop knows of announcement.
pub struct Announcing {
    index: Index,
    demands: Arc<Demands>,
    labels: BTreeMap<String, String>,
    /// `None`: this node announces nothing.
    announcer: Option<Announcer>,
    /// See [`Settings::passes_on`].
    passes_on: bool,
}

impl Announcing {
    /// Starts the thread, if this node is to announce at all. To be called before objects are taken.
    ///
    /// # Errors
    /// If the maps cannot be opened, or there can be no thread.
    pub fn start(settings: Option<&Settings>, me: &Name, origin: &Origin, pins: &PinDir) -> anyhow::Result<Self> {
        let mut place = Place::open(pins)?;
        let announcer = match settings {
            Some(settings) => {
                let meeting = match origin {
                    Origin::Manifests(options) => Meeting::Files(PathBuf::clone(&options.dir)),
                    Origin::Api(options) => Meeting::Api(options.access.clone(), settings.lease_namespace.clone()),
                };
                let started = Announcer::start(Arc::clone(me), settings.lease_duration, meeting, place);
                Some(started.context("start the thread that announces")?)
            }
            None => {
                // An agent before may have announced.
                place.until(0)?;
                for key in place.entries()?.into_keys() {
                    place.remove(key)?;
                }
                None
            }
        };
        Ok(Self {
            index: Index::default(),
            demands: Arc::default(),
            labels: BTreeMap::new(),
            announcer,
            passes_on: settings.is_some_and(|settings| settings.passes_on),
        })
    }

    /// Takes news of objects.
    pub fn take(&mut self, event: &Event) {
        self.index.take(event);
        if let Event::Node(node) = event {
            self.labels = node.as_ref().map(|node| node.labels.clone()).unwrap_or_default();
        }
    }

    /// Tells the thread what there is to announce, once all objects are known.
    pub fn wish<M: Maps, H: NextHops>(
        &mut self,
        reconciler: &Reconciler<M, H>,
        network: &Network,
        attached: &[Attached],
    ) {
        let Some(announcer) = &self.announcer else { return };
        if self.index.take_changed() {
            let proxy_name = reconciler.node().settings.proxy_name.as_ref();
            self.demands = Arc::new(self.index.demands(proxy_name, |service| reconciler.slices(service)));
        }
        let mine = self.demands.keys().filter(|addr| network.is_local(**addr));
        let places = places(self.index.pools(), &self.labels, network, attached);
        announcer.wish(Wish {
            is_known: true,
            has_pools: self.index.pools().next().is_some(),
            owns: mine.copied().collect(),
            node_addresses: addresses(&places, network),
            places,
            demands: Arc::clone(&self.demands),
        });
    }

    /// The nodes that packets for announced addresses may be passed on to.
    pub fn others(&self) -> Arc<Nodes> {
        let told = self.announcer.as_ref().filter(|_| self.passes_on).map(Announcer::told);
        told.map(|told| Arc::clone(&told.others)).unwrap_or_default()
    }

    /// What is wrong with pools and with announcement.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> = self.index.problems().cloned().collect();
        if let Some(announcer) = &self.announcer {
            problems.extend(announcer.told().problems.iter().cloned());
        }
        problems
    }

    /// What is announced.
    pub fn announcements(&self) -> Announcements {
        let told = self.announcer.as_ref().map(Announcer::told);
        told.map(|told| told.announcements.clone()).unwrap_or_default()
    }

    /// How often things happened, if this node announces.
    pub fn counts(&self) -> Option<&Arc<Counts>> {
        self.announcer.as_ref().map(Announcer::counts)
    }

    /// Waits until something else is announced or wrong.
    pub async fn changed(&mut self) {
        match &mut self.announcer {
            Some(announcer) => announcer.changed().await,
            None => std::future::pending().await,
        }
    }

    /// Ends announcing: others take over at once.
    pub async fn stop(&mut self) {
        if let Some(announcer) = self.announcer.take() {
            announcer.stop().await;
        }
    }
}
