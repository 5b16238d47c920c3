//! Programs that live as long as the test at most.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

/// Ends the program when its standard input ends, which is when the test ends in whatever way: the kernel closes a dead
/// process's files. `$$` still waits for the program when it is signalled, so the id is the program's.
const KEEPER: &str = r#"exec 3<&0; "$@" </dev/null 3<&- & child=$!
(read -r _ <&3; kill -9 $child 2>/dev/null) >/dev/null 2>&1 &
wait $child"#;

/// A program that is ended when this is dropped, or the test dies.
#[derive(Debug)]
pub struct Program {
    name: String,
    keeper: Child,
    log: PathBuf,
}

impl Program {
    /// Starts a command; what it prints goes to `log`, behind what is there.
    pub fn start(name: &str, command: &[&str], log: &Path) -> Self {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .unwrap_or_else(|error| panic!("cannot write {}: {error}", log.display()));
        let keeper = Command::new("sh")
            .args(["-c", KEEPER, name])
            .args(command)
            .stdin(Stdio::piped())
            .stdout(file.try_clone().expect("a file can be shared"))
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {name} through sh: {error}"));
        Self {
            name: name.to_owned(),
            keeper,
            log: log.to_owned(),
        }
    }

    /// Its process id, to signal it; `None`: it does not run.
    pub fn pid(&self) -> Option<u32> {
        let keeper = self.keeper.id();
        let children = std::fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).ok()?;
        // The keeper starts it first, and then the shell that watches.
        children.split_whitespace().next()?.parse().ok()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.keeper.try_wait().expect("a child can be waited for")
    }

    /// Panics with the end of its log if it has ended.
    pub fn must_run(&mut self) {
        if let Some(status) = self.ended() {
            panic!("{} has ended ({status}):\n{}", self.name, self.log_end());
        }
    }

    /// Everything that it has printed so far.
    pub fn log(&self) -> String {
        std::fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The last lines that it has printed.
    pub fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Sends it a signal, such as `STOP`.
    pub fn signal(&self, name: &str) {
        let keeper = self.keeper.id();
        // The program is the keeper's first child.
        let children = std::fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).unwrap_or_default();
        let program = children
            .split_whitespace()
            .next()
            .unwrap_or_else(|| panic!("{} has ended", self.name));
        let sent = Command::new("kill").args([&format!("-{name}"), program]).status();
        assert!(
            sent.is_ok_and(|status| status.success()),
            "{} cannot be signalled",
            self.name
        );
    }

    /// Kills it (SIGKILL) and waits until it is gone.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // Its end of the pipe tells the keeper.
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.end();
    }
}
