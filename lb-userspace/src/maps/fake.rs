//! Maps in memory.

use super::{FamilyContents, FamilyOp, Limits, MapContents, Maps, MapsError, Op};
use lb_common::abi::Family;

/// Maps in memory.
#[derive(Clone, Debug)]
pub struct FakeMaps {
    /// What is in them.
    pub contents: MapContents,
    /// `MAGLEV`.
    pub maglev: Vec<u32>,
    limits: Limits,
}

impl Default for FakeMaps {
    fn default() -> Self {
        Self::new(Limits {
            frontends: 1 << 18,
            backends: 1 << 19,
            maglev: 1 << 24,
        })
    }
}

impl FakeMaps {
    /// Empty maps that take this much.
    pub fn new(limits: Limits) -> Self {
        Self {
            contents: MapContents::default(),
            maglev: Vec::new(),
            limits,
        }
    }
}

impl Maps for FakeMaps {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn dump(&mut self) -> Result<MapContents, MapsError> {
        Ok(self.contents.clone())
    }

    fn apply(&mut self, op: &Op) -> Result<(), MapsError> {
        match op {
            Op::V4(op) => self.contents.v4.apply(op, &self.limits)?,
            Op::V6(op) => self.contents.v6.apply(op, &self.limits)?,
            Op::SetMaglev { offset, slots } => {
                let first = *offset as usize;
                let end = first + slots.len();
                if end > self.limits.maglev as usize {
                    return Err(full("MAGLEV", self.limits.maglev));
                }
                if self.maglev.len() < end {
                    self.maglev.resize(end, 0);
                }
                self.maglev[first..end].copy_from_slice(slots);
            }
            Op::AddAffinityMember(member) => {
                self.contents.affinity_members.insert(*member);
            }
            Op::RemoveAffinityMember(member) => {
                self.contents.affinity_members.remove(member);
            }
            Op::SetFilter { bucket, bits } => self.contents.filter[*bucket as usize] |= bits,
            Op::SetNodePort(port) => self.contents.node_ports[usize::from(port >> 3)] |= 1 << (port & 7),
            Op::SetConfig(config) => self.contents.config = *config,
        }
        Ok(())
    }

    fn read_maglev(&mut self, offset: u32, len: u32, slots: &mut Vec<u32>) -> Result<(), MapsError> {
        let end = offset.saturating_add(len).min(self.limits.maglev) as usize;
        for slot in offset as usize..end {
            slots.push(self.maglev.get(slot).copied().unwrap_or(0));
        }
        Ok(())
    }
}

impl<F: Family> FamilyContents<F> {
    fn apply(&mut self, op: &FamilyOp<F>, limits: &Limits) -> Result<(), MapsError> {
        match op {
            FamilyOp::SetBackend(id, backend) => {
                if *id >= limits.backends {
                    return Err(full("BACKENDS", limits.backends));
                }
                let index = *id as usize;
                if self.backends.len() <= index {
                    self.backends.resize(index + 1, lb_common::abi::Backend::default());
                }
                self.backends[index] = *backend;
            }
            FamilyOp::SetFrontend(key, frontend) => {
                if self.frontends.len() >= limits.frontends as usize && !self.frontends.contains_key(key) {
                    return Err(full("FRONTENDS", limits.frontends));
                }
                self.frontends.insert(*key, *frontend);
            }
            FamilyOp::RemoveFrontend(key) => {
                self.frontends.remove(key);
            }
            FamilyOp::AddSourceRange(key) => {
                self.source_ranges.insert(*key);
            }
            FamilyOp::RemoveSourceRange(key) => {
                self.source_ranges.remove(key);
            }
            FamilyOp::AddPodCidr(key) => {
                self.pod_cidrs.insert(*key);
            }
            FamilyOp::RemovePodCidr(key) => {
                self.pod_cidrs.remove(key);
            }
            FamilyOp::AddServiceCidr(key) => {
                self.service_cidrs.insert(*key);
            }
            FamilyOp::RemoveServiceCidr(key) => {
                self.service_cidrs.remove(key);
            }
        }
        Ok(())
    }
}

const fn full(map: &'static str, capacity: u32) -> MapsError {
    MapsError::Full { map, capacity }
}
