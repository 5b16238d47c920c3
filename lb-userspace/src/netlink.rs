//! The node's devices, addresses, routes and neighbours, from rtnetlink, and what follows from them.
//!
//! ```text
//!   kernel ─ events ─► Watcher ─ dumps ─► Network ─► devices to attach to, addresses of the node,
//!                                                    adjacencies (next hops) of backends
//! ```
//!
//! An event says only *what kind of thing* changed; the things are then read anew. So a lost event (the socket
//! overran) is repaired by reading everything, and the rest of the agent sees whole snapshots only. [`Network`]
//! and [`adjacency`] are plain data and functions; this file alone speaks rtnetlink.

pub mod adjacency;
pub mod network;
pub mod next_hops;
pub mod pod_devices;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::channel::mpsc::UnboundedReceiver;
use futures::{StreamExt, TryStreamExt};
use ipnet::IpNet;
use lb_common::abi::Mac;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoKind, InfoPortKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp, XdpAttached,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteNextHopFlags, RouteType, RouteVia,
};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::SocketAddr;
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};

use network::{Device, DeviceKind, LocalAddress, Neighbour, Network, Route, XdpState};

/// Kinds of things that rtnetlink tells of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// Devices.
    Links,
    /// Addresses of the node.
    Addresses,
    /// Routes of the main table.
    Routes,
    /// Resolved next hops.
    Neighbours,
}

/// All of [`Kind`].
pub const ALL: [Kind; 4] = [Kind::Links, Kind::Addresses, Kind::Routes, Kind::Neighbours];

/// rtnetlink failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No socket.
    #[error("cannot open a netlink socket: {0}")]
    Socket(#[from] io::Error),
    /// A list could not be read.
    #[error("cannot read the node's {what}: {source}")]
    Dump {
        /// Of what.
        what: &'static str,
        /// What rtnetlink says.
        source: rtnetlink::Error,
    },
    /// The task that reads the socket ended.
    #[error("the netlink socket was closed")]
    Closed,
}

/// Reads the node's network and hears of changes.
pub struct Watcher {
    handle: Handle,
    events: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
}

impl Watcher {
    /// Subscribes. Changes from now on are seen by [`Watcher::changed`].
    pub fn subscribe() -> Result<Self, NetlinkError> {
        let (connection, handle, events) = rtnetlink::new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Neigh,
        ])?;
        tokio::spawn(connection);
        Ok(Self { handle, events })
    }

    /// Waits for changes; takes all that have happened together.
    ///
    /// Nothing is lost if the future is dropped before it is ready.
    pub async fn changed(&mut self) -> Result<BTreeSet<Kind>, NetlinkError> {
        let mut kinds = BTreeSet::new();
        while kinds.is_empty() {
            let (first, _) = self.events.next().await.ok_or(NetlinkError::Closed)?;
            note(&first, &mut kinds);
            while let Ok((more, _)) = self.events.try_recv() {
                note(&more, &mut kinds);
            }
        }
        Ok(kinds)
    }

    /// Reads these kinds of things anew.
    pub async fn read(&self, kinds: &BTreeSet<Kind>, network: &mut Network) -> Result<(), NetlinkError> {
        for kind in kinds {
            match kind {
                Kind::Links => network.devices = self.devices().await?,
                Kind::Addresses => network.addresses = self.addresses().await?,
                Kind::Routes => network.set_routes(self.routes().await?),
                Kind::Neighbours => network.neighbours = self.neighbours().await?,
            }
        }
        Ok(())
    }

    /// Has the kernel resolve a next hop, or check one that it has not heard of for long. See
    /// [`network::Neighbour::permanent`] for those that it must not be asked for.
    pub async fn resolve(&self, device: u32, next_hop: IpAddr) -> Result<(), NetlinkError> {
        self.handle
            .neighbours()
            .add(device, next_hop)
            .state(NeighbourState::None)
            .flags(NeighbourFlags::Use)
            .replace()
            .execute()
            .await
            .map_err(|source| NetlinkError::Dump {
                what: "next hop",
                source,
            })
    }

    async fn devices(&self) -> Result<std::collections::BTreeMap<u32, Device>, NetlinkError> {
        let failed = |source| NetlinkError::Dump {
            what: "devices",
            source,
        };
        let links: Vec<_> = self.handle.link().get().execute().try_collect().await.map_err(failed)?;
        Ok(links.iter().map(device).map(|d| (d.index, d)).collect())
    }

    async fn addresses(&self) -> Result<Vec<LocalAddress>, NetlinkError> {
        let failed = |source| NetlinkError::Dump {
            what: "addresses",
            source,
        };
        let all: Vec<_> = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(failed)?;
        Ok(all.iter().filter_map(address).collect())
    }

    async fn routes(&self) -> Result<Vec<Route>, NetlinkError> {
        let failed = |source| NetlinkError::Dump { what: "routes", source };
        let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
        let mut routes = Vec::new();
        for family in [v4, v6] {
            let mut dump = self.handle.route().get(family).execute();
            while let Some(message) = dump.try_next().await.map_err(failed)? {
                routes.extend(route(&message));
            }
        }
        Ok(routes)
    }

    async fn neighbours(&self) -> Result<std::collections::HashMap<(u32, IpAddr), Neighbour>, NetlinkError> {
        let failed = |source| NetlinkError::Dump {
            what: "neighbours",
            source,
        };
        let all: Vec<_> = self
            .handle
            .neighbours()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(failed)?;
        Ok(all.iter().filter_map(neighbour).collect())
    }
}

