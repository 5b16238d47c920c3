//! Options, extension headers, VLAN tags, checksums: all that is not translated stays as it was.

use super::prelude::*;
use crate::testing::build::Transport;
use crate::wire::next_header;

pub(super) fn scenarios<F: Cast>() -> Vec<Scenario> {
    let mut all = around::<F>();
    all.extend(checksums::<F>());
    if F::IS_V6 {
        all.extend(extensions::<F>());
    } else {
        all.extend(options::<F>());
    }
    all
}

/// A frontend for TCP and UDP, led to a pod on this node at TC ingress.
fn led<F: Cast>(sentence: &str, frame: &Frame<F>) -> Scenario {
    let flow = Flow::<F>::to((F::VIP, HTTP), 1);
    let flow = if frame.protocol() == protocol::UDP {
        flow.by_udp()
    } else {
        flow
    };
    Scene::<F>::new(sentence)
        .frontend(F::VIP, HTTP, local_load_balancer(only(1)))
        .frontend_of(protocol::UDP, F::VIP, HTTP, local_load_balancer(only(1)))
        .packet(frame)
        .passes_as(&frame.clone().to((F::POD_1, TARGET)))
        .recorded(&flow)
        .done()
}

/// A frontend for TCP and UDP, led to a pod on the other node by XDP.
fn sent<F: Cast>(sentence: &str, frame: &Frame<F>) -> Scenario {
    let flow = Flow::<F>::to((F::VIP, HTTP), 3).behind(F::NODE_1).by_xdp();
    let flow = if frame.protocol() == protocol::UDP {
        flow.by_udp()
    } else {
        flow
    };
    let out = frame.clone().from((F::NODE_1, SNAT_PORT)).to((F::POD_3, TARGET));
    Scene::<F>::new(sentence)
        .at(Hook::Xdp)
        .frontend(F::VIP, HTTP, load_balancer(only(3)))
        .frontend_of(protocol::UDP, F::VIP, HTTP, load_balancer(only(3)))
        .packet(frame)
        .forwarded_as(&out.forwarded(NODE_2_MAC, NODE_1_MAC))
        .recorded(&flow)
        .done()
}

fn syn<F: Cast>() -> Frame<F> {
    Frame::tcp((F::CLIENT_1, CLIENT_PORT), (F::VIP, HTTP), SYN)
}

fn datagram<F: Cast>() -> Frame<F> {
    Frame::udp((F::CLIENT_1, CLIENT_PORT), (F::VIP, HTTP))
}

fn around<F: Cast>() -> Vec<Scenario> {
    vec![
        led::<F>(
            "A packet with a VLAN tag is translated behind its tag.",
            &syn().with(|frame| frame.tags = vec![(0x8100, 0x200c)]),
        ),
        led::<F>(
            "A packet with two VLAN tags is translated behind both.",
            &syn().with(|frame| frame.tags = vec![(0x88a8, 12), (0x8100, 34)]),
        ),
        led::<F>(
            "DSCP and ECN stay as they are.",
            &syn().with(|frame| frame.class = 0xb9),
        ),
        sent::<F>(
            "XDP leaves DSCP and ECN as they are.",
            &syn().with(|frame| frame.class = 0xb9),
        ),
        {
            let padded = |frame: &Frame<F>| {
                let mut bytes = frame.build();
                bytes.extend([0; 10]);
                bytes
            };
            let frame = datagram().with(|frame| frame.payload = b"1".to_vec());
            let client = (F::CLIENT_1, CLIENT_PORT);
            let vip = (F::VIP, HTTP);
            let out = Frame::udp(client, (F::POD_3, TARGET)).with(|frame| frame.payload = b"1".to_vec());
            Scene::<F>::new("Padding behind the IP packet stays where it is.")
                .at(Hook::Xdp)
                .frontend_of(protocol::UDP, F::VIP, HTTP, local_load_balancer(only(3)))
                .bytes(padded(&frame))
                .forwarded_as(&out.clone().forwarded(NODE_2_MAC, NODE_1_MAC))
                .gives(padded(&out.forwarded(NODE_2_MAC, NODE_1_MAC)))
                .recorded(&Flow::<F>::to(vip, 3).by_udp().by_xdp())
                .done()
        },
    ]
}

