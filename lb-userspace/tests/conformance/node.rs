//! A node: the control plane over maps in memory, and the packet logic over these.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use fairway::desired::{LocalAddresses, LocalPods, NodePortAddresses, NodeState, NodeView, Settings, desired};
use fairway::maps::fake::FakeMaps;
use fairway::maps::{FamilyContents, MapFamily};
use fairway::model::{EndpointSlice, Node, ObjectKey, Service};
use fairway::reconcile::{NextHops, Reconciler};
use fairway::sources::Event;
use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use lb_common::abi::{Adjacency, Config, Port, V4, V6, protocol};
use lb_common::datapath::socket::{self, Answer, Request};
use lb_common::datapath::{self, Ip, Verdict, parse};
use lb_common::testing::build::Transport;
use lb_common::testing::env::FamilyMaps;
use lb_common::testing::{Cast, FakeEnv, FakePacket, Frame, World};
use lb_common::wire::{Be16, tcp_flags};
use serde_json::Value;

use super::case::{Case, Packet, Reference};

const HZ: u32 = 250;
/// The adjacency by which every backend is reached.
const ADJACENCY: u32 = 1;
/// Source ports of clients are counted from here on.
const FIRST_PORT: u16 = 1024;

/// What became of a packet that opens a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Seen {
    Forward { backend: SocketAddr, source: IpAddr },
    Reject,
    Drop,
    Pass,
}

impl Seen {
    pub const fn verdict(&self) -> &'static str {
        match self {
            Self::Forward { .. } => "forward",
            Self::Reject => "reject",
            Self::Drop => "drop",
            Self::Pass => "pass",
        }
    }
}

struct OneNextHop;

impl NextHops for OneNextHop {
    fn adjacency(&self, _backend: IpAddr) -> u32 {
        ADJACENCY
    }
}

pub struct TestNode {
    reconciler: Reconciler<FakeMaps, OneNextHop>,
    base: Node,
    services: BTreeMap<ObjectKey, Service>,
    slices: BTreeMap<ObjectKey, EndpointSlice>,
    env: FakeEnv,
    next_port: u16,
}

impl TestNode {
    /// A node with the objects of the case in force.
    pub fn new(case: &Case) -> Self {
        let nets = |texts: &[String]| -> Vec<IpNet> { texts.iter().map(|text| text.parse().expect("range")).collect() };
        let name: std::sync::Arc<str> = case.node.name.as_str().into();
        let state = NodeState {
            settings: Settings {
                node_name: name.clone(),
                local_pods: LocalPods::Cidrs(nets(&case.node.pod_cidrs)),
                node_port_addresses: match &case.config.nodeport_addresses {
                    Some(texts) => NodePortAddresses::Within(nets(texts)),
                    None => NodePortAddresses::Primary,
                },
                service_cidrs: nets(&case.config.service_cidrs),
                datapath: Config {
                    hz: HZ,
                    snat_port_min: 61_000,
                    snat_port_max: 65_535,
                    ..Config::default()
                },
                ..Settings::default()
            },
            local: LocalAddresses {
                all: case.node.ips.iter().chain(&case.node.other_ips).copied().collect(),
                primary: case.node.ips.clone(),
            },
            object: None,
            service_cidrs: None,
        };
        let base = Node {
            name,
            zone: case.node.zone.as_deref().map(Into::into),
            addresses: case.node.ips.clone(),
            pod_cidrs: nets(&case.node.pod_cidrs),
            leaving: false,
            problems: Vec::new(),
        };
        let world = World {
            now: 1_000_000,
            v4: next_hop::<V4>(&case.node.ips),
            v6: next_hop::<V6>(&case.node.ips),
            ..World::default()
        };
        let mut node = Self {
            reconciler: Reconciler::restore(FakeMaps::default(), OneNextHop, state).expect("fake maps can be read"),
            base: base.clone(),
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            env: FakeEnv::new(world),
            next_port: FIRST_PORT,
        };
        node.reconciler.take(Event::Node(Some(base)));
        node.reconciler.take(Event::Services(Vec::new()));
        node.reconciler.take(Event::EndpointSlices(Vec::new()));
        case.objects.iter().for_each(|object| node.apply(object));
        node.sync();
        node
    }

