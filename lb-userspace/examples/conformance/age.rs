//! Makes the pins of session affinity of a running agent older.
//!
//! The data path tells time in jiffies, so an entry that was last used so many jiffies earlier is what it would be if
//! that time had passed. Everything else stays as it is.

use fairway::datapath::pin::PinDir;
use fairway::maps::bpf::BpfMap;
use fairway::sys::Plain;
use lb_common::abi::{Addr4, Addr6, AffinityEntry, AffinityKey, Config};

use anyhow::{Context as _, bail};

/// `age --milliseconds N --pin-dir DIR`.
pub fn run(arguments: &[String]) -> anyhow::Result<()> {
    let [first, milliseconds, second, pins] = arguments else {
        bail!("age --milliseconds N --pin-dir DIR");
    };
    if first != "--milliseconds" || second != "--pin-dir" {
        bail!("age --milliseconds N --pin-dir DIR");
    }
    let milliseconds: u64 = milliseconds.parse().context("understand --milliseconds")?;
    let pins = PinDir::new(pins);
    let config = BpfMap::<u32, Config>::open(&pins, "CONFIG")?.get(&0)?;
    let hz = config.context("the agent has written no CONFIG")?.hz;
    let jiffies = u32::try_from(milliseconds * u64::from(hz) / 1000).context("that is too long")?;
    age::<AffinityKey<Addr4>>(&pins, "AFFINITY_V4", jiffies)?;
    age::<AffinityKey<Addr6>>(&pins, "AFFINITY_V6", jiffies)
}

fn age<K: Plain + Copy>(pins: &PinDir, map: &'static str, jiffies: u32) -> anyhow::Result<()> {
    let map = BpfMap::<K, AffinityEntry>::open(pins, map)?;
    let mut found = Vec::new();
    map.walk(|chunk| found.extend_from_slice(chunk))?;
    for (key, entry) in found {
        let last_used = entry.last_used.wrapping_sub(jiffies);
        map.set(&key, &AffinityEntry { last_used, ..entry })?;
    }
    Ok(())
}
