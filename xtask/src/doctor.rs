//! `cargo xtask doctor`: what is there, what is missing, and the exact command that brings it.

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::{
    requirements::{self, Check, State},
    setup::{self, Need},
};

/// What the doctor looks at and how it answers.
#[derive(Args)]
pub struct Options {
    /// Look at one group only (may be given several times).
    #[arg(long = "for", value_enum)]
    needs: Vec<Need>,
    /// The form of the report.
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Serialize)]
struct Report<'a> {
    system: String,
    complete: bool,
    checks: &'a [Check],
}

/// Prints the report; fails if something is missing.
///
/// # Errors
/// If something is missing, with the number of things.
pub fn run(options: &Options) -> Result<()> {
    let needs = if options.needs.is_empty() {
        &Need::ALL[..]
    } else {
        &options.needs
    };
    let checks = setup::checks(needs);
    let missing = checks.iter().filter(|check| check.state == State::Missing).count();
    match options.output {
        Output::Json => {
            let report = Report {
                system: requirements::system(),
                complete: missing == 0,
                checks: &checks,
            };
            println!(
                "{}",
                serde_json::to_string_pretty(&report).context("cannot write JSON")?
            );
        }
        Output::Table => print!("{}", table(&checks)),
    }
    match missing {
        0 => Ok(()),
        1 => bail!("1 thing is missing; the verbs that need it bring what a program can bring"),
        n => bail!("{n} things are missing; the verbs that need them bring what a program can bring"),
    }
}

fn table(checks: &[Check]) -> String {
    let width = checks
        .iter()
        .map(|check| check.name.chars().count())
        .max()
        .unwrap_or_default();
    let mut text = format!("{}\n", requirements::system());
    for check in checks {
        let state = match check.state {
            State::Present => "ok     ",
            State::Limited => "limited",
            State::Missing => "MISSING",
        };
        text += &format!(
            "{state}  {:<10}  {:<width$}  {}\n",
            check.need.title(),
            check.name,
            check.found
        );
        if let Some(remedy) = &check.remedy {
            text += &format!("         {:<10}  remedy: {remedy}\n", "");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_stands_with_the_command_that_brings_it() {
        let checks = [
            Check::present(Need::Build, "a compiler", "1.96"),
            Check::missing(
                Need::Kernel,
                "BPF filesystem",
                "not mounted",
                "mount -t bpf bpf /sys/fs/bpf",
            ),
        ];
        let table = table(&checks);
        assert!(
            table.contains("MISSING  kernel      BPF filesystem  not mounted\n"),
            "{table}"
        );
        assert!(table.contains("remedy: mount -t bpf bpf /sys/fs/bpf\n"), "{table}");
    }
}
