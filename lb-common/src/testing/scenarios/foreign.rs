//! What is not ours, and leaves exactly as it came: never dropped because it is unusual.

use super::prelude::*;
use crate::testing::build::Transport;
use crate::wire::next_header;

const TRANSPORT_AT: [usize; 2] = [14 + 20, 14 + 40];

pub(super) fn scenarios<F: Cast>() -> Vec<Scenario> {
    let mut all = unusual::<F>();
    all.extend(others::<F>());
    all.extend(leaving::<F>());
    all.extend(cut::<F>());
    if F::IS_V6 {
        all.extend(only_v6::<F>());
    } else {
        all.extend(only_v4::<F>());
    }
    all
}

/// A scene with a frontend for every protocol and port of the VIP: whatever is ours there would be translated.
fn guarded<F: Cast>(sentence: &str) -> Scene<F> {
    Scene::<F>::new(sentence)
        .frontend(F::VIP, HTTP, local_load_balancer(only(1)))
        .frontend_of(protocol::UDP, F::VIP, HTTP, local_load_balancer(only(1)))
        .frontend_of(0, F::VIP, 0, local_load_balancer(only(1)))
        .established(&Flow::<F>::to((F::VIP, HTTP), 1).old())
        .established(&Flow::<F>::to((F::VIP, HTTP), 1).by_udp().old())
}

fn syn<F: Cast>() -> Frame<F> {
    Frame::tcp((F::CLIENT_1, CLIENT_PORT), (F::VIP, HTTP), SYN)
}

/// The packet passes untouched at both hooks on the way in.
fn passes_in<F: Cast>(sentence: &str, frame: &Frame<F>) -> Vec<Scenario> {
    bytes_pass_in::<F>(sentence, &frame.build())
}

fn bytes_pass_in<F: Cast>(sentence: &str, bytes: &[u8]) -> Vec<Scenario> {
    let at = |hook: Hook, by: &str| {
        guarded::<F>(&std::format!("{sentence} ({by})"))
            .at(hook)
            .bytes(bytes.to_vec())
            .untouched()
            .done()
    };
    vec![at(Hook::Xdp, "XDP"), at(Hook::Ingress, "TC")]
}

