//! Which nodes are there, as this node may conclude from the Leases that it has been told of.
//!
//! Clocks of nodes are never compared. A Lease is over when it was seen not to change for as long as it says, and then
//! only if this node can be sure of having seen everything until now: its own renewals come back to it in the order of
//! all writes, so when it sees one that it *began* after that time, no renewal of the other was written before. A watch
//! that stalls, or a node that is cut off, so never takes anything for over that is not.
//!
//! A node that begins to hold its Lease is a candidate only some time later: after the longest duration that anybody has
//! said. By then a node that was cut off before, and does not know of the new one, has gone silent. Nodes see the new
//! Lease at the same time but for the delay of a watch, so one begins to answer when the other ends.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;

use super::choose::Name;
use super::lease::{Claim, Record, Records};
use crate::netlink::next_hops::Nodes;

/// Own renewals on their way that are remembered.
const ON_THEIR_WAY: usize = 16;

/// For so long a node whose agent was stopped is taken for one to which the next agent is about to come. Its data path
/// goes on. (Of one whose Lease has just ended nobody knows that: it may be starting anew, with nothing.)
const ABOUT_TO_COME_BACK: Duration = Duration::from_secs(120);

/// What is known of the nodes.
#[derive(Debug)]
pub struct View {
    me: Name,
    own_duration: Duration,
    known: BTreeMap<Name, Known>,
    /// Own renewals that were begun and not yet seen: what each says, and when it began.
    begun: VecDeque<(Timestamp, Instant)>,
    /// Everything that was written before then has been seen.
    confirmed: Option<Instant>,
    /// The first renewal that was begun here.
    first: Option<Timestamp>,
    /// What an agent before has left in the own Lease.
    left: Option<Record>,
}

#[derive(Debug)]
struct Known {
    record: Record,
    /// When it was last seen to change.
    changed: Instant,
    standing: Standing,
    /// When it was seen to have been given up, if its agent is about to come back.
    ended: Option<Instant>,
}

/// What a node's Lease is worth.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// The node has given it up.
    Released,
    /// It was not renewed in time.
    Expired,
    /// It is held, since too short a time. It was first seen then.
    Settling(Instant),
    /// The node is a candidate.
    Settled,
}

impl Standing {
    /// Whether the Lease is held.
    pub const fn is_live(self) -> bool {
        matches!(self, Self::Settling(_) | Self::Settled)
    }
}

/// What decisions need to know of a node: its name, how it stands, and what it claims.
type Summary = (Name, Standing, Claim);

impl View {
    /// That of the node of this name, whose Lease is good for so long after a renewal.
    pub fn new(me: Name, own_duration: Duration) -> Self {
        Self {
            me,
            own_duration,
            known: BTreeMap::new(),
            begun: VecDeque::new(),
            confirmed: None,
            first: None,
            left: None,
        }
    }

    /// A renewal of the own Lease with this time begins now.
    pub fn begin(&mut self, renewed: Timestamp, now: Instant) {
        self.first.get_or_insert(renewed);
        self.begun.push_back((renewed, now));
        if self.begun.len() > ON_THEIR_WAY {
            self.begun.pop_front();
        }
    }

    /// Takes all Leases, as they were told of now; whether that can change who announces what.
    pub fn take(&mut self, records: &Records, now: Instant) -> bool {
        let before = self.summary();
        self.known.retain(|node, _| records.contains_key(node));
        for record in records.values() {
            if record.node == self.me && self.first.is_none_or(|first| record.renewed < first) {
                self.left = Some(record.clone());
            } else {
                self.put(record, now);
            }
        }
        if let Some(own) = records.get(&self.me)
            && let Some(at) = self.begun.iter().position(|(renewed, _)| *renewed == own.renewed)
        {
            self.confirmed = self.begun.drain(..=at).next_back().map(|(_, began)| began);
        }
        self.expire();
        // Nobody holds a Lease, and so nobody answers: there is nothing to wait for. Of two nodes that begin at once, at
        // most one is told of its own Lease before that of the other.
        let others = self.known.iter().filter(|(node, _)| **node != self.me);
        let is_alone = others.into_iter().all(|(_, known)| !known.standing.is_live());
        if let Some(own) = self.known.get_mut(&self.me)
            && is_alone
            && own.standing == Standing::Settling(now)
        {
            own.standing = Standing::Settled;
        }
        before != self.summary()
    }

