//! The loop that keeps the own Lease, decides what this node announces, and has it answered for.
//!
//! ```text
//!   wishes (the agent's loop) ─►┌──────┐─► the own Lease, renewed every third of its duration
//!   Leases of all nodes ───────►│ Duty │─► ANNOUNCED_V4/V6, ANNOUNCE_UNTIL
//!   time ──────────────────────►└──────┘─► gratuitous ARP, unsolicited advertisements
//! ```
//!
//! It runs on a thread of its own: nothing that the agent does elsewhere delays a renewal.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lb_common::abi::Mac;
use tokio::sync::{oneshot, watch};
use tokio::time::sleep_until;
use tracing::{debug, error, info, warn};

use super::Wish;
use super::choose::{Name, best, winner};
use super::lease::{Claim, Leases, Records};
use super::place::{Key, Place};
use super::status::{self, Announcement, Announcements, Counts};
use super::tell::Tellings;
use super::tenure::Tenure;
use super::view::View;
use crate::model::Problem;
use crate::netlink::next_hops::Nodes;

/// What could not be written is tried again after this.
const AGAIN: Duration = Duration::from_millis(100);
/// That nobody may announce an address is told once it has been so for this long: a hand-over is no problem.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is told to the rest of the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// What is announced.
    pub announcements: Announcements,
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// The other nodes that are there.
    pub others: Arc<Nodes>,
}

/// The loop's parts.
pub struct Duty {
    me: Name,
    leases: Arc<dyn Leases>,
    tenure: Tenure,
    view: View,
    place: Place,
    counts: Arc<Counts>,
    told: watch::Sender<Told>,
    wish: Wish,
    /// What the maps say of how long answers may be given.
    until_ns: u64,
    /// What the maps hold.
    entries: BTreeMap<Key, Mac>,
    /// The addresses that this node announces.
    mine: BTreeSet<IpAddr>,
    /// What `mine` follows from has changed.
    is_stale: bool,
    tellings: Tellings,
    /// Why the network could not be told.
    mute: Option<String>,
    /// Why a map could not be written.
    unwritten: Option<String>,
    /// Since when nobody may announce an address.
    orphans: BTreeMap<IpAddr, Instant>,
}

impl Duty {
    /// Begins with what an agent before has left in the maps: it is answered for until its time is over, or this one knows
    /// better.
    pub fn new(
        me: Name,
        duration: Duration,
        leases: Arc<dyn Leases>,
        place: Place,
        counts: Arc<Counts>,
        told: watch::Sender<Told>,
    ) -> Self {
        let entries = place.entries().unwrap_or_else(|error| {
            warn!(%error, "what was announced before cannot be read");
            BTreeMap::new()
        });
        Self {
            tenure: Tenure::new(me.clone(), duration, Arc::clone(&leases), Arc::clone(&counts)),
            view: View::new(me.clone(), duration),
            me,
            leases,
            place,
            counts,
            told,
            wish: Wish::default(),
            until_ns: u64::MAX,
            entries,
            mine: BTreeSet::new(),
            is_stale: true,
            tellings: Tellings::default(),
            mute: None,
            unwritten: None,
            orphans: BTreeMap::new(),
        }
    }

    /// Runs until it is told to stop, or nobody wishes anything any more; then gives up the Lease and goes silent.
    pub async fn run(mut self, mut wishes: watch::Receiver<Wish>, mut stop: oneshot::Receiver<()>) {
        let (told, mut records) = watch::channel(None);
        let mut told = Some(told);
        loop {
            // Without pools there is nothing that Leases could decide.
            if self.wish.has_pools
                && let Some(told) = told.take()
            {
                let leases = Arc::clone(&self.leases);
                tokio::spawn(async move { leases.follow(told).await });
            }
            let wake = if self.wish.is_known {
                self.act();
                self.next(Instant::now())
            } else {
                Instant::now() + PATIENCE
            };
            tokio::select! {
                changed = wishes.changed() => match changed {
                    Ok(()) => self.take(wishes.borrow_and_update().clone()),
                    Err(_) => break,
                },
                Ok(()) = records.changed() => {
                    if let Some(records) = &*records.borrow_and_update() {
                        self.see(records);
                    }
                }
                () = self.tenure.written() => {}
                () = sleep_until(wake.into()) => {}
                _ = &mut stop => break,
            }
        }
        self.tenure.end().await;
        self.answer_until(0);
        self.remove_all_but(&BTreeMap::new());
    }

