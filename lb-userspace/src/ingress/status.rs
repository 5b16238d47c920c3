//! The status of Ingresses: where clients reach them, which is where they reach the Service of this controller.
//!
//! Every replica writes it, none leads: they all write the same, only what is not so yet, and a write that changes
//! nothing is none for the API server. If somebody else keeps writing something other, both are said at a slow pace.
//!
//! Without an API the statuses are one file in the folder of manifests.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::networking::v1::Ingress as ApiIngress;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Error as ApiError};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use super::objects::{Address, Objects};
use crate::model::ObjectKey;

/// The file in a folder of manifests.
const FILE: &str = "fairway-ingresses.yaml";

/// So many writes are on their way at one time.
const AT_ONCE: usize = 8;
/// The same thing is said again after this at the earliest, and failures are tried again.
const AGAIN: Duration = Duration::from_secs(10);
/// A request may take this long.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the statuses should be.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Wanted {
    /// The addresses of our Ingresses.
    addresses: Arc<[Address]>,
    /// All of ours.
    ours: Vec<ObjectKey>,
    /// The statuses that are not so, and what they should be.
    differing: BTreeMap<ObjectKey, Arc<[Address]>>,
}

impl Wanted {
    /// `ours` are the Ingresses that are served at `addresses`; the status of those that are `leaving` is cleared.
    pub(super) fn of(
        objects: &Objects,
        ours: &HashSet<ObjectKey>,
        leaving: &HashSet<ObjectKey>,
        addresses: &[Address],
    ) -> Self {
        let addresses: Arc<[Address]> = addresses.into();
        let mut differing: BTreeMap<ObjectKey, Arc<[Address]>> = BTreeMap::new();
        for (key, ingress) in objects.ingresses.iter().filter(|(key, _)| ours.contains(key)) {
            if *ingress.status != *addresses {
                differing.insert(key.clone(), Arc::clone(&addresses));
            }
        }
        differing.extend(leaving.iter().map(|key| (key.clone(), Arc::default())));
        let mut ours: Vec<_> = ours.iter().cloned().collect();
        ours.sort_unstable();
        Self {
            addresses,
            ours,
            differing,
        }
    }
}

/// Writes statuses to the API until the sender is gone.
pub(super) async fn write_to_api(client: Client, mut wanted: watch::Receiver<Wanted>) {
    // What was said of late, whether it was heard or not.
    let mut said: HashMap<ObjectKey, (Arc<[Address]>, Instant)> = HashMap::new();
    let mut refused = false;
    loop {
        let mut due = wanted.borrow_and_update().differing.clone();
        said.retain(|_, (_, at)| at.elapsed() < AGAIN);
        due.retain(|key, addresses| said.get(key).is_none_or(|(last, _)| last != addresses));
        let writes: Vec<_> = due
            .iter()
            .map(|(key, addresses)| write_one(&client, key, addresses))
            .collect();
        let results: Vec<_> = futures::stream::iter(writes).buffer_unordered(AT_ONCE).collect().await;
        let written = results.iter().filter(|result| **result == Written::Yes).count();
        if written > 0 {
            info!(ingresses = written, "the status of Ingresses is written");
        }
        if results.contains(&Written::Refused) && !refused {
            warn!(
                "the Kubernetes API refuses the status of Ingresses; the Ingress controller's ClusterRole needs patch of \
                 ingresses.networking.k8s.io/status"
            );
        }
        refused = results.contains(&Written::Refused) || (refused && written == 0);
        let now = Instant::now();
        said.extend(due.into_iter().map(|(key, addresses)| (key, (addresses, now))));
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() {
                return;
            },
            () = sleep(AGAIN), if !said.is_empty() => {}
        }
    }
}

/// How a write ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Written {
    /// It is so, or there is no such Ingress any more.
    Yes,
    /// Not now.
    Failed,
    /// We may not.
    Refused,
}

async fn write_one(client: &Client, key: &ObjectKey, addresses: &[Address]) -> Written {
    let api: Api<ApiIngress> = Api::namespaced(client.clone(), &key.namespace);
    // A merge patch replaces the list as a whole and needs no version of the object, so there are no conflicts.
    let patch = Patch::Merge(json!({"status": status(addresses)}));
    let patched = timeout(PATIENCE, api.patch_status(&key.name, &PatchParams::default(), &patch)).await;
    match patched {
        Ok(Ok(_)) => {
            debug!(ingress = %key, addresses = %Listed(addresses), "status written");
            Written::Yes
        }
        Ok(Err(ApiError::Api(status))) if status.code == 404 => Written::Yes,
        Ok(Err(ApiError::Api(status))) if matches!(status.code, 401 | 403) => Written::Refused,
        Ok(Err(error)) => {
            debug!(ingress = %key, %error, "the status could not be written");
            Written::Failed
        }
        Err(_) => Written::Failed,
    }
}

/// The addresses, for the log.
struct Listed<'a>(&'a [Address]);

impl std::fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, address) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { " " };
            match address {
                Address::Ip(ip) => write!(f, "{separator}{ip}")?,
                Address::Hostname(name) => write!(f, "{separator}{name}")?,
            }
        }
        Ok(())
    }
}

/// The field `status` with these addresses.
fn status(addresses: &[Address]) -> Value {
    let entries: Vec<Value> = addresses
        .iter()
        .map(|address| match address {
            Address::Ip(ip) => json!({"ip": ip}),
            Address::Hostname(name) => json!({"hostname": &**name}),
        })
        .collect();
    // Null removes a field in a merge patch (RFC 7396).
    json!({"loadBalancer": {"ingress": Some(entries).filter(|entries| !entries.is_empty())}})
}

/// Writes statuses to a file in the folder until the sender is gone.
pub(super) async fn write_to_folder(dir: PathBuf, mut wanted: watch::Receiver<Wanted>) {
    // Until something is wanted, what an earlier run has written stays.
    while wanted.changed().await.is_ok() {
        let content = file(&wanted.borrow_and_update());
        if let Err(error) = write_file(&dir, content.as_deref()) {
            warn!(
                dir = %dir.display(),
                error = &error as &dyn std::error::Error,
                "the status of Ingresses cannot be written: may the folder be written to?"
            );
        }
    }
}

/// The content of the file; `None`: there is nothing to say.
fn file(wanted: &Wanted) -> Option<String> {
    if wanted.addresses.is_empty() || wanted.ours.is_empty() {
        return None;
    }
    let mut text = String::from("# The status of Ingresses, written by `fairway ingress`.\n");
    for key in &wanted.ours {
        let document = json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "Ingress",
            "metadata": {"namespace": &*key.namespace, "name": &*key.name},
            "status": status(&wanted.addresses),
        });
        // JSON is YAML.
        text.push_str(&format!("---\n{document}\n"));
    }
    Some(text)
}

/// Makes the file be so, if it is not. Nobody ever sees a half of it.
fn write_file(dir: &Path, content: Option<&str>) -> io::Result<()> {
    let path = dir.join(FILE);
    let present = match std::fs::read_to_string(&path) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    match content {
        _ if present.as_deref() == content => Ok(()),
        None => std::fs::remove_file(&path),
        Some(content) => {
            // Hidden files are no manifests, and each process has its own.
            let before = dir.join(format!(".{FILE}.{}", std::process::id()));
            std::fs::write(&before, content)?;
            std::fs::rename(&before, &path)
        }
    }
}

#[cfg(test)]
mod tests;
