//! Leases in the Kubernetes API.

use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::watcher::{self, watcher};
use kube::{Client, ResourceExt as _};
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{debug, warn};

use super::{LABEL, LeaseError, Leases, Record, Records, name_of};

/// After the API has failed it is asked again.
const AGAIN: Duration = Duration::from_millis(200);
/// Whose fields they are.
const MANAGER: &str = "fairway";

/// The Leases of a namespace.
pub struct InApi {
    api: Api<Lease>,
    namespace: String,
}

impl InApi {
    /// Those in this namespace.
    pub fn new(client: Client, namespace: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
        }
    }
}

#[async_trait]
impl Leases for InApi {
    /// One request, which makes the Lease or changes it: nobody else writes it.
    async fn write(&self, record: &Record) -> Result<(), LeaseError> {
        let name = name_of(&record.node);
        let lease = record.to_lease(&self.namespace);
        let parameters = PatchParams::apply(MANAGER).force();
        let written = self.api.patch(&name, &parameters, &Patch::Apply(&lease)).await;
        written.map(drop).map_err(|source| LeaseError::Api {
            lease: format!("{}/{name}", self.namespace),
            source: Box::new(source),
        })
    }

    async fn follow(&self, told: watch::Sender<Option<Records>>) {
        let ours = watcher::Config::default().labels(&format!("{}={}", LABEL.0, LABEL.1));
        let mut stream = watcher(self.api.clone(), ours).boxed();
        let mut records = Records::new();
        let mut failed = false;
        loop {
            let event = tokio::select! {
                event = stream.next() => event,
                () = told.closed() => return,
            };
            match event {
                Some(Ok(event)) => {
                    failed = false;
                    if take(&mut records, &event) {
                        told.send_replace(Some(records.clone()));
                    }
                }
                Some(Err(error)) => {
                    if failed {
                        debug!(%error, "Leases cannot be followed yet");
                    } else {
                        warn!(%error, "Leases cannot be followed, so others' are not known");
                    }
                    failed = true;
                    sleep(AGAIN).await;
                }
                // A watcher never ends.
                None => return,
            }
        }
    }
}

/// Takes what a watch tells; whether what is known is complete now.
fn take(records: &mut Records, event: &watcher::Event<Lease>) -> bool {
    match event {
        watcher::Event::Init => {
            records.clear();
            false
        }
        watcher::Event::InitApply(lease) => {
            put(records, lease);
            false
        }
        watcher::Event::InitDone => true,
        watcher::Event::Apply(lease) => {
            put(records, lease);
            true
        }
        watcher::Event::Delete(lease) => {
            records.retain(|node, _| name_of(node) != lease.name_any());
            true
        }
    }
}

fn put(records: &mut Records, lease: &Lease) {
    if let Some(record) = Record::of_lease(lease) {
        records.insert(record.node.clone(), record);
    }
}
