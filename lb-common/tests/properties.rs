//! What holds for every packet: checksums, the way there and back, bounds.

mod journey;
mod sound;

use lb_common::abi::{Address, Hook, Outcome, Port, V4, V6, protocol};
use lb_common::datapath::{Translation, Verdict, parse};
use lb_common::env::Packet as _;
use lb_common::testing::build::Transport;
use lb_common::testing::frontends::{NOBODY, load_balancer, local_load_balancer, only, web};
use lb_common::testing::scene::{CLIENT_PORT, HTTP, NODE_PORT, SNAT_PORT, TARGET};
use lb_common::testing::{Cast, FakePacket, Flow, Frame, Input, Scene, World, run};
use lb_common::wire::Be16;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::FileFailurePersistence;
use sound::assert_sound;

/// Both families of a test that is generic over them.
macro_rules! both_families {
    ($($(#[$meta:meta])* $name:ident($($arg:ident in $strategy:expr),+ $(,)?) by $check:ident;)+) => {
        proptest! {
            #![proptest_config(config(512))]
            $(
                $(#[$meta])*
                #[test]
                fn $name($($arg in $strategy),+) {
                    $check::<V4>($($arg.clone()),+)?;
                    $check::<V6>($($arg.clone()),+)?;
                }
            )+
        }
    };
}

/// So many cases; the seed of one that fails is kept in a file beside the test.
fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    }
}

type Checked = Result<(), TestCaseError>;

fn any_address<A: Address>(words: [u32; 4]) -> A {
    A::from_words(words)
}

/// A tuple in both families: the words of both addresses, and both ports.
fn tuples() -> impl Strategy<Value = ([u32; 4], [u32; 4], u16, u16)> {
    any::<([u32; 4], [u32; 4], u16, u16)>()
}

/// Those with ports.
fn protocols() -> impl Strategy<Value = u8> {
    select(vec![protocol::TCP, protocol::UDP, protocol::SCTP])
}

fn payloads() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..120)
}

both_families! {
    /// The packet logic changes sums; here they are computed again over the whole packet.
    checksums_after_a_translation_are_those_of_a_new_packet(
        before in tuples(), after in tuples(), payload in payloads(), protocol in protocols(), hops in 0u8..=60,
    ) by translation_is_rebuilding;

    /// The builder of the tests, held against another parser.
    built_packets_are_sound(tuple in tuples(), payload in payloads(), protocol in protocols()) by building_is_sound;

    what_is_rejected_is_answered_with_a_sound_message(
        payload in payloads(), protocol in protocols(), extra in 0usize..4, port in any::<u16>(),
    ) by rejection_is_sound;

    no_bytes_make_it_panic_or_reach_beyond_the_packet(bytes in vec(any::<u8>(), 0..160)) by bytes_are_safe;

    no_packet_that_is_almost_right_makes_it_panic_or_reach_beyond(
        changes in vec((0usize..110, any::<u8>()), 0..6), len in 0usize..200, protocol in protocols(),
        extra in 0usize..4, is_tagged in any::<bool>(), way in 0usize..4,
    ) by damaged_packets_are_safe;
}

fn frame<F: Cast>(tuple: ([u32; 4], [u32; 4], u16, u16), payload: Vec<u8>, protocol: u8) -> Frame<F> {
    let (src, dst) = ((any_address(tuple.0), tuple.2), (any_address(tuple.1), tuple.3));
    Frame::<F>::later(protocol, src, dst).with(|frame| frame.payload = payload)
}

fn translation_is_rebuilding<F: Cast>(
    before: ([u32; 4], [u32; 4], u16, u16),
    after: ([u32; 4], [u32; 4], u16, u16),
    payload: Vec<u8>,
    protocol: u8,
    hops: u8,
) -> Checked {
    let before = frame::<F>(before, payload.clone(), protocol);
    let after = frame::<F>(after, payload, protocol).with(|frame| frame.ttl -= hops);
    let mut packet = FakePacket::<0, true>::new(&before.build(), Be16::default());
    let link = parse::link(&packet).expect("it has a link header");
    let headers = F::parse(&packet, &link).expect("it has all headers");
    let ports = |frame: &Frame<F>| match frame.transport {
        Transport::Tcp { src, dst, .. } | Transport::Udp { src, dst, .. } | Transport::Sctp { src, dst, .. } => {
            (Port::new(src), Port::new(dst))
        }
        _ => unreachable!("built so"),
    };
    let (src, dst) = ports(&after);
    let translation = Translation {
        src: Some((after.src, src)),
        dst: Some((after.dst, dst)),
        hops,
        ..Translation::of(&headers)
    };
    prop_assert_eq!(packet.translate(&translation), Some(()));
    prop_assert_eq!(packet.bytes, after.build());
    Ok(())
}

fn building_is_sound<F: Cast>(tuple: ([u32; 4], [u32; 4], u16, u16), payload: Vec<u8>, protocol: u8) -> Checked {
    assert_sound(&frame::<F>(tuple, payload, protocol).build());
    Ok(())
}

/// A frame with options or extension headers in front of its transport header.
fn with_extra<F: Cast>(frame: Frame<F>, extra: usize) -> Frame<F> {
    frame.with(|frame| {
        if F::IS_V6 {
            frame.extensions = vec![(60, vec![1, 4, 0, 0, 0, 0]); extra];
        } else {
            frame.options = vec![1; 4 * extra];
        }
    })
}

