//! What XDP sends out itself, and what it leaves to the node's stack.

use super::prelude::*;
use crate::abi::Adjacency;
use crate::testing::packet::DEVICE;
use crate::testing::scene::BY_NODE_2;

pub(super) fn scenarios<F: Cast>() -> Vec<Scenario> {
    let mut all = sent::<F>();
    all.extend(left::<F>());
    all.extend(learnt::<F>());
    all
}

/// The other node's next hop, changed.
pub(super) fn next_hop<F: Cast>(change: impl FnOnce(&mut Adjacency<F::Addr>)) -> impl FnOnce(Scene<F>) -> Scene<F> {
    |scene| {
        scene.given(|world| {
            let next = F::maps_mut(world)
                .adjacencies
                .get_mut(&BY_NODE_2)
                .expect("the cast has it");
            change(next);
        })
    }
}

fn sent<F: Cast>() -> Vec<Scenario> {
    let client = (F::CLIENT_1, CLIENT_PORT);
    let vip = (F::VIP, HTTP);
    let remote = (F::POD_3, TARGET);
    let masquerade = (F::NODE_1, SNAT_PORT);
    vec![
        Scene::<F>::new("XDP sends a SYN out again with the client's own address, where nobody masquerades.")
            .at(Hook::Xdp)
            .frontend(F::VIP, HTTP, local_load_balancer(only(3)))
            .packet(&Frame::tcp(client, vip, SYN))
            .forwarded_as(&Frame::tcp(client, remote, SYN).forwarded(NODE_2_MAC, NODE_1_MAC))
            .recorded(&Flow::<F>::to(vip, 3).by_xdp())
            .done(),
        {
            let flow = Flow::<F>::to(vip, 3).behind(F::NODE_1).by_xdp().old();
            Scene::<F>::new("XDP answers the client: the backend's reply goes out to where the client was met.")
                .at(Hook::Xdp)
                .established(&flow)
                .packet(&Frame::tcp(remote, masquerade, SYN | ACK).from_node_2())
                .forwarded_as(&Frame::tcp(vip, client, SYN | ACK).forwarded(CLIENT_MAC, NODE_1_MAC))
                .seen(flow.reply_in(), tcp_state::CONFIRMED)
                .done()
        },
        {
            let flow = Flow::<F>::to(vip, 3).by_udp().behind(F::NODE_1).by_xdp();
            Scene::<F>::new("XDP sends a client's first datagram out again to the backend's node.")
                .at(Hook::Xdp)
                .frontend_of(protocol::UDP, F::VIP, HTTP, load_balancer(only(3)))
                .packet(&Frame::udp(client, vip))
                .forwarded_as(&Frame::udp(masquerade, remote).forwarded(NODE_2_MAC, NODE_1_MAC))
                .recorded(&flow)
                .done()
        },
        {
            let flow = Flow::<F>::to(vip, 3).by_udp().behind(F::NODE_1).by_xdp().old();
            Scene::<F>::new("XDP sends a backend's datagram out to the client.")
                .at(Hook::Xdp)
                .established(&flow)
                .packet(&Frame::udp(remote, masquerade).from_node_2())
                .forwarded_as(&Frame::udp(vip, client).forwarded(CLIENT_MAC, NODE_1_MAC))
                .seen(flow.reply_in(), tcp_state::CONFIRMED)
                .done()
        },
        {
            let flow = Flow::<F>::to((F::NODE_1, NODE_PORT), 3).behind(F::NODE_1);
            Scene::<F>::new("XDP takes over a NodePort's connection that TC has begun.")
                .at(Hook::Xdp)
                .frontend(F::NODE_1, NODE_PORT, node_port(only(4)))
                .established(&flow.clone().old())
                .packet(&Frame::tcp(client, (F::NODE_1, NODE_PORT), FIN | ACK))
                .forwarded_as(&Frame::tcp(masquerade, remote, FIN | ACK).forwarded(NODE_2_MAC, NODE_1_MAC))
                .seen(flow.primary(), tcp_state::CONFIRMED | tcp_state::FIN)
                .done()
        },
        {
            // An IP packet of 1500 bytes: what the next hop takes, and no more.
            let payload = vec![7; 1500 - 20 - if F::IS_V6 { 40 } else { 20 }];
            let frame = Frame::tcp(client, vip, SYN).with(|frame| frame.payload = payload);
            Scene::<F>::new("XDP sends out a packet that is as large as the next hop takes.")
                .at(Hook::Xdp)
                .frontend(F::VIP, HTTP, local_load_balancer(only(3)))
                .packet(&frame)
                .forwarded_as(&frame.clone().to(remote).forwarded(NODE_2_MAC, NODE_1_MAC))
                .recorded(&Flow::<F>::to(vip, 3).by_xdp())
                .done()
        },
    ]
}