    fn take(&mut self, wish: Wish) {
        self.wish = wish;
        self.is_stale = true;
    }

    fn see(&mut self, records: &Records) {
        self.is_stale |= self.view.take(records, Instant::now());
    }

    /// Does what there is to do now.
    fn act(&mut self) {
        let now = Instant::now();
        let was_held = self.tenure.is_held();
        self.tenure.look_at_the_clock();
        self.is_stale |= self.view.settle(now) | (self.tenure.is_held() != was_held);
        let claim = self.claim();
        let due = self.tenure.due(&claim, self.view.next_doubt(), now);
        // Before a new term begins this is 0: whatever an agent before has answered for, others may take over now.
        self.answer_until(self.tenure.good_until_ns());
        if due.is_some_and(|due| due <= now) {
            let renewed = self.tenure.write(&claim, self.view.transitions(), now);
            self.view.begin(renewed, now);
        }
        if self.is_stale || self.unwritten.is_some() {
            self.announce(now);
        }
        if self.tellings.next().is_some_and(|next| next <= now) {
            self.mute = self.tellings.tell(now).err().map(|error| error.to_string());
            if let Some(error) = &self.mute {
                debug!(error, "the network could not be told of an address");
            }
        }
        self.report(now);
        self.is_stale = false;
    }

    fn claim(&self) -> Claim {
        Claim {
            pools: self.wish.places.keys().cloned().collect(),
            owns: self.wish.owns.clone(),
            addresses: self.wish.node_addresses.clone(),
        }
    }

    fn answer_until(&mut self, ns: u64) {
        if self.until_ns == ns {
            return;
        }
        match self.place.until(ns) {
            Ok(()) => self.until_ns = ns,
            Err(error) => error!(%error, "how long this node may answer could not be written"),
        }
    }

    /// Makes the maps hold what this node is to announce.
    fn announce(&mut self, now: Instant) {
        let mine = self.choose();
        for addr in mine.difference(&self.mine) {
            Counts::add(&self.counts.take_overs);
            info!(%addr, "announcing");
        }
        for addr in self.mine.difference(&mine) {
            info!(%addr, "no longer announcing");
        }
        self.mine = mine;
        let mut wanted = BTreeMap::new();
        for (addr, demand) in self.wish.demands.iter().filter(|(addr, _)| self.mine.contains(addr)) {
            let devices = self.wish.places.get(&demand.pool).into_iter().flatten();
            wanted.extend(devices.map(|device| ((*addr, device.ifindex), device.mac)));
        }
        self.unwritten = None;
        self.remove_all_but(&wanted);
        for (key, mac) in wanted {
            if self.entries.get(&key) == Some(&mac) {
                continue;
            }
            match self.place.put(key, mac) {
                Ok(()) => {
                    self.entries.insert(key, mac);
                    self.tellings.begin(key.0, key.1, mac, now);
                }
                Err(error) => self.unwritten = Some(error.to_string()),
            }
        }
    }

    fn remove_all_but(&mut self, wanted: &BTreeMap<Key, Mac>) {
        let gone: Vec<Key> = self
            .entries
            .keys()
            .filter(|key| !wanted.contains_key(key))
            .copied()
            .collect();
        for key in gone {
            self.tellings.end(key.0, key.1);
            match self.place.remove(key) {
                Ok(()) => {
                    self.entries.remove(&key);
                }
                Err(error) => self.unwritten = Some(error.to_string()),
            }
        }
    }

    /// The addresses that are this node's to announce.
    fn choose(&self) -> BTreeSet<IpAddr> {
        if !self.tenure.is_held() {
            return BTreeSet::new();
        }
        let is_mine = |addr: &&IpAddr| self.chosen(addr) == Some(&self.me);
        self.wish.demands.keys().filter(is_mine).copied().collect()
    }

