//! A folder of ordinary manifests as the source of objects: no cluster needed.
//!
//! [`files`] reads the folder, [`defaults`] fills in what an API server would have, [`run`] does both again whenever
//! something in the folder changes.

mod defaults;
pub(crate) mod files;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use notify::Watcher as _;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use self::files::Folder;
use super::Event;
use crate::model::{EndpointSlice, Node, ObjectKey, Pool, Problem, Service, ServiceCidr, ranges_of};

/// The folder is read when nothing has changed for this long, so that a file is not met half written.
const QUIET: Duration = Duration::from_millis(50);
/// The folder is read at the latest after this time of continual change.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often the folder is read where changes cannot be watched.
const POLL: Duration = Duration::from_secs(2);

/// The folder, and what is needed to fill in what an API server would have.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder; its `.yaml`, `.yml` and `.json` files are read, not those of folders within it.
    pub dir: PathBuf,
    /// Name of the own Node.
    pub node_name: Arc<str>,
    /// The ranges from which Services without a ClusterIP get one, where no ServiceCIDR objects say. The family of the first is that of Services which
    /// do not say what family they are of.
    pub service_cidrs: Vec<IpNet>,
}

/// Why the folder cannot be a source.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read at all.
    #[error("cannot read the folder of manifests {}: does it exist?", dir.display())]
    Folder {
        /// The folder.
        dir: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What a folder of manifests says.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Objects {
    /// All Services.
    pub services: Vec<Service>,
    /// All EndpointSlices.
    pub slices: Vec<EndpointSlice>,
    /// The own Node.
    pub node: Option<Node>,
    /// The ranges of ServiceCIDR objects, if there are any.
    pub service_cidrs: Option<Vec<IpNet>>,
    /// All AddressPools.
    pub pools: Vec<Pool>,
    /// What is wrong with files, and with what could not be filled in.
    pub problems: Vec<Problem>,
}

/// Reads a folder once.
///
/// # Errors
/// If the folder cannot be read; what is wrong with files in it is part of the result.
pub fn read(options: &Options) -> Result<Objects, Error> {
    let shown = Manifests::new(options.dir.clone(), options.service_cidrs.clone()).read()?;
    Ok(light(shown, &options.node_name))
}

/// Sends what the folder holds, then everything again after every change, until the receiver is dropped.
///
/// # Errors
/// If the folder cannot be read at the start. Later the last state stays.
pub async fn run(options: Options, events: mpsc::Sender<Event>) -> Result<(), Error> {
    let mut manifests = Manifests::new(options.dir, options.service_cidrs);
    manifests.watch();
    let mut last = None;
    loop {
        match manifests.read() {
            Ok(shown) => {
                let objects = light(shown, &options.node_name);
                if last.as_ref() != Some(&objects) {
                    for event in news(&objects) {
                        if events.send(event).await.is_err() {
                            return Ok(());
                        }
                    }
                    last = Some(objects);
                }
            }
            Err(error) if last.is_none() => return Err(error),
            Err(error) => warn!(
                error = &error as &dyn std::error::Error,
                "manifests cannot be read, the last state stays"
            ),
        }
        tokio::select! {
            () = manifests.changed() => {}
            () = events.closed() => return Ok(()),
        }
    }
}

/// A folder of manifests, as an API server would show its objects.
pub(crate) struct Manifests {
    folder: Folder,
    dir: PathBuf,
    service_cidrs: Vec<IpNet>,
    /// Tells of changes as long as it lives; without it the folder is read again and again.
    watcher: Option<(notify::RecommendedWatcher, mpsc::Receiver<()>)>,
}

/// What [`Manifests::read`] finds.
#[derive(Debug)]
pub(crate) struct Shown {
    /// All objects; Services and EndpointSlices with what an API server would have filled in.
    pub(crate) objects: files::Objects,
    /// The ranges of ServiceCIDR objects, if there are any.
    pub(crate) service_cidrs: Option<Vec<IpNet>>,
    /// What is wrong with files, and with what could not be filled in.
    pub(crate) problems: Vec<Problem>,
}

impl Manifests {
    /// Those in a folder; for the ranges see [`Options::service_cidrs`].
    pub(crate) fn new(dir: PathBuf, service_cidrs: Vec<IpNet>) -> Self {
        Self {
            folder: Folder::new(dir.clone()),
            dir,
            service_cidrs,
            watcher: None,
        }
    }

    /// Has the system tell of changes.
    pub(crate) fn watch(&mut self) {
        let (changed, changes) = mpsc::channel(1);
        self.watcher = watch(&self.dir, changed).map(|watcher| (watcher, changes));
    }

    /// What the folder holds now. A file that cannot be read counts with its last good content.
    pub(crate) fn read(&mut self) -> Result<Shown, Error> {
        let mut problems = self.folder.read().map_err(|source| Error::Folder {
            dir: self.dir.clone(),
            source,
        })?;
        let mut objects = self.folder.objects(&mut problems);
        let cidrs: Vec<ServiceCidr> = objects.service_cidrs.values().map(ServiceCidr::from).collect();
        problems.extend(cidrs.iter().flat_map(|object| object.problems.iter().cloned()));
        let service_cidrs = (!cidrs.is_empty()).then(|| ranges_of(&cidrs));
        let ranges = service_cidrs.as_ref().unwrap_or(&self.service_cidrs);
        defaults::fill_in(&mut objects.services, ranges, &mut problems);
        objects.slices.values_mut().for_each(defaults::fill_in_slice);
        Ok(Shown {
            objects,
            service_cidrs,
            problems,
        })
    }

    /// Waits until something may have changed.
    pub(crate) async fn changed(&mut self) {
        match &mut self.watcher {
            Some((_, changes)) => {
                if changes.recv().await.is_some() {
                    settle(changes).await;
                }
            }
            None => sleep(POLL).await,
        }
    }
}

/// What the agent of this node makes of it.
fn light(shown: Shown, node_name: &str) -> Objects {
    let Shown {
        objects,
        service_cidrs,
        problems,
    } = shown;
    Objects {
        services: objects.services.values().map(Service::from).collect(),
        slices: objects.slices.values().map(EndpointSlice::from).collect(),
        node: objects.nodes.get(&ObjectKey::new("", node_name)).map(Node::from),
        service_cidrs,
        pools: objects.pools.values().map(Pool::from).collect(),
        problems,
    }
}

/// The Node comes first, since what the node is decides about every Service.
fn news(objects: &Objects) -> [Event; 6] {
    [
        Event::Node(objects.node.clone()),
        Event::ServiceCidrs(objects.service_cidrs.clone()),
        Event::Problems(objects.problems.clone()),
        Event::Pools(objects.pools.clone()),
        Event::EndpointSlices(objects.slices.clone()),
        Event::Services(objects.services.clone()),
    ]
}

/// Waits until nothing has changed for a while.
async fn settle(changes: &mut mpsc::Receiver<()>) {
    let quiet = async { while timeout(QUIET, changes.recv()).await.is_ok() {} };
    let _ = timeout(PATIENCE, quiet).await;
}

fn watch(dir: &std::path::Path, changed: mpsc::Sender<()>) -> Option<notify::RecommendedWatcher> {
    let on_event = move |event: notify::Result<notify::Event>| {
        // Reading a file is an event too.
        if !event.is_ok_and(|event| event.kind.is_access() && !is_write_end(&event)) {
            // A full channel means that a change is known already.
            let _ = changed.try_send(());
        }
    };
    let watcher = notify::recommended_watcher(on_event).and_then(|mut watcher| {
        watcher.watch(dir, notify::RecursiveMode::NonRecursive)?;
        Ok(watcher)
    });
    match watcher {
        Ok(watcher) => {
            debug!(dir = %dir.display(), "the folder of manifests is watched");
            Some(watcher)
        }
        Err(error) => {
            warn!(
                error = &error as &dyn std::error::Error,
                "changes of manifests cannot be watched, so the folder is read every 2 s"
            );
            None
        }
    }
}

fn is_write_end(event: &notify::Event) -> bool {
    use notify::event::{AccessKind, AccessMode, EventKind};
    event.kind == EventKind::Access(AccessKind::Close(AccessMode::Write))
}

#[cfg(test)]
mod tests;
