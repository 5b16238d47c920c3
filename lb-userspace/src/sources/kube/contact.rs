//! Whether the API answers, told to the log once.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use kube::runtime::watcher;

/// Which of the followed kinds have lost the API.
#[derive(Debug)]
pub(crate) struct Contact {
    needs: &'static str,
    lost: Mutex<BTreeSet<&'static str>>,
}

impl Default for Contact {
    /// That of the agent.
    fn default() -> Self {
        Self::new(
            "the agent's ClusterRole needs get, list and watch of services, endpointslices.discovery.k8s.io, nodes and \
             (better) servicecidrs.networking.k8s.io",
        )
    }
}

impl Contact {
    /// `needs` is what somebody who is refused should see to.
    pub(crate) const fn new(needs: &'static str) -> Self {
        Self {
            needs,
            lost: Mutex::new(BTreeSet::new()),
        }
    }

    /// A request for this kind failed. Told once for all kinds, except that a refusal concerns one kind.
    pub(super) fn failed(&self, kind: &'static str, error: &watcher::Error) {
        let (first, new) = {
            let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
            (lost.is_empty(), lost.insert(kind))
        };
        let cause = causes(error);
        match status(error) {
            Some(code @ (401 | 403)) if new => tracing::error!(
                kind,
                code,
                error = %cause,
                needs = self.needs,
                "the Kubernetes API refuses to show objects"
            ),
            _ if first => tracing::warn!(
                kind,
                error = %cause,
                "the Kubernetes API does not answer; what is known stays in force"
            ),
            _ => tracing::debug!(kind, error = %cause, "the Kubernetes API still does not answer"),
        }
    }

    /// The API answered a request for this kind.
    pub(super) fn answered(&self, kind: &'static str) {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        if lost.remove(kind) && lost.is_empty() {
            tracing::info!("the Kubernetes API answers again");
        }
    }
}

/// The error with its causes: the outermost of a client says no more than that there is one.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        // Some errors already quote their cause.
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// The HTTP status in an error, if the server gave one.
pub(super) fn status(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status.code),
        _ => None,
    }
}
