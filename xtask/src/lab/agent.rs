//! The agents of a lab: one for each node, in its namespace and its cgroup, with pins of its own.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use super::Lab;
use super::plan::{CLUSTER_CIDRS, NODES, Node, Place, SERVICE_CIDRS};
use super::programmed::{self, Frontend};

/// How long an agent may take until its programs carry traffic. On a busy machine loading them takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often it is asked: each time costs a process that reads the maps.
const POLL: Duration = Duration::from_millis(150);

/// Sizes of the maps: the smaller they are, the sooner an agent has them.
const SIZES: [&str; 6] = [
    "--max-connections",
    "65536",
    "--max-backends",
    "4096",
    "--max-maglev-slots",
    "262144",
];

/// Mounts bpffs where the pins go, if nobody has.
pub fn mount_bpffs() -> anyhow::Result<()> {
    let mounts = std::fs::read_to_string("/proc/mounts").context("read /proc/mounts")?;
    if mounts.lines().any(|line| line.split(' ').nth(1) == Some("/sys/fs/bpf")) {
        return Ok(());
    }
    let status = Command::new("mount")
        .args(["-t", "bpf", "bpf", "/sys/fs/bpf"])
        .status()
        .context("run mount")?;
    ensure!(
        status.success(),
        "bpffs could not be mounted at /sys/fs/bpf: is BPF enabled in this kernel?"
    );
    Ok(())
}

impl Lab {
    /// Starts the agent of a node.
    pub fn start_agent(&mut self, node: usize) -> anyhow::Result<()> {
        let fairway = self.description.fairway.clone().context("this lab has no agents")?;
        let mut command = self.command(Place::Node(node), &fairway);
        command
            .args(["agent", "--node-name", NODES[node].name])
            .arg("--manifests")
            .arg(self.manifests())
            .args(["--cluster-cidr", &CLUSTER_CIDRS.join(",")])
            .args(["--service-cidrs", &SERVICE_CIDRS.join(",")])
            // The other ends of these veth devices are prepared for it.
            .args(["--xdp", "native"])
            .arg("--cgroup")
            .arg(self.cgroup(Place::Node(node)))
            .arg("--pin-dir")
            .arg(self.names.pin_dir(node))
            .args(SIZES);
        let log = format!("fairway-{}", NODES[node].name);
        self.agents[node] = Some(self.start(&mut command, &log)?);
        Ok(())
    }

    /// Kills the agent of a node as a crash would, and waits for its end.
    pub fn kill_agent(&mut self, node: usize) -> anyhow::Result<()> {
        let mut agent = self.agents[node].take().context("the agent is not running")?;
        agent.kill().context("kill the agent")?;
        agent.wait().context("wait for the agent")?;
        Ok(())
    }

    /// Waits until what both agents have programmed is as `ready` demands, and tells what that says of the last one.
    pub fn wait_until<T>(&mut self, ready: impl Fn(&[Frontend]) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let deadline = Instant::now() + PATIENCE;
        let mut last = None;
        for (node, Node { name, .. }) in NODES.iter().enumerate() {
            last = loop {
                let error = match self
                    .observe(node, "services")
                    .and_then(|s| ready(&programmed::frontends(&s)))
                {
                    Ok(result) => break Some(result),
                    Err(error) => error,
                };
                let log = self.log(&format!("fairway-{name}"));
                if let Some(agent) = &mut self.agents[node]
                    && let Some(status) = agent.try_wait()?
                {
                    bail!("the agent of {name} ended ({status}):\n{}", tail(&log));
                }
                ensure!(
                    Instant::now() < deadline,
                    "the agent of {name} is not ready: {error:#}\n{}",
                    tail(&log)
                );
                self.check_stop()?;
                std::thread::sleep(POLL);
            };
        }
        last.context("a lab has nodes")
    }

    /// What `fairway WHAT -o json` says on a node.
    pub fn observe(&self, node: usize, what: &str) -> anyhow::Result<Value> {
        let fairway = self.description.fairway.as_deref().context("this lab has no agents")?;
        let mut command = self.command(Place::Node(node), fairway);
        let output = command
            .args([what, "-o", "json", "--pin-dir"])
            .arg(self.names.pin_dir(node))
            .output()
            .with_context(|| format!("run fairway {what}"))?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "fairway {what} on {}: {}",
            NODES[node].name,
            errors.trim()
        );
        serde_json::from_slice(&output.stdout).with_context(|| format!("understand fairway {what} -o json"))
    }
}

pub(crate) fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
