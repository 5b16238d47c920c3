//! SCTP: the same ways as the other protocols have, and its own checksum, of the whole packet.

use super::prelude::*;
use crate::testing::build::Transport;
use crate::testing::packet::DEVICE;
use crate::wire::next_header;
use crate::wire::sctp_chunk::{ABORT, INIT, SHUTDOWN_ACK, SHUTDOWN_COMPLETE};

/// A chunk of the midst of an association.
const DATA: u8 = 0;
const SCTP: u8 = protocol::SCTP;

pub(super) fn scenarios<F: Cast>() -> Vec<Scenario> {
    let mut all = there::<F>();
    all.extend(back::<F>());
    all.extend(hairpin::<F>());
    all.extend(nobody::<F>());
    all.extend(by_xdp::<F>());
    all.extend(sizes::<F>());
    all.extend(lifetime::<F>());
    all
}

fn client<F: Cast>() -> (F::Addr, u16) {
    (F::CLIENT_1, CLIENT_PORT)
}

fn vip<F: Cast>() -> (F::Addr, u16) {
    (F::VIP, HTTP)
}

fn init<F: Cast>() -> Frame<F> {
    Frame::sctp(client::<F>(), vip::<F>(), INIT)
}

/// An association that is known, led to this backend.
fn known<F: Cast>(backend: u32) -> Flow<F> {
    Flow::to(vip::<F>(), backend).by_sctp().old()
}

/// The packet is led to a pod on this node at TC ingress, and nothing but its destination changes.
fn led<F: Cast>(sentence: &str, frame: &Frame<F>) -> Scenario {
    Scene::<F>::new(sentence)
        .frontend_of(SCTP, F::VIP, HTTP, local_load_balancer(only(1)))
        .packet(frame)
        .passes_as(&frame.clone().to((F::POD_1, TARGET)))
        .recorded(&Flow::to(vip::<F>(), 1).by_sctp())
        .done()
}

/// The packet is sent to a pod on the other node by XDP, with both its halves changed.
fn sent<F: Cast>(sentence: &str, frame: &Frame<F>) -> Scenario {
    let out = frame.clone().from((F::NODE_1, SNAT_PORT)).to((F::POD_3, TARGET));
    Scene::<F>::new(sentence)
        .at(Hook::Xdp)
        .frontend_of(SCTP, F::VIP, HTTP, load_balancer(only(3)))
        .packet(frame)
        .forwarded_as(&out.forwarded(NODE_2_MAC, NODE_1_MAC))
        .recorded(&Flow::to(vip::<F>(), 3).by_sctp().behind(F::NODE_1).by_xdp())
        .done()
}

fn there<F: Cast>() -> Vec<Scenario> {
    let masqueraded = known::<F>(3).behind(F::NODE_1);
    let ours = known::<F>(1);
    let process = (F::NODE_1, CLIENT_PORT);
    let from_node = Frame::sctp(process, vip::<F>(), INIT).with(|frame| frame.link = Some((CLIENT_MAC, NODE_1_MAC)));
    let [forward, reply] = Flow {
        client_mac: NODE_1_MAC,
        ..Flow::<F>::to(vip::<F>(), 3).by_sctp().of(process).behind(F::NODE_1)
    }
    .entries_of_node();
    vec![
        led(
            "An INIT to a load balancer address is led to a pod on this node.",
            &init::<F>(),
        ),
        Scene::<F>::new("A DATA chunk of a known association gets its destination at TC ingress.")
            .frontend_of(SCTP, F::VIP, HTTP, local_load_balancer(only(2)))
            .established(&ours)
            .packet(&Frame::sctp(client::<F>(), vip::<F>(), DATA))
            .passes_as(&Frame::sctp(client::<F>(), (F::POD_1, TARGET), DATA))
            .seen(ours.primary(), tcp_state::CONFIRMED)
            .done(),
        Scene::<F>::new("An SCTP packet leaves the node for the backend with the node's address as its source.")
            .at(Hook::Egress)
            .established(&masqueraded)
            .packet(&Frame::sctp(client::<F>(), (F::POD_3, TARGET), DATA))
            .passes_as(&Frame::sctp((F::NODE_1, SNAT_PORT), (F::POD_3, TARGET), DATA))
            .seen(masqueraded.out(), tcp_state::CONFIRMED)
            .done(),
        Scene::<F>::new("A node process's INIT gets both its new halves as it leaves.")
            .at(Hook::Egress)
            .frontend_of(SCTP, F::VIP, HTTP, load_balancer(only(3)))
            .packet(&from_node)
            .put_out_as(
                &from_node.clone().from((F::NODE_1, SNAT_PORT)).to((F::POD_3, TARGET)),
                DEVICE,
            )
            .counted(&[Outcome::Connection])
            .left_behind(forward)
            .left_behind(reply)
            .done(),
    ]
}

