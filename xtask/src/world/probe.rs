//! Asking, and judging what became of it.
//!
//! A verdict rests on where the request arrived, which is seen there, and on whether its answer came back. Only
//! where it arrived nowhere does the client's word count: told (`Reject`), or not, twice (`Drop`).

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use serde::{Deserialize, Serialize};

use super::World;
use super::client::{Client, Heard, Plan};
use super::plan::{From, Place, Protocol, is_alike};
use super::sockets::Kind;
use super::wire::Arrival;

/// New connections of one kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Probe {
    /// Who opens them.
    pub from: From,
    /// From which address.
    pub src: IpAddr,
    /// To where.
    pub dst: SocketAddr,
    /// In which protocol.
    pub protocol: Protocol,
    /// How many, each with a source port that was not used before.
    pub flows: u32,
    /// Who the clients are.
    pub clients: Clients,
}

/// From how many addresses connections come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clients {
    /// From `src` alone.
    One,
    /// From `src` and others of the same kind in turn: its neighbours, pods on this node, or addresses of the node.
    Many,
}

/// What became of one connection, or of one request on it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Observation {
    /// It arrived somewhere else than where it was sent, and was answered from where it was sent.
    Forward {
        /// Where it arrived.
        backend: SocketAddr,
        /// The source that was seen there.
        source: SocketAddr,
        /// The source that it had at first.
        client: SocketAddr,
    },
    /// It arrived nowhere, and the client was told.
    Reject,
    /// It arrived nowhere, and the client heard nothing, twice.
    Drop,
    /// It arrived unchanged where routing leads it: at a server, outside, or in the node's own stack.
    Pass,
    /// The connection had been made, and was cut.
    Cut,
    /// Anything else, in words.
    Other(String),
}

/// An open connection, which stays until it is dropped.
#[derive(Debug)]
pub struct Flow(Client);

impl Flow {
    /// The client's address and port.
    pub fn client(&self) -> SocketAddr {
        self.0.local
    }
}

/// Which connection to open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opening {
    /// Who opens it.
    pub from: From,
    /// From which address and port; port 0 for any.
    pub src: SocketAddr,
    /// To where.
    pub dst: SocketAddr,
    /// In which protocol.
    pub protocol: Protocol,
    /// Whether a UDP socket is connected, or names its destination with each datagram.
    pub connected: bool,
}

/// What became of a request, and whether that may be for want of patience.
type Judgement = (Observation, bool);

/// Where a client's socket is made, whether in the node's cgroup, whether for IPv6, and for which protocol.
type SocketKind = (Place, bool, bool, Protocol);

/// Flows that are under way at the same time.
const AT_ONCE: usize = 512;
/// The same of SCTP: each packet is given to the raw sockets of all of them.
const SCTP_AT_ONCE: usize = 48;
/// How often a client looks whether its request has arrived somewhere.
const TICK_MS: u16 = 3;

impl World {
    /// Sends all probes at the same time. For each it tells what became of each of its connections.
    ///
    /// What is silent is asked once more, from another port, before it counts as dropped.
    pub fn probe(&mut self, probes: &[Probe]) -> anyhow::Result<Vec<Vec<Observation>>> {
        let mut openings = Vec::new();
        for (index, probe) in probes.iter().enumerate() {
            let clients = self.clients(probe)?;
            let flows = (0..probe.flows as usize).map(|flow| Opening {
                from: probe.from,
                src: SocketAddr::new(clients[flow % clients.len()], 0),
                dst: probe.dst,
                protocol: probe.protocol,
                connected: true,
            });
            openings.extend(flows.map(|opening| (index, opening)));
        }
        let mut results: Vec<Vec<Observation>> = probes.iter().map(|_| Vec::new()).collect();
        for wave in waves(&openings) {
            let wanted: Vec<Opening> = wave.iter().map(|(_, opening)| *opening).collect();
            let mut seen = self.open_all(&wanted)?.1;
            let again: Vec<usize> = (0..seen.len()).filter(|&flow| seen[flow].1).collect();
            if !again.is_empty() {
                let wanted: Vec<Opening> = again.iter().map(|&flow| wanted[flow]).collect();
                for (flow, second) in again.into_iter().zip(self.open_all(&wanted)?.1) {
                    seen[flow] = second;
                }
            }
            for ((index, _), (observation, _)) in wave.iter().zip(seen) {
                results[*index].push(observation);
            }
        }
        Ok(results)
    }

    /// Opens connections that stay, all at the same time, and tells what became of each.
    pub fn open(&mut self, openings: &[Opening]) -> anyhow::Result<Vec<(Flow, Observation)>> {
        let (clients, seen) = self.open_all(openings)?;
        let flows = clients.into_iter().map(Flow);
        Ok(flows
            .zip(seen.into_iter().map(|(observation, _)| observation))
            .collect())
    }

