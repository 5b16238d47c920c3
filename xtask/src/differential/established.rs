//! Connections that were open when a change came. Which backend one has is chance, so those of both proxies are held
//! side by side by the backend that they had before (or by the answer, where there was none).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::model::Protocol;
use super::probes::{Frontend, Origin, Target};
use super::question::Question;
use super::seen::{Flow, Verdict};
use super::side::{self, Ask};

/// How many are opened for each question: enough that both proxies have some at the same backend.
const EACH: usize = 5;

/// Open connections of both proxies, and where they were opened to.
#[derive(Debug)]
pub struct Held(pub [Vec<(side::Held, Flow)>; 2], pub Vec<Ask>);

/// What was found of the connections of one origin to one target that had the same backend.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// Where they were opened to.
    pub target: Target,
    /// By whom.
    pub origin: Origin,
    /// In what the two differ.
    pub differs: Option<Differs>,
}

/// In what the two differ.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Differs {
    /// What they had in common before the change.
    pub before: String,
    /// What became of them under kube-proxy.
    pub kube_proxy: BTreeSet<Verdict>,
    /// What became of them under Fairway.
    pub fairway: BTreeSet<Verdict>,
    /// Words about either, where there are any.
    pub notes: BTreeSet<String>,
}

/// Which connections to open: to whoever is answered, and one UDP socket to whoever is not, since it may be later. SCTP is
/// left out: a crafted association has nobody who would repeat a lost packet.
pub fn openings(questions: &[Question], is_answered: &[bool]) -> Vec<Ask> {
    let mut asks = Vec::new();
    for (question, is_answered) in questions.iter().zip(is_answered) {
        let nobodys = matches!(question.role.frontend, Frontend::Unassigned | Frontend::OtherPort);
        let times = match question.target.protocol {
            Protocol::Tcp | Protocol::Udp if *is_answered => EACH,
            Protocol::Udp if !nobodys => 1,
            _ => 0,
        };
        let clients = question.clients(0);
        asks.extend((0..times).map(|index| Ask {
            origin: question.origin,
            client: clients[index % clients.len()],
            addr: question.target.addr,
            protocol: question.target.protocol,
            times: 1,
        }));
    }
    asks
}

/// What a connection had before the change: a backend, or an answer. Only of UDP the latter counts, since a socket that
/// was refused or not heard may be heard later.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Before {
    Backend(SocketAddr),
    Somebody,
    Nobody(Verdict),
}

type Key = (Target, Origin, Before);

/// Which connections are held side by side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum By {
    /// Those that had the same backend.
    Backend,
    /// All that had one: where chance decides anew, only whether some are moved can be compared.
    Target,
}

/// Holds the two side by side: answers before and after the change, in the order in which they were asked.
pub fn compare(by: By, asks: &[Ask], before: &[Vec<Flow>; 2], after: &[Vec<Flow>; 2]) -> Vec<Found> {
    let [kube_proxy, fairway] = [0, 1].map(|side| outcomes(by, asks, &before[side], &after[side]));
    let note = |flow: &Flow| match flow {
        Flow::Unanswered(_, note) if !note.is_empty() => Some(note.clone()),
        _ => None,
    };

    let mut found = Vec::new();
    for (key, one) in kube_proxy {
        let Some(other) = fairway.get(&key) else { continue };
        let (target, origin, before) = key;
        let before = match before {
            Before::Backend(backend) => format!("answered by {backend}"),
            Before::Somebody => "answered".to_owned(),
            Before::Nobody(verdict) => verdict.to_string(),
        };
        let differs = (one != *other).then(|| {
            let of_it = |index: &usize| (asks[*index].target(), asks[*index].origin) == (target.clone(), origin);
            let indices: Vec<usize> = (0..asks.len()).filter(of_it).collect();
            let flows = indices
                .iter()
                .flat_map(|index| after.iter().map(move |side| &side[*index]));
            Differs {
                before,
                kube_proxy: one,
                fairway: other.clone(),
                notes: flows.filter_map(note).collect(),
            }
        });
        found.push(Found {
            target,
            origin,
            differs,
        });
    }
    found
}