    /// What decisions are made by.
    fn summary(&self) -> Vec<Summary> {
        let known = self.known.values();
        let parts = |known: &Known| {
            let record = &known.record;
            (record.node.clone(), known.standing, record.claim.clone())
        };
        known.map(parts).collect()
    }

    fn put(&mut self, record: &Record, now: Instant) {
        let Some(known) = self.known.get_mut(&record.node) else {
            let standing = if record.held {
                Standing::Settling(now)
            } else {
                Standing::Released
            };
            let known = Known {
                record: record.clone(),
                changed: now,
                standing,
                ended: None,
            };
            self.known.insert(record.node.clone(), known);
            return;
        };
        if known.record == *record {
            return;
        }
        let was_live = known.standing.is_live();
        let same_term = (known.record.acquired, known.record.transitions) == (record.acquired, record.transitions);
        known.standing = match known.standing {
            _ if !record.held => Standing::Released,
            standing if standing.is_live() && same_term => standing,
            _ => Standing::Settling(now),
        };
        if known.standing.is_live() {
            known.ended = None;
        } else if was_live {
            known.ended = Some(now);
        }
        known.changed = now;
        known.record = record.clone();
    }

    fn expire(&mut self) {
        let Some(confirmed) = self.confirmed else { return };
        for (node, known) in &mut self.known {
            let is_over = confirmed >= known.changed + known.record.duration;
            if *node != self.me && known.standing.is_live() && is_over {
                known.standing = Standing::Expired;
            }
        }
    }

    /// Makes candidates of those that have held their Leases for long enough, and forgets those that have given them up and
    /// have not come back; whether there were any.
    pub fn settle(&mut self, now: Instant) -> bool {
        let longest = self.longest();
        let mut settled = false;
        for known in self.known.values_mut() {
            if let Standing::Settling(since) = known.standing
                && now >= since + longest
            {
                known.standing = Standing::Settled;
                settled = true;
            }
            if known.ended.is_some_and(|ended| now >= ended + ABOUT_TO_COME_BACK) {
                known.ended = None;
                settled = true;
            }
        }
        settled
    }

    fn longest(&self) -> Duration {
        let durations = self.known.values().filter(|known| known.standing.is_live());
        durations
            .map(|known| known.record.duration)
            .fold(self.own_duration, Duration::max)
    }

    /// When [`Self::settle`] has something to do next.
    pub fn next_settled(&self) -> Option<Instant> {
        let longest = self.longest();
        let settling = self.known.values().filter_map(|known| match known.standing {
            Standing::Settling(since) => Some(since + longest),
            _ => known.ended.map(|ended| ended + ABOUT_TO_COME_BACK),
        });
        settling.min()
    }

    /// When the own Lease should be renewed next, that it may be told whether another is over. `None` if none is near its
    /// end, or such a renewal is on its way.
    pub fn next_doubt(&self) -> Option<Instant> {
        let others = self
            .known
            .iter()
            .filter(|(node, known)| **node != self.me && known.standing.is_live());
        let ends = others.map(|(_, known)| known.changed + known.record.duration);
        let asked = self.begun.back().map(|(_, began)| *began);
        ends.filter(|end| asked.is_none_or(|asked| asked < *end)).min()
    }

    /// The standing of a node, if it has a Lease.
    pub fn standing(&self, node: &str) -> Option<Standing> {
        self.known.get(node).map(|known| known.standing)
    }

    /// How often the own Lease was taken, as last seen.
    pub fn transitions(&self) -> Option<i32> {
        let own = self.known.get(&self.me).map(|known| &known.record);
        own.or(self.left.as_ref()).map(|record| record.transitions)
    }

    /// All nodes with a Lease.
    pub fn nodes(&self) -> impl Iterator<Item = (&Record, Standing)> {
        self.known.values().map(|known| (&known.record, known.standing))
    }

