//! The kernel object, loaded without pins, with maps that are filled from a scenario and read back.

use std::collections::{BTreeMap, HashMap as StdHashMap};
use std::hash::Hash;

use anyhow::{Context as _, anyhow, bail};
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, MapData, PerCpuArray, PerCpuValues};
use aya::programs::{ProgramError, SchedClassifier, TestRun as _, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader, Pod};
use lb_common::abi::{Address, DropReason, FILTER_BUCKETS, Hook, NODE_PORT_BITMAP_BYTES, Outcome};
use lb_common::datapath::Verdict;
use lb_common::testing::env::FamilyMaps;
use lb_common::testing::{Expected, Input, Output, Scenario, World};

/// A value of a map, as the kernel takes it.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Plain<T>(T);

// SAFETY: used with the types of `lb_common::abi` only, which have no padding and take any bytes.
unsafe impl<T: Copy + 'static> Pod for Plain<T> {}

/// What follows the prefix length in the keys of `SOURCE_RANGES`.
#[repr(C)]
#[derive(Clone, Copy)]
struct SourceRange<A> {
    service_port: u32,
    addr: A,
}

/// Why a scenario did not run here.
pub enum Skip {
    /// It cannot, for this reason.
    Because(&'static str),
    /// It should have.
    Error(anyhow::Error),
}

impl From<anyhow::Error> for Skip {
    fn from(error: anyhow::Error) -> Self {
        Self::Error(error)
    }
}

/// The loaded object.
pub struct Object {
    ebpf: Ebpf,
    capacity: usize,
    /// What `FILTER` holds, for it is large.
    filter: Option<BTreeMap<u32, u8>>,
}

const XDP: [&str; 2] = ["fairway_xdp", "fairway_clock"];
const TC: [&str; 2] = ["fairway_ingress", "fairway_egress"];

impl Object {
    /// Loads the object, with room for this many connection entries in each family.
    pub fn load(capacity: usize) -> anyhow::Result<Self> {
        let bytes = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/fairway_object"));
        let entries = u32::try_from(capacity)?;
        let mut ebpf = EbpfLoader::new()
            .map_max_entries("CONNECTIONS_V4", entries)
            .map_max_entries("CONNECTIONS_V6", entries)
            .map_max_entries("MAGLEV", 1 << 12)
            .map_max_entries("BACKENDS_V4", 1 << 10)
            .map_max_entries("BACKENDS_V6", 1 << 10)
            .load(bytes)?;
        for name in XDP {
            let program: &mut Xdp = ebpf.program_mut(name).context(name)?.try_into()?;
            program.load().with_context(|| format!("loading {name}"))?;
        }
        for name in TC {
            let program: &mut SchedClassifier = ebpf.program_mut(name).context(name)?.try_into()?;
            program.load().with_context(|| format!("loading {name}"))?;
        }
        Ok(Self {
            ebpf,
            capacity,
            filter: None,
        })
    }

    /// Runs a scenario.
    pub fn run(&mut self, scenario: &Scenario) -> Result<Expected, Skip> {
        let Input::Packet {
            hook, ethernet, bytes, ..
        } = &scenario.input
        else {
            return Err(Skip::Because("the kernel has no test runs of socket programs"));
        };
        if !ethernet {
            return Err(Skip::Because("in test runs every packet has an Ethernet header"));
        }
        if bytes.len() < 14 {
            return Err(Skip::Because(
                "test runs take no packets shorter than an Ethernet header",
            ));
        }
        let before = self.jiffies()?;
        let shift = before.wrapping_sub(scenario.world.now);
        self.fill(&scenario.world, shift)?;
        let (code, packet) = self.send(*hook, bytes)?;
        let counts = self.counts()?;
        let after = self.jiffies()?;
        let clock = Clock {
            before,
            after,
            now: scenario.world.now,
        };
        let world = self.read(&scenario.world, &clock)?;
        let (wanted, device) = match &scenario.expected.output {
            Output::Packet(verdict, _, device) => (*verdict, *device),
            Output::Socket(_) => (Verdict::Pass, 0),
        };
        let verdict = verdict(*hook, code, &counts, wanted)?;
        Ok(Expected {
            output: Output::packet(verdict, packet, device),
            world: World { counts, ..world },
        })
    }

