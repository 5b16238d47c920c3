//! Datagrams in fragments: all go the way of the first.

use super::prelude::*;
use crate::abi::{DatagramKey, DatagramPorts, Direction, LpmKey, config_flags};
use crate::testing::build::Transport;
use crate::wire::next_header;

const UDP: u8 = protocol::UDP;

pub(super) fn scenarios<F: Cast>() -> Vec<Scenario> {
    let mut all = there::<F>();
    all.extend(back::<F>());
    all.extend(nobody::<F>());
    all.extend(left_alone::<F>());
    all
}

fn client<F: Cast>() -> (F::Addr, u16) {
    (F::CLIENT_1, CLIENT_PORT)
}

fn vip<F: Cast>() -> (F::Addr, u16) {
    (F::VIP, HTTP)
}

/// A fragment: its offset in the datagram, in units of 8 bytes, and whether more follow.
fn piece<F: Cast>(mut frame: Frame<F>, offset: u16, more: bool) -> Frame<F> {
    if F::IS_V6 {
        let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
        frame.extensions = vec![(next_header::FRAGMENT, vec![high, low, 0, 0, 0, 7])];
    } else {
        frame.fragment = u16::from(more) << 13 | offset;
    }
    if offset != 0 {
        frame.transport = Transport::Other(match frame.transport {
            Transport::Tcp { .. } => protocol::TCP,
            Transport::Sctp { .. } => protocol::SCTP,
            _ => UDP,
        });
    }
    frame
}

fn first<F: Cast>(frame: Frame<F>) -> Frame<F> {
    piece(frame, 0, true)
}

fn last<F: Cast>(frame: Frame<F>) -> Frame<F> {
    piece(frame, 185, false)
}

fn datagram<F: Cast>() -> Frame<F> {
    Frame::udp(client::<F>(), vip::<F>())
}

/// The ports of this packet are noted.
fn noted<F: Cast>(
    direction: Direction,
    protocol: u8,
    src: (F::Addr, u16),
    dst: (F::Addr, u16),
) -> impl FnOnce(&mut World) {
    let key = DatagramKey {
        src: src.0,
        dst: dst.0,
        id: if F::IS_V6 { 7 } else { 0x1f2e },
        protocol,
        direction: direction as u8,
        pad: [0; 2],
    };
    let ports = DatagramPorts {
        src: Port::new(src.1),
        dst: Port::new(dst.1),
    };
    move |world| {
        F::maps_mut(world).datagrams.insert(key, ports);
    }
}

fn noted_in<F: Cast>() -> impl FnOnce(&mut World) {
    noted::<F>(Direction::Ingress, UDP, client::<F>(), vip::<F>())
}

fn scene<F: Cast>(sentence: &str) -> Scene<F> {
    Scene::<F>::new(sentence).frontend_of(UDP, F::VIP, HTTP, local_load_balancer(only(1)))
}

fn there<F: Cast>() -> Vec<Scenario> {
    let flow = Flow::<F>::to(vip::<F>(), 1).by_udp();
    let pod = (F::POD_1, TARGET);
    let segment = last(Frame::<F>::tcp(client::<F>(), vip::<F>(), ACK));
    let tcp = Flow::<F>::to(vip::<F>(), 1).old();
    vec![
        scene::<F>("The first fragment of a datagram is led to a backend, and its ports are noted.")
            .packet(&first(datagram()))
            .passes_as(&first(datagram().to(pod)))
            .recorded(&flow)
            .then(noted_in::<F>())
            .done(),
        scene::<F>("A fragment in the middle of a datagram follows the first.")
            .established(&flow.clone().old())
            .given(noted_in::<F>())
            .packet(&piece(datagram(), 100, true))
            .passes_as(&piece(datagram().to(pod), 100, true))
            .seen(flow.primary(), tcp_state::CONFIRMED)
            .done(),
        scene::<F>("The last fragment of a datagram follows the first.")
            .established(&flow.clone().old())
            .given(noted_in::<F>())
            .packet(&last(datagram()))
            .passes_as(&last(datagram().to(pod)))
            .seen(flow.primary(), tcp_state::CONFIRMED)
            .done(),
        scene::<F>("So does one of a TCP segment.")
            .established(&tcp)
            .given(noted::<F>(Direction::Ingress, protocol::TCP, client::<F>(), vip::<F>()))
            .packet(&segment)
            .passes_as(&segment.clone().to(pod))
            .seen(tcp.primary(), tcp_state::CONFIRMED)
            .done(),
    ]
}

