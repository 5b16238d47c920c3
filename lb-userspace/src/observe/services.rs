//! The view of frontends and backends.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use lb_common::abi::{Backend, BackendSet, Family, Frontend, backend_flags, frontend_flags, protocol};
use serde::Serialize;

use super::state::Names;
use super::table;
use crate::datapath::pin::PinDir;
use crate::maps::bpf::BpfMaps;
use crate::maps::{FamilyContents, Maps, MapsError};

/// A frontend: an address and port that is matched.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Row {
    /// `namespace/name:port` of its Service; `None` if the agent does not answer.
    pub service: Option<String>,
    /// What it is: `ClusterIP`, `NodePort`, `LoadBalancer` or `ExternalIP`.
    pub kind: &'static str,
    /// Its address and port.
    pub address: String,
    /// Its protocol.
    pub protocol: &'static str,
    /// What becomes of clients from outside the node: `backends`, `reject` or `drop`, or `pass` if it is not for them.
    pub external: &'static str,
    /// What becomes of pods and processes of the node.
    pub internal: &'static str,
    /// Whose source is translated: `external`, `pod`, `node`.
    pub masquerade: Vec<&'static str>,
    /// Session affinity, in seconds.
    pub affinity_s: Option<u32>,
    /// Only clients in source ranges may come.
    pub source_ranges: bool,
    /// It is for sockets of the node's processes only.
    pub only_sockets: bool,
    /// Where it leads to.
    pub backends: Vec<RowBackend>,
}

/// A backend of a frontend.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct RowBackend {
    /// Its address and port.
    pub address: String,
    /// `local` or `remote`.
    pub place: &'static str,
    /// Clients from outside the node are sent there.
    pub external: bool,
    /// Pods and processes of the node are sent there.
    pub internal: bool,
}

/// Reads the maps.
///
/// # Errors
/// If they cannot be read.
pub fn read(pins: &PinDir, names: &Names) -> Result<Vec<Row>, MapsError> {
    let mut maps = BpfMaps::open(pins)?;
    let contents = maps.dump()?;
    let mut rows = Vec::new();
    family(&contents.v4, &mut maps, names, &mut rows)?;
    family(&contents.v6, &mut maps, names, &mut rows)?;
    rows.sort_by(|a, b| (&a.service, a.kind, &a.address).cmp(&(&b.service, b.kind, &b.address)));
    Ok(rows)
}

fn family<F: Family>(
    contents: &FamilyContents<F>,
    maps: &mut BpfMaps,
    names: &Names,
    rows: &mut Vec<Row>,
) -> Result<(), MapsError> {
    for (key, frontend) in &contents.frontends {
        // The entry for every other port of a ClusterIP, which rejects, is no frontend of anyone.
        if key.protocol == 0 {
            continue;
        }
        let mut backends: BTreeMap<u32, [bool; 2]> = BTreeMap::new();
        let only_sockets = frontend.flags & frontend_flags::ONLY_SOCKETS != 0;
        let external = if only_sockets {
            BackendSet::default()
        } else {
            frontend.external
        };
        for (which, set) in [external, frontend.internal].into_iter().enumerate() {
            let mut slots = Vec::new();
            maps.read_maglev(set.offset, set.size, &mut slots)?;
            slots
                .into_iter()
                .for_each(|id| backends.entry(id).or_default()[which] = true);
        }
        let describe = |(id, [external, internal]): (u32, [bool; 2])| {
            let backend = contents.backends.get(id as usize).copied().unwrap_or_default();
            RowBackend {
                address: address::<F>(&backend),
                place: place::<F>(&backend),
                external,
                internal,
            }
        };
        let flag = |flag| frontend.flags & flag != 0;
        let masquerade = [
            ("external", frontend_flags::MASQUERADE_EXTERNAL),
            ("pod", frontend_flags::MASQUERADE_POD),
            ("node", frontend_flags::MASQUERADE_NODE),
        ];
        rows.push(Row {
            service: names.get(&frontend.service_port).map(ToString::to_string),
            kind: kind(frontend),
            address: socket(key.addr.into(), key.port.get()),
            protocol: protocol_name(key.protocol),
            external: if only_sockets {
                "pass"
            } else {
                outcome(frontend.external, flag(frontend_flags::DROP_EXTERNAL))
            },
            internal: if only_sockets && frontend.internal.size == 0 {
                "pass"
            } else {
                outcome(frontend.internal, flag(frontend_flags::DROP_INTERNAL))
            },
            only_sockets,
            masquerade: masquerade
                .into_iter()
                .filter(|(_, f)| flag(*f) && !only_sockets)
                .map(|(name, _)| name)
                .collect(),
            affinity_s: flag(frontend_flags::AFFINITY).then_some(frontend.affinity_timeout_s),
            source_ranges: flag(frontend_flags::SOURCE_RANGES),
            backends: backends.into_iter().map(describe).collect(),
        });
    }
    Ok(())
}

