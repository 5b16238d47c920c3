//! Sockets: the same answers when a process connects, sends, or asks for its peer.

use super::prelude::*;
use crate::abi::{AffinityEntry, AffinityKey, AffinityMember, Frontend, Peer, SocketKey};
use crate::datapath::socket::Request;

const COOKIE: u64 = 0x2_0000_0015;
const POD_COOKIE: u64 = 0x1_0000_0031;

fn request<A>(netns_cookie: u64, addr: A, port: u16) -> Request<A> {
    Request {
        cookie: COOKIE,
        netns_cookie,
        protocol: protocol::TCP,
        addr,
        port: Port::new(port),
    }
}

fn key<F: Cast>(addr: F::Addr) -> SocketKey<F::Addr> {
    SocketKey {
        cookie_low: COOKIE as u32,
        cookie_high: (COOKIE >> 32) as u32,
        addr,
        port: Port::new(TARGET),
        protocol: protocol::TCP,
        pad: 0,
    }
}

fn peer<F: Cast>(addr: F::Addr, port: u16) -> Peer<F::Addr> {
    Peer {
        addr,
        port: Port::new(port),
        pad: 0,
        service_port: WEB,
        last_seen: NOW,
    }
}

/// The socket is led to this backend, and what it asked for is noted.
fn led<F: Cast>(scene: Scene<F>, asked: (F::Addr, u16), backend: F::Addr) -> Scenario {
    scene
        .gets_address(backend, TARGET)
        .then(move |world| {
            let noted = peer::<F>(asked.0, asked.1);
            F::maps_mut(world).sockets.insert(key::<F>(backend), noted);
        })
        .done()
}

pub(super) fn scenarios<F: Cast>() -> Vec<Scenario> {
    let mut all = of_the_node::<F>();
    all.extend(of_pods::<F>());
    all.extend(told::<F>());
    all
}

fn of_the_node<F: Cast>() -> Vec<Scenario> {
    let cluster = (F::CLUSTER_IP, HTTP);
    let node = (F::NODE_1, NODE_PORT);
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
            F::POD_3,
        ),
        led(
            asks(
                "A process of the node that connects to its NodePort is connected to a backend.",
                cluster_ip(only(3)),
            )
            .frontend(F::NODE_1, NODE_PORT, node_port(only(1)))
            .asks(request(NODE_COOKIE, F::NODE_1, NODE_PORT)),
            node,
            F::POD_1,
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
            F::POD_4,
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
        asks(
            "A process of the node is left alone where internal traffic is Local and no endpoint is here.",
            web(NOBODY, frontend_flags::CLUSTER_IP | frontend_flags::DROP_INTERNAL),
        )
        .gets("as asked for")
        .done(),
        asks(
            "A process of the node that connects to a stranger is left alone.",
            cluster_ip(only(1)),
        )
        .asks(request(NODE_COOKIE, F::CLIENT_1, HTTP))
        .gets("as asked for")
        .done(),
        {
            let sticky = Frontend {
                affinity_timeout_s: 60,
                ..web(only(3), frontend_flags::CLUSTER_IP | frontend_flags::AFFINITY)
            };
            let pin = AffinityKey {
                client: F::Addr::default(),
                service_port: WEB,
            };
            let entry = AffinityEntry {
                backend: 4,
                last_used: NOW,
            };
            let scene = asks("Processes of the node are one client, as far as affinity goes.", sticky)
                .given(|world| {
                    for backend in [3, 4] {
                        world.members.insert(AffinityMember { offset: 3, backend });
                    }
                    let entry = AffinityEntry {
                        last_used: NOW - HZ,
                        ..entry
                    };
                    F::maps_mut(world).affinity.insert(pin, entry);
                })
                .then(move |world| {
                    F::maps_mut(world).affinity.insert(pin, entry);
                });
            led(scene, cluster, F::POD_4)
        },
    ]
}

fn of_pods<F: Cast>() -> Vec<Scenario> {
    let cluster = (F::CLUSTER_IP, HTTP);
    let asks = |sentence: &str, flags: u32, set| {
        Scene::<F>::new(sentence)
            .frontend(F::CLUSTER_IP, HTTP, web(set, frontend_flags::CLUSTER_IP | flags))
            .asks(request(POD_COOKIE, F::CLUSTER_IP, HTTP))
    };
    vec![
        asks(
            "A pod's socket is left alone where a packet might have to be masqueraded.",
            0,
            only(3),
        )
        .gets("as asked for")
        .done(),
        led(
            asks(
                "A pod's socket is connected to a backend where no masquerading can come of it.",
                frontend_flags::POD_SOCKETS,
                only(3),
            ),
            cluster,
            F::POD_3,
        ),
        asks(
            "A pod's socket is left alone where affinity asks for the pod's address.",
            frontend_flags::POD_SOCKETS | frontend_flags::AFFINITY,
            only(3),
        )
        .gets("as asked for")
        .done(),
        asks(
            "A pod's socket is left alone where source ranges ask for the pod's address.",
            frontend_flags::POD_SOCKETS | frontend_flags::SOURCE_RANGES,
            only(3),
        )
        .gets("as asked for")
        .done(),
        asks(
            "A pod's socket to a Service without endpoints is left alone: its packets are answered.",
            frontend_flags::POD_SOCKETS,
            NOBODY,
        )
        .gets("as asked for")
        .done(),
    ]
}

fn told<F: Cast>() -> Vec<Scenario> {
    let knows = |sentence: &str| {
        Scene::<F>::new(sentence).given(|world| {
            let noted = peer::<F>(F::CLUSTER_IP, HTTP);
            F::maps_mut(world).sockets.insert(key::<F>(F::POD_3), noted);
        })
    };
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
    ]
}
