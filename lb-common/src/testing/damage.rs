//! Scenarios with a few bytes of the packet changed: nobody has written down what becomes of them, so what the host
//! build does is what the kernel must do.

use std::format;
use std::vec::Vec;

use super::{Input, Scenario};

/// A generator of numbers that need not be good, only the same on every run (Knuth's MMIX constants).
pub struct Numbers(pub u64);

impl Numbers {
    /// The next number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit.max(1)
    }
}

/// Values that headers rarely have, or that mean something.
const VALUES: [u8; 13] = [0, 1, 6, 17, 44, 51, 60, 0x45, 0x4f, 0x7f, 0x81, 132, 0xff];

impl Scenario {
    /// The scenario with up to three bytes of the packet's headers changed, and what the host build makes of it.
    /// Nothing for sockets.
    pub fn damaged(&self, numbers: &mut Numbers) -> Option<Scenario> {
        let Input::Packet {
            hook,
            ethernet,
            ethertype,
            bytes,
        } = &self.input
        else {
            return None;
        };
        let mut bytes = bytes.clone();
        let mut changes = Vec::new();
        for _ in 0..=numbers.below(3) {
            // Link addresses mean nothing to us.
            let at = 12 + numbers.below(bytes.len().saturating_sub(12).min(90));
            let value = VALUES[numbers.below(VALUES.len())];
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
                changes.push(format!("byte {at} = {value:#04x}"));
            }
        }
        let mut scenario = Scenario {
            sentence: format!("{} But {}.", self.sentence, changes.join(", ")),
            family: self.family,
            world: self.world.clone(),
            expected: self.expected.clone(),
            input: Input::Packet {
                hook: *hook,
                ethernet: *ethernet,
                ethertype: *ethertype,
                bytes,
            },
            needed: 0,
        };
        scenario.expected = scenario.run();
        Some(scenario)
    }
}
