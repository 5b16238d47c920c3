//! The node: the control plane over maps in memory, with the environment that packets meet.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use fairway::connections::{is_cut, is_primary, whole};
use fairway::desired::{LocalAddresses, LocalPods, NodePortAddresses, NodeState, NodeView, Settings, desired};
use fairway::maps::fake::FakeMaps;
use fairway::maps::{FamilyContents, MapFamily};
use fairway::model::{EndpointSlice, Node, ObjectKey, Service};
use fairway::reconcile::{NextHops, Pair, Reconciler};
use fairway::sources::Event;
use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use lb_common::abi::{Adjacency, Config, V4, V6, adjacency_flags};
use lb_common::testing::cast::{CLIENT_MAC, NODE_1_MAC};
use lb_common::testing::env::FamilyMaps;
use lb_common::testing::{Cast, FakeEnv, World};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::path::{Flow, LOCAL, Network, UPLINK};
use super::{Begin, Change, From, HealthSeen, Observation, Protocol};

const HZ: u32 = 250;
/// Jiffies when a case begins.
const BEGINNING: u32 = 1_000_000;
/// Source ports of clients: none of them can be a NodePort, or one for source translation.
const PORTS: std::ops::Range<u16> = 33_000..60_000;

/// The next hops of backends: those on the node behind a device of its own, the others on the uplink's link.
struct TwoNextHops {
    own: Vec<IpAddr>,
    pods: Vec<IpNet>,
}

impl NextHops for TwoNextHops {
    fn adjacency(&self, backend: IpAddr) -> u16 {
        let is_local = self.own.contains(&backend) || self.pods.iter().any(|cidr| cidr.contains(&backend));
        let device = if is_local { LOCAL } else { UPLINK };
        u16::try_from(device).unwrap_or(0)
    }
}

/// A node without a kernel.
pub struct TestNode {
    reconciler: Reconciler<FakeMaps, TwoNextHops>,
    name: Arc<str>,
    services: BTreeMap<ObjectKey, Service>,
    slices: BTreeMap<ObjectKey, EndpointSlice>,
    network: Network,
    flows: Vec<Flow>,
    next_port: u16,
    next_flow: u32,
}

impl TestNode {
    /// A node without Services.
    pub fn new(begin: &Begin) -> anyhow::Result<Self> {
        let Begin { node, config, object } = begin;
        let name: Arc<str> = node.name.as_str().into();
        let own: Vec<IpAddr> = node.ips.iter().chain(&node.other_ips).copied().collect();
        let state = NodeState {
            settings: Settings {
                node_name: name.clone(),
                local_pods: LocalPods::Cidrs(node.pod_cidrs.clone()),
                node_port_addresses: match &config.nodeport_addresses {
                    Some(nets) => NodePortAddresses::Within(nets.clone()),
                    None => NodePortAddresses::Primary,
                },
                service_cidrs: config.service_cidrs.clone(),
                datapath: Config {
                    hz: HZ,
                    snat_port_min: 61_000,
                    snat_port_max: 65_535,
                    ..Config::default()
                },
                ..Settings::default()
            },
            local: LocalAddresses {
                all: own.clone(),
                primary: node.ips.clone(),
            },
            object: None,
            service_cidrs: None,
        };
        let next_hops = TwoNextHops {
            own: own.clone(),
            pods: node.pod_cidrs.clone(),
        };
        let world = World {
            now: BEGINNING,
            v4: adjacencies::<V4>(&node.ips),
            v6: adjacencies::<V6>(&node.ips),
            ..World::default()
        };
        let mut node = Self {
            reconciler: Reconciler::restore(FakeMaps::default(), next_hops, state).context("start a reconciler")?,
            name,
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            network: Network {
                env: FakeEnv::new(world),
                own,
                pods: node.pod_cidrs.clone(),
            },
            flows: Vec::new(),
            next_port: PORTS.start,
            next_flow: 1,
        };
        let known: core::Node = serde_json::from_value(object.clone()).context("understand the Node object")?;
        node.reconciler.take(Event::Node(Some(Node::from(&known))));
        node.reconciler.take(Event::Services(Vec::new()));
        node.reconciler.take(Event::EndpointSlices(Vec::new()));
        node.sync()?;
        Ok(node)
    }

