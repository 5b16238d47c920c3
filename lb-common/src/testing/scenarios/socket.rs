//! Sockets: the same answers when a process connects, sends, or asks for its peer.

use super::prelude::*;
use crate::abi::{
    Address as _, AffinityEntry, AffinityKey, AffinityMember, Frontend, Peer, SocketKey, SourceRangeKey, config_flags,
    socket_side,
};
use crate::datapath::socket::Request;

const COOKIE: u64 = 0x2_0000_0015;
const POD_COOKIE: u64 = 0x1_0000_0031;
/// The address is one of the node's own.
const OWN: u32 = frontend_flags::OWN_ADDRESS;
/// A NodePort on the loopback address.
const LOOPBACK: u32 = OWN | frontend_flags::ONLY_SOCKETS;

fn request<A: Default>(netns_cookie: u64, addr: A, port: u16) -> Request<A> {
    Request {
        cookie: COOKIE,
        netns_cookie,
        protocol: protocol::TCP,
        addr,
        port: Port::new(port),
        source: A::default(),
    }
}

fn by_udp<A>(request: Request<A>) -> Request<A> {
    Request {
        protocol: protocol::UDP,
        ..request
    }
}

fn bound<A>(request: Request<A>, source: A) -> Request<A> {
    Request { source, ..request }
}

fn key<F: Cast>(protocol: u8, side: u8, addr: F::Addr, port: u16) -> SocketKey<F::Addr> {
    SocketKey {
        cookie_low: COOKIE as u32,
        cookie_high: (COOKIE >> 32) as u32,
        addr,
        port: Port::new(port),
        protocol,
        side,
    }
}

fn peer<F: Cast>(backend: u32, addr: F::Addr, port: u16) -> Peer<F::Addr> {
    Peer {
        addr,
        port: Port::new(port),
        pad: 0,
        service_port: WEB,
        backend,
        last_seen: NOW,
    }
}

fn pod<F: Cast>(backend: u32) -> F::Addr {
    Flow::<F>::to((F::VIP, HTTP), backend).backend.0
}

/// What is noted of a TCP socket that asked for a frontend and was given a backend: what it asked for.
fn note<F: Cast>(world: &mut World, asked: (F::Addr, u16), backend: u32) {
    let key = key::<F>(protocol::TCP, socket_side::BACKEND, pod::<F>(backend), TARGET);
    F::maps_mut(world)
        .sockets
        .insert(key, peer::<F>(backend, asked.0, asked.1));
}

/// What is noted of such a UDP socket: what it asked for, and what it was given.
fn note_udp<F: Cast>(world: &mut World, asked: (F::Addr, u16), backend: u32) {
    let sockets = &mut F::maps_mut(world).sockets;
    let given = (pod::<F>(backend), TARGET);
    let by_backend = key::<F>(protocol::UDP, socket_side::BACKEND, given.0, given.1);
    sockets.insert(by_backend, peer::<F>(backend, asked.0, asked.1));
    let by_frontend = key::<F>(protocol::UDP, socket_side::FRONTEND, asked.0, asked.1);
    sockets.insert(by_frontend, peer::<F>(backend, given.0, given.1));
}

/// The TCP socket is led to this backend, and what it asked for is noted.
fn led<F: Cast>(scene: Scene<F>, asked: (F::Addr, u16), backend: u32) -> Scenario {
    scene
        .gets_address(pod::<F>(backend), TARGET)
        .then(move |world| note::<F>(world, asked, backend))
        .done()
}

/// The UDP socket is led to this backend, and both sides are noted.
fn led_by_udp<F: Cast>(scene: Scene<F>, asked: (F::Addr, u16), backend: u32) -> Scenario {
    scene
        .gets_address(pod::<F>(backend), TARGET)
        .then(move |world| note_udp::<F>(world, asked, backend))
        .done()
}

fn left<F: Cast>(scene: Scene<F>) -> Scenario {
    scene.gets("as asked for").done()
}

pub(super) fn scenarios<F: Cast>() -> Vec<Scenario> {
    let mut all = of_the_node::<F>();
    all.extend(on_own_addresses::<F>());
    all.extend(clients::<F>());
    all.extend(on_loopback::<F>());
    all.extend(by_datagrams::<F>());
    all.extend(of_pods::<F>());
    all.extend(told::<F>());
    all
}

