//! Both kernel objects, loaded without pins, and what Fairway's maps contain: a few frontends of every kind that
//! matters to cost, with 256 backends on another node and one on this.

use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result};
use aya::maps::{Array, HashMap, MapData, ProgramArray};
use aya::programs::{ProgramFd, TestRun as _, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use lb_common::abi::{
    Addr4, Addr6, Address, Adjacency, Backend, BackendSet, Config, FILTER_BUCKETS, Frontend, FrontendKey, Mac, Port,
    address_class, adjacency_flags, backend_flags, frontend_flags, protocol,
};
use lb_common::hash::filter_bucket;

use super::packets::{BACKEND_MAC, Course, NODE_MAC};

/// Fairway's object.
pub static FAIRWAY: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/fairway_object"));
/// The reference programs.
static REFERENCE: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/fairway_reference"));

/// Test runs come in by the loopback device.
const LOOPBACK: u32 = 1;
/// Backends on the other node: with source translation each takes as many flows as there are ports.
const REMOTE_BACKENDS: u32 = 256;
const LOCAL_BACKEND: u32 = REMOTE_BACKENDS + 1;
const SLOTS: u32 = 1021;
const FRONTEND_PORT: u16 = 80;
const BACKEND_PORT: u16 = 8080;

/// What a frontend does with its clients' packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Source and destination translated, backend on another node: both halves at once, and out again.
    Masqueraded = 1,
    /// The same with the client's address kept.
    Kept = 2,
    /// Backend on this node: destination translated, on to the stack.
    Local = 3,
}

/// The frontend's address.
pub fn frontend(kind: Kind, v6: bool) -> (IpAddr, u16) {
    (address(96, kind as u32, v6), FRONTEND_PORT)
}

/// A client.
pub fn client(v6: bool) -> (IpAddr, u16) {
    (address(64, 0, v6), 1024)
}

/// An address that is nobody's here.
pub fn stranger(v6: bool) -> (IpAddr, u16) {
    (address(77, 77, v6), 443)
}

fn backend(id: u32, v6: bool) -> IpAddr {
    address(1, id, v6)
}

fn masquerade(v6: bool) -> IpAddr {
    address(2, 1, v6)
}

/// 10.NET.0.0 + HOST, or fd00:NET::HOST.
fn address(net: u8, host: u32, v6: bool) -> IpAddr {
    if v6 {
        let [a, b] = [(host >> 16) as u16, host as u16];
        return Ipv6Addr::new(0xfd00, u16::from(net), 0, 0, 0, 0, a, b).into();
    }
    Ipv4Addr::from((10 << 24) + (u32::from(net) << 16) + host).into()
}

/// A value as it lies in a map.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Plain<T>(T);

// SAFETY: used with the types of `lb_common::abi` and `Course` only: C layout, no implicit padding, no pointers.
unsafe impl<T: Copy + 'static> aya::Pod for Plain<T> {}

/// Fairway's program with maps of its own.
pub struct Fairway {
    ebpf: Ebpf,
}