fn back<F: Cast>() -> Vec<Scenario> {
    let masqueraded = known::<F>(3).behind(F::NODE_1);
    let ours = known::<F>(1);
    let remote = (F::POD_3, TARGET);
    vec![
        Scene::<F>::new("A pod's SCTP packet leaves the node with the load balancer address as its source.")
            .at(Hook::Egress)
            .established(&ours)
            .packet(&Frame::sctp((F::POD_1, TARGET), client::<F>(), DATA))
            .passes_as(&Frame::sctp(vip::<F>(), client::<F>(), DATA))
            .seen(ours.reply(), tcp_state::CONFIRMED)
            .done(),
        Scene::<F>::new("A remote backend's SCTP packet to the node's address gets the client's at TC ingress.")
            .established(&masqueraded)
            .packet(&Frame::sctp(remote, (F::NODE_1, SNAT_PORT), DATA))
            .passes_as(&Frame::sctp(remote, client::<F>(), DATA))
            .seen(masqueraded.reply_in(), tcp_state::CONFIRMED)
            .done(),
    ]
}

fn hairpin<F: Cast>() -> Vec<Scenario> {
    let (pod, itself) = ((F::POD_1, CLIENT_PORT), (F::POD_1, TARGET));
    let (cluster, gateway) = ((F::CLUSTER_IP, HTTP), (F::GATEWAY, SNAT_PORT));
    let flow = Flow::<F>::to(cluster, 1).by_sctp().of(pod).behind(F::GATEWAY);
    let old = flow.clone().old();
    vec![
        Scene::<F>::new("A pod's INIT to a ClusterIP that leads to the pod itself will be masqueraded.")
            .frontend_of(SCTP, F::CLUSTER_IP, HTTP, cluster_ip(only(1)))
            .packet(&Frame::sctp(pod, cluster, INIT))
            .passes_as(&Frame::sctp(pod, itself, INIT))
            .recorded(&flow)
            .done(),
        Scene::<F>::new("A pod's INIT reaches the pod itself with the node's address as its source.")
            .at(Hook::Egress)
            .established(&old)
            .packet(&Frame::sctp(pod, itself, INIT))
            .passes_as(&Frame::sctp(gateway, itself, INIT))
            .seen(flow.out(), tcp_state::CONFIRMED)
            .done(),
    ]
}

fn nobody<F: Cast>() -> Vec<Scenario> {
    let asks = |sentence: &str, frontend| {
        Scene::<F>::new(sentence)
            .frontend_of(SCTP, F::VIP, HTTP, frontend)
            .packet(&init())
    };
    vec![
        asks(
            "An INIT to a Service without endpoints is answered with a port unreachable, as all are.",
            load_balancer(NOBODY),
        )
        .rejected_by(&init().unreachable(40))
        .done(),
        asks(
            "An INIT is dropped where external traffic is Local and no endpoint is on this node.",
            local_load_balancer(NOBODY),
        )
        .dropped(DropReason::NoLocalEndpoint)
        .done(),
        asks(
            "XDP drops an INIT where external traffic is Local and no endpoint is on this node.",
            local_load_balancer(NOBODY),
        )
        .at(Hook::Xdp)
        .dropped(DropReason::NoLocalEndpoint)
        .done(),
        asks(
            "An INIT to a port that is served by TCP only passes.",
            load_balancer(only(1)),
        )
        .frontend(F::VIP, HTTP + 1, load_balancer(only(1)))
        .packet(&init().to((F::VIP, HTTP + 1)))
        .untouched()
        .done(),
    ]
}

