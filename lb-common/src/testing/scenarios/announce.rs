//! Requests for announced addresses: what is answered, and what is not.

use super::prelude::*;
use crate::abi::Address;
use crate::testing::packet::DEVICE;
use crate::testing::scene::{HOUR_NS, NOW_NS};
use crate::testing::sums::{checksum, octets};

const BROADCAST: Mac = Mac([0xff; 6]);
const ALL_NODES_MAC: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);

pub(super) fn scenarios<F: Cast>() -> Vec<Scenario> {
    let mut all = if F::IS_V6 {
        solicitations::<F>()
    } else {
        requests::<F>()
    };
    all.extend(others::<F>());
    all
}

/// A scene in which the VIP is announced on the device, and served.
fn announced<F: Cast>(sentence: &str) -> Scene<F> {
    announced_on::<F>(sentence, DEVICE)
}

fn announced_on<F: Cast>(sentence: &str, ifindex: u32) -> Scene<F> {
    Scene::<F>::new(sentence)
        .frontend(F::VIP, HTTP, local_load_balancer(only(1)))
        .announced_on(ifindex)
}

/// A question about the VIP, as the family asks it, and its answer.
fn question<F: Cast>() -> Vec<u8> {
    if F::IS_V6 {
        Ndp::<F>::solicitation().build()
    } else {
        Arp::<F>::request().build()
    }
}

fn answer<F: Cast>() -> Vec<u8> {
    if F::IS_V6 {
        Ndp::<F>::advertisement().build()
    } else {
        Arp::<F>::reply().build()
    }
}

/// What both families have in common.
fn others<F: Cast>() -> Vec<Scenario> {
    let len = question::<F>().len();
    let mut tagged = question::<F>();
    tagged.splice(12..12, [0x81, 0, 0, 7]);
    vec![
        announced::<F>("Who asks for an announced address is told the device's link address.")
            .bytes(question::<F>())
            .needs(len)
            .answered_with(answer::<F>())
            .done(),
        Scene::<F>::new("Who asks for an address that is not announced is not answered.")
            .given(|world| world.announce_until_ns = HOUR_NS)
            .frontend(F::VIP, HTTP, local_load_balancer(only(1)))
            .bytes(question::<F>())
            .untouched()
            .done(),
        announced_on::<F>(
            "An address that is announced on another device is not answered for here.",
            DEVICE + 1,
        )
        .bytes(question::<F>())
        .untouched()
        .done(),
        announced::<F>("Once the agent is not heard of any more the node is silent.")
            .given(|world| world.announce_until_ns = NOW_NS - 1)
            .bytes(question::<F>())
            .lapsed()
            .done(),
        announced::<F>("Before the agent says until when, the node is silent.")
            .given(|world| world.announce_until_ns = 0)
            .bytes(question::<F>())
            .lapsed()
            .done(),
        announced::<F>("XDP passes a request for an announced address up.")
            .at(Hook::Xdp)
            .bytes(question::<F>())
            .untouched()
            .done(),
        announced::<F>("A request for an announced address that leaves the node is not answered.")
            .at(Hook::Egress)
            .bytes(question::<F>())
            .untouched()
            .done(),
        announced::<F>("A request within a VLAN tag is for another device.")
            .bytes(tagged)
            .untouched()
            .done(),
        announced::<F>("What is behind an announced address is still served.")
            .packet(&Frame::tcp((F::CLIENT_1, CLIENT_PORT), (F::VIP, HTTP), SYN))
            .passes_as(&Frame::tcp((F::CLIENT_1, CLIENT_PORT), (F::POD_1, TARGET), SYN))
            .recorded(&Flow::<F>::to((F::VIP, HTTP), 1))
            .done(),
    ]
}

