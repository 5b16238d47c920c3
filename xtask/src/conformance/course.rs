//! The course of a case on a subject: objects, then packets, health ports and old flows; then each step likewise.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use serde_json::{Value, json};

use super::case::{
    Case, Entry, Expect, Fate, Flows, Health, ObjectKind, Origin, Packet, Reference, Step, Verdict, reference,
};
use super::judge::{self, Seen, Terms};
use super::subject::{Change, Subject};
use crate::world::{Clients, From, Observation, Opening, Probe, Protocol};

/// Connections for each backend that a packet can reach: so many that one in 10¹⁰ packets misses one of them by chance.
const FLOWS_PER_BACKEND: u32 = 24;
/// The same where shares are measured.
const FLOWS_PER_SHARE: u32 = 300;
/// Connections that are expected to end all alike.
const FLOWS_ALIKE: u32 = 8;
/// How long a stale flow may go on after a change, where that takes time; and how long a flow is watched that must not end.
const CLEANED_WITHIN: Duration = Duration::from_secs(5);
const WATCHED_FOR: Duration = Duration::from_millis(1200);
/// How often it is looked at meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// From how many ports it is tried to reach one backend.
const PORTS_TRIED: u16 = 64;

/// Runs a case. What it returns is not as it has to be.
///
/// # Errors
/// If the case cannot be tried.
pub fn run(case: &Case, subject: &mut dyn Subject) -> anyhow::Result<Vec<String>> {
    subject.begin(case)?;
    let mut course = Course {
        case,
        subject,
        objects: BTreeMap::new(),
        now: 0,
        node: case.node.ips.iter().chain(&case.node.other_ips).copied().collect(),
        named: BTreeMap::new(),
        pins: BTreeMap::new(),
        opened: 0,
        wrong: Vec::new(),
    };
    let first = Step {
        delete: Vec::new(),
        apply: case.objects.clone(),
        packets: case.packets.clone(),
        health: case.health.clone(),
        conntrack: case.conntrack.clone(),
    };
    course.step("", &first)?;
    for (index, step) in case.steps.iter().enumerate() {
        course.step(&format!("steps[{index}]."), step)?;
    }
    Ok(course.wrong)
}

struct Course<'a> {
    case: &'a Case,
    subject: &'a mut dyn Subject,
    /// What is in force.
    objects: BTreeMap<Reference, Value>,
    now: u32,
    /// The node's addresses.
    node: Vec<IpAddr>,
    /// Where the connections of named packets went.
    named: BTreeMap<(String, From), BTreeSet<SocketAddr>>,
    /// Where clients were pinned to that are to be pinned anew later.
    pins: BTreeMap<(From, IpAddr), BTreeMap<IpAddr, SocketAddr>>,
    /// How many flows have been opened that stay.
    opened: usize,
    wrong: Vec<String>,
}

/// A flow that there is before a step.
struct Old<'e> {
    entry: &'e Entry,
    place: String,
    flow: usize,
}

/// A packet that is sent in one way, with its place in the case.
struct Sending<'p> {
    packet: &'p Packet,
    place: String,
    from: From,
    affinity: bool,
}