fn by_xdp<F: Cast>() -> Vec<Scenario> {
    let flow = known::<F>(3).behind(F::NODE_1).by_xdp();
    let reply = Frame::<F>::sctp((F::POD_3, TARGET), (F::NODE_1, SNAT_PORT), DATA).from_node_2();
    vec![
        sent(
            "XDP sends a client's INIT out again to the backend's node.",
            &init::<F>(),
        ),
        Scene::<F>::new("XDP sends a DATA chunk of a known association out again to the backend's node.")
            .at(Hook::Xdp)
            .frontend_of(SCTP, F::VIP, HTTP, load_balancer(only(4)))
            .established(&flow)
            .packet(&Frame::sctp(client::<F>(), vip::<F>(), DATA))
            .forwarded_as(
                &Frame::sctp((F::NODE_1, SNAT_PORT), (F::POD_3, TARGET), DATA).forwarded(NODE_2_MAC, NODE_1_MAC),
            )
            .seen(flow.primary(), tcp_state::CONFIRMED)
            .done(),
        Scene::<F>::new("XDP sends a backend's SCTP packet out to the client.")
            .at(Hook::Xdp)
            .established(&flow)
            .packet(&reply)
            .forwarded_as(&Frame::sctp(vip::<F>(), client::<F>(), DATA).forwarded(CLIENT_MAC, NODE_1_MAC))
            .seen(flow.reply_in(), tcp_state::CONFIRMED)
            .done(),
        Scene::<F>::new("XDP gives an INIT for a pod on this node its destination, and passes it up.")
            .at(Hook::Xdp)
            .frontend_of(SCTP, F::VIP, HTTP, local_load_balancer(only(1)))
            .packet(&init())
            .passes_as(&init().to((F::POD_1, TARGET)))
            .recorded(&Flow::to(vip::<F>(), 1).by_sctp().by_xdp())
            .done(),
    ]
}

