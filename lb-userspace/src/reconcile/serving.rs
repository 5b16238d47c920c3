//! Which backends serve which UDP ports, for the thread that cuts flows to others.
//!
//! UDP has no end of its own: a client that never pauses would talk to a pod that is gone for ever. So a flow is cut as
//! soon as its backend no longer serves its Service port, and its next packet opens a new one (rules of kube-proxy's
//! `pkg/proxy/conntrack/cleanup.go`). *Serves* is what the endpoint's conditions say: policy, topology and termination
//! play no part, since they decide about new flows only.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A Service port's id and a backend's id.
pub type Pair = (u32, u32);

/// What one family's UDP ports are served by. Written by the reconciler, read by the thread that cuts flows.
#[derive(Debug, Default)]
pub struct Serving(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// All objects have been looked at once: before that nothing is known to be gone.
    known: bool,
    pairs: HashSet<Pair>,
}

impl Serving {
    /// A copy of all pairs; none before the objects have been read, when nothing may be cut.
    pub fn pairs(&self) -> Option<HashSet<Pair>> {
        let state = self.state();
        state.known.then(|| state.pairs.clone())
    }

    /// Puts new pairs in place of old ones. Whether one is gone.
    pub(super) fn replace(&self, old: &[Pair], new: &[Pair]) -> bool {
        if old == new {
            return false;
        }
        let mut state = self.state();
        for pair in old {
            state.pairs.remove(pair);
        }
        state.pairs.extend(new);
        old.iter().any(|pair| !state.pairs.contains(pair))
    }

    /// Everything that is there has been put in.
    pub(super) fn all_known(&self) {
        self.state().known = true;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_told_before_everything_is_known() {
        let serving = Serving::default();
        assert!(!serving.replace(&[], &[(1, 2)]));
        assert_eq!(serving.pairs(), None);
        serving.all_known();
        assert_eq!(serving.pairs(), Some([(1, 2)].into()));
    }

    #[test]
    fn a_pair_that_goes_is_told_and_one_that_stays_or_comes_is_not() {
        let serving = Serving::default();
        assert!(!serving.replace(&[], &[(1, 2), (1, 3)]));
        assert!(!serving.replace(&[(1, 2), (1, 3)], &[(1, 2), (1, 3), (1, 4)]));
        assert!(serving.replace(&[(1, 2), (1, 3), (1, 4)], &[(1, 3)]));
    }
}
