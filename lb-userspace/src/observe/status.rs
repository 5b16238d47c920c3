//! The view of the whole: what runs, how full, what was counted, what is wrong.

use std::io;

use lb_common::abi::{
    Addr4, Addr6, Address, AffinityEntry, AffinityKey, Backend, Connection, Frontend, FrontendKey, Hook,
    LAYOUT_VERSION, Outcome, Peer, SocketKey, Tuple, backend_flags,
};
use serde::Serialize;

use super::state::{Health, State};
use super::table;
use crate::announce::status::Announcements;
use crate::datapath::pin::PinDir;
use crate::maps::MapsError;
use crate::maps::bpf::{self, BpfMap};
use crate::sys;

/// What is shown.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// What the agent says; `None` if it does not answer.
    pub agent: Option<State>,
    /// Why it does not.
    pub agent_error: Option<String>,
    /// The pin directory.
    pub pin_dir: String,
    /// The version of the maps' layouts.
    pub layout_version: u32,
    /// The links that are pinned: programs that run with or without the agent.
    pub links: Vec<String>,
    /// How full the maps are.
    pub maps: Vec<Fill>,
    /// Packets by hook and outcome; those that never occurred are left out.
    pub counters: Vec<Count>,
}

/// How full a map is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fill {
    /// Its name.
    pub map: &'static str,
    /// Entries in it.
    pub entries: usize,
    /// How many it takes.
    pub capacity: u32,
}

/// How often something happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Where.
    pub hook: &'static str,
    /// What.
    pub outcome: &'static str,
    /// Packets.
    pub packets: u64,
}

/// Reads the maps.
///
/// # Errors
/// If they cannot be read.
pub fn read(pins: &PinDir, mut agent: io::Result<State>) -> Result<Status, MapsError> {
    if let Ok(agent) = &mut agent {
        // They are for the other views.
        agent.names.clear();
        agent.announcements = Announcements::default();
    }
    let agent_error = agent.as_ref().err().map(ToString::to_string);
    Ok(Status {
        agent: agent.ok(),
        agent_error,
        pin_dir: pins.root().display().to_string(),
        layout_version: LAYOUT_VERSION,
        links: pins.pinned_links(),
        maps: [
            family::<Addr4>(
                pins,
                [
                    "CONNECTIONS_V4",
                    "FRONTENDS_V4",
                    "BACKENDS_V4",
                    "AFFINITY_V4",
                    "SOCKETS_V4",
                ],
            )?,
            family::<Addr6>(
                pins,
                [
                    "CONNECTIONS_V6",
                    "FRONTENDS_V6",
                    "BACKENDS_V6",
                    "AFFINITY_V6",
                    "SOCKETS_V6",
                ],
            )?,
        ]
        .concat(),
        counters: counters(pins)?,
    })
}