/// What kind of thing a message is about. A message that the socket lost some means everything.
fn note(message: &NetlinkMessage<RouteNetlinkMessage>, kinds: &mut BTreeSet<Kind>) {
    use RouteNetlinkMessage as M;
    match &message.payload {
        NetlinkPayload::InnerMessage(M::NewLink(_) | M::DelLink(_)) => {
            // A device that goes takes its addresses and routes with it, those of IPv4 without a word.
            kinds.extend([Kind::Links, Kind::Addresses, Kind::Routes]);
        }
        NetlinkPayload::InnerMessage(M::NewAddress(_) | M::DelAddress(_)) => {
            kinds.extend([Kind::Addresses, Kind::Routes]);
        }
        NetlinkPayload::InnerMessage(M::NewRoute(_) | M::DelRoute(_)) => {
            kinds.insert(Kind::Routes);
        }
        NetlinkPayload::InnerMessage(M::NewNeighbour(_) | M::DelNeighbour(_)) => {
            kinds.insert(Kind::Neighbours);
        }
        NetlinkPayload::Overrun(_) => kinds.extend(ALL),
        _ => {}
    }
}

fn device(message: &LinkMessage) -> Device {
    let mut device = Device {
        index: message.header.index,
        kind: match message.header.link_layer_type {
            LinkLayerType::Loopback => DeviceKind::Loopback,
            LinkLayerType::Ether => DeviceKind::Ethernet,
            LinkLayerType::None
            | LinkLayerType::Ppp
            | LinkLayerType::Rawip
            | LinkLayerType::Tunnel
            | LinkLayerType::Tunnel6
            | LinkLayerType::Sit => DeviceKind::Layer3,
            _ => DeviceKind::Other,
        },
        up: message.header.flags.contains(LinkFlags::Up),
        carrier: message.header.flags.contains(LinkFlags::LowerUp),
        ..Device::default()
    };
    let (mut controller, mut is_port) = (0, false);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => device.name.clone_from(name),
            LinkAttribute::Controller(index) => controller = *index,
            LinkAttribute::Mtu(mtu) => device.mtu = *mtu,
            LinkAttribute::LinkInfo(info) => {
                device.veth = info.contains(&LinkInfo::Kind(InfoKind::Veth));
                is_port = info.contains(&LinkInfo::PortKind(InfoPortKind::Bridge));
            }
            LinkAttribute::Address(bytes) => device.mac = mac(bytes),
            LinkAttribute::Xdp(xdp) => {
                device.xdp = xdp.iter().fold(XdpState::None, |state, x| match x {
                    LinkXdp::Attached(XdpAttached::Driver | XdpAttached::Hardware) => XdpState::Native,
                    LinkXdp::Attached(XdpAttached::SocketBuffer) => XdpState::Generic,
                    LinkXdp::Attached(XdpAttached::Multiple) => XdpState::Native,
                    _ => state,
                });
            }
            _ => {}
        }
    }
    device.bridge = if is_port { controller } else { 0 };
    device
}

