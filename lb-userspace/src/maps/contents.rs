//! What is in the maps, as plain collections.

use std::collections::{HashMap, HashSet};

use lb_common::abi::{
    AffinityMember, Backend, Config, FILTER_BUCKETS, Family, Frontend, FrontendKey, LpmKey, NODE_PORT_BITMAP_BYTES,
    SourceRangeKey, V4, V6,
};

use super::{FamilyOp, Op};

/// The contents of the maps that the reconcile loop owns, but for the Maglev tables, which are too large to keep
/// twice and can always be computed again from the backends.
#[derive(Clone, PartialEq, Debug)]
pub struct MapContents {
    /// The maps of the IPv4 family.
    pub v4: FamilyContents<V4>,
    /// The maps of the IPv6 family.
    pub v6: FamilyContents<V6>,
    /// `AFFINITY_MEMBERS`.
    pub affinity_members: HashSet<AffinityMember>,
    /// `FILTER`, [`FILTER_BUCKETS`] bytes.
    pub filter: Box<[u8]>,
    /// `NODE_PORTS`, [`NODE_PORT_BITMAP_BYTES`] bytes.
    pub node_ports: Box<[u8]>,
    /// `CONFIG`.
    pub config: Config,
}

/// The contents of the maps that each family has.
#[derive(Clone, PartialEq, Debug)]
pub struct FamilyContents<F: Family> {
    /// `FRONTENDS`.
    pub frontends: HashMap<FrontendKey<F::Addr>, Frontend>,
    /// `BACKENDS` by id. Trailing empty entries may be left out; index 0 is empty.
    pub backends: Vec<Backend<F::Addr>>,
    /// `SOURCE_RANGES`.
    pub source_ranges: HashSet<SourceRangeKey<F::Addr>>,
    /// `POD_CIDRS`.
    pub pod_cidrs: HashSet<LpmKey<F::Addr>>,
    /// `SERVICE_CIDRS`.
    pub service_cidrs: HashSet<LpmKey<F::Addr>>,
}

impl Default for MapContents {
    fn default() -> Self {
        Self {
            v4: FamilyContents::default(),
            v6: FamilyContents::default(),
            affinity_members: HashSet::new(),
            filter: vec![0; FILTER_BUCKETS].into_boxed_slice(),
            node_ports: vec![0; NODE_PORT_BITMAP_BYTES].into_boxed_slice(),
            config: Config::default(),
        }
    }
}

impl<F: Family> Default for FamilyContents<F> {
    fn default() -> Self {
        Self {
            frontends: HashMap::new(),
            backends: Vec::new(),
            source_ranges: HashSet::new(),
            pod_cidrs: HashSet::new(),
            service_cidrs: HashSet::new(),
        }
    }
}

impl MapContents {
    /// Carries out one change (of Maglev tables nothing is kept).
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::V4(op) => self.v4.apply(op),
            Op::V6(op) => self.v6.apply(op),
            Op::SetMaglev { .. } => {}
            Op::AddAffinityMember(member) => {
                self.affinity_members.insert(*member);
            }
            Op::RemoveAffinityMember(member) => {
                self.affinity_members.remove(member);
            }
            Op::SetFilter { bucket, bits } => self.filter[*bucket as usize] |= bits,
            Op::SetNodePort(port) => self.node_ports[usize::from(port >> 3)] |= 1 << (port & 7),
            Op::SetConfig(config) => self.config = *config,
        }
    }
}

impl<F: Family> FamilyContents<F> {
    /// The entry of `BACKENDS` with this id; an empty one if there is none.
    pub fn backend(&self, id: u32) -> Backend<F::Addr> {
        self.backends.get(id as usize).copied().unwrap_or_default()
    }

    /// Writes an entry of `BACKENDS`.
    pub fn set_backend(&mut self, id: u32, backend: Backend<F::Addr>) {
        let index = id as usize;
        if self.backends.len() <= index {
            self.backends.resize(index + 1, Backend::default());
        }
        self.backends[index] = backend;
    }

    fn apply(&mut self, op: &FamilyOp<F>) {
        match op {
            FamilyOp::SetBackend(id, backend) => self.set_backend(*id, *backend),
            FamilyOp::SetFrontend(key, frontend) => {
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
    }
}
