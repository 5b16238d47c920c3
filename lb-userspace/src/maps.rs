//! What the reconcile loop writes to: the maps of the data path, as a trait, with their contents and the single
//! changes as plain data.
//!
//! `bpf` implements the trait on pinned BPF maps, [`fake`] in memory.

pub mod bpf;
pub mod contents;
mod dump;
pub mod fake;
mod family;
pub mod table;

use lb_common::abi::{AffinityMember, Backend, Config, Family, Frontend, FrontendKey, LpmKey, SourceRangeKey, V4, V6};

pub use contents::{FamilyContents, MapContents};
pub use family::MapFamily;

/// The maps of the data path that the reconcile loop owns.
///
/// Connection tables, session affinity, adjacencies and counters are not among them.
pub trait Maps {
    /// How much fits.
    fn limits(&self) -> Limits;

    /// Everything that is in the maps now.
    ///
    /// # Errors
    /// If a map cannot be read.
    fn dump(&mut self) -> Result<MapContents, MapsError>;

    /// Carries out one change. Doing it again changes nothing more; removing what is not there succeeds.
    ///
    /// # Errors
    /// If the map cannot be written, or is full.
    fn apply(&mut self, op: &Op) -> Result<(), MapsError>;

    /// `len` slots of `MAGLEV` from `offset` on, appended to `slots` (fewer if the array ends before).
    ///
    /// # Errors
    /// If the map cannot be read.
    fn read_maglev(&mut self, offset: u32, len: u32, slots: &mut Vec<u32>) -> Result<(), MapsError>;
}

/// How much fits into the maps, in entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// `FRONTENDS_V4` and `_V6`, each.
    pub frontends: u32,
    /// `BACKENDS_V4` and `_V6`, each; the largest id is one less.
    pub backends: u32,
    /// `MAGLEV`.
    pub maglev: u32,
}

/// One change of one map.
#[derive(Clone, PartialEq, Debug)]
pub enum Op {
    /// Of a map of the IPv4 family.
    V4(FamilyOp<V4>),
    /// Of a map of the IPv6 family.
    V6(FamilyOp<V6>),
    /// Writes these backend ids to `MAGLEV`, from `offset` on.
    SetMaglev {
        /// Index of the first slot.
        offset: u32,
        /// The contents.
        slots: Vec<u32>,
    },
    /// Adds to `AFFINITY_MEMBERS`.
    AddAffinityMember(AffinityMember),
    /// Removes from `AFFINITY_MEMBERS`.
    RemoveAffinityMember(AffinityMember),
    /// Sets bits (`lb_common::abi::address_class`) in a bucket of `FILTER`; others stay.
    SetFilter {
        /// The bucket.
        bucket: u32,
        /// The bits.
        bits: u8,
    },
    /// Sets the bit of a port in `NODE_PORTS`.
    SetNodePort(u16),
    /// Writes `CONFIG`.
    SetConfig(Config),
}

/// One change of one map that each family has.
#[derive(Clone, PartialEq, Debug)]
pub enum FamilyOp<F: Family> {
    /// Writes an entry of `BACKENDS`.
    SetBackend(u32, Backend<F::Addr>),
    /// Writes an entry of `FRONTENDS`.
    SetFrontend(FrontendKey<F::Addr>, Frontend),
    /// Removes an entry of `FRONTENDS`.
    RemoveFrontend(FrontendKey<F::Addr>),
    /// Adds to `SOURCE_RANGES`.
    AddSourceRange(SourceRangeKey<F::Addr>),
    /// Removes from `SOURCE_RANGES`.
    RemoveSourceRange(SourceRangeKey<F::Addr>),
    /// Adds to `POD_CIDRS`.
    AddPodCidr(LpmKey<F::Addr>),
    /// Removes from `POD_CIDRS`.
    RemovePodCidr(LpmKey<F::Addr>),
    /// Adds to `SERVICE_CIDRS`.
    AddServiceCidr(LpmKey<F::Addr>),
    /// Removes from `SERVICE_CIDRS`.
    RemoveServiceCidr(LpmKey<F::Addr>),
}

/// Why a map could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MapsError {
    /// No room is left.
    #[error("map {map} is full ({capacity} entries)")]
    Full {
        /// Name of the map.
        map: &'static str,
        /// How many entries it takes.
        capacity: u32,
    },
    /// The kernel refused to have the map read.
    #[error("cannot read map {map}")]
    Read {
        /// Name of the map.
        map: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The kernel refused to have the map written.
    #[error("cannot write map {map}")]
    Write {
        /// Name of the map.
        map: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
}