    /// Takes a change: what goes first.
    pub fn change(&mut self, change: &Change) -> anyhow::Result<()> {
        for gone in &change.delete {
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
                "Node" if *gone.name == *self.name => self.reconciler.take(Event::Node(None)),
                "Node" => {}
                other => bail!("unknown kind {other}"),
            }
        }
        for object in &change.apply {
            self.apply(object)?;
        }
        self.sync()
    }

    fn apply(&mut self, object: &Value) -> anyhow::Result<()> {
        match object.get("kind").and_then(Value::as_str) {
            Some("Service") => {
                let service = Service::from(&read::<core::Service>(object)?);
                self.services.insert(service.key.clone(), service.clone());
                self.reconciler.take(Event::Service(service));
            }
            Some("EndpointSlice") => {
                let slice = EndpointSlice::from(&read::<discovery::EndpointSlice>(object)?);
                self.slices.insert(slice.key.clone(), slice.clone());
                self.reconciler.take(Event::EndpointSlice(slice));
            }
            Some("Node") => {
                let node = Node::from(&read::<core::Node>(object)?);
                if node.name == self.name {
                    self.reconciler.take(Event::Node(Some(node)));
                }
            }
            other => bail!("unknown kind {other:?}"),
        }
        Ok(())
    }

    /// Brings the maps up to date, with them the world that packets meet, and cuts the flows that are to be cut.
    fn sync(&mut self) -> anyhow::Result<()> {
        let report = self.reconciler.reconcile();
        ensure!(
            report.failures.is_empty(),
            "maps could not be written: {:?}",
            report.failures
        );
        let maps = self.reconciler.maps();
        let contents = &maps.contents;
        self.network.env.change(|world| {
            world.config = contents.config;
            world.filter = indexed(contents.filter.iter().copied()).collect();
            world.maglev = indexed(maps.maglev.iter().copied()).collect();
            world.members = contents.affinity_members.clone();
            let has = |port: &u16| contents.node_ports[usize::from(port >> 3)] & (1 << (port & 7)) != 0;
            world.node_ports = (0..=u16::MAX).filter(has).collect();
            take(&contents.v4, &mut world.v4);
            take(&contents.v6, &mut world.v6);
        });
        let [v4, v6] = self.reconciler.serving().map(|serving| serving.pairs());
        self.network.env.change(|world| {
            cut::<V4>(v4.as_ref(), world);
            cut::<V6>(v6.as_ref(), world);
        });
        Ok(())
    }

    /// Seconds since the case began.
    pub fn set_time(&mut self, seconds: u32) {
        self.network
            .env
            .change(|world| world.now = BEGINNING.wrapping_add(seconds.wrapping_mul(HZ)));
    }

    /// What a health check port says.
    pub fn health(&self, node_port: u16) -> HealthSeen {
        let view = NodeView::new(self.reconciler.node());
        let found = self.services.values().find_map(|service| {
            let of_service = |slice: &&EndpointSlice| slice.service.as_ref() == Some(&service.key);
            let slices: Vec<&EndpointSlice> = self.slices.values().filter(of_service).collect();
            let health = desired(service, &slices, &view).health?;
            // Each family has a count of its own, told at addresses of the family.
            let count = health.local_endpoints.into_iter().flatten().max()?;
            (health.node_port == node_port).then_some((service, count))
        });
        let Some((service, local_endpoints)) = found else {
            return HealthSeen::default();
        };
        HealthSeen {
            status: Some(if local_endpoints == 0 { 503 } else { 200 }),
            local_endpoints: Some(local_endpoints),
            service: Some(service.key.to_string()),
        }
    }

    /// What becomes of a new connection.
    pub fn connect(&mut self, from: From, client: IpAddr, dst: SocketAddr, protocol: Protocol) -> Observation {
        let port = self.next_port;
        self.next_port = if port + 1 == PORTS.end { PORTS.start } else { port + 1 };
        let mut flow = self.flow(from, SocketAddr::new(client, port), dst, protocol);
        self.network.send(&mut flow)
    }

    /// Opens a connection that stays.
    pub fn open(&mut self, from: From, client: SocketAddr, dst: SocketAddr, protocol: Protocol) -> Observation {
        let mut flow = self.flow(from, client, dst, protocol);
        let seen = self.network.send(&mut flow);
        self.flows.push(flow);
        seen
    }

    /// Gives up the connection that was opened last.
    pub fn forget_last(&mut self) {
        self.flows.pop();
    }

    fn flow(&mut self, from: From, client: SocketAddr, dst: SocketAddr, protocol: Protocol) -> Flow {
        self.next_flow += 1;
        Flow::new(from, client, dst, protocol, self.next_flow)
    }

    /// Sends one more packet of it.
    pub fn ask(&mut self, flow: usize) -> anyhow::Result<Observation> {
        let flow = self.flows.get_mut(flow).context("no such flow")?;
        Ok(self.network.send(flow))
    }

    /// Whether it has an entry.
    pub fn is_known(&self, flow: usize) -> anyhow::Result<bool> {
        Ok(self.network.is_known(self.flows.get(flow).context("no such flow")?))
    }
}

fn read<T: DeserializeOwned>(object: &Value) -> anyhow::Result<T> {
    let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let what = format!("{} {}", text("/kind"), text("/metadata/name"));
    serde_json::from_value(object.clone()).with_context(|| format!("the {what} is not one of Kubernetes"))
}

/// Entries that are not zero, by index.
fn indexed<T: Default + PartialEq>(values: impl Iterator<Item = T>) -> impl Iterator<Item = (u32, T)> {
    let numbered = (0..).zip(values);
    numbered.filter(|(_, value)| *value != T::default())
}

fn adjacencies<F: MapFamily>(ips: &[IpAddr]) -> FamilyMaps<F::Addr> {
    let masquerade = ips.iter().find_map(|addr| F::addr(*addr)).unwrap_or_default();
    let next = |ifindex, flags| Adjacency {
        ifindex,
        flags,
        mtu: 1500,
        dst_mac: CLIENT_MAC,
        src_mac: NODE_1_MAC,
        masquerade,
    };
    FamilyMaps {
        adjacencies: [(UPLINK, next(UPLINK, adjacency_flags::FAST)), (LOCAL, next(LOCAL, 0))].into(),
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

/// Removes the flows that the agent's thread would remove.
fn cut<F: Cast>(serving: Option<&HashSet<Pair>>, world: &mut World) {
    let Some(serving) = serving else { return };
    let maps = F::maps_mut(world);
    let mut doomed = Vec::new();
    for (key, entry) in maps.connections.iter().filter(|(key, entry)| is_primary(*key, *entry)) {
        let backend = maps.backends.get(&entry.backend).copied();
        if is_cut(key, entry, backend, serving) {
            let get = |key: &_| Ok::<_, std::convert::Infallible>(maps.connections.get(key).copied());
            let Ok(whole) = whole(key, entry, get, |_| 0);
            doomed.extend(whole.keys);
        }
    }
    for key in doomed {
        maps.connections.remove(&key);
    }
}