fn mac(bytes: &[u8]) -> Mac {
    Mac(bytes.try_into().unwrap_or_default())
}

fn address(message: &AddressMessage) -> Option<LocalAddress> {
    // `Local` is the own address; `Address` is the peer's on point-to-point links, else the same.
    let mut own = None;
    let mut peer = None;
    let mut flags = AddressFlags::empty();
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(a) => own = Some(*a),
            AddressAttribute::Address(a) => peer = Some(*a),
            AddressAttribute::Flags(f) => flags = *f,
            _ => {}
        }
    }
    let unusable = AddressFlags::Tentative | AddressFlags::Dadfailed | AddressFlags::Deprecated;
    Some(LocalAddress {
        device: message.header.index,
        address: own.or(peer)?,
        prefix_len: message.header.prefix_len,
        global: message.header.scope == AddressScope::Universe,
        // IPv6 uses the flag for temporary addresses, which are no worse.
        secondary: flags.contains(AddressFlags::Secondary) && own.or(peer)?.is_ipv4(),
        usable: !flags.intersects(unusable),
    })
}

fn route(message: &RouteMessage) -> Option<Route> {
    const MAIN: u32 = 254;
    let mut table = u32::from(message.header.table);
    let mut to = None;
    let mut hop = Hop::default();
    let mut route = Route::default();
    let mut paths: &[_] = &[];
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(t) => table = *t,
            RouteAttribute::Destination(d) => to = ip(d),
            RouteAttribute::PrefSource(a) => route.source = ip(a),
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::MultiPath(hops) => paths = hops,
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(|m| {
                    if let RouteMetric::Mtu(mtu) = m {
                        Some(*mtu)
                    } else {
                        None
                    }
                });
            }
            other => hop.take(other),
        }
    }
    if table != MAIN {
        return None;
    }
    let down = RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown;
    if let Some(path) = paths.iter().find(|p| !p.flags.intersects(down)) {
        hop = Hop {
            device: path.interface_index,
            ..Hop::default()
        };
        path.attributes.iter().for_each(|a| hop.take(a));
    }
    let length = message.header.destination_prefix_length;
    let any = match u8::from(message.header.address_family) {
        2 => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        _ => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    route.to = IpNet::new(to.unwrap_or(any), length).ok()?.trunc();
    // A route that leads nowhere hides less specific ones, so it is kept, without a device.
    let forwards = message.header.kind == RouteType::Unicast;
    route.device = if forwards { hop.device } else { 0 };
    route.gateway = hop.gateway;
    route.encapsulated = hop.encapsulated;
    matches!(
        message.header.kind,
        RouteType::Unicast | RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit
    )
    .then_some(route)
}

/// The part of a route that each path of a multipath route has.
#[derive(Default)]
struct Hop {
    device: u32,
    gateway: Option<IpAddr>,
    encapsulated: bool,
}

impl Hop {
    fn take(&mut self, attribute: &RouteAttribute) {
        match attribute {
            RouteAttribute::Oif(device) => self.device = *device,
            RouteAttribute::Gateway(a) => self.gateway = ip(a),
            RouteAttribute::Via(RouteVia::Inet(a)) => self.gateway = Some((*a).into()),
            RouteAttribute::Via(RouteVia::Inet6(a)) => self.gateway = Some((*a).into()),
            RouteAttribute::Encap(_) | RouteAttribute::EncapType(_) => self.encapsulated = true,
            _ => {}
        }
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(a) => Some((*a).into()),
        RouteAddress::Inet6(a) => Some((*a).into()),
        _ => None,
    }
}

fn neighbour(message: &NeighbourMessage) -> Option<((u32, IpAddr), Neighbour)> {
    let mut address = None;
    let mut neighbour = Neighbour::default();
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => address = Some(IpAddr::from(*a)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => address = Some(IpAddr::from(*a)),
            NeighbourAttribute::LinkLayerAddress(bytes) => neighbour.mac = mac(bytes),
            _ => {}
        }
    }
    neighbour.permanent = message.header.state == NeighbourState::Permanent;
    neighbour.resolved = matches!(
        message.header.state,
        NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Permanent
    ) && neighbour.mac != Mac::default();
    Some(((message.header.ifindex, address?), neighbour))
}