    fn jiffies(&mut self) -> anyhow::Result<u32> {
        let program: &mut Xdp = self
            .ebpf
            .program_mut("fairway_clock")
            .context("fairway_clock")?
            .try_into()?;
        program.test_run(TestRunOptions {
            data_in: Some(&[0; 64]),
            ..Default::default()
        })?;
        let clock: Array<_, u64> = Array::try_from(self.ebpf.map_mut("CLOCK").context("CLOCK")?)?;
        #[expect(clippy::cast_possible_truncation, reason = "the low half is what programs use")]
        Ok(clock.get(&0, 0)? as u32)
    }

    fn send(&mut self, hook: Hook, bytes: &[u8]) -> Result<(u32, Vec<u8>), Skip> {
        let mut out = vec![0; 8192];
        let options = TestRunOptions {
            data_in: Some(bytes),
            data_out: Some(&mut out),
            ..Default::default()
        };
        let result = match hook {
            Hook::Xdp => self.xdp("fairway_xdp")?.test_run(options),
            Hook::Ingress => self.classifier("fairway_ingress")?.test_run(options),
            Hook::Egress => self.classifier("fairway_egress")?.test_run(options),
            Hook::Socket => return Err(Skip::Because("the kernel has no test runs of socket programs")),
        };
        let result = match result {
            Ok(result) => result,
            Err(ProgramError::SyscallError(error))
                if bytes.len() < 54 && error.io_error.raw_os_error() == Some(libc::EINVAL) =>
            {
                return Err(Skip::Because(
                    "this kernel's test runs of TC take no packets shorter than they say",
                ));
            }
            Err(error) => return Err(Skip::Error(anyhow!(error))),
        };
        out.truncate(result.data_size_out as usize);
        Ok((result.return_value, out))
    }

    fn xdp(&mut self, name: &str) -> anyhow::Result<&mut Xdp> {
        let program = self.ebpf.program_mut(name).with_context(|| name.to_owned())?;
        Ok(program.try_into()?)
    }

    fn classifier(&mut self, name: &str) -> anyhow::Result<&mut SchedClassifier> {
        let program = self.ebpf.program_mut(name).with_context(|| name.to_owned())?;
        Ok(program.try_into()?)
    }

    /// Makes the maps hold this world and nothing else; times are shifted to the kernel's.
    fn fill(&mut self, world: &World, shift: u32) -> anyhow::Result<()> {
        self.array("CONFIG")?.set(0, Plain(world.config), 0)?;
        if self.filter.as_ref() != Some(&world.filter) {
            let mut filter = Box::new([0u8; FILTER_BUCKETS]);
            for (bucket, class) in &world.filter {
                filter[*bucket as usize] = *class;
            }
            self.array::<[u8; FILTER_BUCKETS]>("FILTER")?
                .set(0, Plain(*filter), 0)?;
            self.filter = Some(world.filter.clone());
        }
        let until = world.announce_until_ns.wrapping_sub(world.now_ns);
        let until = fairway::sys::boot_ns().saturating_add_signed(until.cast_signed());
        self.array("ANNOUNCE_UNTIL")?.set(0, Plain(until), 0)?;
        let mut ports = [0u8; NODE_PORT_BITMAP_BYTES];
        for port in &world.node_ports {
            ports[usize::from(port >> 3)] |= 1 << (port & 7);
        }
        self.array("NODE_PORTS")?.set(0, Plain(ports), 0)?;
        let mut maglev = self.array::<u32>("MAGLEV")?;
        for slot in 0..64 {
            maglev.set(slot, Plain(world.maglev.get(&slot).copied().unwrap_or(0)), 0)?;
        }
        if world.maglev.keys().any(|slot| *slot >= 64) {
            bail!("a scenario uses a slot beyond those that are cleared");
        }
        let devices = world.pod_devices.iter().map(|ifindex| (*ifindex, 1u32)).collect();
        self.set_hash("POD_DEVICES", &devices)?;
        let members = world.members.iter().map(|member| (*member, 1u32)).collect();
        self.set_hash("AFFINITY_MEMBERS", &members)?;
        let mut counters = PerCpuArray::<_, u64>::try_from(self.ebpf.map_mut("COUNTERS").context("COUNTERS")?)?;
        let cpus = aya::util::nr_cpus().map_err(|(file, error)| anyhow!("{file}: {error}"))?;
        for slot in 0..counters.len() {
            counters.set(slot, PerCpuValues::try_from(vec![0; cpus])?, 0)?;
        }
        self.fill_family("V4", &world.v4, shift)?;
        self.fill_family("V6", &world.v6, shift)
    }

