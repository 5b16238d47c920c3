//! Processes of the node whose sockets were not translated: their packets are translated as they leave, both halves
//! at once, and the replies are delivered as if they came by the device that the packets were routed to.

use super::prelude::*;
use crate::abi::{Adjacency, Frontend, LpmKey, address_class, config_flags};
use crate::testing::packet::DEVICE;
use crate::testing::scene::{BY_NODE_2, POD_DEVICE, add_class};

pub(super) fn scenarios<F: Cast>() -> Vec<Scenario> {
    let mut all = opened::<F>();
    all.extend(known::<F>());
    all.extend(nobody::<F>());
    all
}

fn flow<F: Cast>(backend: u32) -> Flow<F> {
    let address = if backend > 2 { F::NODE_1 } else { F::GATEWAY };
    Flow {
        // The device's own address, as its packets bear it.
        client_mac: NODE_1_MAC,
        ..Flow::<F>::to((F::VIP, HTTP), backend)
            .of((F::NODE_1, CLIENT_PORT))
            .behind(address)
    }
}

fn from_node<F: Cast>(flags: u8) -> Frame<F> {
    Frame::tcp((F::NODE_1, CLIENT_PORT), (F::VIP, HTTP), flags)
        .with(|frame| frame.link = Some((CLIENT_MAC, NODE_1_MAC)))
}

fn writes<F: Cast>(scene: Scene<F>, flow: &Flow<F>) -> Scenario {
    let [forward, reply] = flow.entries_of_node();
    scene
        .counted(&[Outcome::Connection])
        .left_behind(forward)
        .left_behind(reply)
        .done()
}

fn opened<F: Cast>() -> Vec<Scenario> {
    let begins = |sentence: &str, frontend: Frontend| {
        Scene::<F>::new(sentence)
            .at(Hook::Egress)
            .frontend(F::VIP, HTTP, frontend)
            .packet(&from_node::<F>(SYN))
    };
    vec![
        writes(
            begins(
                "A node process's SYN to a Service gets both its new halves as it leaves, and goes to the other node.",
                load_balancer(only(3)),
            )
            .put_out_as(
                &from_node::<F>(SYN).from((F::NODE_1, SNAT_PORT)).to((F::POD_3, TARGET)),
                DEVICE,
            ),
            &flow::<F>(3),
        ),
        writes(
            begins(
                "A node process's SYN that was routed to the uplink goes to a pod on this node.",
                load_balancer(only(1)),
            )
            .put_out_as(
                &from_node::<F>(SYN).from((F::GATEWAY, SNAT_PORT)).to((F::POD_1, TARGET)),
                POD_DEVICE,
            ),
            &flow::<F>(1),
        ),
        writes(
            begins(
                "A node process gets a backend from the internal set, though nobody asks to masquerade it.",
                Frontend {
                    external: only(1),
                    internal: only(3),
                    ..local_load_balancer(only(1))
                },
            )
            .put_out_as(
                &from_node::<F>(SYN).from((F::NODE_1, SNAT_PORT)).to((F::POD_3, TARGET)),
                DEVICE,
            ),
            &flow::<F>(3),
        ),
    ]
}