    pub fn apply(&mut self, object: &Value) {
        let kind = object.get("kind").and_then(Value::as_str);
        match kind {
            Some("Service") => {
                let object: core::Service = serde_json::from_value(object.clone()).expect("a Service");
                let service = Service::from(&object);
                self.services.insert(service.key.clone(), service.clone());
                self.reconciler.take(Event::Service(service));
            }
            Some("EndpointSlice") => {
                let object: discovery::EndpointSlice = serde_json::from_value(object.clone()).expect("a slice");
                let slice = EndpointSlice::from(&object);
                self.slices.insert(slice.key.clone(), slice.clone());
                self.reconciler.take(Event::EndpointSlice(slice));
            }
            Some("Node") => {
                let object: core::Node = serde_json::from_value(object.clone()).expect("a Node");
                let mut node = Node::from(&object);
                if node.name == self.base.name {
                    if node.addresses.is_empty() {
                        node.addresses.clone_from(&self.base.addresses);
                    }
                    self.reconciler.take(Event::Node(Some(node)));
                }
            }
            other => panic!("unknown kind {other:?}"),
        }
    }

    pub fn delete(&mut self, gone: &Reference) {
        let key = ObjectKey::new(&gone.namespace, &gone.name);
        match gone.kind.as_str() {
            "Service" => {
                self.services.remove(&key);
                self.reconciler.take(Event::ServiceGone(key));
            }
            "EndpointSlice" => {
                self.slices.remove(&key);
                self.reconciler.take(Event::EndpointSliceGone(key));
            }
            other => panic!("unknown kind {other}"),
        }
    }

    /// Brings the maps up to date, and with them the world that packets meet.
    pub fn sync(&mut self) {
        let report = self.reconciler.reconcile();
        assert!(report.failures.is_empty(), "{:?}", report.failures);
        let maps = self.reconciler.maps();
        let contents = &maps.contents;
        self.env.change(|world| {
            world.config = contents.config;
            world.filter = indexed(contents.filter.iter().copied()).collect();
            world.maglev = indexed(maps.maglev.iter().copied()).collect();
            world.members = contents.affinity_members.clone();
            let has = |port: &u16| contents.node_ports[usize::from(port >> 3)] & (1 << (port & 7)) != 0;
            world.node_ports = (0..=u16::MAX).filter(has).collect();
            take(&contents.v4, &mut world.v4);
            take(&contents.v6, &mut world.v6);
        });
    }

    /// Seconds since the case began.
    pub fn set_time(&mut self, seconds: u32) {
        self.env.change(|world| world.now = 1_000_000 + seconds * HZ);
    }

    /// How many local endpoints a health check port tells, if there is one.
    pub fn health(&self, node_port: u16) -> Option<usize> {
        let view = NodeView::new(self.reconciler.node());
        let mut checks = self.services.values().filter_map(|service| {
            let of_service = |slice: &&EndpointSlice| slice.service.as_ref() == Some(&service.key);
            let slices: Vec<&EndpointSlice> = self.slices.values().filter(of_service).collect();
            desired(service, &slices, &view).health
        });
        checks
            .find(|health| health.node_port == node_port)
            .and_then(|health| health.local_endpoints.into_iter().flatten().max())
    }

    pub fn has_address(&self, addr: IpAddr) -> bool {
        self.reconciler.node().local.all.contains(&addr)
    }

    /// The first packet of a new connection of this client.
    pub fn connect(&mut self, packet: &Packet, src: IpAddr) -> Seen {
        let port = self.next_port;
        self.next_port = port.checked_add(1).unwrap_or(FIRST_PORT);
        if src.is_ipv4() {
            self.connect_in::<V4>(packet, (src, port))
        } else {
            self.connect_in::<V6>(packet, (src, port))
        }
    }

