//! Connections that end, begin again, collide with another, or find no room.

use super::prelude::*;

pub(super) fn scenarios<F: Cast>() -> Vec<Scenario> {
    let mut all = anew::<F>();
    all.extend(collisions::<F>());
    all.extend(masqueraded_collisions::<F>());
    all.extend(no_room::<F>());
    all
}

fn in_state<F: Cast>(flow: &Flow<F>, state: u8) -> Flow<F> {
    Flow { state, ..flow.clone() }.old()
}

fn anew<F: Cast>() -> Vec<Scenario> {
    let client = (F::CLIENT_1, CLIENT_PORT);
    let vip = (F::VIP, HTTP);
    let first = Flow::<F>::to(vip, 1);
    let second = Flow::<F>::to(vip, 2);
    let again = |sentence: &str, state: u8| {
        Scene::<F>::new(sentence)
            .frontend(F::VIP, HTTP, local_load_balancer(only(2)))
            .established(&in_state(&first, state))
    };
    let chosen_anew = |scene: Scene<F>| {
        scene
            .packet(&Frame::tcp(client, vip, SYN))
            .passes_as(&Frame::tcp(client, (F::POD_2, TARGET), SYN))
            .recorded(&second)
            .done()
    };
    let stays = |scene: Scene<F>, flags: u8| {
        scene
            .packet(&Frame::tcp(client, vip, flags))
            .passes_as(&Frame::tcp(client, (F::POD_1, TARGET), flags))
            .seen(first.primary(), tcp_state::CONFIRMED)
            .done()
    };
    let retired = |scene: Scene<F>| {
        scene.given(|world| {
            let backend = F::maps_mut(world).backends.get_mut(&1).expect("the cast has it");
            backend.flags &= !backend_flags::LIVE;
        })
    };
    vec![
        chosen_anew(again(
            "A SYN on a connection that the client has closed begins a new one, with a new choice.",
            tcp_state::CONFIRMED | tcp_state::FIN,
        )),
        chosen_anew(again(
            "A SYN on a connection that the client has reset begins a new one.",
            tcp_state::CONFIRMED | tcp_state::RST,
        )),
        chosen_anew(retired(again(
            "A SYN on a connection whose backend no Service uses any more begins a new one.",
            tcp_state::CONFIRMED,
        ))),
        stays(
            again("A SYN that is sent again stays with its backend.", tcp_state::CONFIRMED),
            SYN,
        ),
        stays(
            retired(again(
                "A segment stays with its backend, though no Service uses it any more.",
                tcp_state::CONFIRMED,
            )),
            ACK,
        ),
        stays(
            again(
                "The last ACK of a closed connection still reaches its backend.",
                tcp_state::CONFIRMED | tcp_state::FIN,
            ),
            ACK,
        ),
        Scene::<F>::new("A closed connection begins again with the same backend, and all it knew is forgotten.")
            .frontend(F::VIP, HTTP, local_load_balancer(only(1)))
            .established(&in_state(&first, tcp_state::CONFIRMED | tcp_state::FIN))
            .packet(&Frame::tcp(client, vip, SYN))
            .passes_as(&Frame::tcp(client, (F::POD_1, TARGET), SYN))
            .recorded(&first)
            .done(),
        {
            let masqueraded = Flow::<F>::to(vip, 3).behind(F::NODE_1);
            let before = Flow {
                snat: Some((F::NODE_1, SNAT_PORT + 1)),
                ..in_state(&masqueraded, tcp_state::FIN)
            };
            Scene::<F>::new("A masqueraded connection that begins again gets another port of the node.")
                .frontend(F::VIP, HTTP, load_balancer(only(3)))
                .established(&before)
                .packet(&Frame::tcp(client, vip, SYN))
                .passes_as(&Frame::tcp(client, (F::POD_3, TARGET), SYN))
                .recorded(&masqueraded)
                .done()
        },
        {
            let flow = Flow::<F>::to(vip, 1);
            Scene::<F>::new("A segment of a connection that nobody knows is balanced: it was ours before a restart.")
                .frontend(F::VIP, HTTP, local_load_balancer(only(1)))
                .packet(&Frame::tcp(client, vip, ACK))
                .passes_as(&Frame::tcp(client, (F::POD_1, TARGET), ACK))
                .recorded(&flow)
                .done()
        },
        {
            let flow = first.clone().old();
            Scene::<F>::new("A client's FIN is noted, and its connection goes on.")
                .established(&flow)
                .frontend(F::VIP, HTTP, local_load_balancer(only(2)))
                .packet(&Frame::tcp(client, vip, FIN | ACK))
                .passes_as(&Frame::tcp(client, (F::POD_1, TARGET), FIN | ACK))
                .seen(flow.primary(), tcp_state::CONFIRMED | tcp_state::FIN)
                .done()
        },
        {
            let flow = first.clone().old();
            Scene::<F>::new("A known connection outlives its frontend.")
                .established(&flow)
                .given(|world| add_class::<F>(world, F::VIP, address_class::FRONTEND))
                .packet(&Frame::tcp(client, vip, ACK))
                .passes_as(&Frame::tcp(client, (F::POD_1, TARGET), ACK))
                .seen(flow.primary(), tcp_state::CONFIRMED)
                .done()
        },
        {
            let flow = first.clone();
            Scene::<F>::new("A segment in the same tick, of which nothing new is learnt, writes nothing.")
                .established(&Flow {
                    state: tcp_state::CONFIRMED,
                    ..flow.clone()
                })
                .frontend(F::VIP, HTTP, local_load_balancer(only(2)))
                .packet(&Frame::tcp(client, vip, ACK))
                .passes_as(&Frame::tcp(client, (F::POD_1, TARGET), ACK))
                .done()
        },
    ]
}