/// The checksum depends on the length of what it covers, by the IP header.
fn sizes<F: Cast>() -> Vec<Scenario> {
    let with =
        |payload: usize| init::<F>().with(|frame| frame.payload = (0..payload).map(|i| i as u8 ^ 0x5a).collect());
    let change = |change: fn(&mut Transport)| init::<F>().with(|frame| change(&mut frame.transport));
    let uncomputed = change(|transport| {
        if let Transport::Sctp { checked, .. } = transport {
            *checked = false;
        }
    });
    let without_chunk = change(|transport| {
        if let Transport::Sctp { chunk, .. } = transport {
            *chunk = None;
        }
    })
    .with(|frame| frame.payload.clear());
    let longer = |frame: Frame<F>| {
        frame.with(|frame| {
            if F::IS_V6 {
                frame.extensions = vec![(
                    next_header::DESTINATION,
                    vec![1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                )];
            } else {
                frame.options = vec![0x94, 4, 0, 0, 1, 1, 1, 1];
            }
        })
    };
    let transport = 14 + if F::IS_V6 { 40 } else { 20 };
    let padded = |frame: &Frame<F>| {
        let mut bytes = frame.build();
        bytes.extend([0xee; 7]);
        bytes
    };
    vec![
        led("An SCTP packet of odd length gets its checksum right.", &with(13)),
        led(
            "An SCTP packet with nothing behind its chunk's header gets its checksum right.",
            &with(0),
        ),
        led(
            "An SCTP packet without a chunk gets its checksum right.",
            &without_chunk,
        ),
        led("A large SCTP packet gets its checksum right.", &with(1400)),
        sent(
            "XDP gets the checksum of a large SCTP packet of odd length right.",
            &with(1401),
        ),
        sent(
            "XDP gets the checksum of an SCTP packet without a chunk right.",
            &without_chunk,
        ),
        led(
            "Behind options an SCTP packet gets its checksum right.",
            &longer(with(30)),
        ),
        sent(
            "XDP gets the checksum of an SCTP packet behind options right.",
            &longer(with(30)),
        ),
        led(
            "A checksum of zero, which has yet to be computed, stays zero.",
            &uncomputed,
        ),
        sent("XDP leaves a checksum of zero to whoever computes it.", &uncomputed),
        {
            let frame = with(3);
            let out = frame.clone().to((F::POD_1, TARGET));
            Scene::<F>::new("Padding behind an SCTP packet is not covered by its checksum.")
                .frontend_of(SCTP, F::VIP, HTTP, local_load_balancer(only(1)))
                .bytes(padded(&frame))
                .passes_as(&out)
                .gives(padded(&out))
                .recorded(&Flow::to(vip::<F>(), 1).by_sctp())
                .done()
        },
        {
            let same_port = (F::VIP, TARGET);
            Scene::<F>::new("Where no port changes, SCTP's checksum stays: it covers no addresses.")
                .frontend_of(SCTP, F::VIP, TARGET, local_load_balancer(only(1)))
                .packet(&init().to(same_port))
                .passes_as(&init().to((F::POD_1, TARGET)))
                .recorded(&Flow::to(same_port, 1).by_sctp())
                .done()
        },
        {
            let flow = known::<F>(1);
            Scene::<F>::new("A known SCTP packet needs its whole header.")
                .frontend_of(SCTP, F::VIP, HTTP, local_load_balancer(only(1)))
                .established(&flow)
                .packet(&Frame::sctp(client::<F>(), vip::<F>(), DATA))
                .needs(transport + 12)
                .passes_as(&Frame::sctp(client::<F>(), (F::POD_1, TARGET), DATA))
                .seen(flow.primary(), tcp_state::CONFIRMED)
                .done()
        },
    ]
}

fn lifetime<F: Cast>() -> Vec<Scenario> {
    let in_state = |sentence: &str, state: u8| {
        Scene::<F>::new(sentence)
            .frontend_of(SCTP, F::VIP, HTTP, local_load_balancer(only(2)))
            .established(&Flow { state, ..known::<F>(1) })
    };
    let anew = |scene: Scene<F>| {
        scene
            .packet(&init())
            .passes_as(&init().to((F::POD_2, TARGET)))
            .recorded(&Flow::to(vip::<F>(), 2).by_sctp())
            .done()
    };
    let notes = |sentence: &str, chunk: u8, state: u8| {
        let frame = Frame::sctp(client::<F>(), vip::<F>(), chunk);
        in_state(sentence, tcp_state::CONFIRMED)
            .packet(&frame)
            .passes_as(&frame.clone().to((F::POD_1, TARGET)))
            .seen(known::<F>(1).primary(), tcp_state::CONFIRMED | state)
            .done()
    };
    vec![
        anew(in_state(
            "An INIT on an association that was broken off or is over begins a new one.",
            tcp_state::CONFIRMED | tcp_state::RST,
        )),
        anew(in_state(
            "An INIT on an association that the client is shutting down begins a new one.",
            tcp_state::CONFIRMED | tcp_state::FIN,
        )),
        notes("An INIT that is sent again stays with its backend.", INIT, 0),
        notes("A client's ABORT is noted.", ABORT, tcp_state::RST),
        notes("A client's SHUTDOWN-ACK is noted.", SHUTDOWN_ACK, tcp_state::FIN),
        notes(
            "A client's SHUTDOWN-COMPLETE is noted.",
            SHUTDOWN_COMPLETE,
            tcp_state::RST,
        ),
        notes("A chunk of a type that nobody knows closes nothing.", 0xc1, 0),
    ]
}