    /// The other nodes with a data path, with the addresses that they are known by: those that hold a Lease, and those
    /// that gave it up a short while ago.
    pub fn others(&self) -> Nodes {
        let others = self.known.iter().filter(|(node, _)| **node != self.me);
        let up = others.filter(|(_, known)| known.standing.is_live() || known.ended.is_some());
        up.map(|(node, known)| (node.clone(), known.record.claim.addresses.clone()))
            .collect()
    }

    /// The nodes that may announce addresses of a pool, in the order of their names.
    pub fn candidates<'a>(&'a self, pool: &'a str) -> impl Iterator<Item = &'a Name> {
        let settled = self.nodes().filter(|(_, standing)| *standing == Standing::Settled);
        let may = settled.filter(move |(record, _)| record.claim.pools.contains(pool));
        may.map(|(record, _)| &record.node)
    }

    /// A node that has the address itself.
    pub fn owner(&self, addr: &IpAddr) -> Option<&Name> {
        let live = self.nodes().filter(|(_, standing)| standing.is_live());
        let mut owners = live.filter(|(record, _)| record.claim.owns.contains(addr));
        owners.next().map(|(record, _)| &record.node)
    }
}

#[cfg(test)]
mod tests {
    use super::super::lease::tests::record;
    use super::*;

    /// A view and its time: milliseconds since it began.
    struct Story {
        view: View,
        began: Instant,
        records: Records,
    }

    impl Story {
        fn of(me: &str) -> Self {
            Self {
                view: View::new(me.into(), Duration::from_secs(2)),
                began: Instant::now(),
                records: Records::new(),
            }
        }

        fn at(&self, ms: u64) -> Instant {
            self.began + Duration::from_millis(ms)
        }

        /// At this time a node's Lease is seen to have been written; `change` says how it differs.
        fn written(&mut self, node: &str, ms: u64, change: impl FnOnce(&mut Record)) {
            let mut new = record(node, i64::try_from(ms).expect("it fits"));
            change(&mut new);
            let now = self.at(ms);
            if *node == *self.view.me {
                self.view.begin(new.renewed, now);
            }
            self.records.insert(new.node.clone(), new);
            self.view.take(&self.records, now);
            self.view.settle(now);
        }

        fn candidates(&self) -> Vec<&str> {
            self.view.candidates("default").map(|name| &**name).collect()
        }
    }

    fn as_it_is(_: &mut Record) {}

    #[test]
    fn the_first_node_is_a_candidate_at_once_and_the_next_after_a_while() {
        let mut story = Story::of("a");
        story.written("a", 0, as_it_is);
        assert_eq!(story.candidates(), ["a"]);
        story.written("b", 100, as_it_is);
        story.written("a", 600, as_it_is);
        assert_eq!(story.candidates(), ["a"]);
        assert_eq!(story.view.next_settled(), Some(story.at(2100)));
        story.written("b", 2099, as_it_is);
        assert_eq!(story.candidates(), ["a"]);
        story.written("a", 2100, as_it_is);
        assert_eq!(story.candidates(), ["a", "b"]);
    }

    #[test]
    fn a_node_that_finds_others_waits_even_if_they_may_be_long_gone() {
        let mut story = Story::of("b");
        story.written("a", 0, as_it_is);
        story.written("b", 1, as_it_is);
        assert!(story.candidates().is_empty());
    }

    #[test]
    fn a_lease_that_is_given_up_counts_no_more_at_once() {
        let mut story = Story::of("b");
        for ms in [0, 700, 1400, 2100] {
            story.written("a", ms, as_it_is);
            story.written("b", ms + 1, as_it_is);
        }
        assert_eq!(story.candidates(), ["a", "b"]);
        story.written("a", 2200, |record| record.held = false);
        assert_eq!(story.candidates(), ["b"]);
        // It comes back, and waits.
        story.written("a", 2300, |record| record.transitions = 1);
        assert_eq!(story.candidates(), ["b"]);
        story.written("a", 3000, |record| record.transitions = 1);
        story.written("b", 4300, as_it_is);
        assert_eq!(story.candidates(), ["a", "b"]);
    }

