//! How a scenario is written: a sentence, what is in the maps, what comes in, and what is demanded of it.
//!
//! A [`Scene`] starts from the world that [`Scene::new`] sets up (this node with its pods, the other node's next
//! hop, four backends, and no frontend) and collects what the scenario adds. Whatever it does not say must stay as
//! it was.

use std::boxed::Box;
use std::format;
use std::rc::Rc;
use std::string::String;
use std::vec::Vec;

use super::cast::{NODE_1_MAC, NODE_2_MAC};
use super::flow::Entry;
use super::packet::DEVICE;
use super::scenario::{Call, Expected, Input, Output, Scenario};
use super::{Cast, Flow, Frame, World};
use crate::abi::{
    Adjacency, Announced, AnnouncedKey, Backend, Config, DropReason, Frontend, FrontendKey, Hook, LpmKey, Mac, Outcome,
    Port, Tuple, address_class, adjacency_flags, backend_flags, config_flags, frontend_flags, protocol,
};
use crate::datapath::Verdict;
use crate::datapath::socket::{Answer, Request, restore, translate};
use crate::hash::filter_bucket;

/// Jiffies at which scenarios happen.
pub const NOW: u32 = 10_000_000;
/// When scenarios happen in which this node announces, nanoseconds since the machine was started.
pub const NOW_NS: u64 = 1 << 40;
/// An hour, in nanoseconds: for so long a node that announces may still answer.
pub const HOUR_NS: u64 = 3_600_000_000_000;
/// Jiffies a second.
pub const HZ: u32 = 250;
/// Jiffies at which established connections were last seen.
pub const EARLIER: u32 = NOW - 10 * HZ;
/// The one port for source translation, so that there is nothing random.
pub const SNAT_PORT: u16 = 61_000;
/// Cookie of the node's network namespace.
pub const NODE_COOKIE: u64 = 0x1_0000_0007;
/// The client's port.
pub const CLIENT_PORT: u16 = 40_000;
/// The Service port in most scenarios: its id.
pub const WEB: u32 = 7;
/// The port of frontends.
pub const HTTP: u16 = 80;
/// The port of backends.
pub const TARGET: u16 = 8080;
/// A NodePort.
pub const NODE_PORT: u16 = 30_080;
/// The device that leads to this node's pods.
pub const POD_DEVICE: u32 = 5;
/// Adjacency of the other node.
pub const BY_NODE_2: u32 = 1;
/// Adjacency of this node's pods.
pub const BY_POD_DEVICE: u32 = 2;

type Change = Box<dyn FnOnce(&mut World)>;

/// A scenario being written, of one family.
pub struct Scene<F: Cast> {
    sentence: String,
    hook: Hook,
    ethernet: bool,
    world: World,
    bytes: Vec<u8>,
    call: Option<Call>,
    output: Option<Output>,
    counts: Vec<Outcome>,
    changes: Vec<Change>,
    needed: usize,
    family: core::marker::PhantomData<F>,
}

