//! What Services mean, in cases: Kubernetes objects on one node, and what becomes of packets.
//!
//! The objects of each case go through the whole control plane into maps in memory, and the packet logic of the
//! kernel programs, built for the host, runs over these maps. `conformance/cases.yaml` says what has to come out; a
//! packet there stands for many new connections.
//!
//! Not judged here: SCTP, and the clean-up of stale UDP entries (neither is there yet).

#[path = "conformance/case.rs"]
mod case;
#[path = "conformance/node.rs"]
mod node;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use case::{Case, Expect, Health, Packet};
use node::{Seen, TestNode};

/// Connections that a packet stands for.
const FLOWS: u32 = 240;
/// Connections over which shares are measured.
const FLOWS_FOR_SHARES: u32 = 2000;
/// How far a share may be from the even one: five standard deviations for up to 6 backends and this many flows.
const TOLERANCE: f64 = 0.25;

#[test]
fn every_case_comes_out_as_it_should() {
    let text = include_str!("conformance/cases.yaml");
    let budget = serde_saphyr::budget! { max_events: usize::MAX, max_nodes: usize::MAX };
    let cases: Vec<Case> =
        serde_saphyr::from_str_with_options(text, serde_saphyr::options! { budget: budget }).expect("cases");
    assert_eq!(cases.len(), 128);
    let only = std::env::var("FAIRWAY_CASE").ok();
    let mut wrong = Vec::new();
    let mut judged = Judged::default();
    for case in cases
        .iter()
        .filter(|case| only.as_ref().is_none_or(|id| *id == case.id))
    {
        for finding in Run::of(case, &mut judged).wrong {
            wrong.push(format!("{}: {finding}", case.id));
        }
    }
    println!("judged: {judged:?}");
    assert!(wrong.is_empty(), "{} findings:\n{}", wrong.len(), wrong.join("\n"));
}

#[derive(Debug, Default)]
struct Judged {
    packets: u32,
    health: u32,
    not_judged: u32,
}

struct Run<'a> {
    node: TestNode,
    has_affinity: bool,
    /// The backend that each named packet got.
    named: BTreeMap<&'a str, SocketAddr>,
    wrong: Vec<String>,
}

impl<'a> Run<'a> {
    fn of(case: &'a Case, judged: &mut Judged) -> Self {
        let affinity = |object: &serde_json::Value| object.pointer("/spec/sessionAffinity") == Some(&"ClientIP".into());
        let applied = case.steps.iter().flat_map(|step| &step.apply);
        let mut run = Self {
            node: TestNode::new(case),
            has_affinity: case.objects.iter().chain(applied).any(affinity),
            named: BTreeMap::new(),
            wrong: Vec::new(),
        };
        run.check("at first", &case.packets, &case.health, judged);
        judged.not_judged += case.conntrack.len() as u32;
        for (number, step) in case.steps.iter().enumerate() {
            step.delete.iter().for_each(|gone| run.node.delete(gone));
            step.apply.iter().for_each(|object| run.node.apply(object));
            run.node.sync();
            run.check(&format!("step {}", number + 1), &step.packets, &step.health, judged);
            judged.not_judged += step.conntrack.len() as u32;
        }
        run
    }

    fn check(&mut self, when: &str, packets: &'a [Packet], health: &[Health], judged: &mut Judged) {
        for (number, packet) in packets.iter().enumerate() {
            if packet.proto == "sctp" {
                judged.not_judged += 1;
                continue;
            }
            judged.packets += 1;
            for wrong in self.packet(packet) {
                let Packet {
                    from,
                    src,
                    dst,
                    port,
                    proto,
                    ..
                } = packet;
                let place = format!("{when}, packet {} ({from} {src} -> {dst} {proto} {port})", number + 1);
                self.wrong.push(format!("{place}: {wrong}"));
            }
        }
        for expected in health {
            judged.health += 1;
            let found = self.node.health(expected.node_port);
            let status = match found {
                None => "closed",
                Some(0) => "503",
                Some(_) => "200",
            };
            let count = expected.local_endpoints.filter(|_| found.is_some());
            if expected.status.to_string().trim_matches('"') != status || (count.is_some() && count != found) {
                self.wrong
                    .push(format!("{when}, health port {}: {found:?}", expected.node_port));
            }
        }
    }