fn requests<F: Cast>() -> Vec<Scenario> {
    let request = Arp::<F>::request;
    let changed = |change: fn(&mut Arp<F>)| {
        let mut arp = request();
        change(&mut arp);
        arp.build()
    };
    let damaged = |at: usize, byte: u8| {
        let mut bytes = request().build();
        bytes[at] = byte;
        bytes
    };
    let passes = |sentence: &str, bytes: Vec<u8>| announced::<F>(sentence).bytes(bytes).untouched().done();
    let mut probe = Arp::<F>::reply();
    probe.target = F::Addr::default();
    let mut unicast = request();
    unicast.link = (NODE_1_MAC, CLIENT_MAC);
    let mut padded = request().build();
    padded.resize(60, 0);
    let mut padded_reply = Arp::<F>::reply().build();
    padded_reply.resize(60, 0);
    vec![
        announced::<F>("A probe for an announced address, by somebody without an address, is answered.")
            .bytes(changed(|arp| arp.sender = F::Addr::default()))
            .answered_with(probe.build())
            .done(),
        announced::<F>("A request to the device itself is answered.")
            .bytes(unicast.build())
            .answered_with(Arp::<F>::reply().build())
            .done(),
        announced::<F>("A request padded to the length of a frame is answered.")
            .bytes(padded)
            .answered_with(padded_reply)
            .done(),
        passes(
            "A request to another host, which came here by chance, is not answered.",
            changed(|arp| arp.link.0 = NODE_2_MAC),
        ),
        passes(
            "Gratuitous ARP about an announced address passes.",
            changed(|arp| arp.sender = F::VIP),
        ),
        passes(
            "An ARP reply about an announced address passes.",
            changed(|arp| arp.operation = 2),
        ),
        passes(
            "A request of a sender with a group address passes.",
            changed(|arp| arp.sender_mac = BROADCAST),
        ),
        passes("ARP of another kind of network passes.", damaged(15, 6)),
        passes("ARP for another protocol passes.", damaged(16, 0x86)),
        passes("ARP with longer link addresses passes.", damaged(18, 8)),
        passes("ARP with longer addresses passes.", damaged(19, 16)),
    ]
}

