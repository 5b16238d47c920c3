//! One agent for one set of pins: a locked file, and the socket that it answers on.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};

use anyhow::{Context as _, bail};
use nix::fcntl::{Flock, FlockArg};
use tokio::net::UnixListener;

use super::lock_file;
use crate::datapath::pin::PinDir;

/// Locks the pins for this process, until the result is dropped or the process ends.
///
/// # Errors
/// If another agent holds them.
pub fn take(pins: &PinDir) -> anyhow::Result<Flock<File>> {
    let path = lock_file(&pins.state_dir());
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            lock.set_len(0)
                .and_then(|()| write!(*lock, "{}", std::process::id()))
                .context("write the lock file")?;
            Ok(lock)
        }
        Err((mut file, _)) => {
            let mut owner = String::new();
            let _unknown = file.rewind().and_then(|()| file.read_to_string(&mut owner));
            bail!(
                "an agent with the pins in {} is running already (process {owner}): stop it, or give this one another \
                 --pin-dir",
                pins.root().display()
            )
        }
    }
}

/// Opens the socket; one that an agent before left behind is replaced.
pub fn listen(pins: &PinDir) -> anyhow::Result<UnixListener> {
    let path = pins.socket();
    let _there_is_none = std::fs::remove_file(&path);
    UnixListener::bind(&path).with_context(|| format!("listen on {}", path.display()))
}
