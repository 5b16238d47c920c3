//! Who may come, who is masqueraded, and who gets nobody.

use super::prelude::*;
use crate::abi::{Frontend, LpmKey, SourceRangeKey, config_flags};
use crate::testing::packet::DEVICE;

pub(super) fn scenarios<F: Cast>() -> Vec<Scenario> {
    let mut all = rejected::<F>();
    all.extend(dropped::<F>());
    all.extend(source_ranges::<F>());
    all.extend(service_cidr::<F>());
    all.extend(origins::<F>());
    all.extend(devices::<F>());
    all
}

fn rejected<F: Cast>() -> Vec<Scenario> {
    let client = (F::CLIENT_1, CLIENT_PORT);
    let pod = (F::POD_1, CLIENT_PORT);
    let vip = (F::VIP, HTTP);
    let rejects = |sentence: &str, frame: Frame<F>| {
        let scene = Scene::<F>::new(sentence)
            .frontend(F::VIP, HTTP, load_balancer(NOBODY))
            .frontend_of(protocol::UDP, F::VIP, HTTP, load_balancer(NOBODY))
            .frontend(F::NODE_1, NODE_PORT, node_port(NOBODY))
            .frontend(F::CLUSTER_IP, HTTP, cluster_ip(only(1)))
            .frontend_of(0, F::CLUSTER_IP, 0, web(NOBODY, frontend_flags::CLUSTER_IP));
        scene.packet(&frame).rejected_by(&frame.unreachable(40)).done()
    };
    vec![
        rejects(
            "A SYN to a Service without endpoints is answered with a port unreachable.",
            Frame::tcp(client, vip, SYN),
        ),
        rejects(
            "A datagram to a Service without endpoints is answered with a port unreachable.",
            Frame::udp(client, vip),
        ),
        rejects(
            "A datagram without payload is quoted whole.",
            Frame::udp(client, vip).with(|frame| frame.payload.clear()),
        ),
        rejects(
            "Of a datagram of odd length all is quoted but the last byte.",
            Frame::udp(client, vip).with(|frame| frame.payload = b"odd".to_vec()),
        ),
        rejects(
            "A segment that is no SYN is answered with a port unreachable too.",
            Frame::tcp(client, vip, ACK),
        ),
        rejects(
            "A SYN to the NodePort of a Service without endpoints is answered with a port unreachable.",
            Frame::tcp(client, (F::NODE_1, NODE_PORT), SYN),
        ),
        rejects(
            "A SYN to a port that the ClusterIP does not have is answered with a port unreachable.",
            Frame::tcp(pod, (F::CLUSTER_IP, 81), SYN),
        ),
        rejects(
            "A datagram to a port that the ClusterIP has for TCP only is answered with a port unreachable.",
            Frame::udp(pod, (F::CLUSTER_IP, HTTP)),
        ),
        rejects(
            "By a device without link headers the port unreachable goes back the same way.",
            Frame::tcp(client, vip, SYN).with(|frame| frame.link = None),
        ),
        rejects(
            "A packet with one hop left is answered like any other.",
            Frame::tcp(client, vip, SYN).with(|frame| frame.ttl = 1),
        ),
        {
            let scene =
                Scene::<F>::new("In front of a tag in the packet there is no room for an answer: it is dropped.");
            scene
                .frontend(F::VIP, HTTP, load_balancer(NOBODY))
                .packet(&Frame::tcp(client, vip, SYN).with(|frame| frame.tags = vec![(0x88a8, 12)]))
                .dropped(DropReason::Malformed)
                .done()
        },
    ]
}

fn dropped<F: Cast>() -> Vec<Scenario> {
    let client = (F::CLIENT_1, CLIENT_PORT);
    let pod = (F::POD_1, CLIENT_PORT);
    let vip = (F::VIP, HTTP);
    let internal_local = web(NOBODY, frontend_flags::CLUSTER_IP | frontend_flags::DROP_INTERNAL);
    let lost = |sentence: &str, hook: Hook| {
        Scene::<F>::new(sentence)
            .at(hook)
            .frontend(F::VIP, HTTP, local_load_balancer(NOBODY))
            .packet(&Frame::tcp(client, vip, SYN))
            .dropped(DropReason::NoLocalEndpoint)
            .done()
    };
    vec![
        lost(
            "A client's SYN is dropped where external traffic is Local and no endpoint is on this node.",
            Hook::Ingress,
        ),
        lost(
            "XDP drops a client's SYN where external traffic is Local and no endpoint is on this node.",
            Hook::Xdp,
        ),
        Scene::<F>::new("A pod's SYN is dropped where internal traffic is Local and no endpoint is on this node.")
            .frontend(F::CLUSTER_IP, HTTP, internal_local)
            .packet(&Frame::tcp(pod, (F::CLUSTER_IP, HTTP), SYN))
            .dropped(DropReason::NoLocalEndpoint)
            .done(),
        Scene::<F>::new("A slot of a Maglev table that names no backend drops the packet.")
            .frontend(F::VIP, HTTP, local_load_balancer(only(20)))
            .packet(&Frame::tcp(client, vip, SYN))
            .dropped(DropReason::NoBackend)
            .done(),
        Scene::<F>::new("A slot of a Maglev table that names a backend which no Service uses drops the packet.")
            .frontend(F::VIP, HTTP, local_load_balancer(only(20)))
            .given(|world| {
                world.maglev.insert(20, 1);
                let backend = F::maps_mut(world).backends.get_mut(&1).expect("the cast has it");
                backend.flags &= !backend_flags::LIVE;
            })
            .packet(&Frame::tcp(client, vip, SYN))
            .dropped(DropReason::NoBackend)
            .done(),
        Scene::<F>::new("A slot of a Maglev table that names a backend without an address drops the packet.")
            .frontend(F::VIP, HTTP, local_load_balancer(only(20)))
            .given(|world| {
                world.maglev.insert(20, 25);
            })
            .packet(&Frame::tcp(client, vip, SYN))
            .dropped(DropReason::NoBackend)
            .done(),
    ]
}

