//! The lab: a small cluster out of network namespaces, for `cargo xtask build-and-run`, for the tests, and for
//! playing (`cargo xtask lab`). [`plan`] shows who is in it.
//!
//! All that a lab makes is named after it (namespaces, cgroups, pin directories, a folder under `/run`), so labs
//! stand side by side, and [`Lab::remove`] finds what a crashed one has left without having to be told. Every
//! process of a lab is in its cgroup, by which they are ended.

pub(crate) mod agent;
mod ask;
pub(crate) mod cgroup;
pub mod cli;
mod client;
mod martians;
pub(crate) mod pass;
pub mod paths;
pub mod plan;
mod programmed;
mod report;
mod request_path;
mod run;
mod server;
pub(crate) mod shell;
pub mod wire;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};

pub use self::ask::Form;
use self::plan::{NODES, Names, Network, PODS, Place};
pub use self::report::Report;
pub use self::run::{Options, build_and_run};
pub use self::wire::{Answer, Outcome, Protocol, Request, Seen, Task};

/// The command, hidden in `xtask`, that is each pod's application.
pub const SERVER_COMMAND: &str = "lab-server";
/// The command, hidden in `xtask`, that sends requests.
pub const CLIENT_COMMAND: &str = "lab-client";

/// What a lab is made from.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Its name on the machine.
    pub name: String,
    /// How its nodes are connected.
    pub network: Network,
    /// This program, which serves and asks in it.
    pub xtask: PathBuf,
    /// The program of the agents. Without it the lab is a plain routed network.
    pub fairway: Option<PathBuf>,
    /// The folder with the manifests that the agents read: a copy of it is.
    pub manifests: PathBuf,
}

/// A lab that stands.
#[derive(Debug)]
pub struct Lab {
    names: Names,
    description: Description,
    cgroup_mount: PathBuf,
    agents: [Option<Child>; NODES.len()],
    servers: Vec<Child>,
    controllers: Vec<Child>,
    keep: bool,
    stop: Arc<AtomicBool>,
}

/// What is kept of a lab for other processes, as `lab.json` in its folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Description {
    /// How its nodes are connected.
    pub network: Network,
    /// The program that serves and asks in it.
    pub xtask: PathBuf,
    /// The program of its agents.
    pub fairway: Option<PathBuf>,
    /// The process that set it up.
    pub owner: u32,
}

impl Lab {
    /// Sets up a lab; what an earlier one of this name has left is removed first. It is removed again when the
    /// value is dropped, unless [`Self::keep`] was called.
    pub fn up(setup: &Setup) -> anyhow::Result<Self> {
        let names = Names::new(&setup.name)?;
        ensure!(
            nix::unistd::geteuid().is_root(),
            "the lab makes network namespaces, which needs root: use sudo"
        );
        let cgroup_mount = cgroup::mount_point()?;
        Self::remove(&names)?;
        let lab = Self {
            description: Description {
                network: setup.network,
                xtask: setup.xtask.clone(),
                fairway: setup.fairway.clone(),
                owner: std::process::id(),
            },
            names,
            cgroup_mount,
            agents: [const { None }; NODES.len()],
            servers: Vec::new(),
            controllers: Vec::new(),
            keep: false,
            stop: Arc::default(),
        };
        lab.build(setup)
    }

    /// From here on the value owns what it makes, so a failure removes it.
    fn build(mut self, setup: &Setup) -> anyhow::Result<Self> {
        let folder = self.names.state_dir();
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        fs::write(folder.join("lab.json"), serde_json::to_vec_pretty(&self.description)?)?;
        fs::write(self.names.pass_object(), pass::object())?;
        self.use_manifests(&setup.manifests)?;
        for place in Place::ALL {
            let cgroup = self.cgroup(place);
            fs::create_dir_all(&cgroup).with_context(|| format!("make the cgroup {}", cgroup.display()))?;
        }
        shell::run(None, &shell::links(&self.names))?;
        let (names, network) = (&self.names, self.description.network);
        thread::scope(|scope| {
            let scripts = Place::ALL.map(|place| {
                scope
                    .spawn(move || shell::run(Some(&names.netns_path(place)), &shell::namespace(names, network, place)))
            });
            for script in scripts {
                script
                    .join()
                    .map_err(|_| anyhow::anyhow!("a setup thread panicked"))??;
            }
            anyhow::Ok(())
        })?;
        self.start_servers()?;
        if self.description.fairway.is_some() {
            agent::mount_bpffs()?;
            for node in 0..NODES.len() {
                self.start_agent(node)?;
            }
        }
        Ok(self)
    }

