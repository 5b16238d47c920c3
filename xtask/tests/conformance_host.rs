//! The conformance cases on the host: the real control plane over maps in memory, and the packet logic over these.

mod common;

use common::cases;
use xtask::conformance::On;

#[test]
fn every_case_comes_out_on_the_host_as_it_should() {
    cases::all_pass(On::Host, "every_case_comes_out_on_the_host_as_it_should");
}

#[test]
fn the_host_tells_wrong_expectations() {
    cases::wrong_ones_fail(On::Host, "the_host_tells_wrong_expectations");
}
