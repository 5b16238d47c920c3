//! One controller at a time, by a Lease, in which the leader also writes down what it is about to write elsewhere.
//!
//! Time alone cannot fence: a leader may be stopped between looking at the clock and sending a request, and wake up when
//! another leads. So every write of an address is announced first as an [`Intent`], in the same object that elects: the
//! Lease's resource version makes that fail for whoever no longer holds it, and whoever takes the Lease reads with it all
//! writes that may still be under way.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use crate::model::ObjectKey;

/// The name of the Lease.
pub const LEASE: &str = "fairway-controller";
/// The annotation of the Lease that holds the intents.
const INTENTS: &str = "fairway.io/intents";

/// How long a Lease is good for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timing {
    /// Whoever has not renewed it for this long has lost it.
    pub duration: Duration,
    /// It is renewed, or looked at by those who wait, this often.
    pub renew: Duration,
}

/// A write that may be under way: it succeeds only while its Service has this resource version.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Intent {
    pub(super) resource_version: String,
    pub(super) addresses: Vec<IpAddr>,
}

/// Writes that may be under way, by Service.
pub(super) type Intents = BTreeMap<ObjectKey, Intent>;

/// Why the Lease could not be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// Somebody else leads, or may do so.
    #[error("the Lease is held by {0}")]
    Lost(String),
    /// The API did not do it, or did not say that it has.
    #[error("the Lease cannot be written")]
    Api(#[from] kube::Error),
    /// The API did not answer in time.
    #[error("the Lease cannot be written: the API does not answer")]
    Silent,
}

/// Somebody who would lead.
pub(super) struct Election {
    api: Api<Lease>,
    identity: String,
    timing: Timing,
    /// The Lease as it was seen last, and since when it has been so.
    seen: Option<(Option<String>, Instant)>,
}

/// The time during which this process leads.
pub(super) struct Term {
    api: Api<Lease>,
    identity: String,
    timing: Timing,
    lease: Lease,
    /// When it was renewed last, by the clock before the request was sent.
    renewed: Instant,
    /// The intents in the Lease.
    written: Intents,
}

/// A name that no other process has.
pub(super) fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    let chance = RandomState::new().hash_one(std::process::id()) & 0xffff_ffff;
    format!("{}-{chance:08x}", if host.is_empty() { "fairway" } else { host })
}

impl Election {
    pub(super) fn new(client: Client, namespace: &str, identity: String, timing: Timing) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            identity,
            timing,
            seen: None,
        }
    }

    /// Tries to take the Lease; `None`: somebody else has it.
    pub(super) async fn attempt(&mut self) -> Result<Option<Term>, Error> {
        let now = Instant::now();
        let deadline = now + self.timing.duration;
        let found = timeout_at(deadline, self.api.get_opt(LEASE))
            .await
            .map_err(|_| Error::Silent)??;
        if let Some(lease) = &found
            && !self.may_take(lease, now)
        {
            return Ok(None);
        }
        let written = found.as_ref().map(intents).unwrap_or_default();
        let began = Instant::now();
        let lease = self.taken(found);
        let parameters = PostParams::default();
        let request = async {
            match lease.metadata.resource_version {
                Some(_) => self.api.replace(LEASE, &parameters, &lease).await,
                None => self.api.create(&parameters, &lease).await,
            }
        };
        match timeout_at(deadline, request).await.map_err(|_| Error::Silent)? {
            Ok(lease) => Ok(Some(Term {
                api: self.api.clone(),
                identity: self.identity.clone(),
                timing: self.timing,
                lease,
                renewed: began,
                written,
            })),
            // Somebody else was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the Lease is free, ours (from a request whose answer was lost), or has stood still for as long as it is good.
    fn may_take(&mut self, lease: &Lease, now: Instant) -> bool {
        let holder = holder(lease);
        if holder.is_empty() || holder == self.identity {
            return true;
        }
        let version = lease.metadata.resource_version.clone();
        let since = match &self.seen {
            Some((seen, since)) if *seen == version => *since,
            _ => now,
        };
        self.seen = Some((version, since));
        let seconds = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds);
        let good_for = seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map(Duration::from_secs);
        now.duration_since(since) >= good_for.unwrap_or(self.timing.duration)
    }

    fn taken(&self, found: Option<Lease>) -> Lease {
        let mut lease = found.unwrap_or_default();
        lease.metadata.name = Some(LEASE.into());
        lease.metadata.managed_fields = None;
        let before = lease.spec.unwrap_or_default();
        let now = MicroTime(Timestamp::now());
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(whole_seconds(self.timing.duration)),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(before.lease_transitions.unwrap_or(0).saturating_add(1)),
            ..before
        });
        lease
    }
}

impl Term {
    /// Until when this process leads for certain.
    pub(super) fn deadline(&self) -> Instant {
        self.renewed + self.timing.duration
    }

    /// When the Lease is to be renewed.
    pub(super) fn renewal(&self) -> Instant {
        self.renewed + self.timing.renew
    }

    /// What is written in the Lease as being under way.
    pub(super) fn written(&self) -> &Intents {
        &self.written
    }