fn known<F: Cast>() -> Vec<Scenario> {
    let masquerade = (F::NODE_1, SNAT_PORT);
    let vip = (F::VIP, HTTP);
    let process = (F::NODE_1, CLIENT_PORT);
    let knows = |sentence: &str, ifindex: u32| {
        let flow = Flow {
            ifindex,
            ..flow::<F>(3).old()
        };
        Scene::<F>::new(sentence).given(move |world| {
            F::maps_mut(world).connections.extend(flow.entries_of_node());
        })
    };
    let [(forward, _), (reply, _)] = flow::<F>(3).entries_of_node();
    let answer = || Frame::<F>::tcp((F::POD_3, TARGET), masquerade, ACK).from_node_2();
    vec![
        knows(
            "A node process's segment gets both its new halves as it leaves.",
            DEVICE,
        )
        .at(Hook::Egress)
        .frontend(F::VIP, HTTP, load_balancer(only(4)))
        .packet(&from_node::<F>(ACK))
        .put_out_as(&from_node::<F>(ACK).from(masquerade).to((F::POD_3, TARGET)), DEVICE)
        .seen(forward, tcp_state::CONFIRMED)
        .done(),
        knows(
            "The answer to a node process gets both halves back as it comes in.",
            DEVICE,
        )
        .packet(&answer())
        .passes_as(&answer().from(vip).to(process))
        .seen(reply, tcp_state::CONFIRMED)
        .done(),
        knows(
            "XDP gives the answer to a node process both halves back, and passes it up.",
            DEVICE,
        )
        .at(Hook::Xdp)
        .packet(&answer())
        .passes_as(&answer().from(vip).to(process))
        .seen(reply, tcp_state::CONFIRMED)
        .done(),
        knows(
            "An answer that comes in by another device is delivered as if it came by the one that was asked through.",
            9,
        )
        .packet(&answer())
        .delivered_as(
            &answer()
                .from(vip)
                .to(process)
                .with(|frame| frame.link = Some((NODE_1_MAC, NODE_1_MAC))),
            9,
        )
        .seen(reply, tcp_state::CONFIRMED)
        .done(),
        knows("XDP leaves an answer that came in by another device to TC.", 9)
            .at(Hook::Xdp)
            .packet(&answer())
            .untouched()
            .done(),
    ]
}

fn nobody<F: Cast>() -> Vec<Scenario> {
    let syn = || from_node::<F>(SYN);
    let asks = |sentence: &str, frontend: Frontend| {
        Scene::<F>::new(sentence)
            .at(Hook::Egress)
            .frontend(F::VIP, HTTP, frontend)
            .packet(&syn())
    };
    let to_unassigned = |sentence: &str| {
        asks(sentence, load_balancer(only(3)))
            .given(|world| {
                let (addr, prefix_len) = F::SERVICE_CIDR;
                F::maps_mut(world).service_cidrs.push(LpmKey { prefix_len, addr });
                world.config.flags |= config_flags::SERVICE_CIDRS;
            })
            .packet(&syn().to((F::UNASSIGNED, HTTP)))
            .dropped(DropReason::UnassignedServiceAddress)
    };
    vec![
        asks(
            "A node process's SYN to a Service without endpoints is answered as it leaves.",
            load_balancer(NOBODY),
        )
        .rejected_by(&syn().unreachable(40))
        .done(),
        asks(
            "A node process's SYN is dropped where internal traffic is Local and no endpoint is on this node.",
            web(NOBODY, frontend_flags::CLUSTER_IP | frontend_flags::DROP_INTERNAL),
        )
        .dropped(DropReason::NoLocalEndpoint)
        .done(),
        asks(
            "A node process is dropped where it is in none of the source ranges.",
            web(only(3), frontend_flags::LOAD_BALANCER | frontend_flags::SOURCE_RANGES),
        )
        .dropped(DropReason::SourceRange)
        .done(),
        asks(
            "A node process is dropped where the node has no address to masquerade with.",
            load_balancer(only(3)),
        )
        .adjacency(BY_NODE_2, Adjacency::default())
        .dropped(DropReason::NoMasqueradeAddress)
        .done(),
        asks(
            "A node process's packet to a port that the address does not serve leaves as it is.",
            load_balancer(only(3)),
        )
        .packet(&syn().to((F::VIP, 81)))
        .untouched()
        .done(),
        to_unassigned("A node process's packet to an unassigned address in a Service CIDR is dropped.").done(),
        to_unassigned("It is dropped as well where another process of the node is a backend.")
            .given(|world| add_class::<F>(world, F::NODE_1, address_class::BACKEND))
            .done(),
    ]
}