    fn connect_in<F: Cast + MapFamily>(&self, packet: &Packet, client: (IpAddr, u16)) -> Seen {
        let src = F::addr(client.0).expect("an address of the family");
        let dst = F::addr(packet.dst).expect("an address of the family");
        let transport = match packet.proto.as_str() {
            "tcp" => Transport::Tcp {
                src: client.1,
                dst: packet.port,
                flags: tcp_flags::SYN,
            },
            "udp" => Transport::Udp {
                src: client.1,
                dst: packet.port,
                checked: true,
            },
            other => panic!("unknown protocol {other}"),
        };
        let bytes = Frame::<F>::new(src, dst, transport).build();
        if packet.from == "node-process" {
            let request = Request {
                cookie: u64::from(client.1).wrapping_mul(0x1_0001),
                netns_cookie: 0,
                protocol: if packet.proto == "tcp" {
                    protocol::TCP
                } else {
                    protocol::UDP
                },
                addr: dst,
                port: Port::new(packet.port),
                source: F::Addr::default(),
            };
            return match socket::translate::<F, _>(&self.env, &request) {
                Answer::Use(addr, port) => Seen::Forward {
                    backend: SocketAddr::new(addr.into(), port.get()),
                    source: client.0,
                },
                Answer::Refuse => Seen::Reject,
                Answer::Drop(_) => Seen::Drop,
                Answer::Leave => self.pass_by::<F, 2>(&bytes),
            };
        }
        match self.pass_by::<F, 1>(&bytes) {
            Seen::Forward { .. } => {}
            other => return other,
        }
        let inside = self.run::<1>(&bytes).1;
        self.pass_by::<F, 2>(&inside)
    }

    /// What becomes of a packet at a hook.
    fn pass_by<F: Cast + MapFamily, const HOOK: u8>(&self, bytes: &[u8]) -> Seen {
        let (verdict, after) = self.run::<HOOK>(bytes);
        match verdict {
            Verdict::Drop(_) => Seen::Drop,
            Verdict::Reflect => Seen::Reject,
            _ if after == bytes && HOOK == 1 => Seen::Pass,
            _ => {
                let (src, dst) = ends::<F>(&after);
                let untouched = ends::<F>(bytes).1 == dst && after == bytes;
                if untouched && !self.is_backend::<F>(dst) {
                    Seen::Pass
                } else {
                    Seen::Forward {
                        backend: dst,
                        source: src,
                    }
                }
            }
        }
    }

    fn is_backend<F: MapFamily>(&self, addr: SocketAddr) -> bool {
        let backends = &F::contents(&self.reconciler.maps().contents).backends;
        backends
            .iter()
            .any(|b| SocketAddr::new(b.addr.into(), b.port.get()) == addr)
    }

    fn run<const HOOK: u8>(&self, bytes: &[u8]) -> (Verdict, Vec<u8>) {
        let mut packet = FakePacket::<HOOK, true>::new(bytes, Be16::new(0));
        let verdict = datapath::run(&mut packet, &self.env);
        (verdict, packet.bytes)
    }
}

/// Source address, and destination with its port.
fn ends<F: Ip>(bytes: &[u8]) -> (IpAddr, SocketAddr) {
    let packet = FakePacket::<1, true>::new(bytes, Be16::new(0));
    let link = parse::link(&packet).expect("a link header");
    let headers = F::parse(&packet, &link).expect("an IP header");
    (
        headers.src.into(),
        SocketAddr::new(headers.dst.into(), headers.dst_port.get()),
    )
}

/// Entries that are not zero, by index.
fn indexed<T: Default + PartialEq>(values: impl Iterator<Item = T>) -> impl Iterator<Item = (u32, T)> {
    let numbered = (0..).zip(values);
    numbered.filter(|(_, value)| *value != T::default())
}

fn next_hop<F: MapFamily>(ips: &[IpAddr]) -> FamilyMaps<F::Addr> {
    let masquerade = ips.iter().find_map(|addr| F::addr(*addr)).unwrap_or_default();
    let next = Adjacency {
        ifindex: 1,
        mtu: 1500,
        masquerade,
        ..Adjacency::default()
    };
    FamilyMaps {
        adjacencies: [(ADJACENCY, next)].into(),
        ..FamilyMaps::default()
    }
}

fn take<F: MapFamily>(contents: &FamilyContents<F>, maps: &mut FamilyMaps<F::Addr>) {
    maps.frontends.clone_from(&contents.frontends);
    maps.backends = (0..).zip(contents.backends.iter().copied()).collect();
    maps.pod_cidrs = contents.pod_cidrs.iter().copied().collect();
    maps.service_cidrs = contents.service_cidrs.iter().copied().collect();
    maps.source_ranges = contents.source_ranges.iter().copied().collect();
}