fn solicitations<F: Cast>() -> Vec<Scenario> {
    let changed = |change: fn(&mut Ndp<F>)| {
        let mut ndp = Ndp::<F>::solicitation();
        change(&mut ndp);
        ndp
    };
    let passes = |sentence: &str, change: fn(&mut Ndp<F>)| {
        announced::<F>(sentence)
            .bytes(changed(change).build())
            .untouched()
            .done()
    };
    let answered = |sentence: &str, change: fn(&mut Ndp<F>), answer: &Ndp<F>| {
        announced::<F>(sentence)
            .bytes(changed(change).build())
            .answered_with(answer.build())
            .done()
    };
    let to_all = || {
        let mut answer = Ndp::<F>::advertisement();
        answer.link.0 = ALL_NODES_MAC;
        answer.dst = group([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        answer.flags = 0x20;
        answer
    };
    let mut wrong = Ndp::<F>::solicitation().build();
    wrong[14 + 40 + 2] ^= 1;
    let mut option_of_nothing = Ndp::<F>::solicitation();
    option_of_nothing.options[1] = 0;
    vec![
        answered(
            "Whether an announced address is free is answered to all nodes.",
            |ndp| {
                ndp.src = F::Addr::default();
                ndp.options.clear();
            },
            &to_all(),
        ),
        answered(
            "The same, asked with a nonce.",
            |ndp| {
                ndp.src = F::Addr::default();
                ndp.options = vec![14, 1, 1, 2, 3, 4, 5, 6];
            },
            &to_all(),
        ),
        answered(
            "A solicitation to the address itself is answered.",
            |ndp| {
                ndp.link.0 = NODE_1_MAC;
                ndp.dst = F::VIP;
            },
            &Ndp::<F>::advertisement(),
        ),
        answered(
            "A solicitation without options is answered.",
            |ndp| ndp.options.clear(),
            &Ndp::<F>::advertisement(),
        ),
        answered(
            "A solicitation with options that nobody knows is answered.",
            |ndp| {
                ndp.options.extend([200, 2]);
                ndp.options.extend([7; 14]);
            },
            &Ndp::<F>::advertisement(),
        ),
        passes("A solicitation that has crossed a router passes.", |ndp| {
            ndp.hop_limit = 254;
        }),
        passes("A solicitation of another code passes.", |ndp| ndp.code = 1),
        passes("A router solicitation passes.", |ndp| ndp.kind = 133),
        passes("An advertisement of an announced address passes.", |ndp| ndp.kind = 136),
        passes("A solicitation to another group passes.", |ndp| {
            ndp.dst = group([0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 1, 2, 3]);
        }),
        passes("A solicitation from a group passes.", |ndp| {
            ndp.src = group([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        }),
        passes("A solicitation from the announced address itself passes.", |ndp| {
            ndp.src = F::VIP;
        }),
        passes("Whether the address is free is not asked of the address.", |ndp| {
            ndp.src = F::Addr::default();
            ndp.dst = F::VIP;
            ndp.options.clear();
        }),
        passes(
            "One who has no address and tells a link address is not answered.",
            |ndp| {
                ndp.src = F::Addr::default();
            },
        ),
        passes(
            "A solicitation to another host, which came here by chance, passes.",
            |ndp| {
                ndp.link.0 = NODE_2_MAC;
                ndp.dst = F::VIP;
            },
        ),
        passes("A solicitation longer than we look at passes.", |ndp| {
            ndp.options = vec![200, 14];
            ndp.options.resize(14 * 8, 0);
        }),
        announced::<F>("A solicitation with a wrong checksum passes.")
            .bytes(wrong)
            .untouched()
            .done(),
        announced::<F>("A solicitation with an option of no length passes.")
            .bytes(option_of_nothing.build())
            .untouched()
            .done(),
    ]
}

/// `ff02::` with these last bytes.
fn group<A: Address>(rest: [u8; 14]) -> A {
    let mut bytes = [0; 16];
    bytes[0] = 0xff;
    bytes[1] = 2;
    bytes[2..].copy_from_slice(&rest);
    let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    A::from_words([word(0), word(4), word(8), word(12)])
}

/// An ARP message, in parts.
struct Arp<F: Cast> {
    link: (Mac, Mac),
    operation: u8,
    sender_mac: Mac,
    sender: F::Addr,
    target_mac: Mac,
    target: F::Addr,
}

impl<F: Cast> Arp<F> {
    fn request() -> Self {
        Self {
            link: (BROADCAST, CLIENT_MAC),
            operation: 1,
            sender_mac: CLIENT_MAC,
            sender: F::CLIENT_1,
            target_mac: Mac::default(),
            target: F::VIP,
        }
    }

    fn reply() -> Self {
        Self {
            link: (CLIENT_MAC, NODE_1_MAC),
            operation: 2,
            sender_mac: NODE_1_MAC,
            sender: F::VIP,
            target_mac: CLIENT_MAC,
            target: F::CLIENT_1,
        }
    }

    fn build(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.link.0.0);
        bytes.extend(self.link.1.0);
        bytes.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, self.operation]);
        bytes.extend(self.sender_mac.0);
        bytes.extend(octets(&self.sender));
        bytes.extend(self.target_mac.0);
        bytes.extend(octets(&self.target));
        bytes
    }
}

/// A message of neighbour discovery, in parts.
struct Ndp<F: Cast> {
    link: (Mac, Mac),
    src: F::Addr,
    dst: F::Addr,
    hop_limit: u8,
    kind: u8,
    code: u8,
    flags: u8,
    target: F::Addr,
    options: Vec<u8>,
}

impl<F: Cast> Ndp<F> {
    fn solicitation() -> Self {
        let vip = octets(&F::VIP);
        let [x, y, z] = [vip[vip.len() - 3], vip[vip.len() - 2], vip[vip.len() - 1]];
        Self {
            link: (Mac([0x33, 0x33, 0xff, x, y, z]), CLIENT_MAC),
            src: F::CLIENT_1,
            dst: group([0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, x, y, z]),
            hop_limit: 255,
            kind: 135,
            code: 0,
            flags: 0,
            target: F::VIP,
            options: [&[1, 1], &CLIENT_MAC.0[..]].concat(),
        }
    }

    fn advertisement() -> Self {
        Self {
            link: (CLIENT_MAC, NODE_1_MAC),
            src: F::VIP,
            dst: F::CLIENT_1,
            hop_limit: 255,
            kind: 136,
            code: 0,
            flags: 0x60,
            target: F::VIP,
            options: [&[2, 1], &NODE_1_MAC.0[..]].concat(),
        }
    }

    fn build(&self) -> Vec<u8> {
        let mut message = vec![self.kind, self.code, 0, 0, self.flags, 0, 0, 0];
        message.extend(octets(&self.target));
        message.extend(&self.options);
        let mut pseudo = octets(&self.src);
        pseudo.extend(octets(&self.dst));
        pseudo.extend((message.len() as u32).to_be_bytes());
        pseudo.extend([0, 0, 0, 58]);
        pseudo.extend(&message);
        let check = checksum(&pseudo).to_be_bytes();
        message[2..4].copy_from_slice(&check);
        let mut bytes = Vec::new();
        bytes.extend(self.link.0.0);
        bytes.extend(self.link.1.0);
        bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        bytes.extend((message.len() as u16).to_be_bytes());
        bytes.extend([58, self.hop_limit]);
        bytes.extend(octets(&self.src));
        bytes.extend(octets(&self.dst));
        bytes.extend(message);
        bytes
    }
}