    fn fill_family<A: Address>(&mut self, family: &str, maps: &FamilyMaps<A>, shift: u32) -> anyhow::Result<()> {
        if maps.capacity != self.capacity {
            bail!("both families have the same room in a scenario");
        }
        let mut connections = maps.connections.clone();
        for connection in connections.values_mut() {
            connection.last_seen = connection.last_seen.wrapping_add(shift);
        }
        let mut affinity = maps.affinity.clone();
        for entry in affinity.values_mut() {
            entry.last_used = entry.last_used.wrapping_add(shift);
        }
        self.set_hash(&format!("CONNECTIONS_{family}"), &connections)?;
        self.set_hash(&format!("AFFINITY_{family}"), &affinity)?;
        self.set_hash(&format!("DATAGRAMS_{family}"), &maps.datagrams)?;
        self.set_hash(&format!("FRONTENDS_{family}"), &maps.frontends)?;
        self.set_hash(&format!("ANNOUNCED_{family}"), &maps.announced)?;
        let mut backends = self.array(&format!("BACKENDS_{family}"))?;
        for id in 0..32 {
            backends.set(id, Plain(maps.backends.get(&id).copied().unwrap_or_default()), 0)?;
        }
        let mut adjacencies = self.array(&format!("ADJACENCIES_{family}"))?;
        for id in 0..32 {
            adjacencies.set(id, Plain(maps.adjacencies.get(&id).copied().unwrap_or_default()), 0)?;
        }
        let prefixes = |keys: &[lb_common::abi::LpmKey<A>]| {
            let keys = keys.iter().map(|key| Key::new(key.prefix_len, Plain(key.addr)));
            keys.collect::<Vec<_>>()
        };
        self.set_trie(&format!("POD_CIDRS_{family}"), &prefixes(&maps.pod_cidrs))?;
        self.set_trie(&format!("SERVICE_CIDRS_{family}"), &prefixes(&maps.service_cidrs))?;
        let ranges = maps.source_ranges.iter();
        let ranges: Vec<_> = ranges
            .map(|key| {
                Key::new(
                    key.prefix_len,
                    Plain(SourceRange {
                        service_port: key.service_port,
                        addr: key.addr,
                    }),
                )
            })
            .collect();
        self.set_trie(&format!("SOURCE_RANGES_{family}"), &ranges)
    }

    fn read(&mut self, start: &World, clock: &Clock) -> anyhow::Result<World> {
        let mut world = start.clone();
        self.read_family("V4", &mut world.v4, clock)?;
        self.read_family("V6", &mut world.v6, clock)?;
        Ok(world)
    }

    fn read_family<A: Address>(&mut self, family: &str, maps: &mut FamilyMaps<A>, clock: &Clock) -> anyhow::Result<()> {
        maps.connections = self.get_hash(&format!("CONNECTIONS_{family}"))?;
        for connection in maps.connections.values_mut() {
            connection.last_seen = clock.normal(connection.last_seen);
        }
        maps.datagrams = self.get_hash(&format!("DATAGRAMS_{family}"))?;
        maps.affinity = self.get_hash(&format!("AFFINITY_{family}"))?;
        for entry in maps.affinity.values_mut() {
            entry.last_used = clock.normal(entry.last_used);
        }
        Ok(())
    }

    fn counts(&mut self) -> anyhow::Result<BTreeMap<u32, u64>> {
        let counters = PerCpuArray::<_, u64>::try_from(self.ebpf.map_mut("COUNTERS").context("COUNTERS")?)?;
        let mut counts = BTreeMap::new();
        for slot in 0..counters.len() {
            let count = counters.get(&slot, 0)?.iter().sum();
            if count != 0 {
                counts.insert(slot, count);
            }
        }
        Ok(counts)
    }

