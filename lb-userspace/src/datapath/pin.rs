//! Where the objects lie that outlive the agent.
//!
//! ```text
//!   <pin-dir>/v1/maps/CONNECTIONS_V4 …     <pin-dir>/v1/links/{xdp,ingress,egress}_<ifindex>, connect4 …
//!   <pin-dir>/v1/programs/fairway_clock
//! ```
//!
//! The version is [`LAYOUT_VERSION`]: an agent with other layouts starts beside the old directory, and removes
//! it once its own programs are attached. bpffs refuses names with a dot, so devices are named by their index.

use std::io;
use std::path::{Path, PathBuf};

use lb_common::abi::LAYOUT_VERSION;
use nix::sys::statfs;

/// Where pins lie if `--pin-dir` does not say.
pub const DEFAULT: &str = "/sys/fs/bpf/fairway";

/// A directory of pins could not be used.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The directory is not on bpffs.
    #[error("{path} is not on a BPF file system; mount one: mount -t bpf bpf {mount}", path = path.display(), mount = mount.display())]
    NotBpffs {
        /// The directory asked for.
        path: PathBuf,
        /// Where to mount.
        mount: PathBuf,
    },
    /// It could not be made, read or removed.
    #[error("cannot {what} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The pin directory of one agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinDir {
    root: PathBuf,
}

impl PinDir {
    /// The directory with this path; nothing is touched.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// What `--pin-dir` said.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The part of this layout version.
    pub fn version(&self) -> PathBuf {
        self.root.join(format!("v{LAYOUT_VERSION}"))
    }

    /// Where a map is pinned.
    pub fn map(&self, name: &str) -> PathBuf {
        self.version().join("maps").join(name)
    }

    /// Where links are pinned.
    pub fn links(&self) -> PathBuf {
        self.version().join("links")
    }

    /// Where a link is pinned.
    pub fn link(&self, name: &str) -> PathBuf {
        self.links().join(name)
    }

    /// Where a program is pinned.
    pub fn program(&self, name: &str) -> PathBuf {
        self.version().join("programs").join(name)
    }

    /// Where the agent with these pins keeps what cannot lie on bpffs: `/run/<last part of the pin directory>`.
    pub fn state_dir(&self) -> PathBuf {
        Path::new("/run").join(self.root.file_name().unwrap_or("fairway".as_ref()))
    }

    /// The agent's socket.
    pub fn socket(&self) -> PathBuf {
        self.state_dir().join("agent.sock")
    }

    /// Makes the directories.
    pub fn create(&self) -> Result<(), PinError> {
        let there = self.root.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
        let kind = statfs::statfs(there).map_err(|e| io_error("look at", there, e.into()))?;
        if kind.filesystem_type() != statfs::BPF_FS_MAGIC {
            let usual = Path::new("/sys/fs/bpf");
            let mount = if self.root.starts_with(usual) {
                usual
            } else {
                self.root.parent().unwrap_or(usual)
            };
            return Err(PinError::NotBpffs {
                path: self.root.clone(),
                mount: mount.to_owned(),
            });
        }
        for part in ["maps", "links", "programs"] {
            let path = self.version().join(part);
            std::fs::create_dir_all(&path).map_err(|e| io_error("make", &path, e))?;
        }
        Ok(())
    }

    /// The names of the pinned links.
    pub fn pinned_links(&self) -> Vec<String> {
        names(&self.links())
    }

    /// The directories of other layout versions.
    pub fn other_versions(&self) -> Vec<PathBuf> {
        let own = format!("v{LAYOUT_VERSION}");
        let other = |name: &String| *name != own && name.starts_with('v') && name[1..].parse::<u32>().is_ok();
        names(&self.root)
            .into_iter()
            .filter(other)
            .map(|n| self.root.join(n))
            .collect()
    }

    /// Removes a pin, if it is there.
    pub fn unpin(path: &Path) -> Result<bool, PinError> {
        match std::fs::remove_file(path) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(io_error("remove", path, e)),
        }
    }

    /// Removes the pins of one version, links first: a program leaves its hook when its link's pin goes.
    pub fn remove_version(version: &Path) -> Result<Vec<PathBuf>, PinError> {
        let mut removed = Vec::new();
        for part in ["links", "programs", "maps"] {
            let directory = version.join(part);
            for name in names(&directory) {
                let path = directory.join(name);
                if Self::unpin(&path)? {
                    removed.push(path);
                }
            }
            remove_dir(&directory)?;
        }
        remove_dir(version)?;
        Ok(removed)
    }

    /// Removes all pins of all versions, and the directory where nothing else is left in it.
    pub fn remove(&self) -> Result<Vec<PathBuf>, PinError> {
        let mut removed = Vec::new();
        for version in self.other_versions().into_iter().chain([self.version()]) {
            if version.exists() {
                removed.extend(Self::remove_version(&version)?);
            }
        }
        remove_dir(&self.root)?;
        Ok(removed)
    }
}

fn remove_dir(path: &Path) -> Result<(), PinError> {
    match std::fs::remove_dir(path) {
        Ok(()) => Ok(()),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => Ok(()),
        Err(e) => Err(io_error("remove", path, e)),
    }
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(directory)
        .map(|entries| {
            entries
                .flatten()
                .filter_map(|e| e.file_name().into_string().ok())
                .collect()
        })
        .unwrap_or_default();
    names.sort();
    names
}

fn io_error(what: &'static str, path: &Path, source: io::Error) -> PinError {
    PinError::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pin_directory_has_a_state_directory_of_its_own() {
        assert_eq!(PinDir::new(DEFAULT).socket(), Path::new("/run/fairway/agent.sock"));
        assert_eq!(
            PinDir::new("/sys/fs/bpf/fairway-node1").state_dir(),
            Path::new("/run/fairway-node1")
        );
    }

    #[test]
    fn a_directory_that_is_not_on_bpffs_is_refused_with_the_remedy() {
        let error = PinDir::new("/tmp/fairway-test-pins").create().unwrap_err().to_string();
        assert!(error.contains("mount -t bpf bpf /tmp"), "{error}");
    }
}
