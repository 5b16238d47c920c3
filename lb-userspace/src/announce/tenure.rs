//! The own Lease: when it is written, and how long it is good for.
//!
//! **Fencing.** The Lease is good until the time at which its last successful renewal *began*, and its duration, less a
//! margin. Others take over no earlier than that duration after they have *seen* the renewal. So this node is silent
//! before another may speak, whether its agent was killed, stopped for a while, or is cut off.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::choose::Name;
use super::lease::{Claim, LeaseError, Leases, Record, name_of};
use super::status::{self, Counts};
use crate::model::Problem;
use crate::sources::kube::contact::causes;
use crate::sys;

/// A renewal that failed is tried again after this.
const AGAIN: Duration = Duration::from_millis(100);
/// How long giving up the Lease may take as the agent ends.
const FAREWELL: Duration = Duration::from_millis(700);

/// Whether the Lease is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Standing {
    /// Not held.
    Free,
    /// Held in this term, and good until then by the clock that counts from the machine's start, nanoseconds.
    Held { term: Term, until_ns: u64 },
}

/// What tells one term of holding a Lease from the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Term {
    acquired: Timestamp,
    transitions: i32,
}

/// A Lease that is being written.
struct Writing {
    record: Record,
    began: Instant,
    began_ns: u64,
    ended: Pin<Box<dyn Future<Output = Result<(), LeaseError>> + Send>>,
}

/// The own Lease.
pub struct Tenure {
    me: Name,
    duration: Duration,
    leases: Arc<dyn Leases>,
    counts: Arc<Counts>,
    standing: Standing,
    writing: Option<Writing>,
    /// What was written last, and when that began.
    written: Option<(Record, Instant)>,
    failing: Option<Failing>,
    last_renewed: Timestamp,
}

/// The Lease cannot be written.
struct Failing {
    since: Instant,
    again: Instant,
    error: String,
}

impl Tenure {
    /// That of the node of this name, not held yet.
    pub fn new(me: Name, duration: Duration, leases: Arc<dyn Leases>, counts: Arc<Counts>) -> Self {
        Self {
            me,
            duration,
            leases,
            counts,
            standing: Standing::Free,
            writing: None,
            written: None,
            failing: None,
            last_renewed: Timestamp::UNIX_EPOCH,
        }
    }

    /// Until when this node may answer, nanoseconds since the machine's start; 0: it may not.
    pub const fn good_until_ns(&self) -> u64 {
        match self.standing {
            Standing::Free => 0,
            Standing::Held { until_ns, .. } => until_ns,
        }
    }

    /// Whether the Lease is held.
    pub const fn is_held(&self) -> bool {
        matches!(self.standing, Standing::Held { .. })
    }

    /// Notes that the Lease has ended, if it has.
    pub fn look_at_the_clock(&mut self) {
        if self.is_held() && sys::boot_ns() >= self.good_until_ns() {
            warn!("the Lease could not be renewed in time: this node has gone silent, and begins anew");
            self.standing = Standing::Free;
        }
    }

    /// When the Lease is to be written next; `None`: not before something changes. `doubt` is when a renewal is wanted to
    /// tell whether another's Lease has ended.
    pub fn due(&self, claim: &Claim, doubt: Option<Instant>, now: Instant) -> Option<Instant> {
        if self.writing.is_some() {
            return None;
        }
        let due = match (&self.standing, &self.written) {
            (Standing::Free, _) if claim.says_nothing() => return None,
            (Standing::Held { .. }, Some((record, began))) if record.claim == *claim => {
                let regular = *began + self.duration / 3;
                doubt.map_or(regular, |doubt| doubt.min(regular))
            }
            _ => now,
        };
        Some(self.failing.as_ref().map_or(due, |failing| due.max(failing.again)))
    }

    /// Begins to write the Lease; returns its time of renewal. `transitions` is how often it was taken before, if it was.
    pub fn write(&mut self, claim: &Claim, transitions: Option<i32>, now: Instant) -> Timestamp {
        let record = self.record(claim, transitions);
        let renewed = record.renewed;
        let (leases, writing, limit) = (Arc::clone(&self.leases), record.clone(), self.duration / 2);
        self.writing = Some(Writing {
            record,
            began: now,
            began_ns: sys::boot_ns(),
            ended: Box::pin(async move {
                let written = timeout(limit, leases.write(&writing)).await;
                written.unwrap_or(Err(LeaseError::Silence(limit)))
            }),
        });
        renewed
    }

