//! `cargo xtask bench ingress`: `fairway ingress` beside nginx as a reverse proxy, with the same rules, before the same
//! backend, in turns.
//!
//! ```text
//!   wrk ──► nginx as a proxy ──┐
//!       └─► fairway ingress ───┴──► nginx as the backend (a fixed answer of 100 bytes)
//! ```
//!
//! Everything is on loopback and shares the machine's processors; so figures of one run are compared with each other and
//! with nothing else. Both proxies have as many workers as there are processors, keep connections to the backend, write
//! the same headers, and write no access log.

mod load;
mod servers;

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde::Serialize;

use self::load::{Load, Measured};
use self::servers::{Backend, Fairway, Nginx, until_it_answers};
use super::Output;
use crate::{
    build,
    setup::{self, Need},
};

/// What to measure.
#[derive(Args)]
pub struct Options {
    /// How to print the figures.
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Fewer and shorter rounds: for a first look.
    #[arg(long)]
    quick: bool,
    /// Connections of clients at a time.
    #[arg(long, default_value_t = 32)]
    connections: u16,
}

/// One of the two, in one cell: medians over its rounds.
#[derive(Clone, Copy, Serialize)]
struct Figures {
    requests_per_second: f64,
    p99_ms: f64,
    errors: u64,
}

/// Both, under one kind of load.
#[derive(Serialize)]
struct Cell {
    hosts: usize,
    connections: &'static str,
    nginx: Figures,
    fairway: Figures,
    /// Fairway's rate in parts of nginx's: more is better.
    rate_ratio: f64,
    /// Fairway's 99th percentile in parts of nginx's: less is better.
    p99_ratio: f64,
}

/// How long a new rule takes among many, and what it costs.
#[derive(Serialize)]
struct Update {
    hosts: usize,
    /// From the file until the new host is answered, under load.
    until_answered_ms: f64,
    errors: u64,
}

#[derive(Serialize)]
struct Report {
    cells: Vec<Cell>,
    update: Update,
}

/// Hosts of the large table.
const MANY: usize = 1000;

/// Measures both.
///
/// # Errors
/// If something cannot be built or started, or one of the proxies does not answer.
pub fn run(options: &Options) -> Result<()> {
    setup::ensure(&[Need::Build, Need::Bench])?;
    let program = build::build_binary("fairway", true)?.fairway;
    let folder = std::env::temp_dir().join(format!("fairway-bench-{}", std::process::id()));
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let report = measure(options, &program, &folder);
    // What is left in there helps to see why it failed.
    if report.is_ok() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    print(&report?, options.output)
}

fn measure(options: &Options, program: &Path, folder: &Path) -> Result<Report> {
    let (rounds, length) = if options.quick { (1, 2) } else { (5, 4) };
    let backend = Backend::start(folder)?;
    let mut cells = Vec::new();
    let mut update = None;
    for hosts in [1, MANY] {
        let nginx = Nginx::start(folder, hosts, backend.port)?;
        let fairway = Fairway::start(program, folder, hosts, backend.port)?;
        for port in [nginx.port, fairway.port] {
            until_it_answers(port, &servers::host(hosts - 1))?;
        }
        for (connections, close) in [("kept", false), ("new", true)] {
            let load = Load {
                hosts,
                close,
                connections: options.connections,
                seconds: length,
            };
            let mut of = [Vec::new(), Vec::new()];
            // The first round is for getting warm.
            for round in 0..=rounds {
                for (port, measured) in [nginx.port, fairway.port].into_iter().zip(&mut of) {
                    let one = load.run(folder, port)?;
                    if round > 0 {
                        measured.push(one);
                    }
                }
            }
            let [nginx, fairway] = of.map(|measured| median(&measured));
            cells.push(Cell {
                hosts,
                connections,
                nginx,
                fairway,
                rate_ratio: fairway.requests_per_second / nginx.requests_per_second,
                p99_ratio: fairway.p99_ms / nginx.p99_ms,
            });
        }
        if hosts == MANY {
            update = Some(new_rule(options, &fairway, folder, length)?);
        }
    }
    Ok(Report {
        cells,
        update: update.context("the large table was measured")?,
    })
}

/// Adds a rule under load.
fn new_rule(options: &Options, fairway: &Fairway, folder: &Path, seconds: u16) -> Result<Update> {
    let load = Load {
        hosts: MANY,
        close: false,
        connections: options.connections,
        seconds,
    };
    let measured = thread::scope(|scope| -> Result<(Measured, Duration)> {
        let asked = scope.spawn(|| load.run(folder, fairway.port));
        thread::sleep(Duration::from_secs(1));
        let began = Instant::now();
        fairway.add("new.example")?;
        until_it_answers(fairway.port, "new.example")?;
        let took = began.elapsed();
        let measured = asked.join().ok().context("the load has panicked")??;
        Ok((measured, took))
    })?;
    Ok(Update {
        hosts: MANY,
        until_answered_ms: measured.1.as_secs_f64() * 1000.0,
        errors: measured.0.errors,
    })
}

fn median(measured: &[Measured]) -> Figures {
    let middle = |of: fn(&Measured) -> f64| {
        let mut values: Vec<_> = measured.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Figures {
        requests_per_second: middle(|one| one.requests_per_second),
        p99_ms: middle(|one| one.p99_ms),
        errors: measured.iter().map(|one| one.errors).sum(),
    }
}

fn print(report: &Report, output: Output) -> Result<()> {
    if matches!(output, Output::Json) {
        println!(
            "{}",
            serde_json::to_string_pretty(report).context("the report is JSON")?
        );
    } else {
        println!("hosts  connections    nginx/s  p99 ms  fairway/s  p99 ms   rate    p99  errors");
        for cell in &report.cells {
            println!(
                "{:>5}  {:<11} {:>10.0} {:>7.2} {:>10.0} {:>7.2} {:>5.2}x {:>5.2}x {:>7}",
                cell.hosts,
                cell.connections,
                cell.nginx.requests_per_second,
                cell.nginx.p99_ms,
                cell.fairway.requests_per_second,
                cell.fairway.p99_ms,
                cell.rate_ratio,
                cell.p99_ratio,
                cell.nginx.errors + cell.fairway.errors,
            );
        }
        println!(
            "a new rule among {} is answered after {:.1} ms under load, {} errors",
            report.update.hosts, report.update.until_answered_ms, report.update.errors
        );
    }
    let failed = report.update.errors + report.cells.iter().map(|cell| cell.fairway.errors).sum::<u64>();
    ensure!(failed == 0, "{failed} requests through fairway have failed");
    Ok(())
}
