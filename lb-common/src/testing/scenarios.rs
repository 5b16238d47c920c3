//! The scenario table: what Fairway does with a packet, one case after the other, in both families.

mod forward;

use std::vec::Vec;

use super::{Cast, Scenario};
use crate::abi::{V4, V6};

/// Every scenario there is.
pub fn all() -> Vec<Scenario> {
    let mut all = of::<V4>();
    all.extend(of::<V6>());
    all
}

fn of<F: Cast>() -> Vec<Scenario> {
    [forward::scenarios::<F>()].into_iter().flatten().collect()
}
