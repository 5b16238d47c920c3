//! Leases as files in a folder that the nodes share: `<manifests>/.fairway/leases/NODE.json`, each a Lease as the API
//! would show it.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::coordination::v1::Lease;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use notify::Watcher as _;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::{LeaseError, Leases, Record, Records};

/// How often the folder is read where changes cannot be watched.
const POLL: Duration = Duration::from_millis(50);
/// How often it is read even if nothing was heard.
const DOUBT: Duration = Duration::from_millis(500);
/// The namespace in the objects: files have none.
const NAMESPACE: &str = "kube-system";

/// The folder.
#[derive(Debug)]
pub struct Files {
    dir: PathBuf,
}

impl Files {
    /// The Leases of those whose manifests lie in this folder.
    pub fn new(manifests: &Path) -> Self {
        Self {
            dir: manifests.join(".fairway").join("leases"),
        }
    }

    fn failed(&self, source: io::Error) -> LeaseError {
        LeaseError::File {
            path: self.dir.display().to_string(),
            source,
        }
    }

    fn read(&self) -> io::Result<Records> {
        let mut records = Records::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let name = path
                .file_name()
                .map(std::ffi::OsStr::as_encoded_bytes)
                .unwrap_or_default();
            if name.starts_with(b".") || path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            // One that goes meanwhile is gone, and nobody writes half a file under its name.
            let Ok(bytes) = std::fs::read(&path) else { continue };
            match serde_json::from_slice::<Lease>(&bytes)
                .ok()
                .as_ref()
                .and_then(Record::of_lease)
            {
                Some(record) => {
                    records.insert(record.node.clone(), record);
                }
                None => debug!(path = %path.display(), "this is no Lease of a node"),
            }
        }
        Ok(records)
    }

    /// Tells of changes, as long as it lives.
    fn watch(&self) -> Option<(notify::RecommendedWatcher, mpsc::Receiver<()>)> {
        let (changed, changes) = mpsc::channel(1);
        let on_event = move |event: notify::Result<notify::Event>| {
            if !event.is_ok_and(|event| event.kind.is_access()) {
                // A full channel means that a change is known already.
                let _ = changed.try_send(());
            }
        };
        let watcher = notify::recommended_watcher(on_event).and_then(|mut watcher| {
            watcher.watch(&self.dir, notify::RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        match watcher {
            Ok(watcher) => Some((watcher, changes)),
            Err(error) => {
                debug!(%error, "Leases cannot be watched, so they are read every 50 ms");
                None
            }
        }
    }
}

#[async_trait]
impl Leases for Files {
    async fn write(&self, record: &Record) -> Result<(), LeaseError> {
        let node = &record.node;
        if node.contains('/') || node.starts_with('.') {
            let reason = format!("the node's name `{node}` cannot be that of a file");
            return Err(self.failed(io::Error::new(io::ErrorKind::InvalidInput, reason)));
        }
        let bytes = serde_json::to_vec_pretty(&record.to_lease(NAMESPACE)).map_err(|e| self.failed(e.into()))?;
        let (file, spare) = (
            self.dir.join(format!("{node}.json")),
            self.dir.join(format!(".{node}.spare")),
        );
        std::fs::create_dir_all(&self.dir)
            .and_then(|()| overwrite(&spare, &bytes))
            .and_then(|()| replace(&spare, &file))
            .map_err(|error| self.failed(error))
    }

    async fn follow(&self, told: watch::Sender<Option<Records>>) {
        if let Err(error) = std::fs::create_dir_all(&self.dir) {
            // Writing will say so as well, again and again.
            debug!(%error, "the folder of Leases is not there yet");
        }
        let mut watcher = self.watch();
        let mut failed = false;
        loop {
            match self.read() {
                Ok(records) => {
                    failed = false;
                    told.send_if_modified(|known| {
                        let is_new = known.as_ref() != Some(&records);
                        *known = Some(records);
                        is_new
                    });
                }
                Err(error) => {
                    if !failed {
                        warn!(dir = %self.dir.display(), %error, "Leases cannot be read, so others' are not known");
                    }
                    failed = true;
                }
            }
            let changed = async {
                match &mut watcher {
                    Some((_, changes)) => {
                        // Time passes without a change, or there is one: the folder is read in either case.
                        let _ = timeout(DOUBT, changes.recv()).await;
                    }
                    None => tokio::time::sleep(POLL).await,
                }
            };
            tokio::select! {
                () = changed => {}
                () = told.closed() => return,
            }
        }
    }
}

/// Writes a file where it lies, so that its blocks are used again.
fn overwrite(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    file.write_all(bytes)?;
    file.set_len(bytes.len() as u64)
}

/// Puts a file in the place of another, at once for those who read it. The other becomes the spare one.
///
/// A plain rename over a file has ext4 find blocks for the new one before it returns (its mount option `auto_da_alloc`): on a
/// busy disk that takes up to a second, half of a Lease. Files that change places have theirs.
fn replace(spare: &Path, file: &Path) -> io::Result<()> {
    match renameat2(AT_FDCWD, spare, AT_FDCWD, file, RenameFlags::RENAME_EXCHANGE) {
        Ok(()) => Ok(()),
        // There is no such file yet, or the file system cannot do that.
        Err(_) => std::fs::rename(spare, file),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::record;
    use super::*;

    #[tokio::test]
    async fn what_one_node_writes_all_are_told_of() {
        let dir = std::env::temp_dir().join(format!("fairway-leases-{}", std::process::id()));
        let (one, other) = (Files::new(&dir), Files::new(&dir));
        let (told, mut records) = watch::channel(None);
        let follower = tokio::spawn(async move { other.follow(told).await });
        for ms in [0, 7] {
            one.write(&record("node-1", ms)).await.expect("it can be written");
            let seen = records.wait_for(|seen| {
                let seen = seen.as_ref().and_then(|seen| seen.get("node-1"));
                seen == Some(&record("node-1", ms))
            });
            timeout(Duration::from_secs(10), seen)
                .await
                .expect("it is told")
                .expect("it goes on");
        }
        let refused = one.write(&record("../node", 0)).await.expect_err("no such file");
        assert!(
            refused.to_string().contains("`../node` cannot be that of a file"),
            "{refused}"
        );
        drop(records);
        timeout(Duration::from_secs(10), follower)
            .await
            .expect("it ends")
            .expect("it does not panic");
        std::fs::remove_dir_all(&dir).expect("it was made here");
    }
}
