//! What is read when somebody asks for metrics, rather than counted along the way.

use std::fmt::{self, Debug};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use nix::unistd::{SysconfVar, sysconf};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use tracing::debug;

use super::names;
use super::samples::{self, Name, family, single};
use super::{seconds, since_epoch};
use crate::datapath::pin::PinDir;
use crate::model::Problem;
use crate::observe::state::Connections;
use crate::observe::status;

/// Where it is read.
pub(super) struct Scrape {
    pub(super) pins: PinDir,
    pub(super) started: SystemTime,
    /// What the last passes over the connection tables found.
    pub(super) connections: Arc<Mutex<Vec<Connections>>>,
    /// What is wrong at present.
    pub(super) problems: Arc<Mutex<Vec<Problem>>>,
}

impl Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scrape").finish_non_exhaustive()
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.build(&mut encoder)?;
        self.packets(&mut encoder)?;
        self.connections(&mut encoder)?;
        self.problems(&mut encoder)?;
        self.process(&mut encoder)
    }
}

impl Scrape {
    fn build(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let labels = [("version", env!("CARGO_PKG_VERSION").to_owned())];
        family(encoder, names::BUILD, [(labels, ConstGauge::new(1_u64))])
    }

    fn packets(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let counts = status::counters(&self.pins).unwrap_or_else(|error| {
            debug!(%error, "packets could not be counted");
            Vec::new()
        });
        let samples = counts.into_iter().map(|count| {
            let labels = [("hook", count.hook.to_owned()), ("outcome", count.outcome.to_owned())];
            (labels, ConstCounter::new(count.packets))
        });
        family(encoder, names::PACKETS, samples)
    }

    fn connections(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let seen = self.connections.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let gauge = |encoder: &mut DescriptorEncoder<'_>, name: Name, of: fn(&Connections) -> u64| {
            let samples = seen.iter().map(|c| ([("ip_family", c.family.clone())], of(c)));
            family(
                encoder,
                name,
                samples.map(|(labels, value)| (labels, ConstGauge::new(value))),
            )
        };
        gauge(encoder, names::CONNECTIONS, |c| c.connections as u64)?;
        gauge(encoder, names::TABLE_ENTRIES, |c| c.entries as u64)?;
        gauge(encoder, names::TABLE_CAPACITY, |c| c.capacity.into())?;
        let removed = seen.iter().map(|c| {
            let labels = [("ip_family", c.family.clone())];
            (labels, ConstCounter::new(c.removed))
        });
        family(encoder, names::CONNECTIONS_REMOVED, removed)
    }

    fn problems(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner).clone();
        samples::problems(encoder, names::PROBLEM, &problems)
    }

    fn process(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        if let Some(used) = cpu_seconds() {
            single(encoder, names::PROCESS_CPU, &ConstCounter::new(used))?;
        }
        if let Some(bytes) = resident_bytes() {
            single(encoder, names::PROCESS_MEMORY, &ConstGauge::new(bytes))?;
        }
        if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
            single(encoder, names::PROCESS_FILES, &ConstGauge::new(open.count() as u64))?;
        }
        single(
            encoder,
            names::PROCESS_START,
            &ConstGauge::new(seconds(since_epoch(self.started))),
        )
    }
}

/// See proc_pid_stat(5): the 14th and 15th fields, of which the second one may hold spaces and ends in the last `)`.
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks: u32 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u32>().ok())
        .sum();
    let per_second = u32::try_from(sysconf(SysconfVar::CLK_TCK).ok()??).ok()?;
    Some(f64::from(ticks) / f64::from(per_second))
}

/// See proc_pid_statm(5): the second field, in pages.
fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    let page = u64::try_from(sysconf(SysconfVar::PAGE_SIZE).ok()??).ok()?;
    Some(pages * page)
}
