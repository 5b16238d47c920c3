//! A node in a network namespace, with an agent and what is seen of it.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use fairway::datapath::pin::PinDir;
use fairway::sys;
use serde_json::Value;

use super::namespaces::{Answer, Namespaces, ask_http, within};
use super::process::Program;
use super::{poll, skip};

/// Whatever is waited for has to come within this.
pub const PATIENCE: Duration = Duration::from_secs(60);

const NETWORK: &str = "
    ip -n @node link add eth0 type veth peer name peer0
    ip -n @node link set peer0 up
    ip -n @node link set eth0 up
    ip -n @node addr add 192.0.2.1/24 dev eth0
    ip -n @node route add default via 192.0.2.254
    ip -n @node addr add 2001:db8::1/64 dev eth0 nodad
    ip -n @node route add default via 2001:db8::fe
";

/// A node with an agent. All that it makes is removed when it is dropped.
pub struct Node {
    pub namespaces: Namespaces,
    pub folder: PathBuf,
    pub cgroup: Option<PathBuf>,
    pub pins: PinDir,
    agent: Option<Program>,
}

impl Node {
    /// The node, unless it cannot be made here.
    pub fn new(test: &str, short: &str) -> Option<Self> {
        Self::within(test, short, &["node"], NETWORK)
    }