impl Fairway {
    /// Loads the object with room for so many connection entries of either family.
    pub fn load(object: &[u8], connections: u32) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        loader.override_global("AYA_LOG_LEVEL", &0u8, true);
        for name in ["CONNECTIONS_V4", "CONNECTIONS_V6"] {
            loader.map_max_entries(name, connections);
        }
        let small = [
            "MAGLEV",
            "BACKENDS_V4",
            "BACKENDS_V6",
            "AFFINITY_V4",
            "AFFINITY_V6",
            "SOCKETS_V4",
            "SOCKETS_V6",
        ];
        for name in small {
            loader.map_max_entries(name, 4096);
        }
        let mut ebpf = loader
            .load(object)
            .context("cannot load Fairway's object; is this root?")?;
        program(&mut ebpf, "fairway_xdp")?;
        let mut fairway = Self { ebpf };
        fairway.fill()?;
        Ok(fairway)
    }

    /// The program.
    pub fn program(&self) -> Result<ProgramFd> {
        descriptor(&self.ebpf, "fairway_xdp")
    }

    fn fill(&mut self) -> Result<()> {
        self.fill_family::<Addr4>("V4", false, |ip| match ip {
            IpAddr::V4(a) => a.into(),
            IpAddr::V6(_) => Addr4::default(),
        })?;
        self.fill_family::<Addr6>("V6", true, |ip| match ip {
            IpAddr::V6(a) => a.into(),
            IpAddr::V4(_) => Addr6::default(),
        })?;
        let mut maglev: Array<_, u32> = self.array("MAGLEV")?;
        for slot in 0..SLOTS {
            maglev.set(slot, slot % REMOTE_BACKENDS + 1, 0)?;
        }
        maglev.set(SLOTS, LOCAL_BACKEND, 0)?;
        let config = Config {
            hz: 250,
            snat_port_min: 1024,
            snat_port_max: 65535,
            ..Config::default()
        };
        self.array("CONFIG")?.set(0, Plain(config), 0)?;
        Ok(())
    }

    fn fill_family<A: Address>(&mut self, suffix: &str, v6: bool, lower: fn(IpAddr) -> A) -> Result<()> {
        let filter: Array<_, Plain<[u8; FILTER_BUCKETS]>> = self.array("FILTER")?;
        let mut classes = filter.get(&0, 0)?;
        let mut classify = |addr: A, class: u8| classes.0[filter_bucket(&addr) as usize] |= class;

        for kind in [Kind::Masqueraded, Kind::Kept, Kind::Local] {
            let (addr, port) = frontend(kind, v6);
            classify(lower(addr), address_class::FRONTEND);
            let set = match kind {
                Kind::Local => BackendSet { offset: SLOTS, size: 1 },
                _ => BackendSet { offset: 0, size: SLOTS },
            };
            let value = Frontend {
                service_port: kind as u32,
                flags: frontend_flags::LOAD_BALANCER
                    | if kind == Kind::Masqueraded {
                        frontend_flags::MASQUERADE_EXTERNAL
                    } else {
                        0
                    },
                affinity_timeout_s: 0,
                external: set,
                internal: set,
            };
            for protocol in [protocol::TCP, protocol::UDP, protocol::SCTP] {
                let key = FrontendKey {
                    addr: lower(addr),
                    port: Port::new(port),
                    protocol,
                    pad: 0,
                };
                self.hash_map(&format!("FRONTENDS_{suffix}"))?
                    .insert(Plain(key), Plain(value), 0)?;
            }
        }
        classify(lower(masquerade(v6)), address_class::NODE);
        let adjacency = |flags: u16| Adjacency {
            ifindex: LOOPBACK,
            flags,
            mtu: 1500,
            dst_mac: Mac(BACKEND_MAC),
            src_mac: Mac(NODE_MAC),
            masquerade: lower(masquerade(v6)),
        };
        let mut adjacencies = self.array(&format!("ADJACENCIES_{suffix}"))?;
        adjacencies.set(1, Plain(adjacency(adjacency_flags::FAST)), 0)?;
        adjacencies.set(2, Plain(adjacency(0)), 0)?;
        let mut backends = self.array(&format!("BACKENDS_{suffix}"))?;
        for id in 1..=LOCAL_BACKEND {
            let is_local = id == LOCAL_BACKEND;
            let value = Backend {
                addr: lower(backend(id, v6)),
                port: Port::new(BACKEND_PORT),
                flags: backend_flags::LIVE | if is_local { backend_flags::LOCAL } else { 0 },
                adjacency: if is_local { 2 } else { 1 },
                node: 0,
            };
            classify(value.addr, address_class::BACKEND);
            backends.set(id, Plain(value), 0)?;
        }
        self.array("FILTER")?.set(0, classes, 0)?;
        Ok(())
    }

    fn array<T: aya::Pod>(&mut self, name: &str) -> Result<Array<&mut MapData, T>> {
        let map = self
            .ebpf
            .map_mut(name)
            .with_context(|| format!("there is no map {name}"))?;
        Array::try_from(map).with_context(|| format!("map {name} has another layout"))
    }

    fn hash_map<K: Copy + Hash + 'static, V: Copy + 'static>(
        &mut self,
        name: &str,
    ) -> Result<HashMap<&mut MapData, Plain<K>, Plain<V>>> {
        let map = self
            .ebpf
            .map_mut(name)
            .with_context(|| format!("there is no map {name}"))?;
        HashMap::try_from(map).with_context(|| format!("map {name} has another layout"))
    }
}

/// The reference programs, and the wrapper that everything is run by.
pub struct Reference {
    ebpf: Ebpf,
    course: Array<MapData, Plain<Course>>,
    target: ProgramArray<MapData>,
    frame: Vec<u8>,
}

/// What one run of a program left.
pub struct Outcome {
    /// XDP's verdict.
    pub verdict: u32,
    /// The packet.
    pub frame: Vec<u8>,
}

impl Reference {
    /// Loads the object with room for so many entries in its tables.
    pub fn load(entries: u32) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        for name in ["FLOWS", "INSERTS"] {
            loader.map_max_entries(name, entries);
        }
        let mut ebpf = loader
            .load(REFERENCE)
            .context("cannot load the reference object; is this root?")?;
        for name in [
            "reference_wrapper",
            "reference_empty",
            "reference",
            "reference_record",
            "reference_insert",
        ] {
            program(&mut ebpf, name)?;
        }
        let course = Array::try_from(ebpf.take_map("COURSE").context("there is no map COURSE")?)?;
        let target = ProgramArray::try_from(ebpf.take_map("TARGET").context("there is no map TARGET")?)?;
        let frame = vec![0; 96];
        Ok(Self {
            ebpf,
            course,
            target,
            frame,
        })
    }

    /// One of this object's programs.
    pub fn program(&self, name: &str) -> Result<ProgramFd> {
        descriptor(&self.ebpf, name)
    }

    /// Chooses program and course.
    pub fn prepare(&mut self, program: &ProgramFd, course: &Course) -> Result<()> {
        self.target.set(0, program, 0).context("cannot tail-call the program")?;
        self.course.set(0, Plain(*course), 0)?;
        Ok(())
    }

    /// Runs the chosen program so often.
    pub fn run(&self, repeat: u32) -> Result<Outcome> {
        let mut frame = vec![0; self.frame.len()];
        let wrapper: &Xdp = self
            .ebpf
            .program("reference_wrapper")
            .context("there is no wrapper")?
            .try_into()?;
        let result = wrapper.test_run(TestRunOptions {
            data_in: Some(&self.frame),
            data_out: Some(&mut frame),
            repeat,
            ..TestRunOptions::default()
        })?;
        Ok(Outcome {
            verdict: result.return_value,
            frame,
        })
    }
}

fn program(ebpf: &mut Ebpf, name: &str) -> Result<()> {
    let program: &mut Xdp = ebpf
        .program_mut(name)
        .with_context(|| format!("there is no program {name}"))?
        .try_into()?;
    program.load().with_context(|| format!("the kernel refuses {name}"))
}

fn descriptor(ebpf: &Ebpf, name: &str) -> Result<ProgramFd> {
    let program: &Xdp = ebpf
        .program(name)
        .with_context(|| format!("there is no program {name}"))?
        .try_into()?;
    program
        .fd()?
        .try_clone()
        .with_context(|| format!("cannot duplicate the descriptor of {name}"))
}
