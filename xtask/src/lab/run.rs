//! `cargo xtask build-and-run`: a lab, a request on every path, the whole path of one from an address to a pod, and the
//! counters while it stands.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::plan::{NODES, Names, Network};
use super::{Form, Lab, Setup};

/// How to run the lab.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// How pods on different nodes are connected. [default: with --once each way in turn, else routed]
    #[arg(long, value_enum)]
    pub network: Option<Network>,
    /// End after the requests: with success only if each was answered as it has to be.
    #[arg(long)]
    pub once: bool,
}

/// How many failures are shown as sentences.
const SHOWN_FAILURES: usize = 20;

/// Sets up a lab with this `fairway` program, sends requests on every path and shows them. On a terminal, and
/// unless `once` is set, it then shows live counters until Ctrl-C.
///
/// # Errors
/// If a lab cannot be set up, or a request was not answered as it has to be.
pub fn build_and_run(options: &Options, fairway: &Path, workspace: &Path) -> anyhow::Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [
        signal_hook::consts::SIGINT,
        signal_hook::consts::SIGTERM,
        signal_hook::consts::SIGHUP,
    ] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("watch for Ctrl-C")?;
    }
    for name in remove_crashed()? {
        println!("Removed the lab {name}, whose owner has ended without doing so.");
    }
    let networks = match options.network {
        Some(network) => vec![network],
        None if options.once => Network::ALL.to_vec(),
        None => vec![Network::default()],
    };
    for network in networks {
        one_network(network, options, fairway, workspace, &stop)?;
    }
    Ok(())
}

fn one_network(
    network: Network,
    options: &Options,
    fairway: &Path,
    workspace: &Path,
    stop: &Arc<AtomicBool>,
) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut lab = Lab::up(&Setup {
        name: format!("run-{}", std::process::id()),
        network,
        xtask: std::env::current_exe().context("find this program's own file")?,
        fairway: Some(fairway.to_owned()),
        manifests: workspace.join("examples/loadbalancer"),
    })?;
    lab.stop_when(Arc::clone(stop));
    println!(
        "A cluster of two nodes, network {}, stands after {:.1?}.\n",
        network.name(),
        started.elapsed()
    );
    let mut failed = 0;
    for form in [Form::LoadBalancer, Form::ClusterIp] {
        let report = lab.every_path(&workspace.join("examples"), form)?;
        println!(
            "examples/{}: {} requests answered, {} not",
            form.folder(),
            report.answered,
            report.failures.len()
        );
        println!("\n{}", report.table());
        for failure in report.failures.iter().take(SHOWN_FAILURES) {
            println!("FAILED {failure}");
        }
        failed += report.failures.len();
    }
    println!("examples/request-path: from an address to a pod, and back\n");
    print!("{}", lab.request_path(&workspace.join("examples"))?);
    let martians = lab.martians()?;
    for (place, count) in &martians {
        println!("FAILED {}: {count} packets were dropped as martians", place.name());
    }
    if martians.is_empty() {
        println!("No packet was dropped as a martian.\n");
    }
    if !options.once && std::io::stdout().is_terminal() {
        live(&lab, stop)?;
    }
    ensure!(failed == 0, "{failed} requests were not answered as they have to be");
    ensure!(martians.is_empty(), "packets were dropped as martians");
    Ok(())
}

fn live(lab: &Lab, stop: &AtomicBool) -> anyhow::Result<()> {
    println!("\nThe lab stands until Ctrl-C. To look around in another terminal:");
    println!(
        "  cargo xtask lab exec --name {} client -- curl -s http://198.51.100.80/\n",
        lab.names().lab()
    );
    let mut lines = 0;
    while !stop.load(Ordering::Relaxed) {
        let mut text = String::new();
        for (i, node) in NODES.iter().enumerate() {
            text += &counters(node.name, &lab.observe(i, "status")?);
        }
        if lines > 0 {
            print!("\x1b[{lines}A\x1b[J");
        }
        print!("{text}");
        lines = text.lines().count();
        let next = Instant::now() + Duration::from_secs(1);
        while Instant::now() < next && !stop.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(50));
        }
    }
    println!("\nRemoving the lab.");
    Ok(())
}

/// The counters in the output of `fairway status -o json`, a line for each hook.
fn counters(node: &str, status: &Value) -> String {
    let mut by_hook: BTreeMap<&str, String> = BTreeMap::new();
    for counter in status.get("counters").and_then(Value::as_array).into_iter().flatten() {
        let text = |name: &str| counter.get(name).and_then(Value::as_str).unwrap_or("?");
        let packets = counter.get("packets").and_then(Value::as_u64).unwrap_or_default();
        _ = write!(
            by_hook.entry(text("hook")).or_default(),
            "  {} {packets}",
            text("outcome")
        );
    }
    by_hook
        .iter()
        .map(|(hook, outcomes)| format!("{node}  {hook:10}{outcomes}\n"))
        .collect()
}

/// Removes labs of this command and of tests whose owner is gone. Returns their names.
pub fn remove_crashed() -> anyhow::Result<Vec<String>> {
    let mut removed = Vec::new();
    for (name, description) in Lab::list() {
        let owned = name.starts_with("run-") || name.starts_with("test-");
        let owner = description.map_or(0, |description| description.owner);
        if owned && !Path::new(&format!("/proc/{owner}")).exists() {
            Lab::remove(&Names::new(&name)?)?;
            removed.push(name);
        }
    }
    Ok(removed)
}