    #[test]
    fn a_lease_is_over_only_for_one_who_sees_its_own_later_renewals() {
        let mut story = Story::of("b");
        for ms in [0, 700, 1400, 2100] {
            story.written("a", ms, as_it_is);
            story.written("b", ms + 1, as_it_is);
        }
        // Nothing is told for long: the watch stalls. That is no sign of anybody's end.
        story.view.settle(story.at(60_000));
        assert_eq!(story.candidates(), ["a", "b"]);
        assert_eq!(story.view.next_doubt(), Some(story.at(4100)));
        story.written("b", 4099, as_it_is);
        assert_eq!(story.candidates(), ["a", "b"]);
        story.written("b", 4100, as_it_is);
        assert_eq!(story.candidates(), ["b"]);
        // A renewal of the same term after its end is a new beginning.
        story.written("a", 4200, as_it_is);
        assert_eq!(story.view.standing("a"), Some(Standing::Settling(story.at(4200))));
    }

    #[test]
    fn a_renewal_that_is_on_its_way_is_not_begun_again() {
        let mut story = Story::of("b");
        story.written("a", 0, as_it_is);
        story.written("b", 1, as_it_is);
        let doubt = story.view.next_doubt().expect("there is another");
        story.view.begin(record("b", 9999).renewed, doubt);
        assert_eq!(story.view.next_doubt(), None);
    }

    #[test]
    fn a_node_whose_agent_is_replaced_is_there_meanwhile_and_one_that_stays_away_is_not() {
        let mut story = Story::of("b");
        let others = |story: &mut Story, ms| {
            let now = story.at(ms);
            story.view.settle(now);
            story.view.others().into_keys().collect::<Vec<_>>()
        };
        story.written("old", 0, |record| record.held = false);
        for ms in [0, 700, 1400, 2100] {
            story.written("a", ms, as_it_is);
            story.written("b", ms + 1, as_it_is);
        }
        assert_eq!(others(&mut story, 2200), ["a".into()]);
        story.written("a", 3000, |record| record.held = false);
        assert_eq!(others(&mut story, 122_999), ["a".into()]);
        assert_eq!(story.view.next_settled(), Some(story.at(123_000)));
        assert!(others(&mut story, 123_000).is_empty());
        story.written("a", 200_000, |record| record.transitions = 1);
        assert_eq!(others(&mut story, 400_000), ["a".into()]);
        assert_eq!(story.view.next_settled(), None);
    }

    #[test]
    fn what_an_agent_before_has_left_in_the_own_lease_counts_for_nothing() {
        let mut story = Story::of("a");
        story.records.insert("a".into(), record("a", 0));
        story.view.take(&story.records, story.at(1));
        assert_eq!((story.view.standing("a"), story.view.transitions()), (None, Some(0)));
        story.written("a", 5, |record| record.transitions = 1);
        assert_eq!(story.candidates(), ["a"]);
    }

    #[test]
    fn a_term_that_begins_anew_without_an_end_is_seen() {
        let mut story = Story::of("b");
        for ms in [0, 1000, 2001] {
            story.written("a", ms, as_it_is);
            story.written("b", ms + 1, as_it_is);
        }
        assert_eq!(story.candidates(), ["a", "b"]);
        story.written("a", 2200, |record| record.acquired = record.renewed);
        assert_eq!(story.candidates(), ["b"]);
    }

    #[test]
    fn a_longer_duration_of_another_is_waited_for() {
        let mut story = Story::of("b");
        story.written("a", 0, |record| record.duration = Duration::from_secs(10));
        story.written("b", 1, as_it_is);
        assert_eq!(story.view.next_settled(), Some(story.at(10_000)));
    }

    #[test]
    fn pools_and_own_addresses_are_those_of_live_leases() {
        let mut story = Story::of("a");
        let addr: IpAddr = "192.0.2.9".parse().expect("an address");
        story.written("a", 0, |record| record.claim.pools.clear());
        assert!(story.candidates().is_empty());
        story.written("b", 1, |record| {
            record.claim.owns.insert(addr);
        });
        assert_eq!(story.view.owner(&addr).map(|name| &**name), Some("b"));
        story.written("b", 2, |record| record.held = false);
        assert_eq!(story.view.owner(&addr), None);
    }
}