impl<F: Cast> Scene<F> {
    /// A scenario at TC ingress, headed by what happens to the packet.
    pub fn new(sentence: &str) -> Self {
        let scene = Self {
            sentence: sentence.into(),
            hook: Hook::Ingress,
            ethernet: true,
            world: World::default(),
            bytes: Vec::new(),
            call: None,
            output: None,
            counts: Vec::new(),
            changes: Vec::new(),
            needed: 0,
            family: core::marker::PhantomData,
        };
        scene
            .given(|world| {
                world.now = NOW;
                world.config = Config {
                    hz: HZ,
                    snat_port_min: SNAT_PORT,
                    snat_port_max: SNAT_PORT,
                    netns_cookie_low: NODE_COOKIE as u32,
                    netns_cookie_high: (NODE_COOKIE >> 32) as u32,
                    flags: config_flags::POD_SOCKETS,
                    pad: 0,
                };
                let (addr, prefix_len) = F::POD_CIDR;
                F::maps_mut(world).pod_cidrs.push(LpmKey { prefix_len, addr });
                for address in [F::NODE_1, F::GATEWAY] {
                    add_class::<F>(world, address, address_class::NODE);
                }
            })
            .adjacency(
                BY_NODE_2,
                Adjacency {
                    ifindex: DEVICE,
                    flags: adjacency_flags::FAST,
                    mtu: 1500,
                    dst_mac: NODE_2_MAC,
                    src_mac: NODE_1_MAC,
                    masquerade: F::NODE_1,
                },
            )
            .adjacency(
                BY_POD_DEVICE,
                Adjacency {
                    ifindex: POD_DEVICE,
                    flags: 0,
                    mtu: 1500,
                    dst_mac: Mac::default(),
                    src_mac: Mac::default(),
                    masquerade: F::GATEWAY,
                },
            )
            .backend(1, F::POD_1, backend_flags::LIVE | backend_flags::LOCAL, BY_POD_DEVICE)
            .backend(2, F::POD_2, backend_flags::LIVE | backend_flags::LOCAL, BY_POD_DEVICE)
            .backend(3, F::POD_3, backend_flags::LIVE, BY_NODE_2)
            .backend(4, F::POD_4, backend_flags::LIVE, BY_NODE_2)
    }

    /// Sets the hook.
    #[must_use]
    pub fn at(mut self, hook: Hook) -> Self {
        self.hook = hook;
        self
    }

    /// Changes the world before the packet comes.
    #[must_use]
    pub fn given(mut self, change: impl FnOnce(&mut World)) -> Self {
        change(&mut self.world);
        self
    }

    /// There is this adjacency.
    #[must_use]
    pub fn adjacency(self, id: u32, adjacency: Adjacency<F::Addr>) -> Self {
        self.given(|world| {
            F::maps_mut(world).adjacencies.insert(id, adjacency);
        })
    }

    /// There is this backend, at port [`TARGET`], and a set of it alone (see [`only`]).
    #[must_use]
    pub fn backend(self, id: u32, addr: F::Addr, flags: u16, adjacency: u32) -> Self {
        self.given(|world| {
            let backend = Backend {
                addr,
                port: Port::new(TARGET),
                flags,
                adjacency: u16::try_from(adjacency).expect("there are fewer"),
                node: 0,
            };
            F::maps_mut(world).backends.insert(id, backend);
            world.maglev.insert(id, id);
            add_class::<F>(world, addr, address_class::BACKEND);
        })
    }

    /// The other node runs Fairway and is a neighbour: its backends are known to be on it.
    #[must_use]
    pub fn neighbour(self) -> Self {
        self.given(|world| {
            for id in [3, 4] {
                let backend = F::maps_mut(world).backends.get_mut(&id).expect("the cast has it");
                backend.node = u16::try_from(BY_NODE_2).expect("there are fewer");
            }
        })
    }

    /// This node announces the VIP on this device, and may answer for it for another hour.
    #[must_use]
    pub fn announced_on(self, ifindex: u32) -> Self {
        self.given(|world| {
            world.now_ns = NOW_NS;
            world.announce_until_ns = NOW_NS + HOUR_NS;
            let key = AnnouncedKey { addr: F::VIP, ifindex };
            let announced = Announced {
                mac: NODE_1_MAC,
                pad: [0; 2],
            };
            F::maps_mut(world).announced.insert(key, announced);
        })
    }

    /// There is this TCP frontend.
    #[must_use]
    pub fn frontend(self, addr: F::Addr, port: u16, frontend: Frontend) -> Self {
        self.frontend_of(protocol::TCP, addr, port, frontend)
    }

    /// There is this frontend.
    #[must_use]
    pub fn frontend_of(self, protocol: u8, addr: F::Addr, port: u16, frontend: Frontend) -> Self {
        self.given(|world| {
            let key = FrontendKey {
                addr,
                port: Port::new(port),
                protocol,
                pad: 0,
            };
            F::maps_mut(world).frontends.insert(key, frontend);
            if frontend.flags & frontend_flags::NODE_PORT != 0 {
                world.node_ports.insert(port);
            } else {
                add_class::<F>(world, addr, address_class::FRONTEND);
            }
        })
    }