fn rejection_is_sound<F: Cast>(payload: Vec<u8>, protocol: u8, extra: usize, port: u16) -> Checked {
    let (client, vip) = ((F::CLIENT_1, port), (F::VIP, HTTP));
    let frame = Frame::<F>::first(protocol, client, vip);
    let frame = with_extra(frame.with(|frame| frame.payload = payload), extra);
    let world = Scene::<F>::new("")
        .frontend(F::VIP, HTTP, load_balancer(NOBODY))
        .frontend_of(0, F::VIP, 0, load_balancer(NOBODY))
        .world();
    let ran = run(Hook::Ingress, true, Be16::default(), &frame.build(), &world);
    prop_assert_eq!(ran.verdict, Verdict::Reflect);
    assert_sound(&ran.packet);
    prop_assert!(ran.packet.len() <= 14 + 40 + 8 + 126);
    Ok(())
}

/// A world in which as much as possible is ours.
fn crowded<F: Cast>() -> World {
    let vip = (F::VIP, HTTP);
    Scene::<F>::new("")
        .frontend(F::VIP, HTTP, load_balancer(only(3)))
        .frontend_of(0, F::VIP, 0, local_load_balancer(only(1)))
        .frontend(F::CLUSTER_IP, HTTP, web(NOBODY, 0))
        .frontend(
            F::NODE_1,
            NODE_PORT,
            web(only(1), lb_common::abi::frontend_flags::NODE_PORT),
        )
        .established(&Flow::<F>::to(vip, 3).behind(F::NODE_1).old())
        .established(&Flow::<F>::to(vip, 3).by_udp().behind(F::NODE_1).old())
        .established(&Flow::<F>::to(vip, 3).by_sctp().behind(F::NODE_1).old())
        .world()
}

/// Whatever the packet: it does not grow but into an answer, and what is not ours leaves as it came.
fn is_safe<F: Cast>(bytes: &[u8], world: &World) -> Checked {
    let ways = [
        (Hook::Xdp, true),
        (Hook::Ingress, true),
        (Hook::Egress, true),
        (Hook::Ingress, false),
        (Hook::Egress, false),
    ];
    for (hook, ethernet) in ways {
        let ran = run(hook, ethernet, Be16::new(Frame::<F>::ethertype()), bytes, world);
        let counted = |outcome: Outcome| ran.world.counts.contains_key(&outcome.slot(hook));
        if counted(Outcome::NotOurs) {
            prop_assert_eq!(ran.verdict, Verdict::Pass);
            prop_assert_eq!(&ran.packet[..], bytes);
            prop_assert_eq!(&F::maps(&ran.world).connections, &F::maps(world).connections);
        } else if counted(Outcome::Translated) || counted(Outcome::Forwarded) {
            prop_assert_eq!(ran.packet.len(), bytes.len());
        } else {
            prop_assert!(matches!(ran.verdict, Verdict::Drop(_) | Verdict::Reflect));
        }
    }
    Ok(())
}

#[expect(clippy::needless_pass_by_value, reason = "as all checks")]
fn bytes_are_safe<F: Cast>(bytes: Vec<u8>) -> Checked {
    is_safe::<F>(&bytes, &crowded::<F>())
}

fn damaged_packets_are_safe<F: Cast>(
    changes: Vec<(usize, u8)>,
    len: usize,
    protocol: u8,
    extra: usize,
    is_tagged: bool,
    way: usize,
) -> Checked {
    let (client, remote) = ((F::CLIENT_1, CLIENT_PORT), (F::POD_3, TARGET));
    let (src, dst) = [
        (client, (F::VIP, HTTP)),
        (remote, (F::NODE_1, SNAT_PORT)),
        (remote, client),
        (client, (F::CLUSTER_IP, HTTP)),
    ][way];
    let frame = with_extra(Frame::<F>::later(protocol, src, dst), extra).with(|frame| {
        if is_tagged {
            frame.tags = vec![(0x8100, 7)];
        }
    });
    let mut bytes = frame.build();
    bytes.truncate(len);
    for (at, value) in changes {
        if let Some(byte) = bytes.get_mut(at) {
            *byte = value;
        }
    }
    is_safe::<F>(&bytes, &crowded::<F>())?;
    is_safe::<F>(bytes.get(14..).unwrap_or_default(), &crowded::<F>())
}

/// The inputs of the scenario table are packets to start from, too: each byte of each, set to each of a few values.
#[test]
fn no_byte_of_a_scenario_changed_makes_it_panic_or_reach_beyond() {
    for scenario in lb_common::testing::scenarios::all() {
        let Input::Packet {
            hook, ethernet, bytes, ..
        } = &scenario.input
        else {
            continue;
        };
        let ethertype = if scenario.family == V6::NAME { 0x86dd } else { 0x0800 };
        for at in 0..bytes.len().min(120) {
            for value in [0, 1, 0x4f, 0x7f, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] = value;
                let ran = run(*hook, *ethernet, Be16::new(ethertype), &damaged, &scenario.world);
                if ran.world.counts.contains_key(&Outcome::NotOurs.slot(*hook)) {
                    assert_eq!(ran.packet, damaged, "{} byte {at} = {value}", scenario.sentence);
                }
            }
        }
    }
}