    /// Sends one more request on each of these connections, and tells what became of that.
    pub fn ask(&mut self, flows: &mut [&mut Flow]) -> anyhow::Result<Vec<Observation>> {
        let mut clients: Vec<&mut Client> = flows.iter_mut().map(|flow| &mut flow.0).collect();
        clients.iter_mut().for_each(|client| client.ask());
        self.listen(&mut clients)?;
        Ok(clients.iter().map(|client| self.judge(client).0).collect())
    }

    /// Who the clients of a probe are.
    fn clients(&mut self, probe: &Probe) -> anyhow::Result<Vec<IpAddr>> {
        ensure!(
            probe.src.is_ipv4() == probe.dst.is_ipv4(),
            "a packet from {} to {} is of two families",
            probe.src,
            probe.dst
        );
        let others = match (probe.clients, probe.from) {
            (Clients::One, _) => Vec::new(),
            (Clients::Many, From::External) => self.neighbours(probe.src),
            (Clients::Many, from) if from.is_pod() => self.crowd(probe.src)?,
            (Clients::Many, _) => {
                let mut own = self.spec.node_addresses();
                own.retain(|addr| addr.is_ipv4() == probe.src.is_ipv4());
                own
            }
        };
        let mut clients = vec![probe.src];
        let alike = others
            .into_iter()
            .filter(|addr| is_alike(&self.ranges, *addr, probe.src));
        clients.extend(alike.filter(|addr| *addr != probe.src));
        Ok(clients)
    }

    fn open_all(&mut self, openings: &[Opening]) -> anyhow::Result<(Vec<Client>, Vec<Judgement>)> {
        self.observer.clear();
        let mut sockets = self.client_sockets(openings)?;
        let mut clients = Vec::new();
        for opening in openings {
            let kind = self.kind(opening)?;
            clients.push(self.open_one(opening, || {
                sockets
                    .get_mut(&kind)
                    .and_then(Vec::pop)
                    .context("a socket for each flow")
            })?);
        }
        let mut asked: Vec<&mut Client> = clients.iter_mut().collect();
        self.listen(&mut asked)?;
        let seen = clients.iter().map(|client| self.judge(client)).collect();
        Ok((clients, seen))
    }

    fn open_one(
        &mut self,
        opening: &Opening,
        mut socket: impl FnMut() -> anyhow::Result<socket2::Socket>,
    ) -> anyhow::Result<Client> {
        let mut plan = Plan {
            from: opening.from,
            protocol: opening.protocol,
            local: opening.src,
            target: opening.dst,
            flow: self.next_flow(),
            connected: opening.connected,
            bound: !self.is_kernels_choice(opening),
        };
        let own_port = opening.src.port() == 0;
        if own_port {
            plan.local.set_port(self.next_port());
        }
        match Client::open(socket()?, &plan) {
            // Somebody has that port: a server, or a flow that stays.
            Err(error) if own_port && error.kind() == ErrorKind::AddrInUse => {
                plan.local.set_port(self.next_port());
                Client::open(socket()?, &plan)
            }
            other => other,
        }
        .with_context(|| format!("open a {:?} flow from {} to {}", plan.protocol, plan.local, plan.target))
    }

    /// Whether a socket that is not bound to an address would have this one. Hooks tell such sockets from others, so
    /// those in the node's cgroup are as most sockets are.
    fn is_kernels_choice(&self, opening: &Opening) -> bool {
        let (src, dst) = (opening.src.ip(), opening.dst.ip());
        match opening.from {
            From::Pod => !self.in_crowd(src),
            From::NodeProcess => {
                let first = self.spec.ips.iter().find(|addr| addr.is_ipv4() == src.is_ipv4());
                let on_the_node = self.spec.place(dst) == Place::Node;
                dst.is_loopback() || first == Some(&src) && (!on_the_node || dst == src)
            }
            From::External | From::PodOutsideCgroup | From::NodeProcessOutsideCgroup => false,
        }
    }

    /// Sockets for all of these, made together where they are of the same kind; some to spare of each.
    fn client_sockets(&mut self, openings: &[Opening]) -> anyhow::Result<BTreeMap<SocketKind, Vec<socket2::Socket>>> {
        let mut counts: BTreeMap<SocketKind, usize> = BTreeMap::new();
        for opening in openings {
            *counts.entry(self.kind(opening)?).or_default() += 1;
        }
        let mut sockets = BTreeMap::new();
        for (kind, count) in counts {
            let (place, in_cgroup, v6, protocol) = kind;
            // Some find their port in use, and are opened again.
            let spare = 4 + count.div_ceil(8);
            let made = self.sockets(place, in_cgroup, v6, Kind::Of(protocol), count + spare)?;
            sockets.insert(kind, made);
        }
        Ok(sockets)
    }

    /// A socket for one.
    pub(super) fn client_socket(&mut self, opening: &Opening) -> anyhow::Result<socket2::Socket> {
        let made = self.client_sockets(&[*opening])?;
        made.into_values().flatten().next().context("a socket was made")
    }

