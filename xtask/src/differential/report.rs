//! What is printed: a line for each round, each unexplained difference with what it takes to repeat it, and the sums.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;

use super::change::Round;
use super::compare::Difference;
use super::manifest::yaml;
use super::shrink::describe;
use super::wanted::Rule;

/// What was found so far.
#[derive(Debug)]
pub struct Report {
    text: bool,
    started: Instant,
    sums: Sums,
}

#[derive(Debug, Default, Serialize)]
struct Sums {
    seed: u64,
    passed: usize,
    failed: usize,
    skipped: usize,
    probes: usize,
    connections: usize,
    seconds: f32,
    wanted: BTreeMap<String, usize>,
    unexplained: Vec<Unexplained>,
    refused: Vec<String>,
}

/// A difference that no rule describes.
#[derive(Debug, Serialize)]
struct Unexplained {
    round: u32,
    /// After how many of the steps.
    stage: usize,
    aspect: String,
    target: String,
    frontend: String,
    service: Option<String>,
    origin: String,
    kube_proxy: String,
    fairway: String,
    steps: Vec<Vec<String>>,
    objects: String,
}

impl Report {
    /// An empty one.
    pub fn new(seed: u64, text: bool) -> Self {
        Self {
            text,
            started: Instant::now(),
            sums: Sums {
                seed,
                ..Sums::default()
            },
        }
    }

    /// Says from which seed the rounds are.
    pub fn begins(&self) {
        if self.text {
            println!(
                "Rounds of seed {}: kube-proxy and fairway serve one API server.",
                self.sums.seed
            );
        }
    }

    /// The API server refused an object of this round.
    pub fn refused(&mut self, round: u32, reason: &str) {
        self.sums.skipped += 1;
        self.sums.refused.push(format!("round {round}: {reason}"));
        if self.text {
            println!("round {round:>3}  SKIPPED: the API server refuses {reason}");
        }
    }

    /// A difference that a rule wants.
    pub fn wanted(&mut self, rule: String) {
        *self.sums.wanted.entry(rule).or_default() += 1;
    }

    /// A round has ended.
    pub fn done(&mut self, round: u32, failed: bool, (probes, connections): (usize, usize), took: Duration) {
        self.sums.probes += probes;
        self.sums.connections += connections;
        let word = if failed {
            self.sums.failed += 1;
            "FAILED"
        } else {
            self.sums.passed += 1;
            "ok"
        };
        if self.text {
            println!("round {round:>3}  {word:<6}  {probes:>4} probes, {connections:>6} connections, {took:.1?}");
        }
    }

    /// A difference that no rule wants, in the smallest round that shows it.
    pub fn difference(&mut self, number: u32, round: &Round, difference: &Difference) {
        let shape = &difference.shape;
        let steps: Vec<Vec<String>> = round
            .steps
            .iter()
            .map(|step| step.changes.iter().map(describe).collect())
            .collect();
        let name = |value: serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let found = Unexplained {
            round: number,
            stage: difference.stage,
            aspect: name(serde_json::json!(shape.aspect)),
            target: shape.target.to_string(),
            frontend: name(serde_json::json!(shape.role.frontend)),
            service: shape.role.service.as_ref().map(ToString::to_string),
            origin: name(serde_json::json!(shape.origin)),
            kube_proxy: difference.kube_proxy.clone(),
            fairway: difference.fairway.clone(),
            steps,
            objects: yaml(&round.start),
        };
        if self.text {
            print(&found, self.sums.seed);
        }
        self.sums.unexplained.push(found);
    }

    /// Whether there was one.
    pub const fn has_failed(&self) -> bool {
        self.sums.failed > 0
    }

    /// Prints the sums.
    pub fn ends(&mut self, rules: &[Rule]) -> anyhow::Result<()> {
        self.sums.seconds = self.started.elapsed().as_secs_f32();
        let Sums {
            passed,
            failed,
            skipped,
            probes,
            connections,
            seconds,
            ..
        } = &self.sums;
        if !self.text {
            println!(
                "{}",
                serde_json::to_string_pretty(&self.sums).context("write the report")?
            );
            return Ok(());
        }
        let rounds = passed + failed + skipped;
        println!();
        println!(
            "{rounds} rounds of seed {} in {seconds:.0} s: {probes} probes, {connections} connections.",
            self.sums.seed
        );
        println!("Differences that are wanted, by rule:");
        for rule in rules {
            println!("  {:>5}  {}", self.sums.wanted.get(&rule.rule).unwrap_or(&0), rule.rule);
        }
        println!("Differences that are not: {}", self.sums.unexplained.len());
        println!("{passed} passed, {failed} failed, {skipped} skipped");
        Ok(())
    }
}

fn print(found: &Unexplained, seed: u64) {
    let service = found
        .service
        .as_ref()
        .map_or_else(String::new, |service| format!(" of Service {service}"));
    let when = match found.stage {
        0 => "at first".to_owned(),
        stage => format!("after step {stage}"),
    };
    println!(
        "\nDIFFERENCE ({}) {when}, round {} of seed {seed}\n  {} -> {} ({}{service})",
        found.aspect, found.round, found.origin, found.target, found.frontend
    );
    println!(
        "    kube-proxy: {}\n    fairway:    {}",
        found.kube_proxy, found.fairway
    );
    println!(
        "  again: cargo xtask differential --seed {seed} --round {}",
        found.round
    );
    println!("  objects at first:");
    for line in found.objects.lines() {
        println!("    {line}");
    }
    for (index, step) in found.steps.iter().enumerate() {
        println!("  step {}:", index + 1);
        for change in step {
            println!("    - {change}");
        }
    }
    println!();
}