    /// There is this connection.
    #[must_use]
    pub fn established(self, flow: &Flow<F>) -> Self {
        self.given(|world| F::maps_mut(world).connections.extend(flow.entries()))
    }

    /// This comes in.
    #[must_use]
    pub fn packet(mut self, frame: &Frame<F>) -> Self {
        self.ethernet = frame.link.is_some();
        self.bytes = frame.build();
        self
    }

    /// These bytes come in.
    #[must_use]
    pub fn bytes(mut self, bytes: Vec<u8>) -> Self {
        self.bytes = bytes;
        self
    }

    /// A socket asks for a destination.
    #[must_use]
    pub fn asks(mut self, request: Request<F::Addr>) -> Self {
        self.hook = Hook::Socket;
        self.call = Some(Rc::new(move |env| match translate::<F, _>(env, &request) {
            Answer::Leave => "as asked for".into(),
            Answer::Use(addr, port) => format!("{addr:?} port {port:?}"),
            Answer::Refuse => "refused".into(),
            Answer::Drop(reason) => format!("dropped: {reason:?}"),
        }));
        self
    }

    /// A socket is told its peer.
    #[must_use]
    pub fn is_told(mut self, request: Request<F::Addr>) -> Self {
        self.hook = Hook::Socket;
        self.call = Some(Rc::new(move |env| match restore::<F, _>(env, &request) {
            None => "as it is".into(),
            Some((addr, port)) => format!("{addr:?} port {port:?}"),
        }));
        self
    }

    /// The socket must get this.
    #[must_use]
    pub fn gets(mut self, words: &str) -> Self {
        self.output = Some(Output::Socket(words.into()));
        self
    }

    /// The socket must get this address, and [`TARGET`] or another port.
    #[must_use]
    pub fn gets_address(self, addr: F::Addr, port: u16) -> Self {
        self.gets(&format!("{addr:?} port {port}"))
    }

    /// It must leave exactly as it came, as not ours.
    #[must_use]
    pub fn untouched(mut self) -> Self {
        self.output = Some(Output::packet(Verdict::Pass, self.bytes.clone(), 0));
        self.counted(&[Outcome::NotOurs])
    }

    /// It must pass on as this packet, of a known connection.
    #[must_use]
    pub fn passes_as(mut self, frame: &Frame<F>) -> Self {
        self.output = Some(Output::packet(Verdict::Pass, frame.build(), 0));
        self.counted(&[Outcome::Translated])
    }

    /// It must be delivered as this packet, as if it had come in by this device.
    #[must_use]
    pub fn delivered_as(mut self, frame: &Frame<F>, device: u32) -> Self {
        self.output = Some(Output::packet(Verdict::Deliver, frame.build(), device));
        self.counted(&[Outcome::Translated])
    }

    /// It must go out by this device as this packet.
    #[must_use]
    pub fn put_out_as(mut self, frame: &Frame<F>, device: u32) -> Self {
        self.output = Some(Output::packet(Verdict::Output, frame.build(), device));
        self.counted(&[Outcome::Translated])
    }

    /// It must be sent out by XDP as this packet.
    #[must_use]
    pub fn forwarded_as(mut self, frame: &Frame<F>) -> Self {
        self.output = Some(Output::packet(Verdict::Reflect, frame.build(), 0));
        self.counted(&[Outcome::Forwarded])
    }

    /// The bytes that leave must be these.
    #[must_use]
    pub fn gives(mut self, bytes: Vec<u8>) -> Self {
        if let Some(Output::Packet(_, out, _)) = &mut self.output {
            *out = bytes;
        }
        self
    }