fn unusual<F: Cast>() -> Vec<Scenario> {
    let with = |transport| syn::<F>().with(|frame| frame.transport = transport);
    let echo = with(Transport::Icmp {
        kind: if F::IS_V6 { 128 } else { 8 },
        code: 0,
        rest: [1, 2, 3, 4],
    });
    let too_big = with(Transport::Icmp {
        kind: if F::IS_V6 { 2 } else { 3 },
        code: if F::IS_V6 { 0 } else { 4 },
        rest: [0, 0, 5, 0],
    });
    let mut arp = syn::<F>().build();
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    let mut version = syn::<F>().build();
    version[14] ^= 0x10;
    let three_tags = vec![(0x88a8, 1), (0x8100, 2), (0x8100, 3)];
    [
        passes_in::<F>("A ping of a Service's address passes.", &echo),
        passes_in::<F>("An ICMP error about a packet passes.", &too_big),
        passes_in::<F>("A protocol without ports passes.", &with(Transport::Other(50))),
        bytes_pass_in::<F>("A frame that says it is ARP passes, whatever follows.", &arp),
        bytes_pass_in::<F>("A packet of another version than its frame says passes.", &version),
        passes_in::<F>(
            "A packet with three VLAN tags passes.",
            &syn().with(|frame| frame.tags = three_tags),
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn others<F: Cast>() -> Vec<Scenario> {
    let client = (F::CLIENT_1, CLIENT_PORT);
    let to = |dst: (F::Addr, u16)| Frame::tcp(client, dst, SYN);
    vec![
        guarded::<F>("A packet to an address that nobody here has passes.")
            .packet(&to((F::NODE_2, HTTP)))
            .untouched()
            .done(),
        guarded::<F>("XDP passes a packet to an address that nobody here has.")
            .at(Hook::Xdp)
            .packet(&to((F::NODE_2, HTTP)))
            .untouched()
            .done(),
        guarded::<F>("A packet straight to a pod passes.")
            .packet(&to((F::POD_1, TARGET)))
            .untouched()
            .done(),
        guarded::<F>("A packet to the node itself, on a port that is no NodePort, passes.")
            .packet(&to((F::NODE_1, 22)))
            .untouched()
            .done(),
        guarded::<F>("A packet to a port of the node that masquerading might use, and does not, passes.")
            .packet(&to((F::NODE_1, SNAT_PORT)))
            .untouched()
            .done(),
        guarded::<F>("A datagram to a NodePort that is for TCP passes.")
            .frontend(F::NODE_1, NODE_PORT, node_port(only(1)))
            .packet(&Frame::udp(client, (F::NODE_1, NODE_PORT)))
            .untouched()
            .done(),
        guarded::<F>("A packet to a NodePort on an address of the node where NodePorts are not served passes.")
            .frontend(F::NODE_1, NODE_PORT, node_port(only(1)))
            .packet(&to((F::GATEWAY, NODE_PORT)))
            .untouched()
            .done(),
        guarded::<F>("A packet to an address that shares its filter bucket with a Service passes.")
            .given(|world| add_class::<F>(world, F::EXTERNAL_IP, address_class::FRONTEND))
            .packet(&to((F::EXTERNAL_IP, HTTP)))
            .untouched()
            .done(),
    ]
}

fn leaving<F: Cast>() -> Vec<Scenario> {
    let client = (F::CLIENT_1, CLIENT_PORT);
    let vip = (F::VIP, HTTP);
    vec![
        guarded::<F>("What leaves the node between two strangers passes.")
            .at(Hook::Egress)
            .packet(&Frame::tcp(client, (F::NODE_2, 22), SYN))
            .untouched()
            .done(),
        guarded::<F>("What a pod says of its own accord passes.")
            .at(Hook::Egress)
            .packet(&Frame::tcp((F::POD_1, 50_000), (F::CLIENT_2, 443), SYN))
            .untouched()
            .done(),
        guarded::<F>("What goes straight to a pod leaves the node as it is.")
            .at(Hook::Egress)
            .packet(&Frame::tcp(client, (F::POD_1, TARGET), SYN))
            .untouched()
            .done(),
        guarded::<F>("A packet to a frontend is not translated as it leaves the node.")
            .at(Hook::Egress)
            .packet(&Frame::tcp(client, vip, SYN))
            .untouched()
            .done(),
        guarded::<F>("A ping from a backend leaves the node as it is.")
            .at(Hook::Egress)
            .packet(&Frame::new(
                F::POD_1,
                F::CLIENT_1,
                Transport::Icmp {
                    kind: 0,
                    code: 0,
                    rest: [0; 4],
                },
            ))
            .untouched()
            .done(),
    ]
}

/// Packets cut short: each has what it takes to be ours but for the bytes that are missing.
fn cut<F: Cast>() -> Vec<Scenario> {
    let client = (F::CLIENT_1, CLIENT_PORT);
    let vip = (F::VIP, HTTP);
    let transport = TRANSPORT_AT[usize::from(F::IS_V6)];
    let tagged = syn::<F>().with(|frame| frame.tags = vec![(0x88a8, 1), (0x8100, 2)]);
    let known = Flow::<F>::to(vip, 1);
    let (primary, udp_primary, reply) = (known.primary(), known.clone().by_udp().primary(), known.reply());
    let ack = Frame::tcp(client, vip, ACK);
    let datagram = Frame::udp(client, vip);
    let answer = Frame::tcp((F::POD_1, TARGET), client, ACK);
    vec![
        guarded::<F>("A known segment needs all its headers at XDP.")
            .at(Hook::Xdp)
            .packet(&ack)
            .needs(transport + 18)
            .passes_as(&ack.clone().to((F::POD_1, TARGET)))
            .seen(primary, tcp_state::CONFIRMED)
            .done(),
        guarded::<F>("A known segment needs all its headers at TC ingress.")
            .packet(&ack)
            .needs(transport + 18)
            .passes_as(&ack.clone().to((F::POD_1, TARGET)))
            .seen(primary, tcp_state::CONFIRMED)
            .done(),
        guarded::<F>("A known datagram needs all its headers at XDP.")
            .at(Hook::Xdp)
            .packet(&datagram)
            .needs(transport + 8)
            .passes_as(&datagram.clone().to((F::POD_1, TARGET)))
            .seen(udp_primary, tcp_state::CONFIRMED)
            .done(),
        guarded::<F>("A known answer needs all its headers at TC egress.")
            .at(Hook::Egress)
            .packet(&answer)
            .needs(transport + 18)
            .passes_as(&answer.clone().from(vip))
            .seen(reply, tcp_state::CONFIRMED)
            .done(),
        guarded::<F>("A tagged segment needs all its headers at TC ingress.")
            .packet(&tagged)
            .needs(transport + 8 + 18)
            .passes_as(&tagged.clone().to((F::POD_1, TARGET)))
            .seen(primary, tcp_state::CONFIRMED)
            .done(),
    ]
}

fn only_v4<F: Cast>() -> Vec<Scenario> {
    let fragment = |bits: u16| syn::<F>().with(|frame| frame.fragment = bits);
    let mut short = syn::<F>().build();
    short[14] = 0x44;
    let mut beyond = syn::<F>().with(|frame| frame.payload.clear()).build();
    beyond[14] = 0x4f;
    [
        passes_in::<F>(
            "A fragment in the middle of a datagram that nobody knows passes.",
            &fragment(0x2010),
        ),
        passes_in::<F>("The last fragment of such a datagram passes.", &fragment(0x0010)),
        bytes_pass_in::<F>("A header that says it is shorter than a header can be passes.", &short),
        bytes_pass_in::<F>("A header that says it is longer than the packet passes.", &beyond),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn only_v6<F: Cast>() -> Vec<Scenario> {
    let with = |extensions| syn::<F>().with(|frame| frame.extensions = extensions);
    let fragment = |bits: u16| {
        let [high, low] = bits.to_be_bytes();
        with(vec![(next_header::FRAGMENT, vec![high, low, 0, 0, 0, 7])])
    };
    let destination = |len: usize| (next_header::DESTINATION, vec![0; len]);
    let mut beyond = with(vec![destination(6)]).build();
    beyond[14 + 40 + 1] = 255;
    [
        passes_in::<F>(
            "A fragment in the middle of a datagram that nobody knows passes.",
            &fragment(0x101),
        ),
        passes_in::<F>("The last fragment of such a datagram passes.", &fragment(0x100)),
        passes_in::<F>(
            "A packet with seven extension headers passes.",
            &with(vec![destination(6); 7]),
        ),
        passes_in::<F>(
            "A packet with an extension header that nobody knows passes.",
            &with(vec![(135, vec![0; 6])]),
        ),
        bytes_pass_in::<F>(
            "An extension header that says it is longer than the packet passes.",
            &beyond,
        ),
        passes_in::<F>(
            "A packet whose extension headers reach beyond what we look through passes.",
            &with(vec![destination(2046), destination(6)]),
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}
