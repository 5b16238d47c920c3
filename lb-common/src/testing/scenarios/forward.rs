//! The first packet of a connection, and those after it, on their way to the backend.

use super::prelude::*;

pub(super) fn scenarios<F: Cast>() -> Vec<Scenario> {
    let client = (F::CLIENT_1, CLIENT_PORT);
    let pod = (F::POD_1, CLIENT_PORT);
    let vip = (F::VIP, HTTP);
    vec![
        Scene::<F>::new("A pod's SYN to a ClusterIP goes to a pod on the other node, and the pod's address stays.")
            .frontend(F::CLUSTER_IP, HTTP, cluster_ip(only(3)))
            .packet(&Frame::tcp(pod, (F::CLUSTER_IP, HTTP), SYN))
            .passes_as(&Frame::tcp(pod, (F::POD_3, TARGET), SYN))
            .recorded(&Flow::<F>::to((F::CLUSTER_IP, HTTP), 3).of(pod))
            .done(),
        Scene::<F>::new("A pod's SYN to a ClusterIP goes to another pod on this node, and the pod's address stays.")
            .frontend(F::CLUSTER_IP, HTTP, cluster_ip(only(2)))
            .packet(&Frame::tcp(pod, (F::CLUSTER_IP, HTTP), SYN))
            .passes_as(&Frame::tcp(pod, (F::POD_2, TARGET), SYN))
            .recorded(&Flow::<F>::to((F::CLUSTER_IP, HTTP), 2).of(pod))
            .done(),
        Scene::<F>::new("A client's SYN to a load balancer address is led to a pod on this node by TC.")
            .frontend(F::VIP, HTTP, local_load_balancer(only(1)))
            .packet(&Frame::tcp(client, vip, SYN))
            .passes_as(&Frame::tcp(client, (F::POD_1, TARGET), SYN))
            .recorded(&Flow::<F>::to(vip, 1))
            .done(),
        Scene::<F>::new("A client's SYN to a NodePort gets its destination at ingress, and all four entries.")
            .frontend(F::NODE_1, NODE_PORT, node_port(only(3)))
            .packet(&Frame::tcp(client, (F::NODE_1, NODE_PORT), SYN))
            .passes_as(&Frame::tcp(client, (F::POD_3, TARGET), SYN))
            .recorded(&Flow::<F>::to((F::NODE_1, NODE_PORT), 3).behind(F::NODE_1))
            .done(),
        {
            let flow = Flow::<F>::to(vip, 3).behind(F::NODE_1);
            Scene::<F>::new("A client's segment leaves the node for the backend with the node's address as its source.")
                .at(Hook::Egress)
                .established(&flow.clone().old())
                .packet(&Frame::tcp(client, (F::POD_3, TARGET), ACK))
                .passes_as(&Frame::tcp((F::NODE_1, SNAT_PORT), (F::POD_3, TARGET), ACK))
                .seen(flow.out(), tcp_state::CONFIRMED)
                .done()
        },
        {
            let flow = Flow::<F>::to(vip, 3).behind(F::NODE_1);
            Scene::<F>::new("A segment of an established connection gets its destination at TC ingress.")
                .frontend(F::VIP, HTTP, load_balancer(only(4)))
                .established(&flow.clone().old())
                .packet(&Frame::tcp(client, vip, ACK))
                .passes_as(&Frame::tcp(client, (F::POD_3, TARGET), ACK))
                .seen(flow.primary(), tcp_state::CONFIRMED)
                .done()
        },
        Scene::<F>::new("XDP sends a client's SYN to a load balancer address out again to the backend's node.")
            .at(Hook::Xdp)
            .frontend(F::VIP, HTTP, load_balancer(only(3)))
            .packet(&Frame::tcp(client, vip, SYN))
            .forwarded_as(
                &Frame::tcp((F::NODE_1, SNAT_PORT), (F::POD_3, TARGET), SYN).forwarded(NODE_2_MAC, NODE_1_MAC),
            )
            .recorded(&Flow::<F>::to(vip, 3).behind(F::NODE_1).by_xdp())
            .done(),
        {
            let flow = Flow::<F>::to(vip, 3).behind(F::NODE_1).by_xdp();
            Scene::<F>::new("XDP sends a segment of an established connection out again to the backend's node.")
                .at(Hook::Xdp)
                .frontend(F::VIP, HTTP, load_balancer(only(3)))
                .established(&flow.clone().old())
                .packet(&Frame::tcp(client, vip, ACK))
                .forwarded_as(
                    &Frame::tcp((F::NODE_1, SNAT_PORT), (F::POD_3, TARGET), ACK).forwarded(NODE_2_MAC, NODE_1_MAC),
                )
                .seen(flow.primary(), tcp_state::CONFIRMED)
                .done()
        },
        Scene::<F>::new("XDP gives a client's SYN for a pod on this node its destination, and passes it up.")
            .at(Hook::Xdp)
            .frontend(F::VIP, HTTP, local_load_balancer(only(1)))
            .packet(&Frame::tcp(client, vip, SYN))
            .passes_as(&Frame::tcp(client, (F::POD_1, TARGET), SYN))
            .recorded(&Flow::<F>::to(vip, 1).by_xdp())
            .done(),
        Scene::<F>::new("A client's datagram to a load balancer address is led to a pod on the other node.")
            .frontend_of(protocol::UDP, F::VIP, HTTP, local_load_balancer(only(3)))
            .packet(&Frame::udp(client, vip))
            .passes_as(&Frame::udp(client, (F::POD_3, TARGET)))
            .recorded(&Flow::<F>::to(vip, 3).by_udp())
            .done(),
        {
            let flow = Flow::<F>::to(vip, 3).by_udp().old();
            Scene::<F>::new("A datagram of a known flow gets its destination at TC ingress.")
                .frontend_of(protocol::UDP, F::VIP, HTTP, local_load_balancer(only(4)))
                .established(&flow)
                .packet(&Frame::udp(client, vip))
                .passes_as(&Frame::udp(client, (F::POD_3, TARGET)))
                .seen(flow.primary(), tcp_state::CONFIRMED)
                .done()
        },
        {
            let flow = Flow::<F>::to(vip, 3).by_udp().behind(F::NODE_1).old();
            Scene::<F>::new("A datagram leaves the node for the backend with the node's address as its source.")
                .at(Hook::Egress)
                .established(&flow)
                .packet(&Frame::udp(client, (F::POD_3, TARGET)))
                .passes_as(&Frame::udp((F::NODE_1, SNAT_PORT), (F::POD_3, TARGET)))
                .seen(flow.out(), tcp_state::CONFIRMED)
                .done()
        },
        Scene::<F>::new("A client's SYN to a NodePort goes to a pod on this node, which will see the node's address.")
            .frontend(F::NODE_1, NODE_PORT, node_port(only(1)))
            .packet(&Frame::tcp(client, (F::NODE_1, NODE_PORT), SYN))
            .passes_as(&Frame::tcp(client, (F::POD_1, TARGET), SYN))
            .recorded(&Flow::<F>::to((F::NODE_1, NODE_PORT), 1).behind(F::GATEWAY))
            .done(),
        {
            let flow = Flow::<F>::to((F::NODE_1, NODE_PORT), 1).behind(F::GATEWAY).old();
            Scene::<F>::new(
                "A client's segment reaches a pod on this node with the node's inner address as its source.",
            )
            .at(Hook::Egress)
            .established(&flow)
            .packet(&Frame::tcp(client, (F::POD_1, TARGET), ACK))
            .passes_as(&Frame::tcp((F::GATEWAY, SNAT_PORT), (F::POD_1, TARGET), ACK))
            .seen(flow.out(), tcp_state::CONFIRMED)
            .done()
        },
        Scene::<F>::new("A client's SYN to a ClusterIP, by a route to this node, is served and will be masqueraded.")
            .frontend(F::CLUSTER_IP, HTTP, cluster_ip(only(3)))
            .packet(&Frame::tcp(client, (F::CLUSTER_IP, HTTP), SYN))
            .passes_as(&Frame::tcp(client, (F::POD_3, TARGET), SYN))
            .recorded(&Flow::<F>::to((F::CLUSTER_IP, HTTP), 3).behind(F::NODE_1))
            .done(),
        Scene::<F>::new("A client's SYN to an external IP is served like one to a load balancer address.")
            .frontend(
                F::EXTERNAL_IP,
                HTTP,
                web(only(3), frontend_flags::EXTERNAL_IP | MASQUERADE_ALL),
            )
            .packet(&Frame::tcp(client, (F::EXTERNAL_IP, HTTP), SYN))
            .passes_as(&Frame::tcp(client, (F::POD_3, TARGET), SYN))
            .recorded(&Flow::<F>::to((F::EXTERNAL_IP, HTTP), 3).behind(F::NODE_1))
            .done(),
        Scene::<F>::new("A FIN that comes first is balanced all the same, and the connection is known to be closing.")
            .frontend(F::VIP, HTTP, local_load_balancer(only(1)))
            .packet(&Frame::tcp(client, vip, FIN | ACK))
            .passes_as(&Frame::tcp(client, (F::POD_1, TARGET), FIN | ACK))
            .recorded(&Flow {
                state: tcp_state::FIN | tcp_state::CONFIRMED,
                ..Flow::<F>::to(vip, 1)
            })
            .done(),
        {
            let frame = Frame::tcp(client, vip, SYN).with(|frame| frame.link = None);
            Scene::<F>::new("A SYN that comes in by a device without link headers is led to a pod on this node.")
                .frontend(F::VIP, HTTP, local_load_balancer(only(1)))
                .packet(&frame)
                .passes_as(&frame.clone().to((F::POD_1, TARGET)))
                .recorded(&Flow {
                    client_mac: Mac::default(),
                    ..Flow::<F>::to(vip, 1)
                })
                .done()
        },
        {
            let flow = Flow::<F>::to(vip, 3).behind(F::NODE_1).old();
            let frame = Frame::tcp(client, (F::POD_3, TARGET), ACK).with(|frame| frame.link = None);
            Scene::<F>::new("A segment leaves by a device without link headers with the node's address as its source.")
                .at(Hook::Egress)
                .established(&flow)
                .packet(&frame)
                .passes_as(&frame.clone().from((F::NODE_1, SNAT_PORT)))
                .seen(flow.out(), tcp_state::CONFIRMED)
                .done()
        },
    ]
}
