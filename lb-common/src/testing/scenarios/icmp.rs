//! ICMP errors about known connections: whoever sent the packet that is quoted is shown the packet that it sent.

use super::prelude::*;
use crate::testing::build::Transport;

pub(super) fn scenarios<F: Cast>() -> Vec<Scenario> {
    let mut all = about_the_client::<F>();
    all.extend(about_the_backend::<F>());
    all.extend(between::<F>());
    all.extend(of_others::<F>());
    all.extend(strange::<F>());
    all
}

/// Bytes of the transport header that are quoted: as few as there must be.
const QUOTED: usize = 8;

fn header_len<F: Cast>() -> usize {
    if F::IS_V6 { 40 } else { 20 }
}

fn message<F: Cast>(from: F::Addr, to: F::Addr, quoted: Vec<u8>) -> Frame<F> {
    let (kind, code) = if F::IS_V6 { (2, 0) } else { (3, 4) };
    Frame::new(
        from,
        to,
        Transport::Icmp {
            kind,
            code,
            rest: [0, 0, 5, 0x14],
        },
    )
    .with(|frame| frame.payload = quoted)
}

/// A router (or whoever) says that this packet was too big.
pub(super) fn too_big<F: Cast>(from: F::Addr, to: F::Addr, about: &Frame<F>) -> Frame<F> {
    message(from, to, about.ip()[..header_len::<F>() + QUOTED].to_vec())
}

fn tcp<F: Cast>(src: (F::Addr, u16), dst: (F::Addr, u16)) -> Frame<F> {
    Frame::tcp(src, dst, ACK)
}

struct Ends<F: Cast> {
    client: (F::Addr, u16),
    vip: (F::Addr, u16),
    remote: (F::Addr, u16),
    local: (F::Addr, u16),
    masquerade: (F::Addr, u16),
    router: F::Addr,
}

fn ends<F: Cast>() -> Ends<F> {
    Ends {
        client: (F::CLIENT_1, CLIENT_PORT),
        vip: (F::VIP, HTTP),
        remote: (F::POD_3, TARGET),
        local: (F::POD_1, TARGET),
        masquerade: (F::NODE_1, SNAT_PORT),
        router: F::CLIENT_2,
    }
}

fn masqueraded<F: Cast>() -> Flow<F> {
    Flow::to((F::VIP, HTTP), 3).behind(F::NODE_1).old()
}

fn plain<F: Cast>() -> Flow<F> {
    Flow::to((F::VIP, HTTP), 1).old()
}

/// The message comes so, and goes on so.
fn becomes<F: Cast>(sentence: &str, hook: Hook, flow: &Flow<F>, before: &Frame<F>, after: &Frame<F>) -> Scenario {
    Scene::<F>::new(sentence)
        .at(hook)
        .established(flow)
        .packet(before)
        .passes_as(after)
        .done()
}

fn stays<F: Cast>(sentence: &str, hook: Hook, flow: &Flow<F>, frame: &Frame<F>) -> Scenario {
    Scene::<F>::new(sentence)
        .at(hook)
        .established(flow)
        .packet(frame)
        .untouched()
        .done()
}

/// About packets on their way to the backend: for the client.
fn about_the_client<F: Cast>() -> Vec<Scenario> {
    let e = ends::<F>();
    let sent = tcp::<F>(e.client, e.vip);
    vec![
        becomes::<F>(
            "An error about a masqueraded packet is for the client, and quotes what the client has sent.",
            Hook::Ingress,
            &masqueraded(),
            &too_big(e.router, e.masquerade.0, &tcp::<F>(e.masquerade, e.remote)),
            &too_big(e.router, e.client.0, &sent),
        ),
        stays::<F>(
            "As it leaves for the client, a router's error stays as it is.",
            Hook::Egress,
            &masqueraded(),
            &too_big(e.router, e.client.0, &sent),
        ),
        becomes::<F>(
            "A backend's own error leaves for the client with the load balancer address as its source.",
            Hook::Egress,
            &masqueraded(),
            &too_big(e.remote.0, e.client.0, &sent),
            &too_big(e.vip.0, e.client.0, &sent),
        ),
        becomes::<F>(
            "A pod's error about a packet whose source was kept leaves with both its ends as the client knows them.",
            Hook::Egress,
            &plain(),
            &too_big(e.local.0, e.client.0, &tcp::<F>(e.client, e.local)),
            &too_big(e.vip.0, e.client.0, &sent),
        ),
    ]
}

/// About packets on their way to the client: for the backend.
fn about_the_backend<F: Cast>() -> Vec<Scenario> {
    let e = ends::<F>();
    let answer = tcp::<F>(e.vip, e.client);
    vec![
        becomes::<F>(
            "An error about an answer is for the backend, and quotes what the backend has sent.",
            Hook::Ingress,
            &masqueraded(),
            &too_big(e.router, e.vip.0, &answer),
            &too_big(e.router, e.remote.0, &tcp::<F>(e.remote, e.masquerade)),
        ),
        becomes::<F>(
            "As it leaves for the backend of a masqueraded connection, it comes from the node.",
            Hook::Egress,
            &masqueraded(),
            &too_big(e.router, e.remote.0, &tcp::<F>(e.remote, e.masquerade)),
            &too_big(e.masquerade.0, e.remote.0, &tcp::<F>(e.remote, e.masquerade)),
        ),
        becomes::<F>(
            "An error about an answer to a client whose source was kept quotes the client.",
            Hook::Ingress,
            &plain(),
            &too_big(e.router, e.vip.0, &answer),
            &too_big(e.router, e.local.0, &tcp::<F>(e.local, e.client)),
        ),
        stays::<F>(
            "As it leaves for the pod, it stays as it is.",
            Hook::Egress,
            &plain(),
            &too_big(e.router, e.local.0, &tcp::<F>(e.local, e.client)),
        ),
    ]
}

