//! `cargo xtask differential`: a real kube-proxy and Fairway serve one API server in two labs that are alike, and
//! whatever they do is compared.
//!
//! A round makes random objects ([`generate`]), asks every frontend from everywhere ([`probes`]), changes the objects
//! ([`change`]) and asks again; connections that were open meanwhile are followed ([`established`]). What differs is
//! wanted by a rule ([`wanted`]) or a failure: then the round is made as small as it goes ([`shrink`]) and printed.
//!
//! ```text
//!                        ┌► kube-proxy on node-a of one world  ◄─ the same
//!   kube-apiserver, etcd ┤                                        probes  ─► seen, compared
//!                        └► fairway on node-a of another world ◄─ in both
//! ```

mod api;
mod change;
mod compare;
mod door;
mod established;
mod generate;
mod lab;
mod manifest;
mod marker;
mod model;
mod plan;
mod probes;
mod program;
mod question;
mod random;
mod report;
mod seen;
mod shrink;
mod side;
mod store;
mod wanted;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};

use self::change::Round;
use self::compare::{Difference, Outcome};
use self::lab::Lab;
pub use self::lab::Programs;
use self::question::Focus;
use self::random::Random;
use self::report::Report;
use self::wanted::Shape;

/// How to compare.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:\n  \
    cargo xtask differential                        30 rounds of a seed that is made up and printed\n  \
    cargo xtask differential --rounds 300 --seed 7\n  \
    cargo xtask differential --seed 7 --round 41    one round again, as it was\n\n\
    docs/differential.md says how to read what it prints, and how differences come to be wanted.")]
pub struct Options {
    /// How many rounds to run.
    #[arg(long, value_name = "N", default_value_t = 30)]
    rounds: u32,

    /// What the rounds are made from: the same seed makes the same rounds. [default: made up]
    #[arg(long, value_name = "S")]
    seed: Option<u64>,

    /// Run this round only.
    #[arg(long, value_name = "N", conflicts_with = "rounds")]
    round: Option<u32>,

    /// How to print what was found.
    #[arg(long, short, value_enum, default_value_t)]
    output: Output,

    /// Print unexplained differences as they are, without making their rounds small first.
    #[arg(long)]
    no_shrink: bool,

    /// After the first round with an unexplained difference leave both labs standing until a key is pressed.
    #[arg(long)]
    keep: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
enum Output {
    /// For people.
    #[default]
    Text,
    /// One JSON object.
    Json,
}

/// How long making one difference small may take.
const SHRINKING: Duration = Duration::from_secs(60);

/// Runs the rounds, and fails if there is a difference that no rule describes.
pub fn run(options: &Options, programs: &Programs) -> anyhow::Result<()> {
    let rules = wanted::rules()?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, stop.clone()).context("listen for Ctrl-C")?;
    }
    let seed = options.seed.unwrap_or_else(made_up_seed);
    let mut report = Report::new(seed, options.output == Output::Text);
    report.begins();
    let mut lab = Lab::up(programs, rules.clone(), stop)?;
    let rounds = options.round.map_or(1..=options.rounds, |round| round..=round);
    for number in rounds {
        let round = generate::round(&mut Random::of_round(seed, number));
        let started = Instant::now();
        let outcome = lab.run(&round, &Focus::All);
        if let (true, Err(error)) = (options.keep, &outcome) {
            eprintln!("{error:#}");
            keep(&lab)?;
        }
        match outcome.with_context(|| format!("round {number} of seed {seed}"))? {
            Outcome::Refused(reason) => report.refused(number, &reason),
            Outcome::Done(findings) => {
                let unexplained = sort_out(findings.differences, &mut report);
                let failed = !unexplained.is_empty();
                for difference in first_of_each_kind(unexplained) {
                    let (smallest, difference) = if options.no_shrink {
                        (round.clone(), difference)
                    } else {
                        smallest(&mut lab, round.clone(), difference)
                    };
                    report.difference(number, &smallest, &difference);
                }
                report.done(
                    number,
                    failed,
                    (findings.probes, findings.connections),
                    started.elapsed(),
                );
                if failed && options.keep {
                    keep(&lab)?;
                }
            }
        }
    }
    drop(lab);
    report.ends(&rules)?;
    if report.has_failed() {
        bail!("kube-proxy and fairway differ where no rule of xtask/differential/wanted.yaml wants it");
    }
    Ok(())
}

fn made_up_seed() -> u64 {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    // Short enough to be typed.
    u64::from(now.subsec_micros())
}

/// Counts what is wanted, and returns the rest.
fn sort_out(differences: Vec<Difference>, report: &mut Report) -> Vec<Difference> {
    let (wanted, unexplained): (Vec<_>, Vec<_>) = differences
        .into_iter()
        .partition(|difference| difference.rule.is_some());
    for rule in wanted.into_iter().filter_map(|difference| difference.rule) {
        report.wanted(rule);
    }
    unexplained
}

/// Differences of one kind have one cause most of the time: the first of each is enough.
fn first_of_each_kind(differences: Vec<Difference>) -> Vec<Difference> {
    let mut kinds = BTreeSet::new();
    let is_new = |difference: &Difference| {
        let Shape {
            aspect,
            role,
            kube_proxy,
            fairway,
            ..
        } = &difference.shape;
        kinds.insert((*aspect, role.frontend, kube_proxy.clone(), fairway.clone()))
    };
    let mut is_new = is_new;
    differences
        .into_iter()
        .filter(|difference| is_new(difference))
        .collect()
}

/// The smallest round that shows a difference like this one, and the difference in it.
fn smallest(lab: &mut Lab, round: Round, difference: Difference) -> (Round, Difference) {
    let deadline = Instant::now() + SHRINKING;
    let focus = Focus::Like(Box::new(difference.shape.clone()));
    let mut last = difference;
    let smallest = shrink::shrink(round, |candidate| {
        if Instant::now() > deadline {
            return false;
        }
        // What the API server refuses, and what the lab fails at, shows nothing.
        let Ok(Outcome::Done(findings)) = lab.run(candidate, &focus) else {
            return false;
        };
        let like = |found: &Difference| {
            let alike = (found.shape.aspect, &found.shape.kube_proxy, &found.shape.fairway)
                == (last.shape.aspect, &last.shape.kube_proxy, &last.shape.fairway);
            alike && found.rule.is_none()
        };
        match findings.differences.into_iter().find(like) {
            Some(found) => {
                last = found;
                true
            }
            None => false,
        }
    });
    (smallest, last)
}

/// Leaves both labs as they are until a key is pressed.
fn keep(lab: &Lab) -> anyhow::Result<()> {
    eprintln!(
        "Both labs stand: `ip netns` lists their namespaces (diff-{}-...), logs and kubeconfigs are in {}.\n\
         Press Enter to go on.",
        std::process::id(),
        lab.folder().display()
    );
    std::io::stdin()
        .read_line(&mut String::new())
        .context("wait for Enter")?;
    Ok(())
}