fn of_the_node<F: Cast>() -> Vec<Scenario> {
    let cluster = (F::CLUSTER_IP, HTTP);
    let asks = |sentence: &str, frontend: Frontend| {
        Scene::<F>::new(sentence)
            .frontend(F::CLUSTER_IP, HTTP, frontend)
            .frontend_of(0, F::CLUSTER_IP, 0, web(NOBODY, frontend_flags::CLUSTER_IP))
            .asks(request(NODE_COOKIE, F::CLUSTER_IP, HTTP))
    };
    vec![
        led(
            asks(
                "A process of the node that connects to a ClusterIP is connected to a backend.",
                cluster_ip(only(3)),
            ),
            cluster,
            3,
        ),
        led(
            asks(
                "A process of the node gets a backend from the internal set.",
                Frontend {
                    external: only(1),
                    ..cluster_ip(only(4))
                },
            ),
            cluster,
            4,
        ),
        asks(
            "A process of the node that connects to a Service without endpoints is refused.",
            cluster_ip(NOBODY),
        )
        .gets("refused")
        .done(),
        asks(
            "A process of the node that connects to a port that the ClusterIP lacks is refused.",
            cluster_ip(only(1)),
        )
        .asks(request(NODE_COOKIE, F::CLUSTER_IP, 81))
        .gets("refused")
        .done(),
        left(asks(
            "A process of the node is left alone where internal traffic is Local and no endpoint is here.",
            web(NOBODY, frontend_flags::CLUSTER_IP | frontend_flags::DROP_INTERNAL),
        )),
        left(
            asks(
                "A process of the node that connects to a stranger is left alone.",
                cluster_ip(only(1)),
            )
            .asks(request(NODE_COOKIE, F::CLIENT_1, HTTP)),
        ),
        left(
            asks(
                "A process of the node whose socket is bound to an address is left alone: its packets are masqueraded.",
                cluster_ip(only(3)),
            )
            .asks(bound(request(NODE_COOKIE, F::CLUSTER_IP, HTTP), F::NODE_1)),
        ),
        left(
            asks("A socket of another protocol is left alone.", cluster_ip(only(3)))
                .frontend_of(protocol::SCTP, F::CLUSTER_IP, HTTP, cluster_ip(only(3)))
                .asks(Request {
                    protocol: protocol::SCTP,
                    ..request(NODE_COOKIE, F::CLUSTER_IP, HTTP)
                }),
        ),
    ]
}

/// What is sent to the node's own addresses meets no hook.
fn on_own_addresses<F: Cast>() -> Vec<Scenario> {
    let node = (F::NODE_1, NODE_PORT);
    let asks = |sentence: &str, set| {
        Scene::<F>::new(sentence)
            .frontend(
                F::NODE_1,
                NODE_PORT,
                web(set, frontend_flags::NODE_PORT | MASQUERADE_ALL | OWN),
            )
            .asks(request(NODE_COOKIE, F::NODE_1, NODE_PORT))
    };
    let local = frontend_flags::LOAD_BALANCER | frontend_flags::DROP_INTERNAL | OWN;
    vec![
        led(
            asks(
                "A process of the node that connects to its NodePort is connected to a backend.",
                only(1),
            ),
            node,
            1,
        ),
        led(
            asks(
                "It is so too if its socket is bound to an address of the node.",
                only(1),
            )
            .asks(bound(request(NODE_COOKIE, F::NODE_1, NODE_PORT), F::GATEWAY)),
            node,
            1,
        ),
        left(
            asks(
                "It is left alone if its socket is bound to loopback: no backend could answer.",
                only(1),
            )
            .asks(bound(request(NODE_COOKIE, F::NODE_1, NODE_PORT), F::Addr::LOOPBACK)),
        ),
        asks("It is refused where there is no endpoint.", NOBODY)
            .gets("refused")
            .done(),
        asks(
            "It waits in vain, and is told so at once, where only the policy leaves no endpoint.",
            NOBODY,
        )
        .frontend(F::VIP, HTTP, web(NOBODY, local))
        .asks(request(NODE_COOKIE, F::VIP, HTTP))
        .gets("dropped: NoLocalEndpoint")
        .done(),
    ]
}

