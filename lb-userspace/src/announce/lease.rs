//! What nodes say of themselves to each other: one Lease a node, whatever the number of addresses.
//!
//! A node that may announce holds its own Lease (`fairway-node-NAME`), names in it the pools that it may announce for, and
//! renews it again and again. All nodes read all Leases, so all decide alike. Where there is no API the same objects lie
//! as files in a folder that the nodes share ([`files`]).

pub mod api;
pub mod files;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch;

use super::choose::Name;

/// What the names of Leases begin with; the node's follows.
const PREFIX: &str = "fairway-node-";
/// The label of these Leases, and its value.
const LABEL: (&str, &str) = ("fairway.io/lease", "node");
/// The pools that the node may announce for, with commas between.
const ANNOUNCES: &str = "fairway.io/announces";
/// Addresses that are to be announced and that the node has itself, with commas between.
const OWNS: &str = "fairway.io/owns";
/// The addresses by which the node is known where it announces, with commas between.
const ADDRESSES: &str = "fairway.io/addresses";

/// What a node claims for itself.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Claim {
    /// The pools that the node may announce for.
    pub pools: BTreeSet<Arc<str>>,
    /// Addresses to be announced that the node has itself.
    pub owns: BTreeSet<IpAddr>,
    /// The addresses by which the node is known where it announces: its neighbours pass packets on to them.
    pub addresses: BTreeSet<IpAddr>,
}

impl Claim {
    /// Whether there is nothing to say of announcing. A node that says nothing holds no Lease.
    pub fn says_nothing(&self) -> bool {
        self.pools.is_empty() && self.owns.is_empty()
    }
}

/// What a node says in its Lease.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// The node.
    pub node: Name,
    /// It holds the Lease; else it has given it up.
    pub held: bool,
    /// When it began to hold it, by its own clock. With `transitions`, what tells one term from the next.
    pub acquired: Timestamp,
    /// How often the Lease was taken anew.
    pub transitions: i32,
    /// When it was renewed, by the node's own clock: compared with nothing but what it was before.
    pub renewed: Timestamp,
    /// How long it is good for after a renewal, whole seconds.
    pub duration: Duration,
    /// What the node claims.
    pub claim: Claim,
}

/// What all nodes say.
pub type Records = BTreeMap<Name, Record>;

/// Where Leases are kept.
#[async_trait]
pub trait Leases: Send + Sync {
    /// Writes the Lease of this node, whatever stood there.
    ///
    /// # Errors
    /// If it may not or cannot be written. It may have been written nevertheless.
    async fn write(&self, record: &Record) -> Result<(), LeaseError>;

    /// Tells of all Leases there are, and again after every change, until nobody listens.
    ///
    /// What is told of is in order: whoever is told of a Lease of its own has been told of all that was written before.
    async fn follow(&self, told: watch::Sender<Option<Records>>);
}

/// Why a Lease could not be written.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// The API refused, or did not answer.
    #[error("cannot write the Lease {lease}: {source}")]
    Api {
        /// Namespace and name.
        lease: String,
        /// What the client says.
        source: Box<kube::Error>,
    },
    /// There is no client.
    #[error(transparent)]
    Client(#[from] crate::sources::kube::Error),
    /// The file system refused.
    #[error("cannot write {path}: {source}")]
    File {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Nothing was heard.
    #[error("the Lease was not written within {0:?}")]
    Silence(Duration),
}

/// The name of a node's Lease.
pub fn name_of(node: &str) -> String {
    format!("{PREFIX}{node}")
}

impl Record {
    /// As an object of the API.
    pub fn to_lease(&self, namespace: &str) -> Lease {
        let list = |addrs: &BTreeSet<IpAddr>| {
            let texts: Vec<String> = addrs.iter().map(ToString::to_string).collect();
            texts.join(",")
        };
        let pools: Vec<&str> = self.claim.pools.iter().map(|pool| &**pool).collect();
        let annotations = [
            (ANNOUNCES, pools.join(",")),
            (OWNS, list(&self.claim.owns)),
            (ADDRESSES, list(&self.claim.addresses)),
        ];
        let label = (LABEL.0.to_owned(), LABEL.1.to_owned());
        let holder = if self.held {
            self.node.to_string()
        } else {
            String::new()
        };
        Lease {
            metadata: ObjectMeta {
                name: Some(name_of(&self.node)),
                namespace: Some(namespace.to_owned()),
                labels: Some([label].into()),
                annotations: Some(annotations.map(|(name, value)| (name.to_owned(), value)).into()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(holder),
                lease_duration_seconds: i32::try_from(self.duration.as_secs()).ok(),
                acquire_time: Some(MicroTime(self.acquired)),
                renew_time: Some(MicroTime(self.renewed)),
                lease_transitions: Some(self.transitions),
                ..LeaseSpec::default()
            }),
        }
    }

    /// What a Lease says; `None` if it is none of a node's, or says nothing of when it ends.
    pub fn of_lease(lease: &Lease) -> Option<Self> {
        let node = lease.metadata.name.as_deref()?.strip_prefix(PREFIX)?;
        let spec = lease.spec.as_ref()?;
        let list = |name: &str| {
            let text = lease.metadata.annotations.as_ref().and_then(|all| all.get(name));
            let parts = text.map(String::as_str).unwrap_or_default().split(',');
            parts.map(str::trim).filter(|part| !part.is_empty())
        };
        let duration = u64::try_from(spec.lease_duration_seconds?).ok().filter(|s| *s > 0)?;
        Some(Self {
            node: node.into(),
            held: spec.holder_identity.as_deref().is_some_and(|holder| holder == node),
            acquired: spec.acquire_time.as_ref()?.0,
            transitions: spec.lease_transitions.unwrap_or(0),
            renewed: spec.renew_time.as_ref()?.0,
            duration: Duration::from_secs(duration),
            claim: Claim {
                pools: list(ANNOUNCES).map(Into::into).collect(),
                owns: list(OWNS).filter_map(|text| text.parse().ok()).collect(),
                addresses: list(ADDRESSES).filter_map(|text| text.parse().ok()).collect(),
            },
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn record(node: &str, renewed_ms: i64) -> Record {
        let at = |ms: i64| Timestamp::from_millisecond(1_700_000_000_000 + ms).expect("a time");
        Record {
            node: node.into(),
            held: true,
            acquired: at(0),
            transitions: 0,
            renewed: at(renewed_ms),
            duration: Duration::from_secs(2),
            claim: Claim {
                pools: ["default".into()].into(),
                ..Claim::default()
            },
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let mut written = record("node-1.example", 42);
        written.claim.pools.insert("edge".into());
        written.claim.owns.insert("2001:db8::9".parse().expect("an address"));
        written.claim.addresses = ["192.0.2.1", "2001:db8::1"]
            .map(|text| text.parse().expect("an address"))
            .into();
        assert_eq!(
            Record::of_lease(&written.to_lease("kube-system")),
            Some(written.clone())
        );
        written.held = false;
        assert_eq!(Record::of_lease(&written.to_lease("kube-system")), Some(written));
    }

    #[test]
    fn a_lease_of_somebody_else_or_without_an_end_says_nothing() {
        let mut lease = record("node-1", 0).to_lease("kube-system");
        lease.metadata.name = Some("kube-scheduler".to_owned());
        assert_eq!(Record::of_lease(&lease), None);
        for seconds in [None, Some(0), Some(-1)] {
            let mut lease = record("node-1", 0).to_lease("kube-system");
            lease.spec.as_mut().expect("it has one").lease_duration_seconds = seconds;
            assert_eq!(Record::of_lease(&lease), None);
        }
    }
}