fn kind(frontend: &Frontend) -> &'static str {
    [
        (frontend_flags::CLUSTER_IP, "ClusterIP"),
        (frontend_flags::NODE_PORT, "NodePort"),
        (frontend_flags::LOAD_BALANCER, "LoadBalancer"),
        (frontend_flags::EXTERNAL_IP, "ExternalIP"),
    ]
    .into_iter()
    .find(|(flag, _)| frontend.flags & flag != 0)
    .map_or("?", |(_, name)| name)
}

fn outcome(set: BackendSet, drops: bool) -> &'static str {
    match (set.size, drops) {
        (0, true) => "drop",
        (0, false) => "reject",
        _ => "backends",
    }
}

fn address<F: Family>(backend: &Backend<F::Addr>) -> String {
    socket(backend.addr.into(), backend.port.get())
}

fn place<F: Family>(backend: &Backend<F::Addr>) -> &'static str {
    if backend.flags & backend_flags::LOCAL != 0 {
        "local"
    } else {
        "remote"
    }
}

/// An address and port, as URLs have it.
pub fn socket(address: IpAddr, port: u16) -> String {
    SocketAddr::new(address, port).to_string()
}

/// The name of a protocol with ports.
pub fn protocol_name(number: u8) -> &'static str {
    match number {
        protocol::TCP => "TCP",
        protocol::UDP => "UDP",
        protocol::SCTP => "SCTP",
        _ => "?",
    }
}

/// For a terminal.
pub fn table(rows: &[Row]) -> String {
    let mut table = table::plain(&[
        "SERVICE", "KIND", "FRONTEND", "PROTO", "BACKENDS", "WHERE", "FOR", "NOTES",
    ]);
    for row in rows {
        let mut notes = Vec::new();
        if !row.masquerade.is_empty() {
            notes.push(format!("masquerades {}", row.masquerade.join(", ")));
        }
        notes.extend(row.affinity_s.map(|s| format!("affinity {s} s")));
        notes.extend(row.source_ranges.then(|| "source ranges".to_owned()));
        notes.extend(row.only_sockets.then(|| "processes of this node only".to_owned()));
        for (clients, outcome) in [("outside", row.external), ("inside", row.internal)] {
            if outcome != "backends" && outcome != "pass" {
                notes.push(format!("{outcome}s clients {clients}"));
            }
        }
        let none = RowBackend {
            address: "none".into(),
            place: "",
            external: false,
            internal: false,
        };
        let backends = if row.backends.is_empty() {
            std::slice::from_ref(&none)
        } else {
            &row.backends
        };
        for (index, backend) in backends.iter().enumerate() {
            let clients = match (backend.external, backend.internal) {
                (true, true) => "all",
                (true, false) => "outside",
                (false, true) => "inside",
                (false, false) => "",
            };
            let first = |text: &str| if index == 0 { text.to_owned() } else { String::new() };
            table.add_row([
                first(row.service.as_deref().unwrap_or("?")),
                first(row.kind),
                first(&row.address),
                first(row.protocol),
                backend.address.clone(),
                backend.place.to_owned(),
                clients.to_owned(),
                first(&notes.join("; ")),
            ]);
        }
    }
    table::text(&table)
}