/// One client port, two frontends, one backend: the second connection gets another port inside the node.
fn collisions<F: Cast>() -> Vec<Scenario> {
    let client = (F::CLIENT_1, CLIENT_PORT);
    let inner = (F::CLIENT_1, SNAT_PORT);
    let second = (F::EXTERNAL_IP, HTTP);
    let other = Flow::<F>::to((F::VIP, HTTP), 1).old();
    let flow = Flow::<F>::to(second, 1).with_own_port();
    let both = flow.clone().old();
    let syn = Frame::tcp(client, second, SYN);
    let collides = |sentence: &str| {
        Scene::<F>::new(sentence)
            .frontend(F::EXTERNAL_IP, HTTP, web(only(1), frontend_flags::EXTERNAL_IP))
            .established(&other)
            .packet(&syn)
    };
    let closed = |scene: Scene<F>| {
        let key = other.reply();
        scene.given(|world| {
            let entry = F::maps_mut(world).connections.get_mut(&key).expect("it is known");
            entry.state |= tcp_state::FIN;
        })
    };
    vec![
        collides("A second connection from the same port, to the same backend, gets a port of its own at ingress.")
            .passes_as(&Frame::tcp(inner, (F::POD_1, TARGET), SYN))
            .recorded(&flow)
            .done(),
        collides("XDP gives a second connection from the same port both halves, and passes it up.")
            .at(Hook::Xdp)
            .passes_as(&Frame::tcp(inner, (F::POD_1, TARGET), SYN))
            .recorded(&flow.clone().by_xdp())
            .done(),
        collides("What follows on the second connection gets the same port.")
            .established(&both)
            .packet(&Frame::tcp(client, second, ACK))
            .passes_as(&Frame::tcp(inner, (F::POD_1, TARGET), ACK))
            .seen(flow.primary(), tcp_state::CONFIRMED)
            .done(),
        collides("The answer on the second connection gets its frontend back, and the client's port.")
            .at(Hook::Egress)
            .established(&both)
            .packet(&Frame::tcp((F::POD_1, TARGET), inner, ACK))
            .passes_as(&Frame::tcp(second, client, ACK))
            .seen(flow.reply(), tcp_state::CONFIRMED)
            .done(),
        collides("The answer on the first connection is not touched by the second.")
            .at(Hook::Egress)
            .established(&both)
            .packet(&Frame::tcp((F::POD_1, TARGET), client, ACK))
            .passes_as(&Frame::tcp((F::VIP, HTTP), client, ACK))
            .seen(other.reply(), tcp_state::CONFIRMED)
            .done(),
        closed(collides(
            "A closed connection keeps its port from the second: its last segments are on their way.",
        ))
        .passes_as(&Frame::tcp(inner, (F::POD_1, TARGET), SYN))
        .recorded(&flow)
        .done(),
        {
            let taken = Flow {
                frontend: (F::NODE_1, NODE_PORT),
                ..both.clone()
            };
            collides("A second connection for which no port is free is dropped.")
                .established(&taken)
                .dropped(DropReason::SnatPortsExhausted)
                .done()
        },
    ]
}