    /// Renews the Lease, with these intents in it. Only after it has succeeded may they be acted upon.
    pub(super) async fn renew(&mut self, intents: &Intents) -> Result<(), Error> {
        loop {
            let began = Instant::now();
            let mut lease = self.lease.clone();
            lease.metadata.managed_fields = None;
            let annotations = lease.metadata.annotations.get_or_insert_default();
            if intents.is_empty() {
                annotations.remove(INTENTS);
            } else {
                annotations.insert(INTENTS.to_owned(), text(intents));
            }
            lease.spec.get_or_insert_default().renew_time = Some(MicroTime(Timestamp::now()));
            let written = timeout_at(self.deadline(), self.api.replace(LEASE, &PostParams::default(), &lease)).await;
            match written.map_err(|_| Error::Silent)? {
                Ok(lease) => {
                    self.lease = lease;
                    self.renewed = began;
                    self.written.clone_from(intents);
                    return Ok(());
                }
                // Our own request may have succeeded without our hearing of it, or somebody has written into the Lease.
                Err(kube::Error::Api(status)) if status.code == 409 => self.read_again().await?,
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    return Err(Error::Lost("nobody: it is gone".into()));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn read_again(&mut self) -> Result<(), Error> {
        let lease = timeout_at(self.deadline(), self.api.get(LEASE))
            .await
            .map_err(|_| Error::Silent)??;
        let transitions = |lease: &Lease| lease.spec.as_ref().and_then(|spec| spec.lease_transitions);
        if holder(&lease) != self.identity || transitions(&lease) != transitions(&self.lease) {
            return Err(Error::Lost(holder(&lease).to_owned()));
        }
        self.lease = lease;
        Ok(())
    }

    /// Gives the Lease to whoever wants it next, with what may still be under way.
    pub(super) async fn release(mut self, outstanding: &Intents) -> Result<(), Error> {
        if let Some(spec) = &mut self.lease.spec {
            spec.holder_identity = None;
            spec.lease_duration_seconds = Some(1);
        }
        self.renew(outstanding).await
    }
}

fn holder(lease: &Lease) -> &str {
    lease
        .spec
        .as_ref()
        .and_then(|spec| spec.holder_identity.as_deref())
        .unwrap_or_default()
}

fn whole_seconds(duration: Duration) -> i32 {
    let seconds = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    i32::try_from(seconds).unwrap_or(i32::MAX)
}

/// An intent as it stands in the Lease.
#[derive(Serialize, Deserialize)]
struct Entry {
    namespace: String,
    name: String,
    #[serde(flatten)]
    intent: Intent,
}

fn text(intents: &Intents) -> String {
    let entries = intents.iter().map(|(key, intent)| Entry {
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        intent: intent.clone(),
    });
    // Plain names and numbers can always be written.
    serde_json::to_string(&entries.collect::<Vec<_>>()).unwrap_or_default()
}

fn intents(lease: &Lease) -> Intents {
    let Some(text) = lease.metadata.annotations.as_ref().and_then(|all| all.get(INTENTS)) else {
        return Intents::new();
    };
    let entries: Vec<Entry> = serde_json::from_str(text).unwrap_or_else(|error| {
        warn!(%error, lease = LEASE, annotation = INTENTS, "what the leader before was about to write cannot be understood");
        Vec::new()
    });
    let entries = entries.into_iter();
    entries
        .map(|entry| (ObjectKey::new(&entry.namespace, &entry.name), entry.intent))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intents_are_read_as_they_were_written() {
        let intent = Intent {
            resource_version: "12".into(),
            addresses: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        };
        let all = Intents::from([(ObjectKey::new("shop", "web"), intent)]);
        let mut lease = Lease::default();
        lease.metadata.annotations = Some(BTreeMap::from([(INTENTS.to_owned(), text(&all))]));
        assert_eq!(intents(&lease), all);
        assert_eq!(
            text(&all),
            r#"[{"namespace":"shop","name":"web","resourceVersion":"12","addresses":["192.0.2.1","2001:db8::1"]}]"#
        );
        lease.metadata.annotations = Some(BTreeMap::from([(INTENTS.to_owned(), "{".to_owned())]));
        assert_eq!(intents(&lease), Intents::new());
    }

    fn held(by: &str, version: &str, seconds: i32) -> Lease {
        let mut lease = Lease::default();
        lease.metadata.resource_version = Some(version.into());
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(by.into()),
            lease_duration_seconds: Some(seconds),
            ..LeaseSpec::default()
        });
        lease
    }

    /// A candidate whose client is never used.
    fn candidate() -> Election {
        let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let timing = Timing {
            duration: Duration::from_secs(15),
            renew: Duration::from_secs(5),
        };
        Election::new(Client::try_from(config).unwrap(), "kube-system", "me".into(), timing)
    }

    #[tokio::test]
    async fn a_lease_is_taken_when_it_is_free_or_has_stood_still_as_long_as_its_holder_said() {
        let mut election = candidate();
        let now = Instant::now();
        assert!(election.may_take(&held("", "1", 15), now));
        assert!(election.may_take(&held("me", "1", 15), now));
        let at = |seconds| now + Duration::from_secs(seconds);
        assert!(!election.may_take(&held("other", "2", 30), now));
        assert!(!election.may_take(&held("other", "2", 30), at(29)));
        assert!(
            !election.may_take(&held("other", "3", 30), at(30)),
            "it has been renewed"
        );
        assert!(!election.may_take(&held("other", "3", 30), at(59)));
        assert!(election.may_take(&held("other", "3", 30), at(60)));
    }
}
