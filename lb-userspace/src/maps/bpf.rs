//! The maps in the kernel: typed handles to pinned maps, and [`BpfMaps`], which the reconcile loop writes to.

use std::fs;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use lb_common::abi::{
    Addr4, Addr6, AffinityMember, Backend, Config, FILTER_BUCKETS, Family, Frontend, FrontendKey, LpmKey,
    NODE_PORT_BITMAP_BYTES, SourceRangeKey, V4, V6,
};

use super::{FamilyContents, FamilyOp, Limits, MapContents, Maps, MapsError, Op};
use crate::datapath::pin::PinDir;
use crate::sys::{self, Cursor, MappedArray, Plain};

/// A pinned map, with the types of its keys and values.
#[derive(Debug)]
pub struct BpfMap<K, V> {
    name: &'static str,
    fd: OwnedFd,
    capacity: u32,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K, V> AsFd for BpfMap<K, V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl<K: Plain, V: Plain> BpfMap<K, V> {
    /// Opens the map pinned under this name.
    ///
    /// # Errors
    /// If there is none, or its keys or values have other sizes.
    pub fn open(pins: &PinDir, name: &'static str) -> Result<Self, MapsError> {
        let failed = |source| MapsError::Read { map: name, source };
        let fd = sys::open_pinned(&pins.map(name)).map_err(failed)?;
        let info = sys::map_info(&fd).map_err(failed)?;
        if (info.key_size as usize, info.value_size as usize) != (size_of::<K>(), size_of::<V>()) {
            return Err(failed(io::Error::new(
                io::ErrorKind::InvalidData,
                "the pinned map has another layout",
            )));
        }
        Ok(Self {
            name,
            fd,
            capacity: info.max_entries,
            types: PhantomData,
        })
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// How many entries it takes.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The value of a key.
    pub fn get(&self, key: &K) -> Result<Option<V>, MapsError> {
        sys::lookup(self, key).map_err(|e| self.unreadable(e))
    }

    /// Sets the value of a key.
    pub fn set(&self, key: &K, value: &V) -> Result<(), MapsError> {
        sys::update(self, key, value).map_err(|e| self.unwritable(e))
    }

    /// Removes a key; `false` if it was not there.
    pub fn remove(&self, key: &K) -> Result<bool, MapsError> {
        sys::delete(self, key).map_err(|e| self.unwritable(e))
    }

    /// Removes many keys; those that are not there are skipped.
    pub fn remove_all(&self, mut keys: &[K]) -> Result<(), MapsError> {
        while !keys.is_empty() {
            let (done, result) = sys::delete_batch(self, keys);
            match result {
                Ok(()) => return Ok(()),
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => keys = keys.get(done + 1..).unwrap_or_default(),
                Err(e) => return Err(self.unwritable(e)),
            }
        }
        Ok(())
    }

    /// Calls `see` with all entries, in chunks. Entries that come or go meanwhile may be missed or seen twice.
    pub fn walk(&self, mut see: impl FnMut(&[(K, V)])) -> Result<(), MapsError> {
        const ROOM: usize = 8192;
        let mut room = ROOM.min(self.capacity as usize).max(16);
        let mut cursor = Cursor::default();
        let mut chunk = Vec::new();
        loop {
            chunk.clear();
            match sys::lookup_batch(self, &mut cursor, room, &mut chunk) {
                Ok(more) => {
                    see(&chunk);
                    if !more {
                        return Ok(());
                    }
                }
                // One bucket of the hash table holds more than there was room for.
                Err(e) if e.raw_os_error() == Some(libc::ENOSPC) && room < 1 << 20 => room *= 2,
                Err(e) => return Err(self.unreadable(e)),
            }
        }
    }

    /// All entries.
    pub fn entries<C: Default + Extend<(K, V)>>(&self) -> Result<C, MapsError> {
        let mut all = C::default();
        self.walk(|chunk| all.extend(chunk.iter().copied()))?;
        Ok(all)
    }

    fn unreadable(&self, source: io::Error) -> MapsError {
        MapsError::Read { map: self.name, source }
    }

    fn unwritable(&self, source: io::Error) -> MapsError {
        match source.raw_os_error() {
            Some(libc::E2BIG | libc::ENOSPC) => MapsError::Full {
                map: self.name,
                capacity: self.capacity,
            },
            _ => MapsError::Write { map: self.name, source },
        }
    }
}

impl<V: Plain> BpfMap<u32, V> {
    /// The array in our own memory.
    pub fn map_memory(&self) -> Result<MappedArray<V>, MapsError> {
        MappedArray::new(self, self.capacity).map_err(|e| self.unwritable(e))
    }
}

/// A family's maps.
struct FamilyMaps<F: Family> {
    frontends: BpfMap<FrontendKey<F::Addr>, Frontend>,
    backends: Arc<MappedArray<Backend<F::Addr>>>,
    backends_name: &'static str,
    source_ranges: BpfMap<SourceRangeKey<F::Addr>, u32>,
    pod_cidrs: BpfMap<LpmKey<F::Addr>, u32>,
    service_cidrs: BpfMap<LpmKey<F::Addr>, u32>,
}

/// The maps in the kernel.
pub struct BpfMaps {
    v4: FamilyMaps<V4>,
    v6: FamilyMaps<V6>,
    maglev: MappedArray<u32>,
    affinity_members: BpfMap<AffinityMember, u32>,
    config: BpfMap<u32, Config>,
    filter: MappedArray<[u8; FILTER_BUCKETS]>,
    node_ports: MappedArray<[u8; NODE_PORT_BITMAP_BYTES]>,
}

impl BpfMaps {
    /// Opens the pinned maps.
    ///
    /// # Errors
    /// If one is not there or has another layout.
    pub fn open(pins: &PinDir) -> Result<Self, MapsError> {
        Ok(Self {
            v4: FamilyMaps::open(
                pins,
                [
                    "FRONTENDS_V4",
                    "BACKENDS_V4",
                    "SOURCE_RANGES_V4",
                    "POD_CIDRS_V4",
                    "SERVICE_CIDRS_V4",
                ],
            )?,
            v6: FamilyMaps::open(
                pins,
                [
                    "FRONTENDS_V6",
                    "BACKENDS_V6",
                    "SOURCE_RANGES_V6",
                    "POD_CIDRS_V6",
                    "SERVICE_CIDRS_V6",
                ],
            )?,
            maglev: BpfMap::open(pins, "MAGLEV")?.map_memory()?,
            affinity_members: BpfMap::open(pins, "AFFINITY_MEMBERS")?,
            config: BpfMap::open(pins, "CONFIG")?,
            filter: BpfMap::open(pins, "FILTER")?.map_memory()?,
            node_ports: BpfMap::open(pins, "NODE_PORTS")?.map_memory()?,
        })
    }
}

/// The arrays that others of the agent read as well: mapped once, since what is mapped counts as the agent's memory.
#[derive(Clone)]
pub struct Arrays {
    /// `BACKENDS_V4`.
    pub backends_v4: Arc<MappedArray<Backend<Addr4>>>,
    /// `BACKENDS_V6`.
    pub backends_v6: Arc<MappedArray<Backend<Addr6>>>,
}

impl BpfMaps {
    /// The arrays, for others to read.
    pub fn arrays(&self) -> Arrays {
        Arrays {
            backends_v4: Arc::clone(&self.v4.backends),
            backends_v6: Arc::clone(&self.v6.backends),
        }
    }
}

impl Maps for BpfMaps {
    fn limits(&self) -> Limits {
        let entries = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Limits {
            frontends: self.v4.frontends.capacity(),
            backends: entries(self.v4.backends.len()),
            maglev: entries(self.maglev.len()),
        }
    }

    fn dump(&mut self) -> Result<MapContents, MapsError> {
        let bytes = |len: usize, byte: &dyn Fn(usize) -> Option<u8>| (0..len).map(|i| byte(i).unwrap_or(0)).collect();
        Ok(MapContents {
            v4: self.v4.dump()?,
            v6: self.v6.dump()?,
            affinity_members: members(&self.affinity_members)?,
            filter: bytes(FILTER_BUCKETS, &|i| self.filter.byte(i)),
            node_ports: bytes(NODE_PORT_BITMAP_BYTES, &|i| self.node_ports.byte(i)),
            config: self.config.get(&0)?.unwrap_or_default(),
        })
    }

    fn apply(&mut self, op: &Op) -> Result<(), MapsError> {
        match op {
            Op::V4(op) => self.v4.apply(op),
            Op::V6(op) => self.v6.apply(op),
            Op::SetMaglev { offset, slots } => {
                let fits = (*offset as usize)
                    .checked_add(slots.len())
                    .is_some_and(|end| end <= self.maglev.len());
                if !fits {
                    return Err(full("MAGLEV", self.maglev.len()));
                }
                for (slot, backend) in (*offset as usize..).zip(slots) {
                    self.maglev.set(slot, backend);
                }
                Ok(())
            }
            Op::AddAffinityMember(member) => self.affinity_members.set(member, &1),
            Op::RemoveAffinityMember(member) => self.affinity_members.remove(member).map(drop),
            Op::SetFilter { bucket, bits } => {
                let bucket = *bucket as usize;
                let now = self.filter.byte(bucket).unwrap_or(0);
                if now | bits != now && !self.filter.set_byte(bucket, now | bits) {
                    return Err(full("FILTER", FILTER_BUCKETS));
                }
                Ok(())
            }
            Op::SetNodePort(port) => {
                let index = usize::from(port >> 3);
                let now = self.node_ports.byte(index).unwrap_or(0);
                self.node_ports.set_byte(index, now | 1 << (port & 7));
                Ok(())
            }
            Op::SetConfig(config) => self.config.set(&0, config),
        }
    }

    fn read_maglev(&mut self, offset: u32, len: u32, slots: &mut Vec<u32>) -> Result<(), MapsError> {
        slots.extend((offset..offset.saturating_add(len)).map_while(|slot| self.maglev.get(slot as usize)));
        Ok(())
    }
}

impl<F: Family> FamilyMaps<F> {
    fn open(
        pins: &PinDir,
        [frontends, backends, source_ranges, pod_cidrs, service_cidrs]: [&'static str; 5],
    ) -> Result<Self, MapsError> {
        Ok(Self {
            frontends: BpfMap::open(pins, frontends)?,
            backends: Arc::new(BpfMap::open(pins, backends)?.map_memory()?),
            backends_name: backends,
            source_ranges: BpfMap::open(pins, source_ranges)?,
            pod_cidrs: BpfMap::open(pins, pod_cidrs)?,
            service_cidrs: BpfMap::open(pins, service_cidrs)?,
        })
    }

    fn dump(&self) -> Result<FamilyContents<F>, MapsError> {
        let mut backends: Vec<_> = (0..self.backends.len()).map_while(|id| self.backends.get(id)).collect();
        let used = backends
            .iter()
            .rposition(|b| *b != Backend::default())
            .map_or(0, |last| last + 1);
        backends.truncate(used);
        Ok(FamilyContents {
            frontends: self.frontends.entries()?,
            backends,
            source_ranges: members(&self.source_ranges)?,
            pod_cidrs: members(&self.pod_cidrs)?,
            service_cidrs: members(&self.service_cidrs)?,
        })
    }

    fn apply(&self, op: &FamilyOp<F>) -> Result<(), MapsError> {
        match op {
            FamilyOp::SetBackend(id, backend) => {
                if self.backends.set(*id as usize, backend) {
                    Ok(())
                } else {
                    Err(full(self.backends_name, self.backends.len()))
                }
            }
            FamilyOp::SetFrontend(key, frontend) => self.frontends.set(key, frontend),
            FamilyOp::RemoveFrontend(key) => self.frontends.remove(key).map(drop),
            FamilyOp::AddSourceRange(key) => self.source_ranges.set(key, &1),
            FamilyOp::RemoveSourceRange(key) => self.source_ranges.remove(key).map(drop),
            FamilyOp::AddPodCidr(key) => self.pod_cidrs.set(key, &1),
            FamilyOp::RemovePodCidr(key) => self.pod_cidrs.remove(key).map(drop),
            FamilyOp::AddServiceCidr(key) => self.service_cidrs.set(key, &1),
            FamilyOp::RemoveServiceCidr(key) => self.service_cidrs.remove(key).map(drop),
        }
    }
}

/// The keys of a map that is a set.
fn members<K: Plain, C: Default + Extend<K>>(map: &BpfMap<K, u32>) -> Result<C, MapsError> {
    let mut all = C::default();
    map.walk(|chunk| all.extend(chunk.iter().map(|(key, _)| *key)))?;
    Ok(all)
}

fn full(map: &'static str, capacity: usize) -> MapsError {
    MapsError::Full {
        map,
        capacity: u32::try_from(capacity).unwrap_or(u32::MAX),
    }
}

/// How many CPUs the kernel keeps values for in per-CPU maps: the possible ones.
pub fn possible_cpus() -> usize {
    let list = fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
    list.trim()
        .split(',')
        .filter_map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            Some(last.parse::<usize>().ok()?.checked_sub(first.parse().ok()?)? + 1)
        })
        .sum::<usize>()
        .max(1)
}
