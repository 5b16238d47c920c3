//! `cargo xtask build-and-run`: a lab, a request on every path, and the counters while it stands.

use std::collections::BTreeMap;
use std::fs;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use super::paths::{self, Case, Service};
use super::plan::{NODES, Network, Place};
use super::report::{Flows, Report};
use super::wire::{Outcome, Task};
use super::{Lab, Setup};

/// How to run the lab.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// How pods on different nodes are connected.
    #[arg(long, value_enum, default_value_t)]
    pub network: Network,
    /// End after the requests: with success only if each was answered as it has to be.
    #[arg(long)]
    pub once: bool,
}

/// The most requests of one kind that are sent to meet every pod of a Service. With four pods all of them are met
/// but once in a hundred million times.
const AT_MOST: usize = 80;

/// Sets up a lab with this `fairway` program, sends requests on every path and shows them. On a terminal, and
/// unless `once` is set, it then shows live counters until Ctrl-C.
pub fn build_and_run(options: &Options, fairway: &Path, workspace: &Path) -> anyhow::Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [
        signal_hook::consts::SIGINT,
        signal_hook::consts::SIGTERM,
        signal_hook::consts::SIGHUP,
    ] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("watch for Ctrl-C")?;
    }
    let examples = workspace.join("examples");
    let started = Instant::now();
    let mut lab = Lab::up(&Setup {
        name: format!("run-{}", std::process::id()),
        network: options.network,
        xtask: std::env::current_exe().context("find this program's own file")?,
        fairway: Some(fairway.to_owned()),
        manifests: examples.join("loadbalancer"),
    })?;
    println!(
        "A cluster of two nodes, network {}, stands after {:.1?}.\n",
        options.network.name(),
        started.elapsed()
    );
    let mut failed = 0;
    for form in [Form::LoadBalancer, Form::ClusterIp] {
        let report = every_path(&mut lab, &examples, form, &stop)?;
        let folder = format!("examples/{}", form.folder());
        println!(
            "{folder}: {} requests answered, {} not\n",
            report.answered,
            report.failures.len()
        );
        println!("{}", report.table());
        for failure in report.failures.iter().take(20) {
            println!("FAILED {failure}");
        }
        failed += report.failures.len();
    }
    let martians = lab.martians()?;
    for (place, count) in &martians {
        println!("FAILED {}: {count} packets were dropped as martians", place.name());
    }
    if martians.is_empty() {
        println!("No packet was dropped as a martian.");
    }
    if !options.once && std::io::stdout().is_terminal() {
        live(&lab, &stop)?;
    }
    ensure!(failed == 0, "{failed} requests were not answered as they have to be");
    ensure!(martians.is_empty(), "packets were dropped as martians");
    Ok(())
}

/// The two forms of the Service `my-spring-app`: a folder of examples each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// Of type LoadBalancer.
    LoadBalancer,
    /// Of type ClusterIP.
    ClusterIp,
}

impl Form {
    /// Its folder in `examples/`.
    pub const fn folder(self) -> &'static str {
        match self {
            Self::LoadBalancer => "loadbalancer",
            Self::ClusterIp => "clusterip",
        }
    }
}

/// Sends requests on every path that the Services of this form have. The agents are given its manifests first.
pub fn every_path(lab: &mut Lab, examples: &Path, form: Form, stop: &AtomicBool) -> anyhow::Result<Report> {
    lab.use_manifests(&examples.join(form.folder()))?;
    let services = lab.wait_for_services(form)?;
    let mut report = Report::default();
    let announcers: &[usize] = if form == Form::LoadBalancer { &[0, 1] } else { &[0] };
    for announcer in announcers {
        lab.announce(*announcer)?;
        let mut cases = paths::cases(&services, *announcer);
        if *announcer != announcers[0] {
            // Only what comes from outside depends on who announces the address.
            cases.retain(|case| case.from == Place::Client && matches!(case.door, paths::Door::LoadBalancer(_)));
        }
        send(lab, &cases, &mut report, stop)?;
    }
    Ok(report)
}

