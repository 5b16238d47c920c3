//! A scenario: what is in the maps, what comes in, and what is demanded of it.

use std::format;
use std::rc::Rc;
use std::string::String;
use std::vec::Vec;

use super::packet::{Ran, run};
use super::{FakeEnv, World};
use crate::abi::{Hook, Outcome};
use crate::datapath::Verdict;
use crate::wire::Be16;

/// A scenario: one input, and all that is demanded of it.
pub struct Scenario {
    /// What happens to the packet, in one sentence.
    pub sentence: String,
    /// The family's name.
    pub family: &'static str,
    /// What is in the maps.
    pub world: World,
    /// What comes in.
    pub input: Input,
    /// What is demanded.
    pub expected: Expected,
    /// Cut to fewer bytes than these, the packet must pass as it came.
    pub needed: usize,
}

/// What comes in.
#[derive(Clone)]
pub enum Input {
    /// A packet, at a hook.
    Packet {
        /// The hook.
        hook: Hook,
        /// Whether it has an Ethernet header.
        ethernet: bool,
        /// Its EtherType, in host order.
        ethertype: u16,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// A socket that asks, or is told.
    Socket(Call),
}

/// What comes out.
#[derive(Clone, PartialEq, Debug)]
pub enum Output {
    /// The verdict, the packet's bytes, and the device that the verdict is about (0 if about none).
    Packet(Verdict, Vec<u8>, u32),
    /// What the socket gets, in words.
    Socket(String),
}

impl Output {
    /// What becomes of a packet. Nobody sees the bytes of one that is dropped; of all verdicts only two are about
    /// another device.
    pub fn packet(verdict: Verdict, bytes: Vec<u8>, device: u32) -> Self {
        match verdict {
            Verdict::Drop(_) => Self::Packet(verdict, Vec::new(), 0),
            Verdict::Pass | Verdict::Reflect => Self::Packet(verdict, bytes, 0),
            Verdict::Deliver | Verdict::Output => Self::Packet(verdict, bytes, device),
        }
    }
}

/// What is demanded.
#[derive(Clone, PartialEq, Debug)]
pub struct Expected {
    /// What comes out.
    pub output: Output,
    /// What is in the maps afterwards.
    pub world: World,
}

impl Scenario {
    /// Runs it on the host build.
    pub fn run(&self) -> Expected {
        match &self.input {
            Input::Packet {
                hook,
                ethernet,
                ethertype,
                bytes,
            } => {
                let Ran {
                    verdict,
                    packet,
                    device,
                    world,
                } = run(*hook, *ethernet, Be16::new(*ethertype), bytes, &self.world);
                Expected {
                    output: Output::packet(verdict, packet, device),
                    world,
                }
            }
            Input::Socket(call) => {
                let env = FakeEnv::new(self.world.clone());
                let output = Output::Socket(call(&env));
                Expected {
                    output,
                    world: env.world(),
                }
            }
        }
    }

    /// The scenarios that follow from [`Scenario::needed`]: the packet, cut to each length.
    pub fn cuts(&self) -> Vec<Scenario> {
        let Input::Packet {
            hook,
            ethernet,
            ethertype,
            bytes,
        } = &self.input
        else {
            return Vec::new();
        };
        (0..self.needed)
            .map(|len| {
                let bytes = bytes[..len].to_vec();
                let mut world = self.world.clone();
                *world.counts.entry(Outcome::NotOurs.slot(*hook)).or_default() += 1;
                Scenario {
                    sentence: format!("{} Cut after {len} bytes.", self.sentence),
                    family: self.family,
                    world: self.world.clone(),
                    expected: Expected {
                        output: Output::packet(Verdict::Pass, bytes.clone(), 0),
                        world,
                    },
                    input: Input::Packet {
                        hook: *hook,
                        ethernet: *ethernet,
                        ethertype: *ethertype,
                        bytes,
                    },
                    needed: 0,
                }
            })
            .collect()
    }
}

/// A call into the packet logic, and what came of it in words.
pub type Call = Rc<dyn Fn(&FakeEnv) -> String>;