    fn record(&mut self, claim: &Claim, transitions: Option<i32>) -> Record {
        // Each renewal differs from the one before, whatever becomes of the clock.
        let now = Timestamp::from_microsecond(Timestamp::now().as_microsecond()).unwrap_or(Timestamp::UNIX_EPOCH);
        let later = self.last_renewed.checked_add(Duration::from_micros(1)).unwrap_or(now);
        self.last_renewed = now.max(later);
        let term = match self.standing {
            Standing::Held { term, .. } => term,
            Standing::Free => Term {
                acquired: self.last_renewed,
                transitions: transitions.map_or(0, |before| before.wrapping_add(1)),
            },
        };
        Record {
            node: self.me.clone(),
            held: !claim.says_nothing(),
            acquired: term.acquired,
            transitions: term.transitions,
            renewed: self.last_renewed,
            duration: self.duration,
            claim: claim.clone(),
        }
    }

    /// Ends when what is being written was written, or could not be; never, if nothing is.
    pub async fn written(&mut self) {
        let Some(writing) = &mut self.writing else {
            return std::future::pending().await;
        };
        let result = writing.ended.as_mut().await;
        let Some(Writing {
            record,
            began,
            began_ns,
            ..
        }) = self.writing.take()
        else {
            return;
        };
        match result {
            Ok(()) => {
                Counts::add(&self.counts.renewals);
                if self.failing.take().is_some() {
                    info!("the Lease is renewed again");
                }
                self.standing = if record.held {
                    let term = Term {
                        acquired: record.acquired,
                        transitions: record.transitions,
                    };
                    Standing::Held {
                        term,
                        until_ns: began_ns.saturating_add(self.good_for_ns()),
                    }
                } else {
                    Standing::Free
                };
                self.written = Some((record, began));
            }
            Err(error) => {
                Counts::add(&self.counts.failures);
                let error = causes(&error);
                if self.failing.is_none() {
                    warn!(error, "the Lease could not be renewed; it is tried again");
                }
                self.failing = Some(Failing {
                    since: self.failing.as_ref().map_or(began, |failing| failing.since),
                    again: Instant::now() + AGAIN,
                    error,
                });
            }
        }
    }

    /// This node goes silent a tenth of the duration before others could take over.
    fn good_for_ns(&self) -> u64 {
        u64::try_from((self.duration - self.duration / 10).as_nanos()).unwrap_or(0)
    }

    /// Gives up the Lease, as the agent ends.
    pub async fn end(&mut self) {
        // What is on its way must not arrive after the farewell.
        if self.writing.is_some() && timeout(FAREWELL, self.written()).await.is_err() {
            debug!("the last renewal has not ended");
        }
        let Some((last, _)) = self.written.take().filter(|(last, _)| last.held) else {
            return;
        };
        // The data path goes on: neighbours may pass packets on to it until the next agent comes.
        let claim = Claim {
            addresses: last.claim.addresses.clone(),
            ..Claim::default()
        };
        let mut farewell = self.record(&claim, Some(last.transitions));
        (farewell.acquired, farewell.transitions) = (last.acquired, last.transitions);
        match timeout(FAREWELL, self.leases.write(&farewell)).await {
            Ok(Ok(())) => info!("the Lease is given up: others announce now"),
            Ok(Err(error)) => warn!(
                error = causes(&error),
                "the Lease could not be given up: others take over when it ends"
            ),
            Err(_) => warn!("the Lease could not be given up in time: others take over when it ends"),
        }
    }

    /// What is wrong with it.
    pub fn problem(&self, now: Instant) -> Option<Problem> {
        let failing = self.failing.as_ref()?;
        (now >= failing.since + self.duration).then(|| {
            status::failed(
                &self.me,
                &format!("Lease {}", name_of(&self.me)),
                format!("{}, so this node announces nothing", failing.error),
                "see to it that the agent can reach the API and may write Leases, as the Role in deploy/fairway.yaml allows",
            )
        })
    }
}