fn send(lab: &Lab, cases: &[Case], report: &mut Report, stop: &AtomicBool) -> anyhow::Result<()> {
    let mut answers = Vec::new();
    for place in Place::ALL {
        ensure!(!stop.load(Ordering::Relaxed), "interrupted");
        // One process for those requests of a place that so many pods may answer.
        let mut by_pods: BTreeMap<usize, Vec<&Case>> = BTreeMap::new();
        for case in cases.iter().filter(|case| case.from == place) {
            by_pods.entry(case.pods().len()).or_default().push(case);
        }
        for (pods, cases) in by_pods {
            let requests = cases.iter().map(|case| case.request.clone()).collect();
            let Outcome::Answers(got) = lab.ask(
                place,
                &Task::Spread {
                    requests,
                    pods,
                    at_most: AT_MOST,
                },
            )?
            else {
                bail!(
                    "the client in {} answered something else than it was asked",
                    place.name()
                );
            };
            for case in cases {
                let mut met = std::collections::BTreeSet::new();
                for answer in got.iter().filter(|answer| answer.request == case.request) {
                    met.extend(answer.result.as_ref().ok().map(|seen| seen.pod.clone()));
                    answers.push((case.clone(), answer.clone()));
                }
                if met.len() < pods
                    && !answers
                        .iter()
                        .any(|(c, a)| c.request == case.request && a.result.is_err())
                {
                    let target = case.request.target;
                    report
                        .failures
                        .push(format!("{} -> {target}: only {met:?} answered", place.name()));
                }
            }
        }
    }
    let mut flows = Flows::default();
    for node in 0..NODES.len() {
        flows.add(node, &lab.observe(node, "flows")?);
    }
    for (case, answer) in &answers {
        report.add(lab.network(), case, answer, Some(&flows));
    }
    Ok(())
}

/// Where the examples are for somebody who has the workspace.
pub fn examples(workspace: &Path) -> PathBuf {
    workspace.join("examples")
}

fn live(lab: &Lab, stop: &AtomicBool) -> anyhow::Result<()> {
    println!("\nThe lab stands until Ctrl-C. To look around in another terminal:");
    println!(
        "  cargo xtask lab exec {} client -- curl -s http://198.51.100.80/\n",
        lab.names().lab()
    );
    let mut lines = 0;
    while !stop.load(Ordering::Relaxed) {
        let mut text = String::new();
        for (i, node) in NODES.iter().enumerate() {
            let status = lab.observe(i, "status")?;
            let mut counters = Vec::new();
            collect_counters(&status, &mut counters);
            text += &format!("{}: {}\n", node.name, counters.join(" "));
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

/// Numbers under `counters`, whatever their nesting, as `hook.outcome=N`.
fn collect_counters(status: &serde_json::Value, out: &mut Vec<String>) {
    fn walk(prefix: &str, value: &serde_json::Value, out: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(fields) => {
                for (name, value) in fields {
                    let prefix = if prefix.is_empty() {
                        name.clone()
                    } else {
                        format!("{prefix}.{name}")
                    };
                    walk(&prefix, value, out);
                }
            }
            serde_json::Value::Number(n) if n.as_u64() != Some(0) => out.push(format!("{prefix}={n}")),
            _ => {}
        }
    }
    if let Some(counters) = status.get("counters") {
        walk("", counters, out);
    }
}

/// Removes labs whose owner is gone. Returns their names.
pub fn remove_crashed() -> anyhow::Result<Vec<String>> {
    let mut removed = Vec::new();
    for (name, description) in Lab::list() {
        let kept = name.starts_with("run-") || name.starts_with("test-");
        let owner = description.map_or(0, |description| description.owner);
        if kept && !fs::exists(format!("/proc/{owner}")).unwrap_or(false) {
            Lab::remove(&super::plan::Names::new(&name)?)?;
            removed.push(name);
        }
    }
    Ok(removed)
}

impl Lab {
    /// Waits until both agents have programmed the Services of a form, and tells their addresses.
    pub fn wait_for_services(&mut self, form: Form) -> anyhow::Result<Vec<Service>> {
        let load_balancer = form == Form::LoadBalancer;
        let known = |name: &str, n: u16, local: bool| Service {
            name: name.to_owned(),
            cluster_ips: [
                format!("10.96.0.{n}").parse().ok(),
                format!("fd00:10:96::{n}").parse().ok(),
            ],
            load_balancer: if load_balancer {
                [
                    format!("198.51.100.{n}").parse().ok(),
                    format!("2001:db8:100::{n}").parse().ok(),
                ]
            } else {
                [None, None]
            },
            node_port: load_balancer.then_some(30000 + n),
            local,
            udp: true,
        };
        let mut services = vec![known("my-spring-app-dual", 81, false)];
        if load_balancer {
            services.push(known("my-spring-app-local", 82, true));
        }
        services.push(self.document_service(load_balancer)?);
        Ok(services)
    }

    fn document_service(&mut self, _load_balancer: bool) -> anyhow::Result<Service> {
        bail!("not yet: needs the agent")
    }
}
