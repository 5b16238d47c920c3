//! Programs that live as long as this process at most, whatever ends it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, bail};

/// Runs its arguments, and kills that program when the standard input ends: the kernel closes a dead process's pipes.
const LEASH: &str = r#"exec 3<&0; "$@" </dev/null 3<&- & program=$!
(read -r end <&3; kill -9 $program 2>/dev/null) >/dev/null 2>&1 &
wait $program"#;

/// How many lines of a log are shown.
const LOG_LINES: usize = 25;

/// A program that ends when this is dropped.
#[derive(Debug)]
pub struct Program {
    name: String,
    leash: Child,
    log: PathBuf,
}

impl Program {
    /// Starts a command; what it prints goes to a file in `folder`.
    pub fn start(name: &str, command: &Command, folder: &Path) -> anyhow::Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("write {}", log.display()))?;
        let leash = Command::new("sh")
            .args(["-c", LEASH, name])
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(Stdio::piped())
            .stdout(file.try_clone().context("share a log")?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            leash,
            log,
        })
    }

    /// An error with the end of its log, if it has ended.
    pub fn must_run(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self
            .leash
            .try_wait()
            .with_context(|| format!("look after {}", self.name))?
        {
            bail!("{} has ended ({status}):\n{}", self.name, self.log_end());
        }
        Ok(())
    }

    /// The last lines that it has printed.
    pub fn log_end(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}

impl Program {
    /// Ends it, and waits until it has.
    pub fn end(&mut self) {
        drop(self.leash.stdin.take());
        let _ = self.leash.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.end();
    }
}