fn family<A: Address>(
    pins: &PinDir,
    [connections, frontends, backends, affinity, sockets]: [&'static str; 5],
) -> Result<Vec<Fill>, MapsError> {
    let array = BpfMap::<u32, Backend<A>>::open(pins, backends)?;
    let memory = array.map_memory()?;
    let live = |id: &usize| memory.get(*id).is_some_and(|b| b.flags & backend_flags::LIVE != 0);
    Ok(vec![
        fill::<Tuple<A>, Connection<A>>(pins, connections)?,
        fill::<FrontendKey<A>, Frontend>(pins, frontends)?,
        Fill {
            map: backends,
            entries: (0..memory.len()).filter(live).count(),
            capacity: array.capacity(),
        },
        fill::<AffinityKey<A>, AffinityEntry>(pins, affinity)?,
        fill::<SocketKey<A>, Peer<A>>(pins, sockets)?,
    ])
}

fn fill<K: sys::Plain, V: sys::Plain>(pins: &PinDir, name: &'static str) -> Result<Fill, MapsError> {
    let map = BpfMap::<K, V>::open(pins, name)?;
    let mut entries = 0;
    map.walk(|chunk| entries += chunk.len())?;
    Ok(Fill {
        map: name,
        entries,
        capacity: map.capacity(),
    })
}

/// The counters that are not zero.
///
/// # Errors
/// If they cannot be read.
pub fn counters(pins: &PinDir) -> Result<Vec<Count>, MapsError> {
    const NAME: &str = "COUNTERS";
    let failed = |source| MapsError::Read { map: NAME, source };
    let map = sys::open_pinned(&pins.map(NAME)).map_err(failed)?;
    let cpus = bpf::possible_cpus();
    let mut counts = Vec::new();
    for hook in Hook::ALL {
        for outcome in Outcome::ALL {
            let values = sys::lookup_per_cpu(&map, outcome.slot(hook), cpus).map_err(failed)?;
            let packets = values.iter().sum();
            if packets > 0 {
                counts.push(Count {
                    hook: hook.name(),
                    outcome: outcome.name(),
                    packets,
                });
            }
        }
    }
    Ok(counts)
}

/// What probes are told, and where.
fn health(health: &Health) -> String {
    let at = |at: &Option<String>| at.clone().unwrap_or_else(|| "nowhere".to_owned());
    let (agent, node) = (
        if health.healthy {
            "healthy"
        } else {
            "changes are not in force"
        },
        if health.node_eligible {
            ""
        } else {
            ", the node is going away"
        },
    );
    format!(
        "health: {agent}{node}; /healthz and /livez on {}, /metrics on {}",
        at(&health.healthz),
        at(&health.metrics)
    )
}

/// The health check node ports, if there are any.
fn health_ports(health: &Health) -> Option<String> {
    let mut ports = table::plain(&["HEALTH CHECK", "SERVICE", "LOCAL ENDPOINTS", "ANSWER"]);
    for port in &health.ports {
        let good = health.healthy && port.local_endpoints > 0;
        ports.add_row([
            port.address.clone(),
            format!("{}/{}", port.namespace, port.service),
            port.local_endpoints.to_string(),
            if good { "200" } else { "503" }.to_owned(),
        ]);
    }
    (!health.ports.is_empty()).then(|| table::text(&ports))
}

impl Status {
    /// For a terminal.
    pub fn table(&self) -> String {
        let mut parts = vec![self.head()];
        if let Some(agent) = &self.agent {
            let mut devices = table::plain(&["DEVICE", "INGRESS", "EGRESS", "XDP"]);
            for device in &agent.devices {
                let how = |how: &Option<String>| how.clone().unwrap_or_else(|| "none".to_owned());
                let xdp = if device.uplink { how(&device.xdp) } else { String::new() };
                devices.add_row([device.device.clone(), how(&device.ingress), how(&device.egress), xdp]);
            }
            parts.push(table::text(&devices));
            parts.extend(health_ports(&agent.health));
        } else {
            parts.push(format!("pinned links: {}", self.links.join(", ")));
        }
        let mut maps = table::plain(&["MAP", "ENTRIES", "OF", "FILL"]);
        for fill in &self.maps {
            let percent = fill.entries.saturating_mul(100) / (fill.capacity.max(1) as usize);
            maps.add_row([
                fill.map.to_owned(),
                fill.entries.to_string(),
                fill.capacity.to_string(),
                format!("{percent} %"),
            ]);
        }
        parts.push(table::text(&maps));
        let mut counters = table::plain(&["HOOK", "OUTCOME", "PACKETS"]);
        for count in &self.counters {
            counters.add_row([
                count.hook.to_owned(),
                count.outcome.to_owned(),
                count.packets.to_string(),
            ]);
        }
        parts.push(table::text(&counters));
        let problems = self.agent.as_ref().map(|a| a.problems.as_slice()).unwrap_or_default();
        parts.push(match problems {
            [] if self.agent.is_some() => "no problems".to_owned(),
            [] => "problems are known to the agent only".to_owned(),
            problems => format!("{} problems:\n  {}", problems.len(), problems.join("\n  ")),
        });
        parts.join("\n\n")
    }

    fn head(&self) -> String {
        let pins = format!("pins: {}, layout version {}", self.pin_dir, self.layout_version);
        match (&self.agent, &self.agent_error) {
            (Some(agent), _) => format!(
                "fairway {} on {}, process {}, up {} s\nobjects: {}{}\n{pins}\nsockets: {}\n{}",
                agent.version,
                agent.node,
                agent.pid,
                agent.uptime_s,
                agent.source,
                if agent.waiting {
                    ", waiting for the first complete lists"
                } else {
                    ""
                },
                match &agent.cgroup {
                    Some(cgroup) => format!("{} of 8 hooks on {cgroup}", agent.sockets.len()),
                    None => "not translated".to_owned(),
                },
                health(&agent.health),
            ),
            (None, error) => format!(
                "the agent does not answer ({}); its programs go on by what they know\n{pins}",
                error.as_deref().unwrap_or("no socket")
            ),
        }
    }
}