    /// A lab that another process has set up and left standing. Dropping the value leaves it so.
    pub fn open(name: &str) -> anyhow::Result<Self> {
        let names = Names::new(name)?;
        let file = names.state_dir().join("lab.json");
        let text = fs::read(&file).with_context(|| {
            format!(
                "there is no lab {name:?}; `cargo xtask lab up` makes one ({})",
                file.display()
            )
        })?;
        Ok(Self {
            names,
            description: serde_json::from_slice(&text).context("read the lab's description")?,
            cgroup_mount: cgroup::mount_point()?,
            agents: [const { None }; NODES.len()],
            servers: Vec::new(),
            controllers: Vec::new(),
            keep: true,
            stop: Arc::default(),
        })
    }

    /// The labs on this machine, also those of which only a part is left.
    pub fn list() -> Vec<(String, Option<Description>)> {
        let Ok(entries) = fs::read_dir(Names::STATE_ROOT) else {
            return Vec::new();
        };
        let mut labs: Vec<_> = entries
            .flatten()
            .map(|entry| {
                let text = fs::read(entry.path().join("lab.json")).ok();
                let description = text.and_then(|text| serde_json::from_slice(&text).ok());
                (entry.file_name().to_string_lossy().into_owned(), description)
            })
            .collect();
        labs.sort_by(|a, b| a.0.cmp(&b.0));
        labs
    }

    /// Leaves the lab standing when the value is dropped.
    pub fn keep(mut self) {
        self.keep = true;
    }

    /// Removes whatever there is of the lab with these names.
    pub fn remove(names: &Names) -> anyhow::Result<()> {
        cgroup::remove(&cgroup::mount_point()?.join(names.cgroup_root()))?;
        for place in Place::ALL {
            if names.netns_path(place).exists() {
                shell::run(None, &format!("ip netns del {}\n", names.netns(place)))?;
            }
        }
        for node in 0..NODES.len() {
            remove_dir(&names.pin_dir(node))?;
            remove_dir(&names.agent_dir(node))?;
        }
        remove_dir(&names.state_dir())
    }

    /// The lab's names.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// How its nodes are connected.
    pub fn network(&self) -> Network {
        self.description.network
    }

    /// The folder that the agents read.
    pub fn manifests(&self) -> PathBuf {
        self.names.state_dir().join("manifests")
    }