fn left<F: Cast>() -> Vec<Scenario> {
    let client = (F::CLIENT_1, CLIENT_PORT);
    let vip = (F::VIP, HTTP);
    let remote = (F::POD_3, TARGET);
    let masquerade = (F::NODE_1, SNAT_PORT);
    // XDP does what ingress does, and passes the packet up: only the destination changes.
    let passed_up = |sentence: &str, frame: Frame<F>| {
        Scene::<F>::new(sentence)
            .at(Hook::Xdp)
            .frontend(F::VIP, HTTP, load_balancer(only(3)))
            .packet(&frame)
            .passes_as(&frame.to(remote))
            .recorded(&Flow::<F>::to(vip, 3).behind(F::NODE_1).by_xdp())
    };
    let syn = || Frame::tcp(client, vip, SYN);
    let reply = || Frame::tcp(remote, masquerade, ACK).from_node_2();
    let known = Flow::<F>::to(vip, 3).behind(F::NODE_1).by_xdp().old();
    let too_large = vec![7; 1501 - 20 - if F::IS_V6 { 40 } else { 20 }];
    vec![
        passed_up(
            "XDP leaves a packet with a VLAN tag to the stack, which knows the device it is for.",
            syn().with(|frame| frame.tags = vec![(0x8100, 12)]),
        )
        .done(),
        passed_up(
            "XDP leaves a packet with one hop left to the stack, which tells its sender.",
            syn().with(|frame| frame.ttl = 1),
        )
        .done(),
        passed_up(
            "XDP leaves a packet that is too large for the next hop to the stack, which fragments or tells.",
            syn().with(|frame| frame.payload = too_large),
        )
        .done(),
        next_hop::<F>(|next| next.flags = 0)(passed_up(
            "XDP leaves a packet whose next hop is not resolved to the stack, which resolves it.",
            syn(),
        ))
        .done(),
        next_hop::<F>(|next| next.ifindex = DEVICE + 1)(passed_up(
            "XDP leaves a packet that has to leave by another device to the stack.",
            syn(),
        ))
        .done(),
        Scene::<F>::new("XDP leaves a reply to a client that was met on another device to the stack.")
            .at(Hook::Xdp)
            .established(&Flow {
                ifindex: DEVICE + 1,
                ..known.clone()
            })
            .packet(&reply())
            .passes_as(&reply().to(client))
            .seen(known.reply_in(), tcp_state::CONFIRMED)
            .done(),
        Scene::<F>::new("XDP leaves a reply to a client that was met on a device without link headers to the stack.")
            .at(Hook::Xdp)
            .established(&Flow {
                client_mac: Mac::default(),
                ..known.clone()
            })
            .packet(&reply())
            .passes_as(&reply().to(client))
            .seen(known.reply_in(), tcp_state::CONFIRMED)
            .done(),
        Scene::<F>::new("XDP leaves a reply with one hop left to the stack.")
            .at(Hook::Xdp)
            .established(&known)
            .packet(&reply().with(|frame| frame.ttl = 1))
            .passes_as(&reply().with(|frame| frame.ttl = 1).to(client))
            .seen(known.reply_in(), tcp_state::CONFIRMED)
            .done(),
        Scene::<F>::new("XDP leaves a packet that nobody serves to TC, which can answer.")
            .at(Hook::Xdp)
            .frontend(F::VIP, HTTP, load_balancer(NOBODY))
            .packet(&syn())
            .untouched()
            .done(),
    ]
}

fn learnt<F: Cast>() -> Vec<Scenario> {
    let client = (F::CLIENT_1, CLIENT_PORT);
    let vip = (F::VIP, HTTP);
    let met = |flow: &Flow<F>| Flow {
        client_mac: OTHER_MAC,
        ..flow.clone().old()
    };
    let masqueraded = Flow::<F>::to(vip, 3).behind(F::NODE_1).by_xdp();
    let plain = Flow::<F>::to(vip, 1).by_xdp();
    let (primary, reply_in) = (masqueraded.primary(), masqueraded.reply_in());
    let only_primary = plain.primary();
    vec![
        Scene::<F>::new("A client that comes by another router than before will be answered by that one.")
            .at(Hook::Xdp)
            .established(&met(&masqueraded))
            .frontend(F::VIP, HTTP, load_balancer(only(3)))
            .packet(&Frame::tcp(client, vip, ACK))
            .forwarded_as(
                &Frame::tcp((F::NODE_1, SNAT_PORT), (F::POD_3, TARGET), ACK).forwarded(NODE_2_MAC, NODE_1_MAC),
            )
            .seen(primary, tcp_state::CONFIRMED)
            .then(move |world| {
                for key in [primary, reply_in] {
                    let entry = F::maps_mut(world).connections.get_mut(&key).expect("it is known");
                    entry.client_mac = CLIENT_MAC;
                }
            })
            .done(),
        Scene::<F>::new("A client that comes by another device than before will be answered there.")
            .at(Hook::Xdp)
            .established(&Flow {
                ifindex: DEVICE + 1,
                ..met(&masqueraded)
            })
            .frontend(F::VIP, HTTP, load_balancer(only(3)))
            .packet(&Frame::tcp(client, vip, ACK))
            .forwarded_as(
                &Frame::tcp((F::NODE_1, SNAT_PORT), (F::POD_3, TARGET), ACK).forwarded(NODE_2_MAC, NODE_1_MAC),
            )
            .seen(primary, tcp_state::CONFIRMED)
            .then(move |world| {
                for key in [primary, reply_in] {
                    let entry = F::maps_mut(world).connections.get_mut(&key).expect("it is known");
                    entry.client_mac = CLIENT_MAC;
                    entry.ifindex = DEVICE;
                }
            })
            .done(),
        Scene::<F>::new("Where the client keeps its address only its own entry learns its new router.")
            .at(Hook::Xdp)
            .established(&met(&plain))
            .frontend(F::VIP, HTTP, local_load_balancer(only(1)))
            .packet(&Frame::tcp(client, vip, ACK))
            .passes_as(&Frame::tcp(client, (F::POD_1, TARGET), ACK))
            .seen(only_primary, tcp_state::CONFIRMED)
            .then(move |world| {
                let entry = F::maps_mut(world)
                    .connections
                    .get_mut(&only_primary)
                    .expect("it is known");
                entry.client_mac = CLIENT_MAC;
            })
            .done(),
    ]
}
