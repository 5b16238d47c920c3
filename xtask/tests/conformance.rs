//! The conformance cases in the lab: a real agent, its programs, and packets of real sockets.

mod common;

use common::cases;
use xtask::conformance::On;

#[test]
fn every_case_comes_out_in_the_lab_as_it_should() {
    cases::all_pass(On::Lab, "every_case_comes_out_in_the_lab_as_it_should");
}

#[test]
fn the_lab_tells_wrong_expectations() {
    cases::wrong_ones_fail(On::Lab, "the_lab_tells_wrong_expectations");
}
