//! Extents of `MAGLEV`: which part of the array holds the table of which backends.
//!
//! Sets of the same backends share an extent. An extent is written once and never changed; one that nobody uses is
//! free only after the maps have been brought up to date without it.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use lb_common::abi::BackendSet;

use crate::model::IpFamily;

/// What an extent holds: the table of these backends.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Content {
    pub(super) family: IpFamily,
    /// Ids, in the order of address and port.
    pub(super) backends: Arc<[u32]>,
    /// Its backends are in `AFFINITY_MEMBERS`.
    pub(super) affinity: bool,
}

/// An extent in use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    pub(super) set: BackendSet,
    pub(super) uses: u32,
}

/// All extents.
#[derive(Debug)]
pub(super) struct Extents {
    used: HashMap<Content, Extent>,
    room: Room,
    /// Unused since the maps were last up to date.
    resting: Vec<BackendSet>,
    /// Extents found in the maps that nobody has asked for yet, by what lies in them.
    unclaimed: HashMap<u64, Vec<BackendSet>>,
}

impl Extents {
    /// Begins with these extents in the array, given with the [`fingerprint`] of what lies in them.
    pub(super) fn restore(limit: u32, found: impl Iterator<Item = (BackendSet, u64)>) -> Self {
        let mut room = Room::new(limit);
        let mut unclaimed: HashMap<u64, Vec<BackendSet>> = HashMap::new();
        for (set, print) in found {
            if room.take_at(set) {
                unclaimed.entry(print).or_default().push(set);
            }
        }
        Self {
            used: HashMap::new(),
            room,
            resting: Vec::new(),
            unclaimed,
        }
    }

    /// Counts a use of an extent that is there.
    pub(super) fn add(&mut self, content: &Content) -> Option<BackendSet> {
        self.used.get_mut(content).map(|extent| {
            extent.uses += 1;
            extent.set
        })
    }

    /// Whether any extent found in the maps may still be asked for.
    pub(super) fn any_unclaimed(&self) -> bool {
        !self.unclaimed.is_empty()
    }

    /// An extent found in the maps in which this table lies already.
    pub(super) fn claim(&mut self, content: &Content, table: &[u32]) -> Option<BackendSet> {
        let sets = self.unclaimed.get_mut(&fingerprint(table, content.affinity))?;
        let index = sets.iter().position(|set| set.size as usize == table.len())?;
        let set = sets.swap_remove(index);
        self.used.insert(content.clone(), Extent { set, uses: 1 });
        Some(set)
    }

    /// A new extent of this size, to be written by the caller.
    pub(super) fn create(&mut self, content: &Content, size: u32) -> Option<BackendSet> {
        let set = self.room.take(size)?;
        self.used.insert(content.clone(), Extent { set, uses: 1 });
        Some(set)
    }

    /// Takes a use back; tells the extent if it was the last.
    pub(super) fn remove(&mut self, content: &Content) -> Option<BackendSet> {
        let extent = self.used.get_mut(content)?;
        extent.uses -= 1;
        if extent.uses > 0 {
            return None;
        }
        let set = extent.set;
        self.used.remove(content);
        self.resting.push(set);
        Some(set)
    }

    /// All extents in use.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Content, BackendSet)> {
        self.used.iter().map(|(content, extent)| (content, extent.set))
    }

    /// Everything that is there has asked for its extents: the rest of those found in the maps are free.
    pub(super) fn restored(&mut self) {
        self.resting
            .extend(std::mem::take(&mut self.unclaimed).into_values().flatten());
    }

    /// The maps no longer refer to what was given back.
    pub(super) fn settle(&mut self) {
        for set in self.resting.drain(..) {
            self.room.give(set);
        }
    }
}

/// Tells tables apart, and sets with members in `AFFINITY_MEMBERS` from those without.
pub(super) fn fingerprint(table: &[u32], affinity: bool) -> u64 {
    let mut hasher = DefaultHasher::new();
    (table, affinity).hash(&mut hasher);
    hasher.finish()
}

/// Free stretches of an array, by place and by size. The smallest that fits is taken.
#[derive(Debug)]
struct Room {
    by_offset: BTreeMap<u32, u32>,
    by_size: BTreeSet<(u32, u32)>,
}

impl Room {
    fn new(limit: u32) -> Self {
        let mut room = Self {
            by_offset: BTreeMap::new(),
            by_size: BTreeSet::new(),
        };
        room.insert(0, limit);
        room
    }

    fn insert(&mut self, offset: u32, size: u32) {
        if size > 0 {
            self.by_offset.insert(offset, size);
            self.by_size.insert((size, offset));
        }
    }

    fn remove(&mut self, offset: u32, size: u32) {
        self.by_offset.remove(&offset);
        self.by_size.remove(&(size, offset));
    }

    fn take(&mut self, size: u32) -> Option<BackendSet> {
        let (found, offset) = *self.by_size.range((size, 0)..).next()?;
        self.remove(offset, found);
        self.insert(offset + size, found - size);
        Some(BackendSet { offset, size })
    }

    /// Takes this very stretch; false if some of it is not free.
    fn take_at(&mut self, set: BackendSet) -> bool {
        let Some(end) = set.offset.checked_add(set.size) else {
            return false;
        };
        let Some((&offset, &size)) = self.by_offset.range(..=set.offset).next_back() else {
            return false;
        };
        if end > offset + size {
            return false;
        }
        self.remove(offset, size);
        self.insert(offset, set.offset - offset);
        self.insert(end, offset + size - end);
        true
    }

    fn give(&mut self, set: BackendSet) {
        let (mut offset, mut size) = (set.offset, set.size);
        if let Some((&before, &len)) = self.by_offset.range(..offset).next_back()
            && before + len == offset
        {
            self.remove(before, len);
            (offset, size) = (before, len + size);
        }
        if let Some(&len) = self.by_offset.get(&(offset + size)) {
            self.remove(offset + size, len);
            size += len;
        }
        self.insert(offset, size);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn room_never_gives_a_slot_twice_and_gets_whole_again(steps in prop::collection::vec((any::<bool>(), 1u32..50), 1..200)) {
            let mut room = Room::new(1000);
            let mut taken: Vec<BackendSet> = Vec::new();
            for (take, n) in steps {
                if take {
                    if let Some(set) = room.take(n) {
                        prop_assert!(set.offset + set.size <= 1000);
                        for other in &taken {
                            prop_assert!(set.offset + set.size <= other.offset || other.offset + other.size <= set.offset);
                        }
                        taken.push(set);
                    }
                } else if !taken.is_empty() {
                    let index = n as usize % taken.len();
                    room.give(taken.swap_remove(index));
                }
            }
            let mut again = Room::new(1000);
            for set in &taken {
                prop_assert!(again.take_at(*set));
                prop_assert!(!again.take_at(*set));
            }
            prop_assert_eq!(&again.by_offset, &room.by_offset);
            prop_assert_eq!(&again.by_size, &room.by_size);
            for set in taken {
                room.give(set);
            }
            prop_assert_eq!(room.by_offset, BTreeMap::from([(0, 1000)]));
        }
    }
}