/// Whose address counts, and where.
fn clients<F: Cast>() -> Vec<Scenario> {
    let sticky = |flags: u32| Frontend {
        affinity_timeout_s: 60,
        ..web(only(3), frontend_flags::AFFINITY | flags)
    };
    let asks = |sentence: &str, frontend: Frontend| {
        Scene::<F>::new(sentence)
            .frontend(F::VIP, HTTP, frontend)
            .asks(request(NODE_COOKIE, F::VIP, HTTP))
    };
    let pinned = |scene: Scene<F>, client: F::Addr| {
        let pin = move |world: &mut World, backend: u32, last_used: u32| {
            let key = AffinityKey {
                client,
                service_port: WEB,
            };
            let entry = AffinityEntry { backend, last_used };
            F::maps_mut(world).affinity.insert(key, entry);
        };
        let scene = scene
            .given(|world| {
                for backend in [3, 4] {
                    world.members.insert(AffinityMember { offset: 3, backend });
                }
                pin(world, 4, NOW - HZ);
            })
            .then(move |world| pin(world, 4, NOW));
        led(scene, (F::VIP, HTTP), 4)
    };
    let whole = 32 + 8 * size_of::<F::Addr>() as u32;
    let ranges = |sentence: &str, flags: u32, addr: F::Addr| {
        let flags = frontend_flags::LOAD_BALANCER | frontend_flags::SOURCE_RANGES | flags;
        asks(sentence, web(only(3), flags)).given(|world| {
            F::maps_mut(world).source_ranges.push(SourceRangeKey {
                prefix_len: whole,
                service_port: WEB,
                addr,
            });
        })
    };
    vec![
        left(asks(
            "A process of the node is left alone where affinity asks for its address, which routing has yet to give.",
            sticky(frontend_flags::LOAD_BALANCER),
        )),
        pinned(
            asks(
                "To an own address of the node a process has that address, as far as affinity goes.",
                sticky(frontend_flags::LOAD_BALANCER | OWN),
            ),
            F::VIP,
        ),
        pinned(
            asks(
                "A process whose socket is bound has the address that it is bound to.",
                sticky(frontend_flags::LOAD_BALANCER | OWN),
            )
            .asks(bound(request(NODE_COOKIE, F::VIP, HTTP), F::NODE_1)),
            F::NODE_1,
        ),
        left(ranges(
            "A process of the node is left alone where source ranges ask for its address.",
            0,
            F::NODE_1,
        )),
        led(
            ranges(
                "The node is served by its own load balancer address if that is in the source ranges.",
                OWN,
                F::VIP,
            ),
            (F::VIP, HTTP),
            3,
        ),
        led(
            ranges(
                "A process is served if the address that it is bound to is in the source ranges.",
                OWN,
                F::NODE_1,
            )
            .asks(bound(request(NODE_COOKIE, F::VIP, HTTP), F::NODE_1)),
            (F::VIP, HTTP),
            3,
        ),
        ranges(
            "A process is dropped at its socket if its address is in none of the source ranges.",
            OWN,
            F::CLIENT_1,
        )
        .gets("dropped: SourceRange")
        .done(),
    ]
}

