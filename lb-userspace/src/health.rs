//! Whether the agent does its work, and what load balancers are told of it.
//!
//! ```text
//! loop ─ took a change, applied it, is alive ─► Health ─► /healthz, /livez       (answers)
//!      ─ Services with healthCheckNodePort ───► Ports ──► a server for each port (ports)
//! ```
//!
//! The agent is healthy as long as what it has heard of is in force, or was heard of a short while ago. Losing the API
//! changes nothing: what is known stays in force, and nothing new is heard.

mod answers;
mod ports;

pub use answers::routes;
pub use ports::{Ports, listen_addresses};

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// A change that is not in force after this makes the agent unhealthy: twice kube-proxy's sync period.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// What the loop tells and the servers ask.
#[derive(Debug)]
pub struct Health(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    /// Since when there has been a change that is not in force.
    pending: Option<Instant>,
    /// When everything was in force last.
    applied: Option<SystemTime>,
    /// When the loop showed last that it runs.
    alive: Instant,
    node_eligible: bool,
}

/// How it is now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Condition {
    /// The agent does its work.
    pub healthy: bool,
    /// Load balancers may send to the node: it is not about to go away.
    pub node_eligible: bool,
    /// When everything was in force last; `None`: never yet.
    pub applied: Option<SystemTime>,
}

impl Health {
    /// That of an agent that starts: healthy, on a node that stays.
    pub fn starting(now: Instant) -> Self {
        Self(Mutex::new(Inner {
            pending: None,
            applied: None,
            alive: now,
            node_eligible: true,
        }))
    }

    /// The loop runs.
    pub fn alive(&self, now: Instant) {
        self.inner().alive = now;
    }

    /// There is a change that is not in force.
    pub fn pending(&self, now: Instant) {
        self.inner().pending.get_or_insert(now);
    }

    /// Everything that was heard of is in force.
    pub fn applied(&self, now: SystemTime) {
        let mut inner = self.inner();
        inner.pending = None;
        inner.applied = Some(now);
    }

    /// Whether load balancers may send to the node.
    pub fn node(&self, eligible: bool) {
        self.inner().node_eligible = eligible;
    }

    /// How it is now.
    pub fn condition(&self, now: Instant) -> Condition {
        let inner = self.inner();
        let recent = |since: Instant| now.saturating_duration_since(since) < TIMEOUT;
        Condition {
            healthy: inner.pending.is_none_or(recent) && recent(inner.alive),
            node_eligible: inner.node_eligible,
            applied: inner.applied,
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(61);
    const SHORT: Duration = Duration::from_secs(59);

    fn healthy(health: &Health, now: Instant) -> bool {
        health.alive(now);
        health.condition(now).healthy
    }

    #[test]
    fn an_agent_is_healthy_while_it_starts_and_while_nothing_changes() {
        let start = Instant::now();
        let health = Health::starting(start);
        assert!(healthy(&health, start + LONG));
        assert_eq!(health.condition(start + LONG).applied, None);
        health.applied(SystemTime::now());
        assert!(healthy(&health, start + 100 * LONG));
    }

    #[test]
    fn a_change_that_is_not_in_force_for_too_long_is_unhealthy_until_it_is() {
        let start = Instant::now();
        let health = Health::starting(start);
        health.pending(start);
        // The oldest one counts.
        health.pending(start + SHORT);
        assert!(healthy(&health, start + SHORT));
        assert!(!healthy(&health, start + LONG));
        health.applied(SystemTime::now());
        assert!(healthy(&health, start + LONG));
    }

    #[test]
    fn a_loop_that_does_not_run_is_unhealthy() {
        let start = Instant::now();
        let health = Health::starting(start);
        assert!(!health.condition(start + LONG).healthy);
        health.alive(start + LONG);
        assert!(health.condition(start + LONG).healthy);
    }
}