fn source_ranges<F: Cast>() -> Vec<Scenario> {
    let client = (F::CLIENT_1, CLIENT_PORT);
    let vip = (F::VIP, HTTP);
    let whole = 32 + 8 * size_of::<F::Addr>() as u32;
    let guarded = Frontend {
        flags: frontend_flags::LOAD_BALANCER | frontend_flags::SOURCE_RANGES,
        ..load_balancer(only(1))
    };
    let allowed = |sentence: &str, service_port: u32, prefix_len: u32, addr: F::Addr| {
        Scene::<F>::new(sentence)
            .frontend(F::VIP, HTTP, guarded)
            .frontend(F::NODE_1, NODE_PORT, web(only(1), frontend_flags::NODE_PORT))
            .given(|world| {
                F::maps_mut(world).source_ranges.push(SourceRangeKey {
                    prefix_len,
                    service_port,
                    addr,
                });
            })
            .packet(&Frame::tcp(client, vip, SYN))
    };
    let served = |scene: Scene<F>| {
        scene
            .passes_as(&Frame::tcp(client, (F::POD_1, TARGET), SYN))
            .recorded(&Flow::<F>::to(vip, 1))
            .done()
    };
    vec![
        served(allowed(
            "A client whose address is in the source ranges is served.",
            WEB,
            whole,
            F::CLIENT_1,
        )),
        served(allowed(
            "A client whose network is in the source ranges is served.",
            WEB,
            whole - 8,
            F::CLIENT_2,
        )),
        served(allowed(
            "A source range of everybody lets everybody in.",
            WEB,
            32,
            F::Addr::default(),
        )),
        allowed(
            "A client that is in none of the source ranges is dropped.",
            WEB,
            whole,
            F::CLIENT_2,
        )
        .dropped(DropReason::SourceRange)
        .done(),
        allowed(
            "The source ranges of another Service let nobody in here.",
            WEB + 1,
            whole,
            F::CLIENT_1,
        )
        .dropped(DropReason::SourceRange)
        .done(),
        allowed(
            "XDP drops a client that is in none of the source ranges.",
            WEB,
            whole,
            F::CLIENT_2,
        )
        .at(Hook::Xdp)
        .dropped(DropReason::SourceRange)
        .done(),
        allowed(
            "Source ranges do not apply to the NodePort of the same Service.",
            WEB,
            whole,
            F::CLIENT_2,
        )
        .packet(&Frame::tcp(client, (F::NODE_1, NODE_PORT), SYN))
        .passes_as(&Frame::tcp(client, (F::POD_1, TARGET), SYN))
        .recorded(&Flow::<F>::to((F::NODE_1, NODE_PORT), 1))
        .done(),
        {
            let flow = Flow::<F>::to(vip, 1).old();
            allowed(
                "A known connection outlives a change of the source ranges.",
                WEB,
                whole,
                F::CLIENT_2,
            )
            .established(&flow)
            .packet(&Frame::tcp(client, vip, ACK))
            .passes_as(&Frame::tcp(client, (F::POD_1, TARGET), ACK))
            .seen(flow.primary(), tcp_state::CONFIRMED)
            .done()
        },
    ]
}

fn service_cidr<F: Cast>() -> Vec<Scenario> {
    let pod = (F::POD_1, CLIENT_PORT);
    let to_unassigned = |sentence: &str| {
        Scene::<F>::new(sentence)
            .given(|world| {
                let (addr, prefix_len) = F::SERVICE_CIDR;
                F::maps_mut(world).service_cidrs.push(LpmKey { prefix_len, addr });
                world.config.flags |= config_flags::SERVICE_CIDRS;
            })
            .packet(&Frame::tcp(pod, (F::UNASSIGNED, HTTP), SYN))
    };
    vec![
        to_unassigned("A SYN to an address in a Service CIDR that no Service has is dropped.")
            .dropped(DropReason::UnassignedServiceAddress)
            .done(),
        to_unassigned("XDP drops a SYN to an address in a Service CIDR that no Service has.")
            .at(Hook::Xdp)
            .dropped(DropReason::UnassignedServiceAddress)
            .done(),
        to_unassigned("A packet to an address outside the Service CIDRs passes.")
            .packet(&Frame::tcp(pod, (F::CLIENT_1, HTTP), SYN))
            .untouched()
            .done(),
        to_unassigned("Where no Service CIDR is known, a packet to an unassigned address passes.")
            .given(|world| world.config.flags = 0)
            .untouched()
            .done(),
    ]
}

