//! Conformance cases for tests: all of them, and ones that expect what is not so.

use std::path::Path;

use xtask::conformance::{CASES, Case, On, Outcome, Programs, parse, read, try_on};

/// The project's own cases: as many as its file had when it was taken over.
const COUNT: usize = 128;

/// A Service with two endpoints, one of them on the node, and expectations of which each is wrong.
const WRONG: &str = include_str!("wrong_cases.yaml");

/// Fails unless every case of the repository comes out as it should.
pub fn all_pass(on: On, test: &str) {
    let Some(programs) = programs(on, test) else { return };
    let cases = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(CASES)).expect("the cases are read");
    assert_eq!(cases.len(), COUNT);
    let wrong: Vec<String> = results(on, &cases, &programs)
        .into_iter()
        .filter_map(|(id, differences)| (!differences.is_empty()).then(|| format!("{id}: {}", differences.join("\n"))))
        .collect();
    assert!(wrong.is_empty(), "{} cases failed:\n{}", wrong.len(), wrong.join("\n"));
}

/// Fails unless each expectation that is wrong is told, with what was seen instead.
pub fn wrong_ones_fail(on: On, test: &str) {
    let Some(programs) = programs(on, test) else { return };
    let cases = parse(WRONG).expect("the cases are read");
    for ((id, differences), case) in results(on, &cases, &programs).into_iter().zip(&cases) {
        // `about` says what has to be told of each packet, health port and flow.
        let wanted: Vec<&str> = case.about.split(" / ").collect();
        assert_eq!(differences.len(), wanted.len(), "{id}: {differences:#?}");
        for (difference, wanted) in differences.iter().zip(wanted) {
            assert!(
                difference.contains(wanted),
                "{id}: {wanted:?} is to be told: {difference}"
            );
        }
    }
}

fn results(on: On, cases: &[Case], programs: &Programs) -> Vec<(String, Vec<String>)> {
    let results = try_on(on, cases, programs, |_| Ok(())).expect("cases can be tried");
    for result in &results {
        assert_eq!(result.result == Outcome::Ok, result.differences.is_empty());
    }
    results
        .into_iter()
        .map(|result| (result.id, result.differences))
        .collect()
}

fn programs(on: On, test: &str) -> Option<Programs> {
    let variable = |name: &str| {
        let value = std::env::var_os(name);
        if value.is_none() {
            super::skip(test, &format!("{name} names no program; `cargo xtask test` does that"));
        }
        value
    };
    if on == On::Lab && !nix::unistd::geteuid().is_root() {
        super::skip(test, "needs root for network namespaces and BPF programs");
        return None;
    }
    Some(Programs {
        fairway: variable("FAIRWAY_BIN")?.into(),
        conformance: variable("FAIRWAY_CONFORMANCE")?.into(),
        xtask: env!("CARGO_BIN_EXE_xtask").into(),
    })
}