/// By the node itself, for which a packet between the hooks was too big.
fn between<F: Cast>() -> Vec<Scenario> {
    let e = ends::<F>();
    let other_port = Flow::<F>::to((F::EXTERNAL_IP, HTTP), 1).with_own_port().old();
    vec![
        becomes::<F>(
            "The node's own error about a client's packet quotes what the client has sent.",
            Hook::Egress,
            &masqueraded(),
            &too_big(F::GATEWAY, e.client.0, &tcp::<F>(e.client, e.remote)),
            &too_big(F::GATEWAY, e.client.0, &tcp::<F>(e.client, e.vip)),
        ),
        becomes::<F>(
            "The node's own error about an answer quotes what the backend has sent, and comes from who it knows.",
            Hook::Egress,
            &masqueraded(),
            &too_big(F::GATEWAY, e.remote.0, &tcp::<F>(e.remote, e.client)),
            &too_big(e.masquerade.0, e.remote.0, &tcp::<F>(e.remote, e.masquerade)),
        ),
        becomes::<F>(
            "An error about a client that has another port inside the node quotes its own port.",
            Hook::Egress,
            &other_port,
            &too_big(e.local.0, e.client.0, &tcp::<F>((e.client.0, SNAT_PORT), e.local)),
            &too_big(F::EXTERNAL_IP, e.client.0, &tcp::<F>(e.client, (F::EXTERNAL_IP, HTTP))),
        ),
    ]
}

fn of_others<F: Cast>() -> Vec<Scenario> {
    let e = ends::<F>();
    let process = (F::NODE_1, CLIENT_PORT);
    let of_node = Flow::<F>::to(e.vip, 3).of(process).behind(F::NODE_1).old();
    // A datagram is quoted whole: its checksum is of the packet as it was translated, and stays.
    let datagram = Flow::<F>::to(e.vip, 1).by_udp().old();
    let (there, sent) = (
        Frame::<F>::udp(e.client, e.local).ip(),
        Frame::<F>::udp(e.client, e.vip).ip(),
    );
    let check = header_len::<F>() + 6..header_len::<F>() + 8;
    let mut shown = sent;
    shown[check.clone()].copy_from_slice(&there[check]);
    let association = Flow::<F>::to(e.vip, 1).by_sctp().old();
    let sctp = |src, dst| Frame::<F>::sctp(src, dst, 0);
    let tagged = |frame: Frame<F>| frame.with(|frame| frame.tags = vec![(0x8100, 12)]);
    vec![
        Scene::<F>::new("An error about a packet of a process of the node is for the process.")
            .given(|world| F::maps_mut(world).connections.extend(of_node.entries_of_node()))
            .packet(&too_big(e.router, F::NODE_1, &tcp::<F>(e.masquerade, e.remote)))
            .passes_as(&too_big(e.router, F::NODE_1, &tcp::<F>(process, e.vip)))
            .done(),
        becomes::<F>(
            "An error about a datagram quotes what the client has sent, but for the checksum.",
            Hook::Egress,
            &datagram,
            &message(e.local.0, e.client.0, there),
            &message(e.vip.0, e.client.0, shown),
        ),
        becomes::<F>(
            "An error about an SCTP packet quotes what the client has sent.",
            Hook::Egress,
            &association,
            &too_big(e.local.0, e.client.0, &sctp(e.client, e.local)),
            &too_big(e.vip.0, e.client.0, &sctp(e.client, e.vip)),
        ),
        becomes::<F>(
            "An error with a VLAN tag is translated behind its tag.",
            Hook::Ingress,
            &plain(),
            &tagged(too_big(e.router, e.vip.0, &tcp::<F>(e.vip, e.client))),
            &tagged(too_big(e.router, e.local.0, &tcp::<F>(e.local, e.client))),
        ),
    ]
}

/// Not ours, not touched.
fn strange<F: Cast>() -> Vec<Scenario> {
    let e = ends::<F>();
    let answer = tcp::<F>(e.vip, e.client);
    let known = too_big(e.router, e.vip.0, &answer);
    let echo = |frame: Frame<F>| {
        frame.with(|frame| {
            if let Transport::Icmp { kind, .. } = &mut frame.transport {
                *kind = if F::IS_V6 { 128 } else { 8 };
            }
        })
    };
    let needed = 14 + header_len::<F>() + 8 + header_len::<F>() + 4;
    vec![
        stays::<F>("XDP leaves ICMP errors to TC.", Hook::Xdp, &plain(), &known),
        stays::<F>(
            "An error about a packet of no known connection passes.",
            Hook::Ingress,
            &plain(),
            &too_big(e.router, e.vip.0, &tcp::<F>(e.vip, (F::CLIENT_2, CLIENT_PORT))),
        ),
        stays::<F>(
            "An error that is not for the sender of the packet that it quotes passes.",
            Hook::Ingress,
            &plain(),
            &too_big(e.router, F::EXTERNAL_IP, &answer),
        ),
        stays::<F>(
            "A ping that looks like an error passes.",
            Hook::Ingress,
            &plain(),
            &echo(known.clone()),
        ),
        stays::<F>(
            "An error about another protocol passes.",
            Hook::Ingress,
            &plain(),
            &too_big(
                e.router,
                e.vip.0,
                &Frame::new(e.vip.0, e.client.0, Transport::Other(50)),
            ),
        ),
        Scene::<F>::new("An error needs the ports of what it quotes.")
            .established(&plain())
            .packet(&known)
            .needs(needed)
            .passes_as(&too_big(e.router, e.local.0, &tcp::<F>(e.local, e.client)))
            .done(),
    ]
}