fn checksums<F: Cast>() -> Vec<Scenario> {
    let unchecked = datagram::<F>().with(|frame| {
        if let Transport::Udp { checked, .. } = &mut frame.transport {
            *checked = false;
        }
    });
    // The sum over the translated packet is zero.
    let to_zero = |frame: Frame<F>, from: (F::Addr, u16), to: (F::Addr, u16)| {
        let client = (F::CLIENT_1, CLIENT_PORT);
        let even = frame.with(|frame| frame.payload.resize(44, b' '));
        even.from(from).to(to).summing_to_zero().from(client).to((F::VIP, HTTP))
    };
    let client = (F::CLIENT_1, CLIENT_PORT);
    let masquerade = (F::NODE_1, SNAT_PORT);
    vec![
        led::<F>("A UDP checksum of zero, which is none, stays zero.", &unchecked),
        sent::<F>("XDP leaves a UDP checksum of zero as it is.", &unchecked),
        led::<F>(
            "A UDP checksum that comes out as zero is written as all ones.",
            &to_zero(datagram(), client, (F::POD_1, TARGET)),
        ),
        sent::<F>(
            "XDP writes a UDP checksum that comes out as zero as all ones.",
            &to_zero(datagram(), masquerade, (F::POD_3, TARGET)),
        ),
        led::<F>(
            "A TCP checksum may come out as zero.",
            &to_zero(syn(), client, (F::POD_1, TARGET)),
        ),
        sent::<F>(
            "By XDP a TCP checksum may come out as zero.",
            &to_zero(syn(), masquerade, (F::POD_3, TARGET)),
        ),
        led::<F>(
            "A UDP checksum that was all ones is a sum of zero, and is brought in line.",
            &datagram()
                .with(|frame| frame.payload.resize(44, b' '))
                .summing_to_zero(),
        ),
    ]
}

fn options<F: Cast>() -> Vec<Scenario> {
    // Record route with room for nine addresses, and an end of list.
    let mut all_options = vec![7, 39, 4];
    all_options.resize(40, 0);
    let with = |options: Vec<u8>| syn::<F>().with(|frame| frame.options = options);
    vec![
        led::<F>("IPv4 options stay as they are.", &with(vec![0x94, 4, 0, 0])),
        led::<F>(
            "As many IPv4 options as there may be stay as they are.",
            &with(all_options.clone()),
        ),
        sent::<F>("XDP leaves IPv4 options as they are.", &with(all_options.clone())),
        {
            let frame = with(all_options);
            Scene::<F>::new("A packet with IPv4 options is quoted with its options.")
                .frontend(F::VIP, HTTP, load_balancer(NOBODY))
                .packet(&frame)
                .rejected_by(&frame.unreachable(40))
                .done()
        },
    ]
}

fn extensions<F: Cast>() -> Vec<Scenario> {
    let hop_by_hop = || (next_header::HOP_BY_HOP, vec![1, 4, 0, 0, 0, 0]);
    let destination = || {
        (
            next_header::DESTINATION,
            vec![1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        )
    };
    let routing = || (next_header::ROUTING, vec![4, 0, 0, 0, 0, 0]);
    let authentication = || (next_header::AUTHENTICATION, vec![0; 22]);
    let with = |frame: Frame<F>, extensions| frame.with(|frame| frame.extensions = extensions);
    let six = || {
        vec![
            hop_by_hop(),
            destination(),
            routing(),
            authentication(),
            destination(),
            destination(),
        ]
    };
    vec![
        led::<F>(
            "A packet with a hop-by-hop header is translated behind it.",
            &with(syn(), vec![hop_by_hop()]),
        ),
        led::<F>(
            "A datagram with destination options is translated behind them.",
            &with(datagram(), vec![destination()]),
        ),
        led::<F>(
            "An authentication header, whose length counts other units, is skipped right.",
            &with(syn(), vec![authentication()]),
        ),
        led::<F>("Six extension headers are skipped.", &with(syn(), six())),
        sent::<F>("XDP skips six extension headers.", &with(datagram(), six())),
        {
            let frame = with(syn(), vec![hop_by_hop(), destination()]);
            Scene::<F>::new("A packet with extension headers is quoted with them.")
                .frontend(F::VIP, HTTP, load_balancer(NOBODY))
                .packet(&frame)
                .rejected_by(&frame.unreachable(40))
                .done()
        },
        {
            let frame = with(syn(), vec![destination(), destination(), destination(), destination()]);
            Scene::<F>::new("Of a packet with many extension headers the first 126 bytes are quoted.")
                .frontend(F::VIP, HTTP, load_balancer(NOBODY))
                .packet(&frame)
                .rejected_by(&frame.unreachable(126 - 40 - 64))
                .done()
        },
    ]
}
