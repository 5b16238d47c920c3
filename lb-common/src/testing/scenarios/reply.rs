//! The way back: at ingress the node's address becomes the client's, at egress the backend's becomes the frontend's.

use super::prelude::*;

pub(super) fn scenarios<F: Cast>() -> Vec<Scenario> {
    let mut all = of_clients::<F>();
    all.extend(hairpin::<F>());
    all
}

fn of_clients<F: Cast>() -> Vec<Scenario> {
    let client = (F::CLIENT_1, CLIENT_PORT);
    let pod = (F::POD_1, CLIENT_PORT);
    let vip = (F::VIP, HTTP);
    let remote = (F::POD_3, TARGET);
    let masquerade = (F::NODE_1, SNAT_PORT);
    vec![
        {
            let flow = Flow::<F>::to(vip, 1).old();
            Scene::<F>::new("A pod's answer leaves the node with the load balancer address as its source.")
                .at(Hook::Egress)
                .established(&flow)
                .packet(&Frame::tcp((F::POD_1, TARGET), client, SYN | ACK))
                .passes_as(&Frame::tcp(vip, client, SYN | ACK))
                .seen(flow.reply(), tcp_state::CONFIRMED)
                .done()
        },
        {
            let flow = Flow::<F>::to(vip, 3).behind(F::NODE_1).old();
            Scene::<F>::new("A remote backend's answer to the node's address gets the client's address at TC ingress.")
                .established(&flow)
                .packet(&Frame::tcp(remote, masquerade, ACK))
                .passes_as(&Frame::tcp(remote, client, ACK))
                .seen(flow.reply_in(), tcp_state::CONFIRMED)
                .done()
        },
        {
            let flow = Flow::<F>::to(vip, 3).behind(F::NODE_1).old();
            Scene::<F>::new("That answer leaves the node for the client with the load balancer address as its source.")
                .at(Hook::Egress)
                .established(&flow)
                .packet(&Frame::tcp(remote, client, ACK))
                .passes_as(&Frame::tcp(vip, client, ACK))
                .seen(flow.reply(), tcp_state::CONFIRMED)
                .done()
        },
        {
            let flow = Flow::<F>::to((F::NODE_1, NODE_PORT), 3).behind(F::NODE_1).old();
            Scene::<F>::new("The answer to a NodePort's client leaves the node with the node's address and that port.")
                .at(Hook::Egress)
                .established(&flow)
                .packet(&Frame::tcp(remote, client, ACK))
                .passes_as(&Frame::tcp((F::NODE_1, NODE_PORT), client, ACK))
                .seen(flow.reply(), tcp_state::CONFIRMED)
                .done()
        },
        {
            let flow = Flow::<F>::to((F::CLUSTER_IP, HTTP), 3).of(pod).old();
            Scene::<F>::new("A pod that asked a ClusterIP is answered by the ClusterIP.")
                .at(Hook::Egress)
                .established(&flow)
                .packet(&Frame::tcp(remote, pod, ACK))
                .passes_as(&Frame::tcp((F::CLUSTER_IP, HTTP), pod, ACK))
                .seen(flow.reply(), tcp_state::CONFIRMED)
                .done()
        },
        {
            let flow = Flow::<F>::to(vip, 1).by_udp().old();
            Scene::<F>::new("A pod's datagram leaves the node with the load balancer address as its source.")
                .at(Hook::Egress)
                .established(&flow)
                .packet(&Frame::udp((F::POD_1, TARGET), client))
                .passes_as(&Frame::udp(vip, client))
                .seen(flow.reply(), tcp_state::CONFIRMED)
                .done()
        },
        {
            let flow = Flow::<F>::to(vip, 3).by_udp().behind(F::NODE_1).old();
            Scene::<F>::new("A remote backend's datagram to the node's address gets the client's address at ingress.")
                .established(&flow)
                .packet(&Frame::udp(remote, masquerade))
                .passes_as(&Frame::udp(remote, client))
                .seen(flow.reply_in(), tcp_state::CONFIRMED)
                .done()
        },
        {
            let flow = Flow::<F>::to(vip, 1).old();
            Scene::<F>::new("A backend's FIN closes the way back, and only that.")
                .at(Hook::Egress)
                .established(&flow)
                .packet(&Frame::tcp((F::POD_1, TARGET), client, FIN | ACK))
                .passes_as(&Frame::tcp(vip, client, FIN | ACK))
                .seen(flow.reply(), tcp_state::CONFIRMED | tcp_state::FIN)
                .done()
        },
        {
            let flow = Flow::<F>::to(vip, 1).old();
            Scene::<F>::new("A backend's reset is translated, and noted at the way back.")
                .at(Hook::Egress)
                .established(&flow)
                .packet(&Frame::tcp((F::POD_1, TARGET), client, RST))
                .passes_as(&Frame::tcp(vip, client, RST))
                .seen(flow.reply(), tcp_state::CONFIRMED | tcp_state::RST)
                .done()
        },
        {
            let flow = Flow::<F>::to(vip, 1).old();
            let frame = Frame::tcp((F::POD_1, TARGET), client, ACK).with(|frame| frame.link = None);
            Scene::<F>::new("A pod's answer leaves by a device without link headers, from the load balancer address.")
                .at(Hook::Egress)
                .established(&flow)
                .packet(&frame)
                .passes_as(&frame.clone().from(vip))
                .seen(flow.reply(), tcp_state::CONFIRMED)
                .done()
        },
    ]
}

/// A pod that is its own backend: it must not see its own address as the client's.
fn hairpin<F: Cast>() -> Vec<Scenario> {
    let pod = (F::POD_1, CLIENT_PORT);
    let itself = (F::POD_1, TARGET);
    let cluster = (F::CLUSTER_IP, HTTP);
    let gateway = (F::GATEWAY, SNAT_PORT);
    let flow = Flow::<F>::to(cluster, 1).of(pod).behind(F::GATEWAY);
    let known = flow.clone().old();
    vec![
        Scene::<F>::new("A pod that is led to itself gets itself as destination, and will be masqueraded.")
            .frontend(F::CLUSTER_IP, HTTP, cluster_ip(only(1)))
            .packet(&Frame::tcp(pod, cluster, SYN))
            .passes_as(&Frame::tcp(pod, itself, SYN))
            .recorded(&flow)
            .done(),
        Scene::<F>::new("What a pod sends to itself comes back to it from the node's inner address.")
            .at(Hook::Egress)
            .established(&known)
            .packet(&Frame::tcp(pod, itself, SYN))
            .passes_as(&Frame::tcp(gateway, itself, SYN))
            .seen(flow.out(), tcp_state::CONFIRMED)
            .done(),
        Scene::<F>::new("The pod's answer to the node's inner address is sent on to the pod itself.")
            .established(&known)
            .packet(&Frame::tcp(itself, gateway, SYN | ACK))
            .passes_as(&Frame::tcp(itself, pod, SYN | ACK))
            .seen(flow.reply_in(), tcp_state::CONFIRMED)
            .done(),
        Scene::<F>::new("The pod's answer comes back to it from the ClusterIP that it asked.")
            .at(Hook::Egress)
            .established(&known)
            .packet(&Frame::tcp(itself, pod, SYN | ACK))
            .passes_as(&Frame::tcp(cluster, pod, SYN | ACK))
            .seen(flow.reply(), tcp_state::CONFIRMED)
            .done(),
    ]
}