    fn packet(&mut self, packet: &'a Packet) -> Vec<String> {
        if let Some(at) = packet.at {
            self.node.set_time(at);
        }
        let expect = &packet.expect;
        let many_clients = packet.flows.as_deref() == Some("many-clients") || expect.repin;
        let one_backend = self.has_affinity || expect.sticky || expect.same_backend_as.is_some();
        let count = if expect.share.is_some() {
            FLOWS_FOR_SHARES
        } else {
            FLOWS
        };
        let mut outcomes: BTreeMap<Seen, u32> = BTreeMap::new();
        for flow in 0..count {
            let src = if many_clients {
                neighbour(packet.src, flow)
            } else {
                packet.src
            };
            let seen = self.node.connect(packet, src);
            // The source that the backend sees is told by what it is, not by which client it was.
            let seen = match seen {
                Seen::Forward { backend, source } => {
                    let wrong = judge_source(expect, &self.node, packet, src, backend, source);
                    if let Some(wrong) = wrong {
                        return vec![wrong];
                    }
                    Seen::Forward {
                        backend,
                        source: IpAddr::from([0, 0, 0, 0]),
                    }
                }
                other => other,
            };
            *outcomes.entry(seen).or_default() += 1;
        }
        let mut wrong = Vec::new();
        let backends: BTreeMap<SocketAddr, u32> = outcomes
            .iter()
            .filter_map(|(seen, count)| match seen {
                Seen::Forward { backend, .. } => Some((*backend, *count)),
                _ => None,
            })
            .collect();
        let others: BTreeSet<&str> = outcomes.keys().map(Seen::verdict).collect();
        if others.iter().any(|verdict| *verdict != expect.verdict) {
            wrong.push(format!("{} expected, {outcomes:?} seen", expect.verdict));
            return wrong;
        }
        if expect.verdict != "forward" {
            return wrong;
        }
        let allowed =
            |backend: &SocketAddr| expect.backends.contains(backend) || expect.unspecified_backends.contains(backend);
        for backend in backends.keys().filter(|backend| !allowed(backend)) {
            wrong.push(format!("{backend} is not among the backends"));
        }
        if !one_backend || many_clients {
            for backend in expect.backends.iter().filter(|backend| !backends.contains_key(backend)) {
                wrong.push(format!("{backend} is never chosen"));
            }
        }
        if (expect.sticky || expect.same_backend_as.is_some()) && !many_clients && backends.len() != 1 {
            wrong.push(format!("one backend expected, {backends:?} seen"));
        }
        if let Some(name) = &expect.same_backend_as
            && self.named.get(name.as_str()) != backends.keys().next()
        {
            wrong.push(format!("the backend of `{name}` expected, {backends:?} seen"));
        }
        if expect.share.is_some() {
            let even = f64::from(count) / backends.len() as f64;
            for (backend, share) in &backends {
                if (f64::from(*share) - even).abs() > TOLERANCE * even {
                    wrong.push(format!("{backend} has {share} of {count} connections"));
                }
            }
        }
        if let (Some(name), Some(backend)) = (&packet.name, backends.keys().next()) {
            self.named.insert(name, *backend);
        }
        wrong
    }
}

fn judge_source(
    expect: &Expect,
    node: &TestNode,
    packet: &Packet,
    src: IpAddr,
    backend: SocketAddr,
    source: IpAddr,
) -> Option<String> {
    let of_node = node.has_address(source);
    let kept = source == src;
    let right = match expect.snat.as_deref() {
        None | Some("any") => true,
        Some("node") => of_node,
        Some("none") => kept,
        Some("hairpin-only") if backend.ip() == src => of_node,
        Some("hairpin-only") => kept,
        Some(other) => panic!("unknown snat `{other}`"),
    };
    (!right).then(|| {
        format!(
            "snat {:?} expected, {source} is seen by {backend} ({})",
            expect.snat, packet.from
        )
    })
}

/// Another client of the same kind: the last byte differs, and is none that an endpoint has.
fn neighbour(addr: IpAddr, number: u32) -> IpAddr {
    let last = 100 + (number % 150) as u8;
    match addr {
        IpAddr::V4(addr) => {
            let [a, b, c, _] = addr.octets();
            IpAddr::from([a, b, c, last])
        }
        IpAddr::V6(addr) => {
            let mut octets = addr.octets();
            octets[15] = last;
            octets[14] = 0x77;
            IpAddr::from(octets)
        }
    }
}