/// The same where the client is masqueraded: it gets another port twice.
fn masqueraded_collisions<F: Cast>() -> Vec<Scenario> {
    let client = (F::CLIENT_1, CLIENT_PORT);
    let inner = (F::CLIENT_1, SNAT_PORT);
    let second = (F::EXTERNAL_IP, HTTP);
    let remote = (F::POD_3, TARGET);
    let masquerade = (F::NODE_1, SNAT_PORT);
    let other = Flow {
        snat: Some((F::NODE_1, SNAT_PORT + 1)),
        ..Flow::<F>::to((F::VIP, HTTP), 3).old()
    };
    let flow = Flow::<F>::to(second, 3).behind(F::NODE_1).with_own_port();
    let both = flow.clone().old();
    let collides = |sentence: &str, frame: Frame<F>| {
        Scene::<F>::new(sentence)
            .frontend(
                F::EXTERNAL_IP,
                HTTP,
                web(only(3), frontend_flags::EXTERNAL_IP | MASQUERADE_ALL),
            )
            .established(&other)
            .packet(&frame)
    };
    let answer = || Frame::tcp(remote, masquerade, ACK);
    vec![
        collides(
            "A second masqueraded connection from the same port gets a port of its own at ingress.",
            Frame::tcp(client, second, SYN),
        )
        .passes_as(&Frame::tcp(inner, remote, SYN))
        .recorded(&flow)
        .done(),
        collides(
            "As it leaves the node, it gets the node's address.",
            Frame::tcp(inner, remote, ACK),
        )
        .at(Hook::Egress)
        .established(&both)
        .passes_as(&Frame::tcp(masquerade, remote, ACK))
        .seen(flow.out(), tcp_state::CONFIRMED)
        .done(),
        collides(
            "Its answer gets the client's address and the port inside the node at ingress.",
            answer(),
        )
        .established(&both)
        .passes_as(&answer().to(inner))
        .seen(flow.reply_in(), tcp_state::CONFIRMED)
        .done(),
        collides(
            "XDP does not answer its client, for the port has yet to be restored.",
            answer(),
        )
        .at(Hook::Xdp)
        .established(&both)
        .passes_as(&answer().to(inner))
        .seen(flow.reply_in(), tcp_state::CONFIRMED)
        .done(),
        collides(
            "Its answer leaves the node with the frontend that was asked, for the client's own port.",
            Frame::tcp(remote, inner, ACK),
        )
        .at(Hook::Egress)
        .established(&both)
        .passes_as(&Frame::tcp(second, client, ACK))
        .seen(flow.reply(), tcp_state::CONFIRMED)
        .done(),
    ]
}

fn no_room<F: Cast>() -> Vec<Scenario> {
    let client = (F::CLIENT_1, CLIENT_PORT);
    let vip = (F::VIP, HTTP);
    let other = Flow::<F>::to(vip, 3)
        .of((F::CLIENT_2, CLIENT_PORT))
        .behind(F::NODE_1)
        .old();
    let full = |sentence: &str, room: usize, frame: &Frame<F>| {
        Scene::<F>::new(sentence)
            .established(&other)
            .room_for(room)
            .frontend(F::VIP, HTTP, local_load_balancer(only(1)))
            .packet(frame)
    };
    let syn = Frame::tcp(client, vip, SYN);
    vec![
        full("A new connection for which the table has no room is dropped.", 4, &syn)
            .dropped(DropReason::TableFull)
            .done(),
        full(
            "A new connection is dropped where there is room for its way back only, which then expires.",
            5,
            &syn,
        )
        .left_behind(Flow::<F>::to(vip, 1).entries()[1])
        .dropped(DropReason::TableFull)
        .done(),
        full(
            "A full table does not break a known connection.",
            4,
            &Frame::tcp((F::CLIENT_2, CLIENT_PORT), vip, ACK),
        )
        .passes_as(&Frame::tcp((F::CLIENT_2, CLIENT_PORT), (F::POD_3, TARGET), ACK))
        .seen(other.primary(), tcp_state::CONFIRMED)
        .done(),
        {
            let flow = Flow::<F>::to(vip, 1);
            Scene::<F>::new("In a full table a closed connection can begin again: it needs no more room.")
                .established(&in_state(&flow, tcp_state::FIN))
                .room_for(2)
                .frontend(F::VIP, HTTP, local_load_balancer(only(1)))
                .packet(&syn)
                .passes_as(&Frame::tcp(client, (F::POD_1, TARGET), SYN))
                .recorded(&flow)
                .done()
        },
        {
            let left = Flow::<F>::to(vip, 3).behind(F::NODE_1).entries()[1];
            full(
                "A new connection is dropped where all ports of the node are taken towards its backend.",
                1 << 16,
                &syn,
            )
            .frontend(F::VIP, HTTP, load_balancer(only(3)))
            .left_behind(left)
            .dropped(DropReason::SnatPortsExhausted)
            .done()
        },
        {
            let flow = Flow::<F>::to(vip, 4).behind(F::NODE_1);
            full(
                "The same port of the node serves another connection, towards another backend.",
                1 << 16,
                &syn,
            )
            .frontend(F::VIP, HTTP, load_balancer(only(4)))
            .passes_as(&Frame::tcp(client, (F::POD_4, TARGET), SYN))
            .recorded(&flow)
            .done()
        },
        {
            let left = Flow {
                adjacency: 0,
                ..Flow::<F>::to(vip, 3).behind(F::NODE_1)
            };
            Scene::<F>::new("A connection that must be masqueraded is dropped where the node has no address for it.")
                .frontend(F::VIP, HTTP, load_balancer(only(3)))
                .backend(3, F::POD_3, backend_flags::LIVE, 0)
                .packet(&syn)
                .left_behind(left.entries()[1])
                .dropped(DropReason::NoMasqueradeAddress)
                .done()
        },
    ]
}