fn on_loopback<F: Cast>() -> Vec<Scenario> {
    let loopback = (F::Addr::LOOPBACK, NODE_PORT);
    let here = || request(NODE_COOKIE, F::Addr::LOOPBACK, NODE_PORT);
    let asks = |sentence: &str, set| {
        let frontend = web(set, frontend_flags::NODE_PORT | MASQUERADE_ALL | LOOPBACK);
        Scene::<F>::new(sentence)
            .frontend(F::Addr::LOOPBACK, NODE_PORT, frontend)
            .frontend_of(protocol::UDP, F::Addr::LOOPBACK, NODE_PORT, frontend)
            .asks(here())
    };
    let mut all = vec![
        led(
            asks(
                "A process of the node that connects to a NodePort on loopback is connected to a backend.",
                only(3),
            ),
            loopback,
            3,
        ),
        led_by_udp(
            asks(
                "A process of the node that sends to a NodePort on loopback is led to a backend.",
                only(3),
            )
            .asks(by_udp(here())),
            loopback,
            3,
        ),
        left(asks(
            "A NodePort on loopback without endpoints is left to whoever listens there.",
            NOBODY,
        )),
        left(asks("A socket that is bound to loopback is left alone.", only(3)).asks(bound(here(), F::Addr::LOOPBACK))),
        left(asks("A pod's loopback is its own.", only(3)).asks(request(POD_COOKIE, F::Addr::LOOPBACK, NODE_PORT))),
        left(asks("Another port on loopback is left alone.", only(3)).asks(request(
            NODE_COOKIE,
            F::Addr::LOOPBACK,
            NODE_PORT + 1,
        ))),
        Scene::<F>::new("A packet to the loopback address is to no NodePort, whatever the filter says.")
            .frontend(
                F::Addr::LOOPBACK,
                NODE_PORT,
                web(only(3), frontend_flags::NODE_PORT | LOOPBACK),
            )
            .given(|world| add_class::<F>(world, F::Addr::LOOPBACK, address_class::FRONTEND))
            .packet(&Frame::tcp((F::CLIENT_1, CLIENT_PORT), loopback, SYN))
            .untouched()
            .done(),
    ];
    if !F::IS_V6 {
        // 127.0.0.2, in the bytes of an IPv4 address.
        let other = F::Addr::from_words([u32::from_ne_bytes([127, 0, 0, 2]), 0, 0, 0]);
        all.push(led(
            asks(
                "All of 127.0.0.0/8 is loopback, and is told as it was asked for.",
                only(3),
            )
            .asks(request(NODE_COOKIE, other, NODE_PORT)),
            (other, NODE_PORT),
            3,
        ));
    }
    all
}

/// UDP: what meets no hook is led here, and keeps its backend while that serves.
fn by_datagrams<F: Cast>() -> Vec<Scenario> {
    let node = (F::NODE_1, NODE_PORT);
    let asks = |sentence: &str, set| {
        let frontend = web(set, frontend_flags::NODE_PORT | MASQUERADE_ALL | OWN);
        Scene::<F>::new(sentence)
            .frontend_of(protocol::UDP, F::NODE_1, NODE_PORT, frontend)
            .asks(by_udp(request(NODE_COOKIE, F::NODE_1, NODE_PORT)))
    };
    let knows =
        |sentence: &str, backend: u32| asks(sentence, only(4)).given(|world| note_udp::<F>(world, node, backend));
    let cluster_asks = |sentence: &str, cookie: u64, more: u32| {
        let flags = frontend_flags::CLUSTER_IP | frontend_flags::POD_SOCKETS | more;
        Scene::<F>::new(sentence)
            .frontend_of(protocol::UDP, F::CLUSTER_IP, HTTP, web(only(3), flags))
            .asks(by_udp(request(cookie, F::CLUSTER_IP, HTTP)))
    };
    vec![
        left(cluster_asks(
            "Datagrams of the node's processes to a ClusterIP are left to the packets' translation.",
            NODE_COOKIE,
            0,
        )),
        led_by_udp(
            cluster_asks(
                "They are led to a backend at once where they might go to the node itself.",
                NODE_COOKIE,
                frontend_flags::OWN_BACKEND,
            ),
            (F::CLUSTER_IP, HTTP),
            3,
        ),
        left(cluster_asks(
            "Datagrams of pods to a ClusterIP are left to the packets' translation.",
            POD_COOKIE,
            0,
        )),
        led_by_udp(
            asks(
                "A process of the node that sends to its NodePort is led to a backend, which is noted.",
                only(3),
            ),
            node,
            3,
        ),
        asks(
            "A process of the node that sends to its NodePort without endpoints is refused.",
            NOBODY,
        )
        .gets("refused")
        .done(),
        knows(
            "Its further datagrams go to the same backend, whatever new ones would get.",
            3,
        )
        .gets_address(F::POD_3, TARGET)
        .done(),
        led_by_udp(
            knows("They go to another one when no Service uses that backend any more.", 3).given(|world| {
                let backend = F::maps_mut(world).backends.get_mut(&3).expect("the cast has it");
                backend.flags &= !backend_flags::LIVE;
            }),
            node,
            4,
        ),
        led_by_udp(
            knows(
                "They go to another one when the backend's id has passed to another address.",
                3,
            )
            .given(|world| {
                let backend = F::maps_mut(world).backends.get_mut(&3).expect("the cast has it");
                backend.addr = F::POD_1;
            }),
            node,
            4,
        ),
        led_by_udp(
            knows(
                "They go to another one when the NodePort has passed to another Service.",
                3,
            )
            .given(|world| {
                let by_frontend = key::<F>(protocol::UDP, socket_side::FRONTEND, node.0, node.1);
                let given = F::maps_mut(world).sockets.get_mut(&by_frontend).expect("it is known");
                given.service_port = WEB + 1;
            }),
            node,
            4,
        ),
        knows("The peer that is told is the frontend that was asked for last.", 3)
            .given(|world| {
                let by_backend = key::<F>(protocol::UDP, socket_side::BACKEND, F::POD_3, TARGET);
                let other = peer::<F>(3, F::VIP, HTTP);
                F::maps_mut(world).sockets.insert(by_backend, other);
            })
            .gets_address(F::POD_3, TARGET)
            .then(move |world| note_udp::<F>(world, node, 3))
            .done(),
    ]
}