    /// The node that announces an address.
    fn chosen(&self, addr: &IpAddr) -> Option<&Name> {
        let demand = self.wish.demands.get(addr)?;
        if self.view.owner(addr).is_some() {
            return None;
        }
        let candidates: Vec<&Name> = self.view.candidates(&demand.pool).collect();
        winner(addr, &best(&candidates, demand.locals.as_ref()))
    }

    /// When there is something to do next, even if nothing is heard.
    fn next(&self, now: Instant) -> Instant {
        let ends = self.tenure.is_held().then(|| now + left(self.until_ns));
        let orphans = self
            .orphans
            .values()
            .map(|since| *since + PATIENCE)
            .filter(|at| *at > now);
        [
            self.tenure.due(&self.claim(), self.view.next_doubt(), now),
            self.view.next_settled(),
            self.tellings.next(),
            self.unwritten.is_some().then(|| now + AGAIN),
            ends,
        ]
        .into_iter()
        .flatten()
        .chain(orphans)
        .fold(now + Duration::from_secs(3600), Instant::min)
    }

    /// Tells the rest of the agent what is announced, and what is wrong.
    fn report(&mut self, now: Instant) {
        let mut told = self.told.borrow().clone();
        if self.is_stale {
            told.announcements = Announcements {
                enabled: true,
                held: self.tenure.is_held(),
                nodes: status::nodes(&self.view),
                addresses: self.announcements(),
            };
            told.others = Arc::new(self.view.others());
        }
        told.problems = self.problems(&told.announcements.addresses, now);
        self.told.send_if_modified(|before| {
            let is_new = *before != told;
            *before = told;
            is_new
        });
    }

    fn announcements(&self) -> Vec<Announcement> {
        let announcement = |(addr, demand): (&IpAddr, &super::demand::Demand)| {
            let others = status::others(addr, demand, &self.view);
            let is_other = |name: &&Name| others.iter().any(|other| *other.node == ***name);
            let candidates = self.view.candidates(&demand.pool).filter(|name| !is_other(name));
            let places = self.wish.places.get(&demand.pool).into_iter().flatten();
            let here = self.mine.contains(addr);
            let devices = places.filter(|device| here && self.entries.contains_key(&(*addr, device.ifindex)));
            Announcement {
                address: *addr,
                services: demand.services.iter().map(ToString::to_string).collect(),
                pool: demand.pool.to_string(),
                node: self.chosen(addr).map(ToString::to_string),
                here,
                devices: devices.map(|device| device.name.clone()).collect(),
                candidates: candidates.map(ToString::to_string).collect(),
                others,
            }
        };
        self.wish.demands.iter().map(announcement).collect()
    }

    fn problems(&mut self, addresses: &[Announcement], now: Instant) -> Vec<Problem> {
        let mut since = BTreeMap::new();
        let mut problems: Vec<Problem> = self.tenure.problem(now).into_iter().collect();
        for orphan in addresses.iter().filter(|announcement| announcement.node.is_none()) {
            let began = self.orphans.get(&orphan.address).copied().unwrap_or(now);
            since.insert(orphan.address, began);
            if now >= began + PATIENCE {
                problems.extend(status::nobody(orphan, &self.wish.demands));
            }
        }
        self.orphans = since;
        if let Some(error) = &self.unwritten {
            problems.push(status::failed(
                &self.me,
                "--announce",
                format!("what is announced could not be written ({error}); it is tried again"),
                "announce fewer addresses, or on fewer devices",
            ));
        }
        if let Some(error) = &self.mute {
            problems.push(status::failed(
                &self.me,
                "--announce",
                format!("the network could not be told of an address ({error}), so clients notice a take-over late"),
                "give the agent the capability NET_RAW",
            ));
        }
        problems
    }
}

/// How long it is until then, by the clock that counts from the machine's start; a little more, so that it has passed.
fn left(until_ns: u64) -> Duration {
    Duration::from_nanos(until_ns.saturating_sub(crate::sys::boot_ns())) + Duration::from_millis(1)
}