impl Course<'_> {
    fn step(&mut self, place: &str, step: &Step) -> anyhow::Result<()> {
        let old = self.open_entries(place, step)?;
        for gone in &step.delete {
            self.objects.remove(gone);
        }
        let apply: Vec<Value> = step.apply.iter().map(|object| self.case.complete(object)).collect();
        for object in &apply {
            self.objects.insert(reference(object)?, object.clone());
        }
        self.subject.change(&Change {
            delete: step.delete.iter().collect(),
            apply: apply.iter().collect(),
        })?;
        self.subject.tell_apart(&self.source_ranges());
        self.packets(place, &step.packets)?;
        for (index, health) in step.health.iter().enumerate() {
            self.health(&format!("{place}health[{index}]"), health)?;
        }
        self.entries(&old)
    }

    /// Ranges of client addresses that make a difference now.
    fn source_ranges(&self) -> Vec<IpNet> {
        let lists = self
            .objects
            .values()
            .filter_map(|object| object.pointer("/spec/loadBalancerSourceRanges"));
        let texts = lists.filter_map(Value::as_array).flatten().filter_map(Value::as_str);
        texts.filter_map(|text| text.trim().parse().ok()).collect()
    }

    fn tell(&mut self, place: &str, what: &str) {
        self.wrong.push(format!("{place}: {what}"));
    }

    /// Sends packets. Those in a row that do not depend on each other are sent at the same time.
    fn packets(&mut self, place: &str, packets: &[Packet]) -> anyhow::Result<()> {
        let mut together: Vec<Sending<'_>> = Vec::new();
        for (index, packet) in packets.iter().enumerate() {
            if let Some(at) = packet.at.filter(|at| *at != self.now) {
                self.send(&std::mem::take(&mut together))?;
                self.subject.set_time(at)?;
                self.now = at;
            }
            let affinity = self.has_affinity(packet);
            let depends = affinity || packet.name.is_some() || packet.expect.same_backend_as.is_some();
            for from in self.ways(packet) {
                let sending = Sending {
                    packet,
                    place: format!("{place}packets[{index}]"),
                    from,
                    affinity,
                };
                if depends {
                    self.send(&std::mem::take(&mut together))?;
                }
                if affinity {
                    self.send_pinned(&sending)?;
                } else {
                    together.push(sending);
                }
            }
        }
        self.send(&together)
    }

    /// In which ways a packet is sent: by a socket that is translated, and by one that is not. What the latter of a
    /// node process sends to the node itself, or gets from it, passes no device.
    fn ways(&self, packet: &Packet) -> Vec<From> {
        let stays = |addr: IpAddr| addr.is_loopback() || self.node.contains(&addr);
        match packet.from {
            Origin::External => vec![From::External],
            Origin::Pod => vec![From::Pod, From::PodOutsideCgroup],
            Origin::NodeProcess
                if stays(packet.dst) || packet.expect.backends.iter().any(|backend| stays(backend.ip())) =>
            {
                vec![From::NodeProcess]
            }
            Origin::NodeProcess => vec![From::NodeProcess, From::NodeProcessOutsideCgroup],
        }
    }

    fn send(&mut self, sendings: &[Sending<'_>]) -> anyhow::Result<()> {
        if sendings.is_empty() {
            return Ok(());
        }
        let probes: Vec<Probe> = sendings.iter().map(|sending| self.probe(sending)).collect();
        let seen = self.subject.probe(&probes)?;
        for (sending, seen) in sendings.iter().zip(seen) {
            self.judge(sending, &seen);
        }
        Ok(())
    }

    /// Sends a packet to a Service with affinity: one connection pins the client before the others come.
    fn send_pinned(&mut self, sending: &Sending<'_>) -> anyhow::Result<()> {
        let probe = self.probe(sending);
        if probe.clients == Clients::Many {
            return self.send(std::slice::from_ref(sending));
        }
        let mut seen = self.subject.probe(&[Probe { flows: 1, ..probe }])?.concat();
        self.pin_others(sending, &probe)?;
        let flows = probe.flows.min(FLOWS_ALIKE);
        seen.extend(self.subject.probe(&[Probe { flows, ..probe }])?.concat());
        self.judge(sending, &seen);
        Ok(())
    }

    /// How a packet is tried.
    fn probe(&self, sending: &Sending<'_>) -> Probe {
        let Packet { expect, src, .. } = sending.packet;
        let many_clients = sending.packet.flows == Some(Flows::ManyClients) || expect.repin;
        let backends = (expect.backends.len() + expect.unspecified_backends.len()) as u32;
        let flows = match expect.verdict {
            Verdict::Forward if expect.share.is_some() => FLOWS_PER_SHARE * backends,
            Verdict::Forward => FLOWS_PER_BACKEND * backends,
            Verdict::Reject | Verdict::Drop | Verdict::Pass => FLOWS_ALIKE,
        };
        Probe {
            from: sending.from,
            src: *src,
            dst: SocketAddr::new(sending.packet.dst, sending.packet.port),
            protocol: sending.packet.proto,
            flows,
            clients: if many_clients { Clients::Many } else { Clients::One },
        }
    }

    /// Pins many clients beside that of the packet, if a later packet wants to see that pins of this time have ended.
    fn pin_others(&mut self, sending: &Sending<'_>, probe: &Probe) -> anyhow::Result<()> {
        let is_asked_for = self
            .case
            .all_packets()
            .any(|later| later.expect.repin && later.from == sending.packet.from && later.src == sending.packet.src);
        if is_asked_for {
            let many = Probe {
                clients: Clients::Many,
                ..*probe
            };
            let pins = judge::pins(&self.subject.probe(&[many])?.concat());
            self.pins.entry((sending.from, probe.src)).or_default().extend(pins);
        }
        Ok(())
    }

    fn judge(&mut self, sending: &Sending<'_>, seen: &[Observation]) {
        let packet = sending.packet;
        let expect: &Expect = &packet.expect;
        let many_clients = packet.flows == Some(Flows::ManyClients) || expect.repin;
        let same_as = expect.same_backend_as.as_ref();
        let terms = Terms {
            expect,
            node: &self.node,
            // A node process has few addresses to come from.
            one_backend: (!many_clients || packet.from == Origin::NodeProcess)
                && (sending.affinity || expect.sticky || same_as.is_some()),
            same_as: same_as.and_then(|name| self.reached(name, sending.from)),
            pins: self.pins.get(&(sending.from, packet.src)).filter(|_| expect.repin),
        };
        let differences = judge::differences(&terms, seen);
        let way = match sending.from {
            From::PodOutsideCgroup | From::NodeProcessOutsideCgroup => ", its packets translated",
            _ => "",
        };
        let place = format!(
            "{} ({} {} -> {}, {} port {}{way})",
            sending.place,
            packet.from.name(),
            packet.src,
            packet.dst,
            name(packet.proto),
            packet.port
        );
        for difference in differences {
            self.tell(&place, &difference);
        }
        if let Some(name) = &packet.name {
            let reached = judge::backends(seen).into_keys().collect();
            self.named.insert((name.clone(), sending.from), reached);
        }
    }

    /// Where a named packet's connections went: those in the same way, if there were any.
    fn reached(&self, name: &str, from: From) -> Option<&BTreeSet<SocketAddr>> {
        let alike = self.named.get(&(name.to_owned(), from));
        alike.or_else(|| {
            self.named
                .iter()
                .find(|((other, _), _)| other == name)
                .map(|(_, reached)| reached)
        })
    }

    fn health(&mut self, place: &str, expected: &Health) -> anyhow::Result<()> {
        let deadline = Instant::now() + CLEANED_WITHIN;
        loop {
            let seen = self.subject.health(expected.node_port)?;
            let status = seen
                .status
                .map_or_else(|| "closed".to_owned(), |status| status.to_string());
            let mut wrong = Vec::new();
            if status != expected.status.to_string() {
                wrong.push(format!("{} expected; seen: {status}", expected.status));
            }
            if expected.local_endpoints.is_some() && seen.local_endpoints != expected.local_endpoints {
                let (wanted, seen) = (expected.local_endpoints, seen.local_endpoints);
                wrong.push(format!("localEndpoints {wanted:?} expected; seen: {seen:?}"));
            }
            if expected.service.is_some() && seen.service != expected.service {
                wrong.push(format!(
                    "service {:?} expected; seen: {:?}",
                    expected.service, seen.service
                ));
            }
            if wrong.is_empty() {
                return Ok(());
            }
            if !self.subject.takes_time() || Instant::now() > deadline {
                let place = format!("{place} (port {})", expected.node_port);
                wrong.iter().for_each(|wrong| self.tell(&place, wrong));
                return Ok(());
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Whether the Service that serves a packet's destination has affinity.
    fn has_affinity(&self, packet: &Packet) -> bool {
        let dst = SocketAddr::new(packet.dst, packet.port);
        let found = self
            .objects
            .values()
            .find(|object| port_of(object, dst, packet.proto, &self.node).is_some());
        found.is_some_and(|service| service.pointer("/spec/sessionAffinity") == Some(&json!("ClientIP")))
    }

    /// Makes the flows that have to be there before a step.
    fn open_entries<'e>(&mut self, place: &str, step: &'e Step) -> anyhow::Result<Vec<Old<'e>>> {
        let mut old = Vec::new();
        for (index, entry) in step.conntrack.iter().enumerate() {
            let place = format!(
                "{place}conntrack[{index}] ({} {} -> {}, at {})",
                name(entry.proto),
                entry.client,
                entry.dst,
                entry.backend
            );
            match self.open_entry(entry, step)? {
                Ok(flow) => old.push(Old { entry, place, flow }),
                Err(seen) => self.tell(
                    &place,
                    &format!("no such flow could be made before the step; seen: {seen}"),
                ),
            }
        }
        Ok(old)
    }

    fn open_entry(&mut self, entry: &Entry, step: &Step) -> anyhow::Result<Result<usize, String>> {
        if entry.backend == entry.dst {
            let seen = self.open(entry, entry.client.port())?;
            let translated = matches!(seen, Observation::Forward { .. });
            return Ok(if translated {
                Err(Seen(&[seen]).to_string())
            } else {
                Ok(self.opened - 1)
            });
        }
        let seen = match self.reach(entry)? {
            Ok(flow) => return Ok(Ok(flow)),
            Err(seen) => seen,
        };
        // The backend may not be in use any more, or not yet: then it is for a moment.
        let coming: Vec<&Value> = step.apply.iter().collect();
        let Some((service, extra)) = self.with_backend(entry, &coming) else {
            return Ok(Err(seen));
        };
        let (service_name, extra_name) = (reference(&service)?, reference(&extra)?);
        self.subject.change(&Change {
            delete: Vec::new(),
            apply: vec![&service, &extra],
        })?;
        let reached = self.reach(entry)?;
        let mut back = Change {
            delete: vec![&extra_name],
            apply: Vec::new(),
        };
        if !self.objects.contains_key(&service_name) {
            back.delete.push(&service_name);
        }
        self.subject.change(&back)?;
        Ok(reached)
    }

    /// Opens flows from one port after the other until one reaches the entry's backend.
    fn reach(&mut self, entry: &Entry) -> anyhow::Result<Result<usize, String>> {
        let mut last = Vec::new();
        for step in 0..PORTS_TRIED {
            let seen = self.open(entry, entry.client.port().wrapping_add(step))?;
            match seen {
                Observation::Forward { backend, .. } if backend == entry.backend => return Ok(Ok(self.opened - 1)),
                seen => last.push(seen),
            }
            self.subject.forget_last()?;
            self.opened -= 1;
            let hopeless = last.len() == 4 && !last.iter().any(|seen| matches!(seen, Observation::Forward { .. }));
            if hopeless {
                break;
            }
        }
        Ok(Err(Seen(&last).to_string()))
    }

    fn open(&mut self, entry: &Entry, port: u16) -> anyhow::Result<Observation> {
        let client = entry.client.ip();
        // Packets are what entries are about: sockets that were translated have none.
        let from = if self.node.contains(&client) && self.node.contains(&entry.dst.ip()) {
            From::NodeProcess
        } else if self.node.contains(&client) {
            From::NodeProcessOutsideCgroup
        } else if self.case.node.pod_cidrs.iter().any(|cidr| cidr.contains(&client)) {
            From::PodOutsideCgroup
        } else {
            From::External
        };
        let opening = Opening {
            from,
            src: SocketAddr::new(client, port),
            dst: entry.dst,
            protocol: entry.proto,
            connected: false,
        };
        let seen = self.subject.open(&opening)?;
        self.opened += 1;
        Ok(seen)
    }

    /// The Service that serves an entry's destination, now or soon, and a slice that adds the entry's backend to it.
    fn with_backend(&self, entry: &Entry, coming: &[&Value]) -> Option<(Value, Value)> {
        let mut services = self.objects.values().chain(coming.iter().copied());
        let (service, port) =
            services.find_map(|object| Some((object, port_of(object, entry.dst, entry.proto, &self.node)?)))?;
        let own = self.node.contains(&entry.backend.ip());
        let here = own
            || self
                .case
                .node
                .pod_cidrs
                .iter()
                .any(|cidr| cidr.contains(&entry.backend.ip()));
        let name = service.pointer("/metadata/name")?.as_str()?;
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{name}-before"),
                "namespace": service.pointer("/metadata/namespace").cloned().unwrap_or_else(|| json!("default")),
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": if entry.backend.is_ipv4() { "IPv4" } else { "IPv6" },
            "ports": [{
                "name": port.get("name").cloned().unwrap_or_else(|| json!("")),
                "protocol": name_of(entry.proto),
                "port": entry.backend.port(),
            }],
            "endpoints": [{
                "addresses": [entry.backend.ip()],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": if here { self.case.node.name.as_str() } else { "elsewhere" },
            }],
        });
        Some((service.clone(), slice))
    }

    /// Whether old flows have become what they have to.
    fn entries(&mut self, old: &[Old<'_>]) -> anyhow::Result<()> {
        let (flushed, kept): (Vec<&Old<'_>>, Vec<&Old<'_>>) =
            old.iter().partition(|old| old.entry.expect == Fate::Flushed);
        let mut waiting = flushed;
        let deadline = Instant::now() + CLEANED_WITHIN;
        while !waiting.is_empty() {
            let flows: Vec<usize> = waiting.iter().map(|old| old.flow).collect();
            let seen = self.subject.ask(&flows)?;
            let mut still = Vec::new();
            for (old, seen) in waiting.into_iter().zip(seen) {
                let steers = match &seen {
                    Observation::Forward { backend, .. } => *backend == old.entry.backend,
                    Observation::Pass => old.entry.backend == old.entry.dst,
                    _ => false,
                };
                if !steers {
                    continue;
                }
                if self.subject.takes_time() && Instant::now() < deadline {
                    still.push(old);
                } else {
                    self.tell(
                        &old.place,
                        &format!("flushed expected; its next packet: {}", Seen(&[seen])),
                    );
                }
            }
            waiting = still;
            if !waiting.is_empty() {
                std::thread::sleep(LOOK_EVERY);
            }
        }
        if kept.is_empty() {
            return Ok(());
        }
        if self.subject.takes_time() {
            std::thread::sleep(WATCHED_FOR);
        }
        let flows: Vec<usize> = kept.iter().map(|old| old.flow).collect();
        let known = self.subject.known(&flows)?;
        let seen = self.subject.ask(&flows)?;
        for (index, (old, seen)) in kept.into_iter().zip(seen).enumerate() {
            let goes_on = matches!(&seen, Observation::Forward { backend, .. } if *backend == old.entry.backend);
            let is_gone = known.as_ref().is_some_and(|known| !known[index]);
            if !goes_on || is_gone {
                let gone = if is_gone { "; its entry is gone" } else { "" };
                self.tell(
                    &old.place,
                    &format!("kept expected; its next packet: {}{gone}", Seen(&[seen])),
                );
            }
        }
        Ok(())
    }
}

