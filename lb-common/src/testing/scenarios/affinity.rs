//! Clients pinned to a backend. The set below leads every flow to backend 3, and has backend 4 as a member too.

use super::prelude::*;
use crate::abi::{AffinityEntry, AffinityKey, AffinityMember, BackendSet, Frontend};

const SET: BackendSet = BackendSet { offset: 16, size: 7 };
const TIMEOUT_S: u32 = 60;

fn sticky(set: BackendSet, flags: u32) -> Frontend {
    Frontend {
        affinity_timeout_s: TIMEOUT_S,
        ..web(set, frontend_flags::AFFINITY | flags)
    }
}

fn key<F: Cast>() -> AffinityKey<F::Addr> {
    AffinityKey {
        client: F::CLIENT_1,
        service_port: WEB,
    }
}

/// The client is pinned to this backend, since so many seconds.
fn pinned<F: Cast>(scene: Scene<F>, backend: u32, age_s: u32) -> Scene<F> {
    scene.given(|world| {
        let entry = AffinityEntry {
            backend,
            last_used: NOW - age_s * HZ,
        };
        F::maps_mut(world).affinity.insert(key::<F>(), entry);
    })
}

/// The client must be pinned to this backend from now on.
fn pins<F: Cast>(scene: Scene<F>, backend: u32) -> Scene<F> {
    scene.then(move |world| {
        let entry = AffinityEntry {
            backend,
            last_used: NOW,
        };
        F::maps_mut(world).affinity.insert(key::<F>(), entry);
    })
}

pub(super) fn scenarios<F: Cast>() -> Vec<Scenario> {
    let client = (F::CLIENT_1, CLIENT_PORT);
    let vip = (F::VIP, HTTP);
    let with_members = |sentence: &str, members: &[u32]| {
        Scene::<F>::new(sentence)
            .frontend(F::VIP, HTTP, sticky(SET, 0))
            .given(|world| {
                for slot in 0..SET.size {
                    world.maglev.insert(SET.offset + slot, 3);
                }
                for backend in members {
                    world.members.insert(AffinityMember {
                        offset: SET.offset,
                        backend: *backend,
                    });
                }
            })
    };
    let led_to = |scene: Scene<F>, backend: u32, addr: F::Addr| {
        pins(scene, backend)
            .packet(&Frame::tcp(client, vip, SYN))
            .passes_as(&Frame::tcp(client, (addr, TARGET), SYN))
            .recorded(&Flow::<F>::to(vip, backend))
            .done()
    };
    vec![
        led_to(
            with_members(
                "A client's first connection pins it to the backend that it is led to.",
                &[3, 4],
            ),
            3,
            F::POD_3,
        ),
        led_to(
            pinned(
                with_members(
                    "A pinned client is led to its backend again, and the pin is renewed.",
                    &[3, 4],
                ),
                4,
                TIMEOUT_S - 5,
            ),
            4,
            F::POD_4,
        ),
        led_to(
            pinned(
                with_members(
                    "A pin that is older than the timeout binds no more: the client is pinned anew.",
                    &[3, 4],
                ),
                4,
                TIMEOUT_S + 5,
            ),
            3,
            F::POD_3,
        ),
        led_to(
            pinned(
                with_members("A pin to a backend that left the set binds no more.", &[3]),
                4,
                1,
            ),
            3,
            F::POD_3,
        ),
        {
            let node = (F::NODE_1, NODE_PORT);
            let scene = with_members(
                "A client meets the same backend by the NodePort as by the load balancer.",
                &[3, 4],
            )
            .frontend(
                F::NODE_1,
                NODE_PORT,
                sticky(SET, frontend_flags::NODE_PORT | MASQUERADE_ALL),
            );
            pins(pinned(scene, 4, 1), 4)
                .packet(&Frame::tcp(client, node, SYN))
                .passes_as(&Frame::tcp(client, (F::POD_4, TARGET), SYN))
                .recorded(&Flow::<F>::to(node, 4).behind(F::NODE_1))
                .done()
        },
        {
            let flow = Flow::<F>::to(vip, 4).old();
            let scene = with_members("A segment of a known connection does not renew the pin.", &[3, 4]);
            pinned(scene, 4, 30)
                .established(&flow)
                .packet(&Frame::tcp(client, vip, ACK))
                .passes_as(&Frame::tcp(client, (F::POD_4, TARGET), ACK))
                .seen(flow.primary(), tcp_state::CONFIRMED)
                .done()
        },
        {
            let scene = with_members("Another client's pin says nothing of this one.", &[3, 4]).given(|world| {
                let key = AffinityKey {
                    client: F::CLIENT_2,
                    ..key::<F>()
                };
                let entry = AffinityEntry {
                    backend: 4,
                    last_used: NOW - HZ,
                };
                F::maps_mut(world).affinity.insert(key, entry);
            });
            led_to(scene, 3, F::POD_3)
        },
        {
            let frame = Frame::tcp(client, vip, SYN);
            let scene = Scene::<F>::new("A pinned client whose Service has nobody left is told so.");
            pinned(scene.frontend(F::VIP, HTTP, sticky(NOBODY, 0)), 4, 1)
                .packet(&frame)
                .rejected_by(&frame.unreachable(40))
                .done()
        },
    ]
}