    /// Makes the agents read a copy of this folder from now on.
    pub fn use_manifests(&self, source: &Path) -> anyhow::Result<()> {
        let target = self.manifests();
        fs::create_dir_all(&target)?;
        let wanted: Vec<_> = fs::read_dir(source)
            .with_context(|| format!("read the manifests in {}", source.display()))?
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
            .collect();
        let hidden = |name: &OsStr| name.as_encoded_bytes().starts_with(b".");
        for path in &wanted {
            if let Some(name) = path.file_name() {
                fs::copy(path, target.join(name)).with_context(|| format!("copy {}", path.display()))?;
            }
        }
        for entry in fs::read_dir(&target)?.flatten() {
            let name = entry.file_name();
            // What is hidden is the agents' own.
            if !hidden(&name) && !wanted.iter().any(|path| path.file_name() == Some(&name)) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// A command that runs in a place: in its network namespace and in its cgroup.
    pub fn command(&self, place: Place, program: &Path) -> Command {
        let mut command = Command::new("sh");
        command
            .args(["-c", "echo 0 >\"$0/cgroup.procs\" && exec nsenter --net=\"$@\""])
            .arg(self.cgroup(place))
            .arg(self.names.netns_path(place))
            .arg(program);
        command
    }

    /// Ends what the lab does with an error as soon as this is set.
    pub fn stop_when(&mut self, stop: Arc<AtomicBool>) {
        self.stop = stop;
    }

    fn check_stop(&self) -> anyhow::Result<()> {
        ensure!(!self.stop.load(Ordering::Relaxed), "interrupted");
        Ok(())
    }

    /// Has a place do a task, and waits for that.
    pub fn ask(&self, place: Place, task: &Task) -> anyhow::Result<Outcome> {
        self.check_stop()?;
        self.begin(place, task)?.finish()
    }

    /// Has a place do a task, without waiting.
    pub fn begin(&self, place: Place, task: &Task) -> anyhow::Result<Asked> {
        let mut child = self
            .command(place, &self.description.xtask)
            .arg(CLIENT_COMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .context("start a client")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(&serde_json::to_vec(task)?)?;
        }
        Ok(Asked { place, child })
    }

    /// Runs a script in a place's namespace.
    pub fn script(&self, place: Place, script: &str) -> anyhow::Result<String> {
        shell::run(Some(&self.names.netns_path(place)), script)
    }

    /// Leads the load balancer addresses to this node, as an announcement by it would.
    pub fn announce(&self, node: usize) -> anyhow::Result<()> {
        self.script(
            Place::Router,
            &format!("ip -batch - <<'END'\n{}END\n", shell::announce(node)),
        )?;
        Ok(())
    }

    fn cgroup(&self, place: Place) -> PathBuf {
        self.cgroup_mount.join(self.names.cgroup(place))
    }

    fn log(&self, name: &str) -> PathBuf {
        self.names.state_dir().join(format!("{name}.log"))
    }

    /// Starts a process that stays, with a log of its own. Ctrl-C on the terminal does not reach it.
    fn start(&self, command: &mut Command, log: &str) -> anyhow::Result<Child> {
        let path = self.log(log);
        let log = File::options().create(true).append(true).open(&path);
        let log = log.with_context(|| format!("open {}", path.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {command:?}"))
    }

    fn start_servers(&mut self) -> anyhow::Result<()> {
        let mut waiting = Vec::new();
        for (i, pod) in PODS.iter().enumerate() {
            let ready = self.names.state_dir().join(format!("{}.ready", pod.name));
            let mut command = self.command(Place::Pod(i), &self.description.xtask);
            command.arg(SERVER_COMMAND).arg(i.to_string()).arg(&ready);
            self.servers.push(self.start(&mut command, pod.name)?);
            waiting.push(ready);
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while !waiting.iter().all(|file| file.exists()) {
            if Instant::now() > deadline {
                bail!(
                    "the pods' servers did not start: see {}/pod-*.log",
                    self.names.state_dir().display()
                );
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        let result = Self::remove(&self.names);
        let controllers = self.controllers.iter_mut();
        for child in self
            .agents
            .iter_mut()
            .flatten()
            .chain(&mut self.servers)
            .chain(controllers)
        {
            _ = child.wait();
        }
        if let Err(error) = result {
            eprintln!("the lab {} could not be removed: {error:#}", self.names.lab());
        }
    }
}

/// A client process at work.
#[derive(Debug)]
pub struct Asked {
    place: Place,
    child: Child,
}

impl Asked {
    /// Waits for its end.
    pub fn finish(self) -> anyhow::Result<Outcome> {
        let output = self.child.wait_with_output().context("wait for a client")?;
        let place = self.place.name();
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "the client in {place} failed ({}): {}",
            output.status,
            errors.trim()
        );
        serde_json::from_slice(&output.stdout).with_context(|| format!("understand the client in {place}"))
    }
}

fn remove_dir(path: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
