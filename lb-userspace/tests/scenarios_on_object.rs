//! The scenario table on the loaded kernel object: each packet goes through the real programs by BPF_PROG_TEST_RUN,
//! over maps filled with the scenario's state. Verdict, packet, map writes and counts must be what the scenario
//! demands, and so the same as on the host build.
//!
//! Needs root. Sockets and devices without Ethernet headers cannot be had in test runs: these scenarios run on the
//! host build only, and are counted.

mod object;

use std::collections::BTreeMap;

use lb_common::abi::Addr4;
use lb_common::testing::damage::Numbers;
use lb_common::testing::env::FamilyMaps;
use lb_common::testing::show::difference;
use lb_common::testing::{Scenario, scenarios};
use object::Object;

/// Whether the test is to be skipped for want of privileges; says so.
fn is_skipped() -> bool {
    if !nix::unistd::geteuid().is_root() {
        assert!(
            std::env::var_os("FAIRWAY_REQUIRE").is_none(),
            "this test needs root to load the kernel object, and FAIRWAY_REQUIRE forbids to skip it"
        );
        eprintln!("skipped: loading the kernel object needs root");
        return true;
    }
    false
}

#[test]
fn every_scenario_ends_the_same_in_the_kernel() {
    if is_skipped() {
        return;
    }
    let mut objects: BTreeMap<usize, Object> = BTreeMap::new();
    let mut host_only: BTreeMap<&str, usize> = BTreeMap::new();
    let mut failures = Vec::new();
    let (mut ran, mut cuts) = (0, 0);
    for scenario in scenarios::all() {
        let object = objects
            .entry(scenario.world.v4.capacity)
            .or_insert_with(|| Object::load(scenario.world.v4.capacity).expect("the object loads"));
        match object.run(&scenario) {
            Err(object::Skip::Because(reason)) => *host_only.entry(reason).or_default() += 1,
            Err(object::Skip::Error(error)) => failures.push(format!("{}\n  {error:#}", scenario.sentence)),
            Ok(came) => {
                ran += 1;
                failures.extend(difference(&scenario, &scenario.expected, &came));
                failures.extend(difference(&scenario, &scenario.run(), &came));
            }
        }
        for cut in scenario.cuts() {
            match object.run(&cut) {
                Err(object::Skip::Because(reason)) => *host_only.entry(reason).or_default() += 1,
                Err(object::Skip::Error(error)) => failures.push(format!("{}\n  {error:#}", cut.sentence)),
                Ok(came) => {
                    cuts += 1;
                    failures.extend(difference(&cut, &cut.expected, &came));
                }
            }
        }
    }
    println!("{ran} scenarios and {cuts} cut packets on the loaded object");
    for (reason, count) in &host_only {
        println!("{count} on the host only: {reason}");
    }
    assert!(
        failures.is_empty(),
        "{} differ:\n\n{}",
        failures.len(),
        failures.join("\n\n")
    );
    assert!(ran > 0, "no scenario ran");
}

/// Rounds over the table, with other bytes changed in each.
const ROUNDS: usize = 8;

#[test]
fn damaged_packets_end_the_same_in_the_kernel_as_on_the_host() {
    if is_skipped() {
        return;
    }
    let roomy = FamilyMaps::<Addr4>::ROOMY;
    let mut object = Object::load(roomy).expect("the object loads");
    let mut numbers = Numbers(4);
    let mut failures = Vec::new();
    let (mut ran, mut refused) = (0, 0);
    let all = scenarios::all();
    for scenario in (0..ROUNDS).flat_map(|_| &all) {
        let Some(damaged) = scenario.damaged(&mut numbers) else {
            continue;
        };
        if damaged.world.v4.capacity != roomy {
            continue;
        }
        match object.run(&damaged) {
            Err(object::Skip::Because(_)) => refused += 1,
            Err(object::Skip::Error(error)) => failures.push(format!("{}\n  {error:#}", damaged.sentence)),
            Ok(came) => {
                ran += 1;
                failures.extend(difference(&damaged, &damaged.expected, &came));
            }
        }
    }
    println!("{ran} damaged packets on the loaded object, {refused} that test runs do not take");
    failures.truncate(20);
    assert!(
        failures.is_empty(),
        "these differ, or more:\n\n{}",
        failures.join("\n\n")
    );
}

/// Keeps the table honest: a scenario that nobody can tell from another is written twice.
#[test]
fn no_two_scenarios_share_a_sentence() {
    let mut sentences: BTreeMap<(String, &str), usize> = BTreeMap::new();
    for Scenario { sentence, family, .. } in scenarios::all() {
        *sentences.entry((sentence, family)).or_default() += 1;
    }
    let twice: Vec<_> = sentences.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
}
