//! What is told of announcements, to people and programs.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::choose::best;
use super::demand::{Demand, Demands};
use super::view::{Standing, View};
use crate::model::{ObjectKey, ObjectKind, Problem, Reason};

/// What is known of announcements on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcements {
    /// The node announces at all (`--announce`).
    pub enabled: bool,
    /// The own Lease is held: the node may announce.
    pub held: bool,
    /// All nodes with a Lease.
    pub nodes: Vec<NodeLease>,
    /// All addresses that are to be announced.
    pub addresses: Vec<Announcement>,
}

/// A node with a Lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeLease {
    /// Its name.
    pub node: String,
    /// `candidate`, `settling`, `expired` or `released`.
    pub lease: String,
    /// The pools that it may announce for.
    pub pools: Vec<String>,
}

/// An address that is to be announced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// The address.
    pub address: IpAddr,
    /// The Services that have it.
    pub services: Vec<String>,
    /// The pool that it lies in.
    pub pool: String,
    /// The node that announces it, by what this node knows; `None`: nobody does.
    pub node: Option<String>,
    /// This node announces it.
    pub here: bool,
    /// The devices on which this node does.
    pub devices: Vec<String>,
    /// The nodes that may announce it.
    pub candidates: Vec<String>,
    /// The nodes that may not, each with the reason.
    pub others: Vec<Other>,
}

/// A node that may not announce an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Other {
    /// Its name.
    pub node: String,
    /// Why not.
    pub reason: String,
}

/// How often things happened.
#[derive(Debug, Default)]
pub struct Counts {
    /// Addresses that this node has begun to announce.
    pub take_overs: AtomicU64,
    /// Renewals of the Lease.
    pub renewals: AtomicU64,
    /// Renewals that failed.
    pub failures: AtomicU64,
}

impl Counts {
    /// Counts one.
    pub fn add(count: &AtomicU64) {
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// All nodes with a Lease.
pub fn nodes(view: &View) -> Vec<NodeLease> {
    let nodes = view.nodes().map(|(record, standing)| NodeLease {
        node: record.node.to_string(),
        lease: match standing {
            Standing::Released => "released",
            Standing::Expired => "expired",
            Standing::Settling(_) => "settling",
            Standing::Settled => "candidate",
        }
        .to_owned(),
        pools: record.claim.pools.iter().map(ToString::to_string).collect(),
    });
    nodes.collect()
}

/// The nodes that may not announce an address, each with the reason.
pub fn others(addr: &IpAddr, demand: &Demand, view: &View) -> Vec<Other> {
    let candidates: Vec<_> = view.candidates(&demand.pool).collect();
    let best = best(&candidates, demand.locals.as_ref());
    let owner = view.owner(addr);
    let reasons = view.nodes().filter_map(|(record, standing)| {
        let reason = match standing {
            Standing::Released => "it has given up its Lease: its agent was stopped",
            Standing::Expired => "its Lease was not renewed in time: its agent or the node is gone, or cut off",
            Standing::Settling(_) => "it is new, and waits until every node must have heard of it",
            Standing::Settled if !record.claim.pools.contains(&demand.pool) => {
                "the pool's nodeSelector does not match it, or no device of it that matches is up"
            }
            Standing::Settled if owner == Some(&record.node) => "it has the address itself, so nobody announces it",
            Standing::Settled if owner.is_some() => "another node has the address itself",
            Standing::Settled if !best.contains(&&record.node) => {
                let here = demand.locals.as_ref().and_then(|locals| locals.get(&record.node));
                match here {
                    None => "it has no ready endpoint, and externalTrafficPolicy is Local",
                    Some(_) => "other nodes have endpoints of more of the Services that share the address",
                }
            }
            Standing::Settled => return None,
        };
        Some(Other {
            node: record.node.to_string(),
            reason: reason.to_owned(),
        })
    });
    reasons.collect()
}

/// That nobody may announce an address of a Service, as a problem of the Service.
pub fn nobody(announcement: &Announcement, demands: &Demands) -> Option<Problem> {
    let demand = demands.get(&announcement.address)?;
    let reasons: Vec<String> = announcement
        .others
        .iter()
        .map(|o| format!("{}: {}", o.node, o.reason))
        .collect();
    let why = if reasons.is_empty() {
        "no node has a Lease".to_owned()
    } else {
        reasons.join("; ")
    };
    Some(Problem {
        kind: ObjectKind::Service,
        object: demand.services.first()?.clone(),
        field: "status.loadBalancer.ingress".into(),
        message: format!(
            "no node may announce {} of pool {} ({why})",
            announcement.address, demand.pool
        ),
        remedy: "`fairway announcements` on a node shows what it knows; see docs/announcement.md".into(),
        reason: Reason::NotAnnounced,
    })
}

/// That this node cannot do its part.
pub fn failed(node: &str, what: &str, message: String, remedy: &str) -> Problem {
    Problem {
        kind: ObjectKind::Node,
        object: ObjectKey::new("", node),
        field: what.into(),
        message,
        remedy: remedy.into(),
        reason: Reason::AnnouncementFailed,
    }
}