    fn array<V: Copy + 'static>(&mut self, name: &str) -> anyhow::Result<Array<&mut MapData, Plain<V>>> {
        let map = self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))?;
        Array::try_from(map).with_context(|| format!("map {name}"))
    }

    fn hash<K: Copy + 'static, V: Copy + 'static>(
        &mut self,
        name: &str,
    ) -> anyhow::Result<HashMap<&mut MapData, Plain<K>, Plain<V>>> {
        let map = self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))?;
        HashMap::try_from(map).with_context(|| format!("map {name}"))
    }

    fn set_hash<K: Copy + 'static, V: Copy + 'static>(
        &mut self,
        name: &str,
        entries: &StdHashMap<K, V>,
    ) -> anyhow::Result<()> {
        let mut map = self.hash::<K, V>(name)?;
        let old: Vec<_> = map.keys().collect::<Result<_, _>>()?;
        for key in old {
            map.remove(&key)?;
        }
        for (key, value) in entries {
            map.insert(Plain(*key), Plain(*value), 0)
                .with_context(|| format!("filling {name}"))?;
        }
        Ok(())
    }

    fn get_hash<K: Copy + Eq + Hash + 'static, V: Copy + 'static>(
        &mut self,
        name: &str,
    ) -> anyhow::Result<StdHashMap<K, V>> {
        let map = self.hash::<K, V>(name)?;
        map.iter()
            .map(|entry| entry.map(|(key, value)| (key.0, value.0)).map_err(anyhow::Error::from))
            .collect()
    }

    fn set_trie<K: Copy + 'static>(&mut self, name: &str, keys: &[Key<Plain<K>>]) -> anyhow::Result<()> {
        let map = self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))?;
        let mut map: LpmTrie<_, Plain<K>, u32> = LpmTrie::try_from(map)?;
        let old: Vec<_> = map.keys().collect::<Result<_, _>>()?;
        for key in old {
            map.remove(&key)?;
        }
        for key in keys {
            map.insert(key, 1, 0)?;
        }
        Ok(())
    }
}

/// The kernel's clock during a run, and the scenario's.
struct Clock {
    before: u32,
    after: u32,
    now: u32,
}

impl Clock {
    /// A time of the kernel's as the scenario has it: what was stamped during the run is *now*.
    fn normal(&self, time: u32) -> u32 {
        if time.wrapping_sub(self.before) <= self.after.wrapping_sub(self.before) {
            self.now
        } else {
            time.wrapping_sub(self.before).wrapping_add(self.now)
        }
    }
}

/// The verdict of a return code; the reason of a drop is told by its count. Which device a packet is redirected to, and
/// which way, a test run does not tell: there the verdict that was wanted is taken for the one that came.
fn verdict(hook: Hook, code: u32, counts: &BTreeMap<u32, u64>, wanted: Verdict) -> anyhow::Result<Verdict> {
    const REASONS: [DropReason; 8] = [
        DropReason::NoLocalEndpoint,
        DropReason::SourceRange,
        DropReason::UnassignedServiceAddress,
        DropReason::TableFull,
        DropReason::SnatPortsExhausted,
        DropReason::NoMasqueradeAddress,
        DropReason::Malformed,
        DropReason::NoBackend,
    ];
    let dropped = || {
        REASONS
            .into_iter()
            .find(|reason| counts.contains_key(&Outcome::Dropped(*reason).slot(hook)))
            .map(Verdict::Drop)
            .context("dropped, and not counted")
    };
    #[expect(clippy::cast_possible_wrap, reason = "TC's codes are signed")]
    match (hook, code as i32) {
        (Hook::Xdp, 2) | (Hook::Ingress | Hook::Egress, -1) => Ok(Verdict::Pass),
        (Hook::Ingress | Hook::Egress, 7) if matches!(wanted, Verdict::Deliver | Verdict::Output) => Ok(wanted),
        (Hook::Xdp, 3) | (Hook::Ingress | Hook::Egress, 7) => Ok(Verdict::Reflect),
        (Hook::Xdp, 1) | (Hook::Ingress | Hook::Egress, 2) => dropped(),
        (_, code) => Err(anyhow!("return code {code}")),
    }
}
