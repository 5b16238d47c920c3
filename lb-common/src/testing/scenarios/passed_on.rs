//! Packets for an announced address that go on, as they are, to the backend's node, which translates and answers.

use super::fast_path::next_hop;
use super::icmp::too_big;
use super::prelude::*;
use crate::testing::packet::DEVICE;
use crate::testing::scene::BY_POD_DEVICE;

pub(super) fn scenarios<F: Cast>() -> Vec<Scenario> {
    let mut all = passed_on::<F>();
    all.extend(translated::<F>());
    all.extend(changed::<F>());
    all.extend(errors::<F>());
    all
}

/// A scene in which this node announces the VIP, whose Service has its one backend on the other node.
fn announced<F: Cast>(sentence: &str) -> Scene<F> {
    Scene::<F>::new(sentence)
        .frontend(F::VIP, HTTP, load_balancer(only(3)))
        .neighbour()
        .announced_on(DEVICE)
}

fn flow<F: Cast>() -> Flow<F> {
    Flow::to((F::VIP, HTTP), 3).passed_on()
}

fn tcp<F: Cast>(flags: u8) -> Frame<F> {
    Frame::tcp((F::CLIENT_1, CLIENT_PORT), (F::VIP, HTTP), flags)
}

/// The same packet on its way to the other node.
fn on_its_way<F: Cast>(frame: Frame<F>) -> Frame<F> {
    frame.forwarded(NODE_2_MAC, NODE_1_MAC)
}

fn passed_on<F: Cast>() -> Vec<Scenario> {
    let (client, vip) = ((F::CLIENT_1, CLIENT_PORT), (F::VIP, HTTP));
    let other = |sentence: &str, packet: Frame<F>, flow: Flow<F>| {
        Scene::<F>::new(sentence)
            .frontend_of(flow.protocol, F::VIP, HTTP, load_balancer(only(3)))
            .neighbour()
            .announced_on(DEVICE)
            .packet(&packet)
            .forwarded_as(&on_its_way(packet))
            .recorded(&flow)
            .done()
    };
    let by_tunnel = |world: &mut World| {
        let backend = F::maps_mut(world).backends.get_mut(&3).expect("the cast has it");
        backend.adjacency = u16::try_from(BY_POD_DEVICE).expect("there are fewer");
    };
    let mut all = vec![
        announced::<F>("XDP passes a SYN to an announced address on to the backend's node, as it is.")
            .at(Hook::Xdp)
            .packet(&tcp(SYN))
            .forwarded_as(&on_its_way(tcp(SYN)))
            .recorded(&flow::<F>().by_xdp())
            .done(),
        announced::<F>("XDP passes what follows on the same way.")
            .at(Hook::Xdp)
            .established(&flow::<F>().by_xdp().old())
            .packet(&tcp(ACK))
            .forwarded_as(&on_its_way(tcp(ACK)))
            .seen(flow::<F>().primary(), tcp_state::CONFIRMED)
            .done(),
        announced::<F>("XDP passes what comes in the middle of a connection of another node on like its beginning.")
            .at(Hook::Xdp)
            .packet(&tcp(ACK))
            .forwarded_as(&on_its_way(tcp(ACK)))
            .recorded(&flow::<F>().by_xdp())
            .done(),
        announced::<F>("TC passes on, too.")
            .packet(&tcp(SYN))
            .forwarded_as(&on_its_way(tcp(SYN)))
            .recorded(&flow::<F>())
            .done(),
        announced::<F>("The backend's node is reached directly where its pods are reached by a tunnel.")
            .given(by_tunnel)
            .at(Hook::Xdp)
            .packet(&tcp(SYN))
            .forwarded_as(&on_its_way(tcp(SYN)))
            .recorded(&flow::<F>().by_xdp())
            .done(),
        other(
            "A datagram to an announced address is passed on.",
            Frame::udp(client, vip),
            flow::<F>().by_udp(),
        ),
        other(
            "An SCTP packet to an announced address is passed on.",
            Frame::sctp(client, vip, 1),
            flow::<F>().by_sctp(),
        ),
    ];
    let mut last = tcp::<F>(FIN | ACK);
    last.ttl = 1;
    all.push(
        announced::<F>("What has no hops left is left to the stack, which tells the sender.")
            .established(&flow::<F>().old())
            .packet(&last)
            .untouched()
            .seen(flow::<F>().primary(), tcp_state::CONFIRMED | tcp_state::FIN)
            .done(),
    );
    all
}

