//! A folder of ordinary manifests as the source of objects: no cluster needed.
//!
//! [`files`] reads the folder, [`defaults`] fills in what an API server would have, [`run`] does both again whenever
//! something in the folder changes.

mod defaults;
pub(crate) mod files;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
/// The same where every file that was changed was closed, renamed or removed: none is half written, but more may follow.
const WHOLE: Duration = Duration::from_millis(5);
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
    /// Without it the folder is read again and again.
    watcher: Option<Watcher>,
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
        self.watcher = Watcher::of(&self.dir);
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
            Some(watcher) => watcher.changed().await,
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

/// Tells of changes of a folder.
struct Watcher {
    changes: mpsc::Receiver<()>,
    unfinished: Arc<Mutex<Unfinished>>,
    /// The system tells of changes as long as it lives.
    _system: notify::RecommendedWatcher,
}

impl Watcher {
    /// `None`: the system does not tell of this folder's changes.
    fn of(dir: &Path) -> Option<Self> {
        let (changed, changes) = mpsc::channel(1);
        let unfinished = Arc::<Mutex<Unfinished>>::default();
        let files = Arc::clone(&unfinished);
        let on_event = move |event: notify::Result<notify::Event>| {
            // Where events were lost, anything may have changed.
            if event.map_or(true, |event| lock(&files).take(&event)) {
                // A full channel means that a change is known already.
                let _ = changed.try_send(());
            }
        };
        let system = notify::recommended_watcher(on_event).and_then(|mut system| {
            system.watch(dir, notify::RecursiveMode::NonRecursive)?;
            Ok(system)
        });
        match system {
            Ok(system) => {
                debug!(dir = %dir.display(), "the folder of manifests is watched");
                Some(Self {
                    changes,
                    unfinished,
                    _system: system,
                })
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

    /// Waits for a change, then until nothing has changed for a while.
    async fn changed(&mut self) {
        if self.changes.recv().await.is_none() {
            return;
        }
        let quiet = async {
            loop {
                let within = if lock(&self.unfinished).0.is_empty() {
                    WHOLE
                } else {
                    QUIET
                };
                if timeout(within, self.changes.recv()).await.is_err() {
                    break;
                }
            }
        };
        let _ = timeout(PATIENCE, quiet).await;
        // Not every system tells when a file is closed.
        lock(&self.unfinished).0.clear();
    }
}

/// Files that may be half written.
#[derive(Default)]
struct Unfinished(HashSet<PathBuf>);

impl Unfinished {
    /// Takes an event in; whether it tells of a change.
    fn take(&mut self, event: &notify::Event) -> bool {
        use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
        match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write))
            | EventKind::Modify(ModifyKind::Name(_))
            | EventKind::Remove(_) => {
                for path in &event.paths {
                    self.0.remove(path);
                }
            }
            // Reading a file is an event too.
            EventKind::Access(_) => return false,
            EventKind::Modify(ModifyKind::Metadata(_)) => {}
            _ => self.0.extend(event.paths.iter().cloned()),
        }
        true
    }
}

fn lock(unfinished: &Mutex<Unfinished>) -> MutexGuard<'_, Unfinished> {
    unfinished.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