    /// It must be answered with this packet.
    #[must_use]
    pub fn rejected_by(mut self, frame: &Frame<F>) -> Self {
        self.output = Some(Output::packet(Verdict::Reflect, frame.build(), 0));
        self.counted(&[Outcome::Rejected])
    }

    /// It must be answered with these bytes, as a request for an announced address.
    #[must_use]
    pub fn answered_with(mut self, bytes: Vec<u8>) -> Self {
        self.output = Some(Output::packet(Verdict::Reflect, bytes, 0));
        self.counted(&[Outcome::Answered])
    }

    /// It must leave exactly as it came, since the node may not answer any more.
    #[must_use]
    pub fn lapsed(mut self) -> Self {
        self.output = Some(Output::packet(Verdict::Pass, self.bytes.clone(), 0));
        self.counted(&[Outcome::Lapsed])
    }

    /// It must be dropped.
    #[must_use]
    pub fn dropped(mut self, reason: DropReason) -> Self {
        self.output = Some(Output::packet(Verdict::Drop(reason), Vec::new(), 0));
        self.counted(&[Outcome::Dropped(reason)])
    }

    /// These must be counted, too.
    #[must_use]
    pub fn counted(mut self, outcomes: &[Outcome]) -> Self {
        self.counts.extend(outcomes);
        self
    }

    /// These entries must be written, and no other.
    #[must_use]
    pub fn recorded(self, flow: &Flow<F>) -> Self {
        let entries = flow.entries();
        self.counted(&[Outcome::Connection])
            .then(move |world| F::maps_mut(world).connections.extend(entries))
    }

    /// The entry must be marked as seen now, with this added to its state.
    #[must_use]
    pub fn seen(self, key: Tuple<F::Addr>, state: u8) -> Self {
        self.then(move |world| {
            let entry = F::maps_mut(world)
                .connections
                .get_mut(&key)
                .expect("the entry is there");
            entry.last_seen = NOW;
            entry.state |= state;
        })
    }

    /// The world must differ so afterwards.
    #[must_use]
    pub fn then(mut self, change: impl FnOnce(&mut World) + 'static) -> Self {
        self.changes.push(Box::new(change));
        self
    }

    /// Cut to fewer bytes than these, the packet must pass as it came.
    #[must_use]
    pub fn needs(mut self, bytes: usize) -> Self {
        self.needed = bytes;
        self
    }

    /// The connection tables have room for this many entries.
    #[must_use]
    pub fn room_for(self, entries: usize) -> Self {
        self.given(|world| {
            world.v4.capacity = entries;
            world.v6.capacity = entries;
        })
    }

    /// This entry must be written, beside others.
    #[must_use]
    pub fn left_behind(self, entry: Entry<F::Addr>) -> Self {
        self.then(move |world| {
            F::maps_mut(world).connections.insert(entry.0, entry.1);
        })
    }

    /// The world so far, for other tests.
    pub fn world(self) -> World {
        self.world
    }

    /// The scenario.
    ///
    /// # Panics
    /// If it does not say what comes out.
    pub fn done(self) -> Scenario {
        let mut world = self.world.clone();
        for change in self.changes {
            change(&mut world);
        }
        for outcome in self.counts {
            *world.counts.entry(outcome.slot(self.hook)).or_default() += 1;
        }
        Scenario {
            sentence: self.sentence,
            family: F::NAME,
            world: self.world,
            input: match self.call {
                Some(call) => Input::Socket(call),
                None => Input::Packet {
                    hook: self.hook,
                    ethernet: self.ethernet,
                    ethertype: Frame::<F>::ethertype(),
                    bytes: self.bytes,
                },
            },
            expected: Expected {
                output: self.output.expect("a scenario says what comes out"),
                world,
            },
            needed: self.needed,
        }
    }
}

/// Marks an address in the filter.
pub fn add_class<F: Cast>(world: &mut World, address: F::Addr, class: u8) {
    *world.filter.entry(filter_bucket(&address)).or_default() |= class;
}
