//! The scenario table on the host build.

use lb_common::testing::scenarios;
use lb_common::testing::show::difference;

#[test]
fn every_scenario_ends_as_written() {
    let all = scenarios::all();
    let cuts: Vec<_> = all.iter().flat_map(lb_common::testing::Scenario::cuts).collect();
    let failures: Vec<String> = all
        .iter()
        .chain(&cuts)
        .filter_map(|scenario| difference(scenario, &scenario.expected, &scenario.run()))
        .collect();
    println!("{} scenarios, {} cut packets", all.len(), cuts.len());
    assert!(
        failures.is_empty(),
        "{} of {} failed:\n\n{}",
        failures.len(),
        all.len(),
        failures.join("\n\n")
    );
}
