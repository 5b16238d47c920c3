//! The way there and back: many connections at once, by whatever hooks, and each client sees its frontend answer.

use std::collections::HashMap;

use lb_common::abi::{BackendSet, DropReason, Frontend, Hook, V4, V6, frontend_flags, protocol};
use lb_common::datapath::Verdict;
use lb_common::testing::frontends::{MASQUERADE_ALL, cluster_ip, load_balancer, web};
use lb_common::testing::scene::{HTTP, NODE_PORT, SNAT_PORT, TARGET};
use lb_common::testing::{Cast, Frame, Scene, World, run};
use lb_common::wire::Be16;
use proptest::collection::vec;
use proptest::prelude::*;

use super::sound::assert_sound;
use super::{config, protocols};

/// A connection: who, from which port, to what, and by which hooks.
#[derive(Clone, Debug)]
struct Plan {
    client: usize,
    port: u16,
    frontend: usize,
    protocol: u8,
    xdp_there: bool,
    xdp_back: bool,
}

fn plans() -> impl Strategy<Value = Vec<Plan>> {
    let plan = (
        0usize..4,
        40_000u16..40_002,
        0usize..5,
        protocols(),
        any::<(bool, bool)>(),
    );
    let plan = plan.prop_map(|(client, port, frontend, protocol, (xdp_there, xdp_back))| Plan {
        client,
        port,
        frontend,
        protocol,
        xdp_there,
        xdp_back,
    });
    vec(plan, 1..14)
}

proptest! {
    #![proptest_config(config(256))]

    #[test]
    fn every_client_is_answered_by_the_frontend_that_it_asked(plans in plans()) {
        travel::<V4>(&plans)?;
        travel::<V6>(&plans)?;
    }
}

type End<F> = (<F as lb_common::abi::Family>::Addr, u16);

/// The node: its maps, as the last packet left them.
struct Node {
    world: World,
}

impl Node {
    fn new<F: Cast>() -> Self {
        let set = BackendSet { offset: 16, size: 40 };
        let local = Frontend {
            internal: set,
            external: BackendSet { offset: 16, size: 20 },
            ..web(set, frontend_flags::EXTERNAL_IP)
        };
        let mut scene = Scene::<F>::new("").given(|world| {
            // Slots 16 to 35 lead to this node's pods, 36 to 55 to the other's.
            for slot in 0..40 {
                world.maglev.insert(16 + slot, 1 + slot % 2 + 2 * (slot / 20));
            }
            world.config.snat_port_max = SNAT_PORT + 999;
        });
        for protocol in [protocol::TCP, protocol::UDP, protocol::SCTP] {
            scene = scene
                .frontend_of(protocol, F::VIP, HTTP, load_balancer(set))
                .frontend_of(protocol, F::CLUSTER_IP, HTTP, cluster_ip(set))
                .frontend_of(protocol, F::EXTERNAL_IP, HTTP, local)
                .frontend_of(protocol, F::EXTERNAL_IP, 81, local)
                .frontend_of(
                    protocol,
                    F::NODE_1,
                    NODE_PORT,
                    web(set, frontend_flags::NODE_PORT | MASQUERADE_ALL),
                );
        }
        Self { world: scene.world() }
    }

    fn pass(&mut self, hook: Hook, packet: &[u8]) -> (Verdict, Vec<u8>) {
        let ran = run(hook, true, Be16::default(), packet, &self.world);
        self.world = ran.world;
        self.world.now += 1;
        (ran.verdict, ran.packet)
    }

    /// A packet crosses the node. Returns what leaves it.
    fn cross(&mut self, packet: &[u8], by_xdp: bool) -> Result<Vec<u8>, DropReason> {
        let mut packet = packet.to_vec();
        let hooks: &[Hook] = if by_xdp {
            &[Hook::Xdp, Hook::Ingress, Hook::Egress]
        } else {
            &[Hook::Ingress, Hook::Egress]
        };
        for hook in hooks {
            let (verdict, left) = self.pass(*hook, &packet);
            packet = left;
            match verdict {
                Verdict::Pass => {}
                Verdict::Drop(reason) => return Err(reason),
                Verdict::Reflect if *hook == Hook::Xdp => break,
                other => panic!("{other:?} at {hook:?}"),
            }
        }
        Ok(packet)
    }
}

/// Source and destination of a packet.
fn ends<F: Cast>(bytes: &[u8]) -> (End<F>, End<F>) {
    use lb_common::datapath::parse;
    let packet = lb_common::testing::FakePacket::<0, true>::new(bytes, Be16::default());
    let headers = F::parse(&packet, &parse::link(&packet).expect("a link header")).expect("all headers");
    (
        (headers.src, headers.src_port.get()),
        (headers.dst, headers.dst_port.get()),
    )
}

fn travel<F: Cast>(plans: &[Plan]) -> Result<(), TestCaseError> {
    let clients = [F::CLIENT_1, F::CLIENT_2, F::POD_1, F::POD_3];
    let frontends = [
        (F::VIP, HTTP),
        (F::CLUSTER_IP, HTTP),
        (F::EXTERNAL_IP, HTTP),
        (F::EXTERNAL_IP, 81),
        (F::NODE_1, NODE_PORT),
    ];
    let mut node = Node::new::<F>();
    // What the backend sees of each connection; no two may look alike to it.
    let mut seen = HashMap::new();
    for plan in plans {
        let (client, frontend) = ((clients[plan.client], plan.port), frontends[plan.frontend]);
        let packet = Frame::<F>::first(plan.protocol, client, frontend).build();
        let arrived = match node.cross(&packet, plan.xdp_there) {
            Ok(arrived) => arrived,
            Err(reason) => return Err(TestCaseError::fail(format!("{plan:?} dropped: {reason:?}"))),
        };
        assert_sound(&arrived);
        let (src, dst) = ends::<F>(&arrived);
        prop_assert_eq!(dst.1, TARGET);
        prop_assert!([F::POD_1, F::POD_2, F::POD_3, F::POD_4].contains(&dst.0));
        prop_assert_ne!(src.0, dst.0, "a pod must not see itself as its client");
        let is_masqueraded = [F::NODE_1, F::GATEWAY].contains(&src.0);
        prop_assert!(is_masqueraded || src.0 == client.0);
        if let Some(other) = seen.insert((plan.protocol, src, dst), (client, frontend)) {
            prop_assert_eq!(other, (client, frontend), "two connections look alike to {:?}", dst);
        }
    }
    for ((protocol, src, dst), (client, frontend)) in &seen {
        let plan = plans
            .iter()
            .find(|plan| {
                plan.protocol == *protocol
                    && (clients[plan.client], plan.port) == *client
                    && frontends[plan.frontend] == *frontend
            })
            .expect("it was planned");
        let reply = Frame::<F>::later(*protocol, *dst, *src).build();
        let answer = node.cross(&reply, plan.xdp_back);
        let answer = answer.map_err(|reason| TestCaseError::fail(format!("reply to {plan:?} dropped: {reason:?}")))?;
        assert_sound(&answer);
        prop_assert_eq!(ends::<F>(&answer), (*frontend, *client), "{:?}", plan);
        // What follows goes the same way.
        let next = Frame::<F>::later(*protocol, *client, *frontend).build();
        let next = node.cross(&next, plan.xdp_there);
        let next = next.map_err(|reason| TestCaseError::fail(format!("{plan:?} dropped: {reason:?}")))?;
        prop_assert_eq!(ends::<F>(&next), (*src, *dst), "{:?}", plan);
    }
    Ok(())
}
