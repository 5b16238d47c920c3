//! Ids that stay: of Service ports and of backends.
//!
//! An id found in the maps at start stands for the same thing as before. A released id is used again as late as
//! possible, and never before the maps have been brought up to date without it: connections may still refer to it.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;

use lb_common::abi::{Address, Backend};

/// Released ids are left alone until there are this many, unless no fresh id is left.
const REST: usize = 1024;

/// Gives out numbers from 1 on.
#[derive(Debug)]
pub(super) struct IdPool {
    limit: u32,
    next: u32,
    /// Counts releases and revivals of each id; an entry below with another count no longer holds.
    versions: Vec<u32>,
    /// Released and free, the oldest first.
    free: VecDeque<(u32, u32)>,
    /// Released since the maps were last up to date.
    resting: Vec<(u32, u32)>,
}

impl IdPool {
    /// Gives out ids below `limit`, and from `next` on at first.
    pub(super) fn new(limit: u32, next: u32) -> Self {
        Self {
            limit,
            next: next.max(1),
            versions: vec![0; next.max(1) as usize],
            free: VecDeque::new(),
            resting: Vec::new(),
        }
    }

    /// An id that nobody has.
    pub(super) fn take(&mut self) -> Option<u32> {
        let fresh_left = self.next < self.limit;
        while self.free.len() > REST || !fresh_left {
            let (id, version) = self.free.pop_front()?;
            if self.versions[id as usize] == version {
                self.versions[id as usize] += 1;
                return Some(id);
            }
        }
        let id = self.next;
        self.next += 1;
        self.versions.push(0);
        Some(id)
    }

    /// Gives the id back.
    pub(super) fn release(&mut self, id: u32) {
        let version = &mut self.versions[id as usize];
        *version += 1;
        self.resting.push((id, *version));
    }

    /// Takes a released id that has not been given out again.
    pub(super) fn revive(&mut self, id: u32) {
        self.versions[id as usize] += 1;
    }

    /// The maps no longer hold what was released.
    pub(super) fn settle(&mut self) {
        self.free.extend(self.resting.drain(..));
    }
}

/// Ids of things with names, counted by use; an id goes with its last user.
#[derive(Debug)]
pub(super) struct Names<K> {
    ids: HashMap<K, u32>,
    pool: IdPool,
    /// Ids found in the maps that nobody has asked for yet.
    unclaimed: Vec<bool>,
}

impl<K: Hash + Eq + Clone> Names<K> {
    /// Begins with these ids in use by somebody not known yet.
    pub(super) fn restore(limit: u32, found: impl Iterator<Item = u32> + Clone) -> Self {
        let found = found.filter(|id| *id != 0 && *id < limit);
        let next = found.clone().max().map_or(1, |max| max.saturating_add(1));
        let mut unclaimed = vec![false; next as usize];
        for id in found {
            unclaimed[id as usize] = true;
        }
        Self {
            ids: HashMap::new(),
            pool: IdPool::new(limit, next),
            unclaimed,
        }
    }

    /// The id of this name; if it has none, the one that it had in the maps, or a new one.
    pub(super) fn id(&mut self, name: &K, found: impl FnOnce() -> Option<u32>) -> Option<u32> {
        if let Some(id) = self.ids.get(name) {
            return Some(*id);
        }
        let claimed = found().filter(|id| {
            let slot = self.unclaimed.get_mut(*id as usize);
            slot.is_some_and(std::mem::take)
        });
        let id = claimed.or_else(|| self.pool.take())?;
        self.ids.insert(name.clone(), id);
        Some(id)
    }

    /// The name is gone.
    pub(super) fn release(&mut self, name: &K) {
        if let Some(id) = self.ids.remove(name) {
            self.pool.release(id);
        }
    }

    /// Everything that is there has asked for its id: the rest of those found in the maps are free.
    pub(super) fn restored(&mut self) {
        for (id, unclaimed) in std::mem::take(&mut self.unclaimed).into_iter().enumerate() {
            if unclaimed {
                self.pool.release(id as u32);
            }
        }
    }

