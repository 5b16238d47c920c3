//! `cargo xtask conformance`: cases of what a Service means, tried on the host and in the lab.
//!
//! A case is Kubernetes objects on one node, and what has to become of packets, health ports and old flows
//! (docs/conformance.md). [`course`] tries one on a [`subject`], [`judge`] compares; neither knows any case.

mod case;
mod course;
mod host;
mod judge;
mod lab;
mod subject;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, ensure};
use serde::Serialize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

pub use self::case::{Case, parse, read};
use self::host::Host;
use self::lab::Lab;
pub use self::lab::Programs;
use self::subject::Subject;

/// The project's own cases, in the workspace.
pub const CASES: &str = "lb-userspace/tests/conformance/cases.yaml";

/// Which cases to try, and how.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// The file of cases. [default: those of this repository]
    #[arg(long, value_name = "FILE")]
    cases: Option<PathBuf>,
    /// Where to try them: the packet logic on the host, or real programs and sockets. [default: on both]
    #[arg(long, value_enum)]
    on: Option<On>,
    /// Only cases whose id matches this regular expression.
    #[arg(long, value_name = "REGEX")]
    only: Option<String>,
    /// How to print the results.
    #[arg(long, short, value_enum, default_value_t)]
    output: Output,
}

/// Where cases are tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum On {
    /// The control plane over maps in memory, and the packet logic built for the host: needs nothing.
    Host,
    /// An agent with its programs in network namespaces, and packets of real sockets: needs root.
    Lab,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
enum Output {
    /// For people: a line for each case.
    #[default]
    Text,
    /// For programs: one document.
    Json,
}

impl Options {
    /// Where to try, in this order.
    pub fn places(&self) -> Vec<On> {
        self.on.map_or_else(|| vec![On::Host, On::Lab], |on| vec![on])
    }

    /// The cases that were asked for, of all that the file has.
    ///
    /// # Errors
    /// If the file is not one of cases.
    pub fn cases(&self, workspace: &Path) -> anyhow::Result<Vec<Case>> {
        let file = self.cases.clone().unwrap_or_else(|| workspace.join(CASES));
        let mut cases = read(&file)?;
        if let Some(only) = &self.only {
            let only = regex::Regex::new(only).with_context(|| format!("understand --only {only}"))?;
            cases.retain(|case| only.is_match(&case.id));
            ensure!(!cases.is_empty(), "no case of {} matches --only {only}", file.display());
        }
        Ok(cases)
    }

    /// Tries the cases, prints what became of them, and tells whether none failed.
    ///
    /// # Errors
    /// If they cannot be tried.
    pub fn run(&self, cases: &[Case], programs: &Programs) -> anyhow::Result<bool> {
        let text = self.output == Output::Text;
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&stop)).context("watch for Ctrl-C")?;
        }
        let mut results = Vec::new();
        for on in self.places() {
            if text && self.on.is_none() {
                println!("On the {}:", if on == On::Host { "host" } else { "lab's node" });
            }
            results.extend(try_on(on, cases, programs, |result| {
                if text {
                    println!("{result}");
                }
                // What stands is removed on the way out.
                ensure!(!stop.load(Ordering::Relaxed), "interrupted");
                Ok(())
            })?);
        }
        let failed = results.iter().filter(|result| result.result == Outcome::Fail).count();
        let report = Report {
            passed: results.len() - failed,
            failed,
            skipped: 0,
            cases: results,
        };
        if text {
            println!("{report}");
        } else {
            println!("{}", serde_json::to_string_pretty(&report).context("write JSON")?);
        }
        Ok(failed == 0)
    }
}

/// What became of all cases.
#[derive(Debug, Serialize)]
struct Report {
    cases: Vec<CaseResult>,
    passed: usize,
    failed: usize,
    /// Every case can be fed to both, also one that an API server would refuse.
    skipped: usize,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

/// What became of a case.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct CaseResult {
    /// Its name.
    pub id: String,
    /// Where it was tried.
    pub on: &'static str,
    /// In a word.
    pub result: Outcome,
    /// What is not as it has to be.
    pub differences: Vec<String>,
}

/// What became of a case, in a word.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// All is as it has to be.
    Ok,
    /// Something is not.
    Fail,
}

impl fmt::Display for CaseResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.result {
            Outcome::Ok => "ok",
            Outcome::Fail => "FAIL",
        };
        write!(f, "{word} {}", self.id)?;
        for difference in &self.differences {
            write!(f, "\n    {difference}")?;
        }
        Ok(())
    }
}

/// Tries cases on one subject, and tells each result as it comes.
///
/// # Errors
/// If the subject is not there at all, and those of `tell`, which end it.
pub fn try_on(
    on: On,
    cases: &[Case],
    programs: &Programs,
    mut tell: impl FnMut(&CaseResult) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<CaseResult>> {
    let mut subject: Box<dyn Subject> = match on {
        On::Host => Box::new(Host::start(&programs.conformance)?),
        On::Lab => Box::new(Lab::new(programs.clone())?),
    };
    let mut results = Vec::new();
    for case in cases {
        let differences = match course::run(case, &mut *subject) {
            Ok(differences) => differences,
            Err(error) => vec![format!("it cannot be tried: {error:#}")],
        };
        let result = CaseResult {
            id: case.id.clone(),
            on: subject.name(),
            result: if differences.is_empty() {
                Outcome::Ok
            } else {
                Outcome::Fail
            },
            differences,
        };
        tell(&result)?;
        results.push(result);
    }
    Ok(results)
}
