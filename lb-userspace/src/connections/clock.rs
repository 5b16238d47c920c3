//! The clock of the data path, read without it: jiffies from the monotonic clock.
//!
//! The kernel advances jiffies by the monotonic clock (`tick_do_update_jiffies64`, 6.18), so their difference is
//! constant. It is measured once, by the program `fairway_clock`, else read from `/proc/timer_list`, else taken
//! from the kernel's convention to begin 300 seconds before zero.

use lb_common::abi::Config;

use crate::datapath::pin::PinDir;
use crate::maps::bpf::BpfMap;
use crate::sys;

/// Tells what the data path's clock shows now: the low 32 bits of jiffies.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    hz: u32,
    offset: u32,
}

impl Clock {
    /// Measures, by what an agent with these pins has left.
    pub fn measure(pins: &PinDir) -> Self {
        let config = BpfMap::<u32, Config>::open(pins, "CONFIG").and_then(|map| map.get(&0));
        let hz = config
            .ok()
            .flatten()
            .map(|config| config.hz)
            .filter(|hz| *hz != 0)
            .unwrap_or_else(sys::hz);
        let before = ticks(hz);
        let jiffies = by_program(pins)
            .or_else(by_timer_list)
            .unwrap_or_else(|| by_convention(hz));
        Self {
            hz,
            offset: jiffies.wrapping_sub(before),
        }
    }

    /// What it shows now.
    pub fn now(&self) -> u32 {
        ticks(self.hz).wrapping_add(self.offset)
    }

    /// Whole seconds from `then` to `now`; 0 if `then` is a little later.
    pub fn seconds(&self, now: u32, then: u32) -> u32 {
        let passed = now.wrapping_sub(then);
        if passed > u32::MAX / 2 {
            0
        } else {
            passed / self.hz.max(1)
        }
    }
}

/// The monotonic clock in ticks, low 32 bits.
fn ticks(hz: u32) -> u32 {
    let tick_ns = 1_000_000_000 / u64::from(hz.max(1));
    low(sys::monotonic_ns() / tick_ns)
}

fn low(wide: u64) -> u32 {
    u32::try_from(wide & u64::from(u32::MAX)).unwrap_or(0)
}

fn by_program(pins: &PinDir) -> Option<u32> {
    let program = sys::open_pinned(&pins.program("fairway_clock")).ok()?;
    let map = BpfMap::<u32, u64>::open(pins, "CLOCK").ok()?;
    sys::run_once(&program).ok()?;
    map.get(&0).ok().flatten().filter(|jiffies| *jiffies != 0).map(low)
}

fn by_timer_list() -> Option<u32> {
    let list = std::fs::read_to_string("/proc/timer_list").ok()?;
    list.lines()
        .find_map(|line| line.strip_prefix("jiffies: ")?.parse().ok())
        .map(low)
}

fn by_convention(hz: u32) -> u32 {
    ticks(hz).wrapping_sub(300_u32.wrapping_mul(hz))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_counted_across_the_wrap_and_never_negative() {
        let clock = Clock { hz: 250, offset: 0 };
        assert_eq!(clock.seconds(500, 0), 2);
        assert_eq!(clock.seconds(250, u32::MAX - 249), 2);
        assert_eq!(clock.seconds(0, 5), 0);
    }

    #[test]
    fn jiffies_follow_the_kernels() {
        let Some(jiffies) = by_timer_list() else {
            eprintln!("skipped: /proc/timer_list cannot be read here");
            return;
        };
        let clock = Clock::measure(&PinDir::new("/nonexistent"));
        assert!(clock.now().wrapping_sub(jiffies) < 10 * clock.hz);
    }
}
