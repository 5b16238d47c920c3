//! The first packet of a connection, and those after it, on their way to the backend.

use std::vec;
use std::vec::Vec;

use crate::abi::{Hook, tcp_state};
use crate::testing::cast::{NODE_1_MAC, NODE_2_MAC};
use crate::testing::scene::{
    CLIENT_PORT, HTTP, NODE_PORT, SNAT_PORT, TARGET, cluster_ip, load_balancer, local_load_balancer, node_port, only,
};
use crate::testing::{Cast, Flow, Frame, Scenario, Scene};
use crate::wire::tcp_flags::{ACK, SYN};

pub(super) fn scenarios<F: Cast>() -> Vec<Scenario> {
    let client = (F::CLIENT_1, CLIENT_PORT);
    let pod = (F::POD_1, CLIENT_PORT);
    let vip = (F::VIP, HTTP);
    vec![
        Scene::<F>::new("A pod's SYN to a ClusterIP goes to a pod on the other node, and the pod's address stays.")
            .frontend(F::CLUSTER_IP, HTTP, cluster_ip(only(3)))
            .packet(&Frame::tcp(pod, (F::CLUSTER_IP, HTTP), SYN))
            .passes_as(&Frame::tcp(pod, (F::POD_3, TARGET), SYN))
            .recorded(&Flow::to((F::CLUSTER_IP, HTTP), 3).of(pod))
            .done(),
        Scene::<F>::new("A pod's SYN to a ClusterIP goes to another pod on this node, and the pod's address stays.")
            .frontend(F::CLUSTER_IP, HTTP, cluster_ip(only(2)))
            .packet(&Frame::tcp(pod, (F::CLUSTER_IP, HTTP), SYN))
            .passes_as(&Frame::tcp(pod, (F::POD_2, TARGET), SYN))
            .recorded(&Flow::to((F::CLUSTER_IP, HTTP), 2).of(pod))
            .done(),
        Scene::<F>::new("A client's SYN to a load balancer address is led to a pod on this node by TC.")
            .frontend(F::VIP, HTTP, local_load_balancer(only(1)))
            .packet(&Frame::tcp(client, vip, SYN))
            .passes_as(&Frame::tcp(client, (F::POD_1, TARGET), SYN))
            .recorded(&Flow::to(vip, 1))
            .done(),
        Scene::<F>::new("A client's SYN to a NodePort gets its destination at ingress, and all four entries.")
            .frontend(F::NODE_1, NODE_PORT, node_port(only(3)))
            .packet(&Frame::tcp(client, (F::NODE_1, NODE_PORT), SYN))
            .passes_as(&Frame::tcp(client, (F::POD_3, TARGET), SYN))
            .recorded(&Flow::to((F::NODE_1, NODE_PORT), 3).behind(F::NODE_1))
            .done(),
        {
            let flow = Flow::to(vip, 3).behind(F::NODE_1);
            Scene::<F>::new("A client's segment leaves the node for the backend with the node's address as its source.")
                .at(Hook::Egress)
                .established(&flow.clone().old())
                .packet(&Frame::tcp(client, (F::POD_3, TARGET), ACK))
                .passes_as(&Frame::tcp((F::NODE_1, SNAT_PORT), (F::POD_3, TARGET), ACK))
                .seen(flow.out(), tcp_state::CONFIRMED)
                .done()
        },
        {
            let flow = Flow::to(vip, 3).behind(F::NODE_1);
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
            .recorded(&Flow::to(vip, 3).behind(F::NODE_1).by_xdp())
            .done(),
        {
            let flow = Flow::to(vip, 3).behind(F::NODE_1).by_xdp();
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
            .recorded(&Flow::to(vip, 1).by_xdp())
            .done(),
        Scene::<F>::new("A client's datagram to a load balancer address is led to a pod on the other node.")
            .frontend_of(crate::abi::protocol::UDP, F::VIP, HTTP, local_load_balancer(only(3)))
            .packet(&Frame::udp(client, vip))
            .passes_as(&Frame::udp(client, (F::POD_3, TARGET)))
            .recorded(&Flow::to(vip, 3).by_udp())
            .done(),
    ]
}