fn outcomes(by: By, asks: &[Ask], before: &[Flow], after: &[Flow]) -> BTreeMap<Key, BTreeSet<Verdict>> {
    let mut outcomes: BTreeMap<Key, BTreeSet<Verdict>> = BTreeMap::new();
    for ((ask, before), after) in asks.iter().zip(before).zip(after) {
        let was = match before.backend() {
            Some(backend) => Before::Backend(backend),
            None if ask.protocol == Protocol::Udp => Before::Nobody(before.verdict()),
            None => continue,
        };
        let outcome = match (&was, after.backend()) {
            (Before::Backend(backend), Some(now)) if *backend == now => Verdict::Kept,
            (Before::Backend(_), Some(_)) => Verdict::Moved,
            _ => after.verdict(),
        };
        let was = match was {
            Before::Backend(_) if by == By::Target => Before::Somebody,
            was => was,
        };
        outcomes
            .entry((ask.target(), ask.origin, was))
            .or_default()
            .insert(outcome);
    }
    for outcomes in outcomes.values_mut() {
        // Whoever may be moved can meet the same backend again by chance.
        if outcomes.contains(&Verdict::Moved) {
            outcomes.remove(&Verdict::Kept);
        }
    }
    outcomes
}

/// Outcomes in words.
pub fn words(outcomes: &BTreeSet<Verdict>) -> String {
    let words: Vec<String> = outcomes.iter().map(ToString::to_string).collect();
    words.join(" or ")
}

impl Differs {
    /// What became of connections on one side, in words.
    pub fn words(&self, outcomes: &BTreeSet<Verdict>) -> String {
        let mut text = format!("before: {}; after: {}", self.before, words(outcomes));
        if outcomes.contains(&Verdict::Other) {
            for note in &self.notes {
                text += "; ";
                text += note;
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::differential::seen::Source;

    fn ask(protocol: Protocol) -> Ask {
        Ask {
            origin: Origin::Pod,
            client: "10.180.0.11".parse().expect("an address"),
            addr: "172.30.0.40:80".parse().expect("an address"),
            protocol,
            times: 1,
        }
    }

    fn by(backend: &str) -> Flow {
        Flow::Answered {
            backend: backend.parse().expect("an address"),
            source: Source::Kept,
            client: "10.180.0.11".parse().expect("an address"),
        }
    }

    const A: &str = "10.0.0.1:80";
    const B: &str = "10.0.0.2:80";

    fn compared(protocol: Protocol, before: [Flow; 2], after: [Flow; 2]) -> Vec<Found> {
        compare(
            By::Backend,
            &[ask(protocol)],
            &before.map(|flow| vec![flow]),
            &after.map(|flow| vec![flow]),
        )
    }

    #[test]
    fn connections_of_other_backends_are_not_held_against_each_other() {
        assert_eq!(compared(Protocol::Tcp, [by(A), by(B)], [by(A), by(A)]), []);
    }

    #[test]
    fn whoever_is_moved_differs_from_whoever_is_kept() {
        let found = compared(Protocol::Udp, [by(A), by(A)], [by(A), by(B)]);
        let differs = found[0].differs.clone().expect("they differ");
        assert_eq!(
            (words(&differs.kube_proxy), words(&differs.fairway)),
            ("kept".into(), "moved".into())
        );
        let found = compared(Protocol::Udp, [by(A), by(A)], [by(B), by("10.0.0.3:80")]);
        assert_eq!(found[0].differs, None);
    }

    #[test]
    fn where_chance_decides_anew_it_counts_whether_some_are_moved() {
        let asks = [ask(Protocol::Tcp), ask(Protocol::Tcp)];
        let before = [vec![by(A), by(B)], vec![by(B), by(B)]];
        let some_moved = [vec![by(B), by(B)], vec![by(B), by(A)]];
        assert_eq!(compare(By::Target, &asks, &before, &some_moved)[0].differs, None);
        let one_side_moved = [vec![by(B), by(B)], vec![by(B), by(B)]];
        assert!(
            compare(By::Target, &asks, &before, &one_side_moved)[0]
                .differs
                .is_some()
        );
    }

    #[test]
    fn a_datagram_that_nobody_answered_is_followed_and_a_refused_connection_is_not() {
        let refused = || Flow::Unanswered(Verdict::Reject, String::new());
        let found = compared(Protocol::Udp, [refused(), refused()], [by(A), refused()]);
        assert!(found[0].differs.is_some());
        assert_eq!(compared(Protocol::Tcp, [refused(), refused()], [by(A), refused()]), []);
    }
}
