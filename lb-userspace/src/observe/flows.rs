//! The view of connections.

use lb_common::abi::{
    Addr4, Addr6, Address, Backend, Connection, Family, FrontendKey, Peer, SocketKey, Tuple, V4, V6, conn_flags,
    protocol, socket_side,
};
use serde::Serialize;

use super::services::{protocol_name, socket};
use super::state::Names;
use super::table;
use crate::connections::clock::Clock;
use crate::connections::{is_primary, whole};
use crate::datapath::pin::PinDir;
use crate::maps::MapsError;
use crate::maps::bpf::BpfMap;
use crate::sys::Plain;

/// A connection that is being translated.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Flow {
    /// Its protocol.
    pub protocol: &'static str,
    /// The client's address and port; `None` for a translated socket, whose packets we do not see.
    pub client: Option<String>,
    /// The address and port that the client talks to.
    pub frontend: String,
    /// The address and port that it reaches.
    pub backend: String,
    /// The address and port that the backend sees, if it is not the client's.
    pub snat: Option<String>,
    /// Whether its packets go on as they are to the node of the backend, which translates them and answers.
    pub passed_on: bool,
    /// Who translated the first packet, or passed it on: `xdp`, `tc` or `socket`.
    pub hook: &'static str,
    /// What it is doing.
    pub state: &'static str,
    /// Seconds since its last packet.
    pub idle_s: u32,
    /// Whether the backend is on this node.
    pub local: bool,
    /// Its Service; `None` if the agent does not answer.
    pub service: Option<String>,
    /// The socket's cookie, where a socket was translated.
    pub cookie: Option<u64>,
}

/// Reads the maps.
///
/// # Errors
/// If they cannot be read.
pub fn read(pins: &PinDir, names: &Names) -> Result<Vec<Flow>, MapsError> {
    let clock = Clock::measure(pins);
    let mut flows = Vec::new();
    packets::<Addr4>(pins, ["CONNECTIONS_V4", "BACKENDS_V4"], &clock, names, &mut flows)?;
    packets::<Addr6>(pins, ["CONNECTIONS_V6", "BACKENDS_V6"], &clock, names, &mut flows)?;
    sockets::<V4>(pins, "SOCKETS_V4", &clock, names, &mut flows)?;
    sockets::<V6>(pins, "SOCKETS_V6", &clock, names, &mut flows)?;
    flows.sort_by(|a, b| {
        (&a.service, &a.frontend, a.idle_s, &a.client).cmp(&(&b.service, &b.frontend, b.idle_s, &b.client))
    });
    Ok(flows)
}

fn packets<A: Address>(
    pins: &PinDir,
    [connections, backends]: [&'static str; 2],
    clock: &Clock,
    names: &Names,
    flows: &mut Vec<Flow>,
) -> Result<(), MapsError>
where
    Backend<A>: Plain,
{
    let table: BpfMap<Tuple<A>, Connection<A>> = BpfMap::open(pins, connections)?;
    let backends: BpfMap<u32, Backend<A>> = BpfMap::open(pins, backends)?;
    let now = clock.now();
    let mut failed = None;
    table.walk(|chunk| {
        for (key, entry) in chunk.iter().filter(|(key, entry)| is_primary(key, entry)) {
            let whole = match whole(key, entry, |k| table.get(k), |seen| clock.seconds(now, seen)) {
                Ok(whole) => whole,
                Err(error) => {
                    failed = Some(error);
                    continue;
                }
            };
            // What is passed on keeps its destination.
            let passed_on = entry.flags & conn_flags::PASSED_ON != 0;
            let found = passed_on.then(|| backends.get(&entry.backend));
            let backend = match found {
                Some(Ok(Some(backend))) => (backend.addr, backend.port),
                _ => (entry.dst, entry.dst_port),
            };
            flows.push(Flow {
                protocol: protocol_name(key.protocol),
                client: Some(socket(key.src.into(), key.src_port.get())),
                frontend: socket(key.dst.into(), key.dst_port.get()),
                backend: socket(backend.0.into(), backend.1.get()),
                passed_on,
                snat: whole.snat.map(|(address, port)| socket(address.into(), port.get())),
                hook: if entry.flags & conn_flags::BY_XDP != 0 {
                    "xdp"
                } else {
                    "tc"
                },
                state: whole.group.phase().name(),
                idle_s: whole.group.idle_s,
                local: entry.flags & conn_flags::LOCAL != 0,
                service: names.get(&entry.service_port).map(ToString::to_string),
                cookie: None,
            });
        }
    })?;
    failed.map_or(Ok(()), Err)
}

fn sockets<F: Family>(
    pins: &PinDir,
    map: &'static str,
    clock: &Clock,
    names: &Names,
    flows: &mut Vec<Flow>,
) -> Result<(), MapsError>
where
    SocketKey<F::Addr>: Plain,
    Peer<F::Addr>: Plain,
    FrontendKey<F::Addr>: Plain,
{
    let table: BpfMap<SocketKey<F::Addr>, Peer<F::Addr>> = BpfMap::open(pins, map)?;
    let now = clock.now();
    table.walk(|chunk| {
        let by_backend = chunk.iter().filter(|(key, _)| key.side == socket_side::BACKEND);
        flows.extend(by_backend.map(|(key, peer)| Flow {
            protocol: protocol_name(key.protocol),
            client: None,
            frontend: socket(peer.addr.into(), peer.port.get()),
            backend: socket(key.addr.into(), key.port.get()),
            snat: None,
            passed_on: false,
            hook: "socket",
            // Only the kernel's own table knows what becomes of a socket.
            state: if key.protocol == protocol::TCP {
                "connected"
            } else {
                "sending"
            },
            idle_s: clock.seconds(now, peer.last_seen),
            local: false,
            service: names.get(&peer.service_port).map(ToString::to_string),
            cookie: Some(u64::from(key.cookie_high) << 32 | u64::from(key.cookie_low)),
        }));
    })
}

/// For a terminal.
pub fn table(flows: &[Flow]) -> String {
    let mut table = table::plain(&[
        "SERVICE", "PROTO", "CLIENT", "FRONTEND", "BACKEND", "SEEN AS", "BY", "STATE", "IDLE",
    ]);
    for flow in flows {
        let cookie = flow.cookie.map(|cookie| format!("socket {cookie}"));
        table.add_row([
            flow.service.as_deref().unwrap_or("?"),
            flow.protocol,
            flow.client.as_deref().or(cookie.as_deref()).unwrap_or("?"),
            &flow.frontend,
            &flow.backend,
            match &flow.snat {
                _ if flow.passed_on => "(passed on)",
                Some(snat) => snat,
                None => "itself",
            },
            flow.hook,
            flow.state,
            &format!("{} s", flow.idle_s),
        ]);
    }
    table::text(&table)
}