/// The port of a Service, as it is written, that serves a destination.
fn port_of<'v>(object: &'v Value, dst: SocketAddr, protocol: Protocol, node: &[IpAddr]) -> Option<&'v Value> {
    if reference(object).ok()?.kind != ObjectKind::Service {
        return None;
    }
    let spec = object.get("spec")?;
    let list = |value: Option<&'v Value>| value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let ingress = list(object.pointer("/status/loadBalancer/ingress"));
    let texts = spec.get("clusterIP").into_iter().chain(list(spec.get("clusterIPs")));
    let texts = texts
        .chain(list(spec.get("externalIPs")))
        .chain(ingress.iter().filter_map(|entry| entry.get("ip")));
    let is_own = texts.filter_map(Value::as_str).any(|text| text.parse() == Ok(dst.ip()));
    list(spec.get("ports")).iter().find(|port| {
        let number = |name: &str| port.get(name).and_then(Value::as_u64);
        let of_protocol = port.get("protocol").and_then(Value::as_str).unwrap_or("TCP") == name_of(protocol);
        let by_address = is_own && number("port") == Some(dst.port().into());
        let by_node = node.contains(&dst.ip()) && number("nodePort") == Some(dst.port().into());
        of_protocol && (by_address || by_node)
    })
}

/// A protocol's name in Kubernetes objects.
const fn name_of(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    }
}

/// A protocol's name in cases.
const fn name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_found_by_each_of_its_frontends() {
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
            "spec": {
                "clusterIP": "172.30.0.1", "externalIPs": ["203.0.113.80"],
                "ports": [{"port": 80, "nodePort": 30080}, {"port": 53, "protocol": "UDP"}],
            },
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.10"}, {"hostname": "lb.example.com"}]}},
        });
        let node = ["192.0.2.11".parse().expect("an address")];
        let found = |dst: &str, protocol| {
            let dst = dst.parse().expect("an address with a port");
            port_of(&service, dst, protocol, &node).is_some()
        };
        for dst in [
            "172.30.0.1:80",
            "203.0.113.80:80",
            "203.0.113.10:80",
            "192.0.2.11:30080",
        ] {
            assert!(found(dst, Protocol::Tcp), "{dst}");
            assert!(!found(dst, Protocol::Udp), "{dst}");
        }
        assert!(found("172.30.0.1:53", Protocol::Udp));
        assert!(!found("172.30.0.1:30080", Protocol::Tcp));
        assert!(!found("192.0.2.12:30080", Protocol::Tcp));
    }
}
