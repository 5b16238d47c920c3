//! Running programs in turn, and what to make of many short rounds.

use std::time::Duration;

use anyhow::Result;
use aya::programs::ProgramFd;
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;

use super::objects::Reference;
use super::packets::Course;

/// Nanoseconds for each packet: the median over rounds, and the quartiles around it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Cost {
    /// The median.
    pub ns: f64,
    /// A quarter of the rounds was faster than this.
    pub lower: f64,
    /// A quarter of the rounds was slower than this.
    pub upper: f64,
}

impl Cost {
    /// What rounds say.
    pub fn of(rounds: &[f64]) -> Self {
        let mut rounds = rounds.to_vec();
        rounds.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let index = (rounds.len().saturating_sub(1) as f64 * share).round() as usize;
            rounds.get(index).copied().unwrap_or(f64::NAN)
        };
        Self {
            ns: at(0.5),
            lower: at(0.25),
            upper: at(0.75),
        }
    }
}

/// Nanoseconds for each of `repeat` packets, wrapper included. It is the time that this thread was on its CPU:
/// other processes' time is not in it.
pub fn time(bench: &mut Reference, program: &ProgramFd, course: &Course, repeat: u32) -> Result<f64> {
    bench.prepare(program, course)?;
    let before = cpu_time()?;
    bench.run(repeat)?;
    Ok((cpu_time()? - before).as_nanos() as f64 / f64::from(repeat))
}

fn cpu_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}