    pub(super) fn settle(&mut self) {
        self.pool.settle();
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &K)> {
        self.ids.iter().map(|(name, id)| (*id, name))
    }
}

/// Ids of the backends of one family, by address and port. A backend that nobody uses keeps its id until another
/// one needs it.
#[derive(Debug)]
pub(super) struct BackendIds<A> {
    ids: HashMap<(A, u16), u32>,
    uses: Vec<Uses<A>>,
    pool: IdPool,
    restoring: bool,
}

/// How many Services use a backend.
#[derive(Clone, Debug, Default)]
struct Uses<A> {
    endpoint: (A, u16),
    all: u32,
    /// Of them, those that have it as one of this node's.
    local: u32,
    /// The node that it is on, as the last of them has it.
    node: Option<Arc<str>>,
}

impl<A: Address> BackendIds<A> {
    /// Begins with what `BACKENDS` holds.
    pub(super) fn restore(limit: u32, found: &[Backend<A>]) -> Self {
        let mut ids = HashMap::with_capacity(found.len());
        let mut uses = vec![Uses::default(); found.len().max(1)];
        for (id, backend) in found.iter().enumerate().skip(1) {
            if *backend != Backend::default() {
                let endpoint = (backend.addr, backend.port.get());
                uses[id].endpoint = endpoint;
                ids.entry(endpoint).or_insert(id as u32);
            }
        }
        Self {
            ids,
            pool: IdPool::new(limit, uses.len() as u32),
            uses,
            restoring: true,
        }
    }

    /// Counts a use. `local`: by somebody who has it as one of this node's. `node` is the node that it is on, as far as
    /// that one knows. Returns `None` if there is no id left.
    pub(super) fn add(&mut self, endpoint: (A, u16), local: bool, node: Option<&Arc<str>>) -> Option<u32> {
        let id = match self.ids.get(&endpoint) {
            Some(id) => {
                if self.uses[*id as usize].all == 0 && !self.restoring {
                    self.pool.revive(*id);
                }
                *id
            }
            None => {
                let id = self.pool.take()?;
                if self.uses.len() <= id as usize {
                    self.uses.resize(id as usize + 1, Uses::default());
                }
                let before = std::mem::replace(&mut self.uses[id as usize].endpoint, endpoint);
                if self.ids.get(&before) == Some(&id) {
                    self.ids.remove(&before);
                }
                self.ids.insert(endpoint, id);
                id
            }
        };
        let uses = &mut self.uses[id as usize];
        uses.all += 1;
        uses.local += u32::from(local);
        if node.is_some() {
            uses.node = node.cloned();
        }
        Some(id)
    }

    /// Takes a use back.
    pub(super) fn remove(&mut self, id: u32, local: bool) {
        let uses = &mut self.uses[id as usize];
        uses.all -= 1;
        uses.local -= u32::from(local);
        if uses.all == 0 && !self.restoring {
            self.pool.release(id);
        }
    }

    /// Address, port, whether it is used, and whether as one of this node's.
    pub(super) fn state(&self, id: u32) -> ((A, u16), bool, bool) {
        let uses = &self.uses[id as usize];
        (uses.endpoint, uses.all > 0, uses.local > 0)
    }

    /// The node that it is on, if that is known.
    pub(super) fn node(&self, id: u32) -> Option<&Arc<str>> {
        self.uses[id as usize].node.as_ref()
    }

    /// All ids that have ever been given out.
    pub(super) fn all(&self) -> std::ops::Range<u32> {
        1..self.uses.len() as u32
    }

    /// Everything that is there has asked for its id: the rest of those found in the maps are free.
    pub(super) fn restored(&mut self) {
        if std::mem::take(&mut self.restoring) {
            for id in self.all() {
                if self.uses[id as usize].all == 0 {
                    self.pool.release(id);
                }
            }
        }
    }

    pub(super) fn settle(&mut self) {
        self.pool.settle();
    }
}