/// Pods of this node and clients from elsewhere get other backends, and other source addresses.
fn origins<F: Cast>() -> Vec<Scenario> {
    let client = (F::CLIENT_1, CLIENT_PORT);
    let pod = (F::POD_1, CLIENT_PORT);
    let remote_pod = (F::POD_4, CLIENT_PORT);
    let vip = (F::VIP, HTTP);
    let split = Frontend {
        external: only(1),
        internal: only(3),
        ..local_load_balancer(only(1))
    };
    let only_inside = Frontend {
        external: NOBODY,
        ..split
    };
    vec![
        Scene::<F>::new("Where external traffic is Local, a client from outside gets an endpoint on this node.")
            .frontend(F::VIP, HTTP, split)
            .packet(&Frame::tcp(client, vip, SYN))
            .passes_as(&Frame::tcp(client, (F::POD_1, TARGET), SYN))
            .recorded(&Flow::<F>::to(vip, 1))
            .done(),
        Scene::<F>::new("Where external traffic is Local, a pod of this node gets any endpoint.")
            .frontend(F::VIP, HTTP, split)
            .packet(&Frame::tcp(pod, vip, SYN))
            .passes_as(&Frame::tcp(pod, (F::POD_3, TARGET), SYN))
            .recorded(&Flow::<F>::to(vip, 3).of(pod))
            .done(),
        Scene::<F>::new("A pod of another node is a client from outside.")
            .frontend(F::VIP, HTTP, split)
            .packet(&Frame::tcp(remote_pod, vip, SYN))
            .passes_as(&Frame::tcp(remote_pod, (F::POD_1, TARGET), SYN))
            .recorded(&Flow::<F>::to(vip, 1).of(remote_pod))
            .done(),
        Scene::<F>::new("A pod is served where clients from outside are dropped for want of a local endpoint.")
            .frontend(F::VIP, HTTP, only_inside)
            .packet(&Frame::tcp(pod, vip, SYN))
            .passes_as(&Frame::tcp(pod, (F::POD_3, TARGET), SYN))
            .recorded(&Flow::<F>::to(vip, 3).of(pod))
            .done(),
        Scene::<F>::new("A pod's SYN to a NodePort is masqueraded like a client's.")
            .frontend(F::NODE_1, NODE_PORT, node_port(only(3)))
            .packet(&Frame::tcp(pod, (F::NODE_1, NODE_PORT), SYN))
            .passes_as(&Frame::tcp(pod, (F::POD_3, TARGET), SYN))
            .recorded(&Flow::<F>::to((F::NODE_1, NODE_PORT), 3).of(pod).behind(F::NODE_1))
            .done(),
        Scene::<F>::new("A backend at the node's own address is not masqueraded: there would be nothing to gain.")
            .frontend(F::VIP, HTTP, load_balancer(only(5)))
            .backend(
                5,
                F::GATEWAY,
                backend_flags::LIVE | backend_flags::LOCAL | backend_flags::NODE_ADDRESS,
                0,
            )
            .packet(&Frame::tcp(client, vip, SYN))
            .passes_as(&Frame::tcp(client, (F::GATEWAY, TARGET), SYN))
            .recorded(&Flow {
                backend: (F::GATEWAY, TARGET),
                adjacency: 0,
                flags: conn_flags::LOCAL,
                ..Flow::<F>::to(vip, 5)
            })
            .done(),
    ]
}

/// Pods are known by the devices that they come in by.
fn devices<F: Cast>() -> Vec<Scenario> {
    let pod = (F::POD_1, CLIENT_PORT);
    let cluster = (F::CLUSTER_IP, HTTP);
    let known_by = |sentence: &str, device: u32, client: (F::Addr, u16)| {
        Scene::<F>::new(sentence)
            .frontend(F::CLUSTER_IP, HTTP, cluster_ip(only(3)))
            .given(|world| {
                world.config.flags |= config_flags::POD_DEVICES;
                world.pod_devices.insert(device);
            })
            .packet(&Frame::tcp(client, cluster, SYN))
            .passes_as(&Frame::tcp(client, (F::POD_3, TARGET), SYN))
    };
    let anyone = (F::CLIENT_1, CLIENT_PORT);
    vec![
        known_by(
            "A client that comes in by a pod's device is a pod, whatever its address.",
            DEVICE,
            anyone,
        )
        .recorded(&Flow::<F>::to(cluster, 3).of(anyone))
        .done(),
        known_by(
            "A client with a pod's address is none where it comes in by another device.",
            DEVICE + 1,
            pod,
        )
        .recorded(&Flow::<F>::to(cluster, 3).of(pod).behind(F::NODE_1))
        .done(),
    ]
}