    /// The node `node` among other namespaces, which this script connects.
    pub fn within(test: &str, short: &str, names: &[&'static str], script: &str) -> Option<Self> {
        if let Some(reason) = Namespaces::missing().or_else(|| (!bpffs()).then(|| "needs bpffs".to_owned())) {
            skip(test, &reason);
            return None;
        }
        let name = format!("fw-{short}-{}", std::process::id());
        let folder = std::env::temp_dir().join(&name);
        std::fs::create_dir_all(folder.join("manifests")).expect("a folder can be made");
        let cgroup = fairway::datapath::probe::cgroup(None)
            .ok()
            .flatten()
            .map(|mount| mount.join(&name));
        if let Some(cgroup) = &cgroup {
            std::fs::create_dir_all(cgroup).expect("a cgroup can be made");
        }
        Some(Self {
            namespaces: Namespaces::new(short, names, script),
            folder,
            cgroup,
            pins: PinDir::new(format!("/sys/fs/bpf/{name}")),
            agent: None,
        })
    }

    pub fn arguments(&self, flags: &[&str]) -> Vec<String> {
        let net = format!("--net=/run/netns/{}", self.namespaces.name("node"));
        let cgroup = self
            .cgroup
            .as_ref()
            .map_or_else(|| "none".to_owned(), |path| path.display().to_string());
        let (pins, manifests) = (self.pins.root().display().to_string(), self.folder.join("manifests"));
        let manifests = manifests.display().to_string();
        let from_api = flags.contains(&"--kubeconfig");
        let mut words = vec![
            "nsenter".to_owned(),
            net,
            binary().display().to_string(),
            "agent".to_owned(),
        ];
        for (flag, value) in [
            ("--node-name", "node"),
            ("--manifests", &manifests),
            ("--cgroup", &cgroup),
            ("--pin-dir", &pins),
        ] {
            if !(flag == "--manifests" && from_api) {
                words.extend([flag.to_owned(), value.to_owned()]);
            }
        }
        // Small maps: this is not about what they hold.
        for size in ["--max-connections", "--max-backends", "--max-maglev-slots"] {
            if !flags.contains(&size) {
                words.extend([size.to_owned(), "1024".to_owned()]);
            }
        }
        words.extend(flags.iter().map(ToString::to_string));
        words
    }

    /// Starts the agent, and waits until it has attached.
    pub fn start(&mut self, flags: &[&str]) {
        let words = self.arguments(flags);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let log = self.folder.join("agent.log");
        let mut agent = Program::start("agent", &words, &log);
        poll("the agent answers", PATIENCE, || {
            agent.must_run();
            self.status().filter(|status| status["agent"].is_object())
        });
        self.agent = Some(agent);
    }

    /// Runs an agent that is expected to end by itself, and returns what it says.
    pub fn fails(&self, flags: &[&str]) -> String {
        let words = self.arguments(flags);
        let output = Command::new(&words[0])
            .args(&words[1..])
            .output()
            .expect("the agent runs");
        assert!(!output.status.success(), "the agent ended well");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    pub fn fairway(&self, words: &[&str]) -> Output {
        let net = format!("--net=/run/netns/{}", self.namespaces.name("node"));
        let mut command = Command::new("nsenter");
        command
            .arg(net)
            .arg(binary())
            .args(words)
            .arg("--pin-dir")
            .arg(self.pins.root());
        command.output().expect("fairway runs")
    }

    pub fn status(&self) -> Option<Value> {
        let output = self.fairway(&["status", "-o", "json"]);
        output
            .status
            .success()
            .then(|| serde_json::from_slice(&output.stdout).expect("status is JSON"))
    }

    /// What is attached to a device, once the agent says so.
    pub fn attached(&self, device: &str) -> Value {
        poll(&format!("{device} is attached to"), PATIENCE, || self.device(device))
    }

    pub fn device(&self, device: &str) -> Option<Value> {
        let status = self.status()?;
        let devices = status["agent"]["devices"].as_array()?.clone();
        devices.into_iter().find(|d| d["device"] == device)
    }

    pub fn ip(&self, words: &str) {
        let status = Command::new("ip")
            .args(["-n", &self.namespaces.name("node")])
            .args(words.split(' '))
            .status();
        assert!(status.expect("ip runs").success(), "ip {words}");
    }

    pub fn tc(&self, words: &str) -> String {
        let output = Command::new("tc")
            .args(["-n", &self.namespaces.name("node")])
            .args(words.split(' '))
            .output();
        String::from_utf8_lossy(&output.expect("tc runs").stdout).into_owned()
    }

    /// Name, id of the link, id of its program, for every pinned link.
    pub fn links(&self) -> Vec<(String, u32, u32)> {
        let info = |name: String| {
            let link = sys::open_pinned(&self.pins.link(&name)).expect("the pin can be opened");
            let info = sys::link_info(&link).expect("it is a link");
            (name, info.id, info.program)
        };
        self.pins.pinned_links().into_iter().map(info).collect()
    }

    /// Runs the rest of a test in the node's namespace, with all programs that it starts.
    pub fn inside(&mut self, work: impl FnOnce(&mut Self) + Send) {
        let path = self.namespaces.path("node");
        within(&path, || work(self));
    }

    /// Panics if the agent has ended.
    pub fn must_run(&mut self) {
        self.agent.as_mut().expect("the agent runs").must_run();
    }

    /// What the agent has logged.
    pub fn log(&self) -> String {
        self.agent.as_ref().map(Program::log).unwrap_or_default()
    }

    /// Puts a file into the folder of manifests, at once; `None` takes it away.
    pub fn manifest(&self, name: &str, content: Option<&str>) {
        let path = self.folder.join("manifests").join(name);
        match content {
            Some(content) => {
                let new = self.folder.join(name);
                std::fs::write(&new, content).expect("a file can be written");
                std::fs::rename(&new, &path).expect("a file can be renamed");
            }
            None => std::fs::remove_file(&path).expect("a file can be removed"),
        }
    }

    /// Asks from the node itself.
    pub fn ask(&self, target: &str, path: &'static str) -> std::io::Result<Answer> {
        let target = target.parse().expect("an address");
        self.namespaces.within("node", move || ask_http(target, path))
    }

    pub fn kill(&mut self) {
        self.agent.take().expect("the agent runs").kill();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of the agent:\n{}", self.log());
        }
        if let Some(agent) = self.agent.take() {
            agent.kill();
        }
        self.fairway(&["cleanup", "--force"]);
        if let Some(cgroup) = &self.cgroup {
            let _ = std::fs::remove_dir(cgroup);
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// The `fairway` binary that `cargo xtask test` has built, else the one that cargo built for this test.
pub fn binary() -> PathBuf {
    std::env::var_os("FAIRWAY_BIN").map_or_else(|| env!("CARGO_BIN_EXE_fairway").into(), PathBuf::from)
}

/// Whether bpffs is there, or could be mounted.
pub fn bpffs() -> bool {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(1) == Some("/sys/fs/bpf"))
        || Command::new("mount")
            .args(["-t", "bpf", "bpf", "/sys/fs/bpf"])
            .status()
            .is_ok_and(|s| s.success())
}