fn of_pods<F: Cast>() -> Vec<Scenario> {
    let cluster = (F::CLUSTER_IP, HTTP);
    let asks = |sentence: &str, flags: u32, set| {
        Scene::<F>::new(sentence)
            .frontend(F::CLUSTER_IP, HTTP, web(set, frontend_flags::CLUSTER_IP | flags))
            .asks(request(POD_COOKIE, F::CLUSTER_IP, HTTP))
    };
    let sockets = frontend_flags::POD_SOCKETS;
    vec![
        left(asks(
            "A pod's socket is left alone where a packet might have to be masqueraded.",
            0,
            only(3),
        )),
        led(
            asks(
                "A pod's socket is connected to a backend where no masquerading can come of it.",
                sockets,
                only(3),
            ),
            cluster,
            3,
        ),
        left(
            asks(
                "A socket in another network namespace is left alone where the hooks see those of others than pods.",
                sockets,
                only(3),
            )
            .given(|world| world.config.flags &= !config_flags::POD_SOCKETS),
        ),
        left(asks(
            "A pod's socket is left alone where affinity asks for the pod's address.",
            sockets | frontend_flags::AFFINITY,
            only(3),
        )),
        left(asks(
            "A pod's socket is left alone where source ranges ask for the pod's address.",
            sockets | frontend_flags::SOURCE_RANGES,
            only(3),
        )),
        left(asks(
            "A pod's socket to a Service without endpoints is left alone: its packets are answered.",
            sockets,
            NOBODY,
        )),
        left(asks(
            "A pod's socket to an address of the node is left alone where the policy drops: its packets are.",
            sockets | OWN | frontend_flags::DROP_INTERNAL,
            NOBODY,
        )),
    ]
}

fn told<F: Cast>() -> Vec<Scenario> {
    let knows = |sentence: &str| Scene::<F>::new(sentence).given(|world| note::<F>(world, (F::CLUSTER_IP, HTTP), 3));
    let other_socket = Request {
        cookie: COOKIE + 1,
        ..request(NODE_COOKIE, F::POD_3, TARGET)
    };
    vec![
        knows("A process that asks for its peer is told the ClusterIP.")
            .is_told(request(NODE_COOKIE, F::POD_3, TARGET))
            .gets_address(F::CLUSTER_IP, HTTP)
            .done(),
        knows("A process that talks to the backend by its own address is told that.")
            .is_told(other_socket)
            .gets("as it is")
            .done(),
        knows("A datagram from somebody else than the backend bears its own address.")
            .is_told(request(NODE_COOKIE, F::POD_4, TARGET))
            .gets("as it is")
            .done(),
        Scene::<F>::new("What a process was given for a frontend is not what it is told of that frontend itself.")
            .given(|world| note_udp::<F>(world, (F::NODE_1, NODE_PORT), 3))
            .is_told(by_udp(request(NODE_COOKIE, F::NODE_1, NODE_PORT)))
            .gets("as it is")
            .done(),
    ]
}