/// What is translated here, as if nothing was announced.
fn translated<F: Cast>() -> Vec<Scenario> {
    let masqueraded = Flow::<F>::to((F::VIP, HTTP), 3).behind(F::NODE_1).by_xdp();
    let there = Frame::<F>::tcp((F::NODE_1, SNAT_PORT), (F::POD_3, TARGET), SYN).forwarded(NODE_2_MAC, NODE_1_MAC);
    let sent = |scene: Scene<F>| {
        scene
            .at(Hook::Xdp)
            .packet(&tcp(SYN))
            .forwarded_as(&there)
            .recorded(&masqueraded)
    };
    let local = Flow::<F>::to((F::VIP, HTTP), 1).behind(F::GATEWAY);
    let local_too = Frame::<F>::tcp((F::CLIENT_1, CLIENT_PORT), (F::POD_1, TARGET), SYN);
    vec![
        sent(
            Scene::<F>::new("An address that this node does not announce is translated here.")
                .frontend(F::VIP, HTTP, load_balancer(only(3)))
                .neighbour(),
        )
        .done(),
        sent(
            announced::<F>("When the right to answer has ended, new connections are translated here.").given(|world| {
                world.announce_until_ns = world.now_ns;
            }),
        )
        .done(),
        sent(
            announced::<F>("A backend on a node that is no neighbour is translated here.").given(|world| {
                F::maps_mut(world).backends.get_mut(&3).expect("the cast has it").node = 0;
            }),
        )
        .done(),
        sent(
            Scene::<F>::new("An external IP is translated here.")
                .frontend(F::VIP, HTTP, web(only(3), frontend_flags::EXTERNAL_IP | MASQUERADE_ALL))
                .neighbour()
                .announced_on(DEVICE),
        )
        .done(),
        announced::<F>("A backend on this node is translated here.")
            .frontend(F::VIP, HTTP, load_balancer(only(1)))
            .packet(&tcp(SYN))
            .passes_as(&local_too)
            .recorded(&local)
            .done(),
        next_hop::<F>(|next| next.flags = 0)(announced::<F>(
            "What leads to nobody known by its link address is translated here, and left to the stack.",
        ))
        .packet(&tcp(SYN))
        .passes_as(&Frame::tcp((F::CLIENT_1, CLIENT_PORT), (F::POD_3, TARGET), SYN))
        .recorded(&Flow::<F>::to((F::VIP, HTTP), 3).behind(F::NODE_1))
        .done(),
    ]
}

/// Connections that were passed on, and something has changed since.
fn changed<F: Cast>() -> Vec<Scenario> {
    vec![
        Scene::<F>::new("A connection that was passed on is so still when another node announces the address.")
            .frontend(F::VIP, HTTP, load_balancer(only(4)))
            .established(&flow::<F>().by_xdp().old())
            .at(Hook::Xdp)
            .packet(&tcp(ACK))
            .forwarded_as(&on_its_way(tcp(ACK)))
            .seen(flow::<F>().primary(), tcp_state::CONFIRMED)
            .done(),
        announced::<F>("A connection whose way has gone is passed on by another.")
            .adjacency(7, crate::abi::Adjacency::default())
            .established(&Flow {
                adjacency: 7,
                ..flow::<F>().old()
            })
            .packet(&tcp(ACK))
            .forwarded_as(&on_its_way(tcp(ACK)))
            .recorded(&flow::<F>())
            .done(),
        next_hop::<F>(|next| next.flags = 0)(announced::<F>(
            "While the other node's link address is in doubt, its last one serves.",
        ))
        .established(&flow::<F>().old())
        .packet(&tcp(ACK))
        .forwarded_as(&on_its_way(tcp(ACK)))
        .seen(flow::<F>().primary(), tcp_state::CONFIRMED)
        .done(),
        Scene::<F>::new("XDP does not pass on to a node what that node has passed on.")
            .at(Hook::Xdp)
            .frontend(F::VIP, HTTP, load_balancer(only(1)))
            .neighbour()
            .established(&flow::<F>().by_xdp().old())
            .packet(&tcp(ACK).from_node_2())
            .untouched()
            .seen(flow::<F>().primary(), tcp_state::CONFIRMED)
            .done(),
        {
            let local = Flow::<F> {
                client_mac: NODE_2_MAC,
                ..Flow::to((F::VIP, HTTP), 1).behind(F::GATEWAY)
            };
            Scene::<F>::new("What has been passed on by the node that it would be passed on to is translated here.")
                .frontend(F::VIP, HTTP, load_balancer(only(1)))
                .neighbour()
                .established(&flow::<F>().old())
                .packet(&tcp(ACK).from_node_2())
                .passes_as(&Frame::tcp((F::CLIENT_1, CLIENT_PORT), (F::POD_1, TARGET), ACK).from_node_2())
                .recorded(&local)
                .done()
        },
        announced::<F>("A connection whose way has gone is left to TC by XDP.")
            .at(Hook::Xdp)
            .adjacency(7, crate::abi::Adjacency::default())
            .established(&Flow {
                adjacency: 7,
                ..flow::<F>().old()
            })
            .packet(&tcp(ACK))
            .passes_as(&tcp(ACK))
            .seen(flow::<F>().primary(), tcp_state::CONFIRMED)
            .done(),
    ]
}

/// The client's side says something of the answers, which the other node has sent.
fn errors<F: Cast>() -> Vec<Scenario> {
    let answer = Frame::<F>::tcp((F::VIP, HTTP), (F::CLIENT_1, CLIENT_PORT), ACK);
    let error = too_big(F::CLIENT_2, F::VIP, &answer);
    let there = error.clone().with(|frame| frame.link = Some((NODE_2_MAC, NODE_1_MAC)));
    vec![
        announced::<F>("An ICMP error about an answer goes to the node that has sent it.")
            .established(&flow::<F>().old())
            .packet(&error)
            .forwarded_as(&there)
            .done(),
    ]
}