fn back<F: Cast>() -> Vec<Scenario> {
    let flow = Flow::<F>::to(vip::<F>(), 1).by_udp().old();
    let pod = (F::POD_1, TARGET);
    let answer = || Frame::<F>::udp(pod, client::<F>());
    let known = || noted::<F>(Direction::Egress, UDP, pod, client::<F>());
    vec![
        scene::<F>("The first fragment of an answer gets the frontend's address, and its ports are noted.")
            .at(Hook::Egress)
            .established(&flow)
            .packet(&first(answer()))
            .passes_as(&first(answer().from(vip::<F>())))
            .seen(flow.reply(), tcp_state::CONFIRMED)
            .then(known())
            .done(),
        scene::<F>("The last fragment of an answer gets the frontend's address.")
            .at(Hook::Egress)
            .established(&flow)
            .given(known())
            .packet(&last(answer()))
            .passes_as(&last(answer().from(vip::<F>())))
            .seen(flow.reply(), tcp_state::CONFIRMED)
            .done(),
    ]
}

fn nobody<F: Cast>() -> Vec<Scenario> {
    let (addr, prefix_len) = (F::VIP, if F::IS_V6 { 128 } else { 32 });
    vec![
        Scene::<F>::new("Of a datagram for which there is nobody the first fragment is rejected.")
            .frontend_of(UDP, F::VIP, HTTP, load_balancer(NOBODY))
            .packet(&first(datagram()))
            .rejected_by(&first(datagram()).unreachable(40))
            .then(noted_in::<F>())
            .done(),
        Scene::<F>::new("The others of such a datagram pass.")
            .frontend_of(UDP, F::VIP, HTTP, load_balancer(NOBODY))
            .given(noted_in::<F>())
            .packet(&last(datagram()))
            .untouched()
            .done(),
        Scene::<F>::new("The others of such a datagram are dropped in the range of ClusterIPs.")
            .frontend_of(UDP, F::VIP, HTTP, load_balancer(NOBODY))
            .given(noted_in::<F>())
            .given(|world| {
                world.config.flags |= config_flags::SERVICE_CIDRS;
                F::maps_mut(world).service_cidrs.push(LpmKey { prefix_len, addr });
            })
            .packet(&last(datagram()))
            .dropped(DropReason::UnassignedServiceAddress)
            .done(),
    ]
}

fn left_alone<F: Cast>() -> Vec<Scenario> {
    let flow = Flow::<F>::to(vip::<F>(), 1).by_udp().old();
    let stranger = Frame::<F>::udp(client::<F>(), (F::NODE_2, HTTP));
    let association = Frame::<F>::sctp(client::<F>(), vip::<F>(), 0);
    vec![
        scene::<F>("A fragment that overtakes the first passes.")
            .established(&flow)
            .packet(&last(datagram()))
            .untouched()
            .done(),
        scene::<F>("XDP leaves the first fragment to TC.")
            .at(Hook::Xdp)
            .established(&flow)
            .packet(&first(datagram()))
            .untouched()
            .done(),
        scene::<F>("XDP leaves the last fragment to TC.")
            .at(Hook::Xdp)
            .established(&flow)
            .given(noted_in::<F>())
            .packet(&last(datagram()))
            .untouched()
            .done(),
        scene::<F>("The ports of a datagram between strangers are not noted.")
            .packet(&first(stranger))
            .untouched()
            .done(),
        scene::<F>("SCTP in fragments passes: its checksum could not be kept right.")
            .frontend_of(protocol::SCTP, F::VIP, HTTP, local_load_balancer(only(1)))
            .established(&Flow::<F>::to(vip::<F>(), 1).by_sctp().old())
            .packet(&first(association))
            .untouched()
            .done(),
    ]
}