    fn kind(&mut self, opening: &Opening) -> anyhow::Result<SocketKind> {
        let place = self.client_place(opening)?;
        let in_cgroup = opening.from.is_in_cgroup() && (self.spec.pods_in_cgroup || !opening.from.is_pod());
        Ok((place, in_cgroup, opening.src.is_ipv6(), opening.protocol))
    }

    /// Where a client is; a pod that is not there yet is made.
    fn client_place(&mut self, opening: &Opening) -> anyhow::Result<Place> {
        let addr = opening.src.ip();
        match opening.from {
            From::External => Ok(Place::Outside),
            From::NodeProcess | From::NodeProcessOutsideCgroup => Ok(Place::Node),
            _ if self.in_crowd(addr) => Ok(Place::Crowd),
            From::Pod | From::PodOutsideCgroup => match self.spec.place(addr) {
                place @ Place::Pod(_) => {
                    self.need(place)?;
                    Ok(place)
                }
                _ => bail!("{addr} is to be a pod of the node, and is in none of its pod CIDRs"),
            },
        }
    }

    /// Waits until each client has heard something or its request has arrived unchanged, or patience is over; and
    /// until all arrivals are known.
    fn listen(&self, clients: &mut [&mut Client]) -> anyhow::Result<()> {
        let deadline = Instant::now() + self.patience;
        loop {
            clients.iter_mut().for_each(|client| client.listen());
            let waiting: Vec<&&mut Client> = clients
                .iter()
                .filter(|client| client.heard.is_none() && !self.has_passed(client))
                .collect();
            if waiting.is_empty() || Instant::now() > deadline {
                break;
            }
            let events = PollFlags::POLLIN | PollFlags::POLLOUT;
            let mut polled: Vec<PollFd<'_>> = waiting
                .iter()
                .map(|client| {
                    let writable = client.protocol == Protocol::Tcp && client.asked.number == 0;
                    PollFd::new(client.raw_fd(), if writable { events } else { PollFlags::POLLIN })
                })
                .collect();
            nix::poll::poll(&mut polled, PollTimeout::from(TICK_MS)).context("wait for answers")?;
        }
        self.observer.settle()
    }

    fn has_passed(&self, client: &Client) -> bool {
        let arrivals = self.observer.arrivals(client.asked);
        arrivals.iter().any(|arrival| is_unchanged(client, arrival))
    }

    /// What became of a client's last request.
    fn judge(&self, client: &Client) -> Judgement {
        let arrivals = self.observer.arrivals(client.asked);
        let other = |text: String| (Observation::Other(text), false);
        let arrival = match (&arrivals[..], &client.heard) {
            ([], None) => return (Observation::Drop, true),
            ([], Some(Heard::Refusal)) if client.asked.number == 0 || client.protocol != Protocol::Tcp => {
                return (Observation::Reject, false);
            }
            ([], Some(Heard::Refusal | Heard::End)) => return (Observation::Cut, false),
            ([], Some(Heard::Answer)) => return other("answered, and arrived nowhere".to_owned()),
            ([], Some(Heard::Other(text))) => return other(format!("arrived nowhere; the client: {text}")),
            ([arrival], _) => arrival,
            (several, _) => {
                let places: Vec<String> = several.iter().map(|arrival| arrival.destination.to_string()).collect();
                return other(format!("arrived in several places: {}", places.join(", ")));
            }
        };
        let (source, backend) = (arrival.source, arrival.destination);
        if is_unchanged(client, arrival) {
            return (Observation::Pass, false);
        }
        if backend == client.target {
            return other(format!(
                "arrived where it was sent, but from {source} instead of {}",
                client.local
            ));
        }
        if !arrival.whole {
            return other(format!("arrived at {backend} with a wrong checksum"));
        }
        match &client.heard {
            Some(Heard::Answer) => {
                let client = client.local;
                (
                    Observation::Forward {
                        backend,
                        source,
                        client,
                    },
                    false,
                )
            }
            None => {
                let text = format!("arrived at {backend} from {source}, and its answer did not come back");
                (Observation::Other(text), true)
            }
            Some(heard) => {
                let served = self.is_served(backend, client.protocol);
                let nobody = if served { "" } else { ", where nobody serves" };
                other(format!(
                    "arrived at {backend}{nobody} from {source}; the client: {heard:?}"
                ))
            }
        }
    }
}

/// Parts of flows that can be under way at the same time.
fn waves(mut openings: &[(usize, Opening)]) -> Vec<&[(usize, Opening)]> {
    let mut waves = Vec::new();
    while !openings.is_empty() {
        let mut sctp = 0;
        let fits = openings.iter().take(AT_ONCE).take_while(|(_, opening)| {
            sctp += usize::from(opening.protocol == Protocol::Sctp);
            sctp <= SCTP_AT_ONCE
        });
        let (wave, rest) = openings.split_at(fits.count());
        waves.push(wave);
        openings = rest;
    }
    waves
}

fn is_unchanged(client: &Client, arrival: &Arrival) -> bool {
    arrival.destination == client.target && arrival.source == client.local && arrival.whole
}

/// How long a client waits at first.
pub(super) const PATIENCE: Duration = Duration::from_millis(300);
