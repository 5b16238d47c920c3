//! Maps in memory, for tests: well behaved ones, and ones that fail.

use std::collections::BTreeMap;

use lb_common::abi::Family;

use super::{FamilyContents, FamilyOp, Limits, MapContents, Maps, MapsError, Op};

/// Maps in memory.
#[derive(Clone, PartialEq, Debug)]
pub struct FakeMaps {
    /// What is in them.
    pub contents: MapContents,
    /// `MAGLEV`, as far as it has been written.
    pub maglev: Vec<u32>,
    /// Every change so far, in its order.
    pub log: Vec<Op>,
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
            log: Vec::new(),
            limits,
        }
    }

    fn check(&self, op: &Op) -> Result<(), MapsError> {
        let limits = self.limits;
        match op {
            Op::V4(op) => check(&self.contents.v4, op, &limits),
            Op::V6(op) => check(&self.contents.v6, op, &limits),
            Op::SetMaglev { offset, slots } if *offset as usize + slots.len() > limits.maglev as usize => {
                Err(full("MAGLEV", limits.maglev))
            }
            _ => Ok(()),
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
        self.check(op)?;
        if let Op::SetMaglev { offset, slots } = op {
            let first = *offset as usize;
            let end = first + slots.len();
            if self.maglev.len() < end {
                self.maglev.resize(end, 0);
            }
            self.maglev[first..end].copy_from_slice(slots);
        }
        self.contents.apply(op);
        self.log.push(op.clone());
        Ok(())
    }

    fn read_maglev(&mut self, offset: u32, len: u32, slots: &mut Vec<u32>) -> Result<(), MapsError> {
        let end = offset.saturating_add(len).min(self.limits.maglev) as usize;
        slots.extend((offset as usize..end).map(|slot| self.maglev.get(slot).copied().unwrap_or(0)));
        Ok(())
    }
}

fn check<F: Family>(contents: &FamilyContents<F>, op: &FamilyOp<F>, limits: &Limits) -> Result<(), MapsError> {
    match op {
        FamilyOp::SetBackend(id, _) if *id >= limits.backends => Err(full("BACKENDS", limits.backends)),
        FamilyOp::SetFrontend(key, _)
            if contents.frontends.len() >= limits.frontends as usize && !contents.frontends.contains_key(key) =>
        {
            Err(full("FRONTENDS", limits.frontends))
        }
        _ => Ok(()),
    }
}

const fn full(map: &'static str, capacity: u32) -> MapsError {
    MapsError::Full { map, capacity }
}

/// Maps in memory that refuse some changes.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct FaultyMaps {
    /// The maps behind.
    pub maps: FakeMaps,
    /// Which changes are refused: those with these places in the order of all attempts, from 0 on.
    pub refused: BTreeMap<usize, std::io::ErrorKind>,
    /// Attempts so far.
    pub attempts: usize,
}

impl Maps for FaultyMaps {
    fn limits(&self) -> Limits {
        self.maps.limits()
    }

    fn dump(&mut self) -> Result<MapContents, MapsError> {
        self.maps.dump()
    }

    fn apply(&mut self, op: &Op) -> Result<(), MapsError> {
        let attempt = self.attempts;
        self.attempts += 1;
        if let Some(kind) = self.refused.get(&attempt) {
            return Err(MapsError::Write {
                map: "(faulty)",
                source: (*kind).into(),
            });
        }
        self.maps.apply(op)
    }

    fn read_maglev(&mut self, offset: u32, len: u32, slots: &mut Vec<u32>) -> Result<(), MapsError> {
        self.maps.read_maglev(offset, len, slots)
    }
}
