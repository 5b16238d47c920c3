//! What a packet passes on its way: sockets, devices with their hooks, and the node's stack between them.
//!
//! A forward packet that arrives is answered, and the answer has to come back to the client from where the client
//! sent to.

use std::net::{IpAddr, SocketAddr};

use fairway::maps::MapFamily;
use ipnet::IpNet;
use lb_common::abi::{Direction, Hook, Port, Tuple, V4, V6, protocol};
use lb_common::datapath::socket::{self, Answer, Request};
use lb_common::datapath::{self, Verdict};
use lb_common::testing::{Cast, FakeEnv, FakePacket};
use lb_common::wire::Be16;

use super::packet::{Ends, Stage, build, is_refusal, read};
use super::{From, Observation, Protocol};

/// The device that leads off the node; and the adjacency behind it.
pub const UPLINK: u32 = 1;
/// The device that leads to pods of the node; and the adjacency behind it.
pub const LOCAL: u32 = 2;

const XDP: u8 = Hook::Xdp as u8;
const INGRESS: u8 = Hook::Ingress as u8;
const EGRESS: u8 = Hook::Egress as u8;

/// The node's addresses and devices, and its programs' maps.
pub struct Network {
    /// The maps.
    pub env: FakeEnv,
    /// The node's addresses.
    pub own: Vec<IpAddr>,
    /// Where its pods are.
    pub pods: Vec<IpNet>,
}

/// A connection.
pub struct Flow {
    from: From,
    client: SocketAddr,
    /// Where its socket was asked to send.
    asked: SocketAddr,
    /// Where its packets go; `None` before its socket has connected.
    target: Option<SocketAddr>,
    protocol: Protocol,
    number: u32,
    established: bool,
}

impl Flow {
    /// One that has not begun.
    pub const fn new(from: From, client: SocketAddr, dst: SocketAddr, protocol: Protocol, number: u32) -> Self {
        Self {
            from,
            client,
            asked: dst,
            target: None,
            protocol,
            number,
            established: false,
        }
    }

    const fn is_of_node(&self) -> bool {
        matches!(self.from, From::NodeProcess | From::NodeProcessOutsideCgroup)
    }

    /// Whether the node's uplink has XDP: every other flow meets it so.
    const fn meets_xdp(&self) -> bool {
        self.number.is_multiple_of(2)
    }
}

/// How a packet's way ends.
enum End {
    /// It is delivered, to another host, to a pod or to the node's stack.
    Arrived(Vec<u8>),
    /// Its sender is told that there is nobody.
    Refused,
    Dropped,
    /// What must not be.
    Wrong(String),
}

/// How a socket may not connect.
enum Refusal {
    Told,
    Silent,
}

/// Ends a way early.
type Way<T> = Result<T, End>;

impl Network {
    /// The next packet of a flow, and its answer.
    pub fn send(&self, flow: &mut Flow) -> Observation {
        let seen = if flow.client.is_ipv4() {
            self.send_in::<V4>(flow)
        } else {
            self.send_in::<V6>(flow)
        };
        flow.established |= matches!(seen, Observation::Forward { .. } | Observation::Pass);
        seen
    }

    /// Whether the entry that a flow's packets hit is there.
    pub fn is_known(&self, flow: &Flow) -> bool {
        if flow.client.is_ipv4() {
            self.is_known_in::<V4>(flow)
        } else {
            self.is_known_in::<V6>(flow)
        }
    }

    fn is_known_in<F: Cast + MapFamily>(&self, flow: &Flow) -> bool {
        let (Some(src), Some(dst)) = (F::addr(flow.client.ip()), F::addr(flow.asked.ip())) else {
            return false;
        };
        let direction = if flow.is_of_node() {
            Direction::Egress
        } else {
            Direction::Ingress
        };
        let ports = (Port::new(flow.client.port()), Port::new(flow.asked.port()));
        let key = Tuple::new(direction, number(flow.protocol), (src, ports.0), (dst, ports.1));
        F::maps(&self.env.world()).connections.contains_key(&key)
    }

    fn send_in<F: Cast + MapFamily>(&self, flow: &mut Flow) -> Observation {
        let target = match flow.target {
            Some(target) => target,
            None => match self.connect_socket::<F>(flow) {
                Ok(target) => target,
                Err(Refusal::Told) => return Observation::Reject,
                Err(Refusal::Silent) => return Observation::Drop,
            },
        };
        flow.target = Some(target);
        let stage = if flow.established {
            Stage::Established
        } else {
            Stage::Opening
        };
        let ends = Ends {
            src: flow.client,
            dst: target,
        };
        let Some(bytes) = build::<F>(ends, flow.protocol, stage) else {
            return Observation::Other("its ends are of two families".to_owned());
        };
        let arrived = match self.to_backend::<F>(flow, ends, bytes) {
            End::Arrived(arrived) => arrived,
            End::Refused => return Observation::Reject,
            End::Dropped => return Observation::Drop,
            End::Wrong(text) => return Observation::Other(text),
        };
        let Some((reached, whole)) = read::<F>(&arrived, flow.protocol, stage) else {
            return Observation::Other("it arrived as no packet of its protocol".to_owned());
        };
        if !whole {
            return Observation::Other(format!("it arrived damaged at {}", reached.dst));
        }
        if reached == ends && target == flow.asked {
            return Observation::Pass;
        }
        if reached.dst == flow.asked {
            return Observation::Other(format!("it arrived where it was sent, but from {}", reached.src));
        }
        match self.answer::<F>(flow, ends, reached) {
            Ok(()) => Observation::Forward {
                backend: reached.dst,
                source: reached.src,
                client: flow.client,
            },
            Err(why) => Observation::Other(format!(
                "it arrived at {} from {}, and its answer {why}",
                reached.dst, reached.src
            )),
        }
    }

    /// The destination that a socket is given as it connects.
    fn connect_socket<F: Cast + MapFamily>(&self, flow: &Flow) -> Result<SocketAddr, Refusal> {
        let is_pod = match flow.from {
            From::Pod => true,
            From::NodeProcess => false,
            From::External | From::PodOutsideCgroup | From::NodeProcessOutsideCgroup => return Ok(flow.asked),
        };
        let (Some(addr), false) = (F::addr(flow.asked.ip()), flow.protocol == Protocol::Sctp) else {
            return Ok(flow.asked); // SCTP has no such hooks.
        };
        let request = Request {
            cookie: u64::from(flow.number).wrapping_mul(0x1_0001),
            netns_cookie: u64::from(is_pod),
            protocol: number(flow.protocol),
            addr,
            port: Port::new(flow.asked.port()),
            source: F::Addr::default(), // the kernel chooses it
        };
        match socket::translate::<F, _>(&self.env, &request) {
            Answer::Use(addr, port) => Ok(SocketAddr::new(addr.into(), port.get())),
            Answer::Refuse => Err(Refusal::Told),
            Answer::Drop(_) => Err(Refusal::Silent),
            Answer::Leave => Ok(flow.asked),
        }
    }

    /// A client's packet, on its way.
    fn to_backend<F: Cast + MapFamily>(&self, flow: &Flow, ends: Ends, bytes: Vec<u8>) -> End {
        let way = if flow.is_of_node() {
            self.leave(ends, bytes)
        } else {
            let device = if flow.from == From::External { UPLINK } else { LOCAL };
            self.enter::<F>(flow, ends, bytes, device)
        };
        way.map_or_else(|end| end, End::Arrived)
    }

    /// The backend's answer, on its way back.
    fn answer<F: Cast + MapFamily>(&self, flow: &Flow, sent: Ends, reached: Ends) -> Result<(), String> {
        let ends = reached.reversed();
        let stage = if flow.established {
            Stage::Established
        } else {
            Stage::Accepting
        };
        let bytes = build::<F>(ends, flow.protocol, stage).ok_or("is of two families")?;
        let way = match self.device_of(ends.src.ip()) {
            None => self.leave(ends, bytes),
            Some(device) => self.enter::<F>(flow, ends, bytes, device),
        };
        let back = match way {
            Ok(bytes) => bytes,
            Err(End::Arrived(_)) => return Err("went astray".to_owned()),
            Err(End::Refused) => return Err("was refused".to_owned()),
            Err(End::Dropped) => return Err("was dropped".to_owned()),
            Err(End::Wrong(text)) => return Err(text),
        };
        let (back, whole) = read::<F>(&back, flow.protocol, stage).ok_or("is no packet of its protocol")?;
        if back != sent.reversed() {
            return Err(format!("came from {} to {}", back.src, back.dst));
        }
        if whole {
            Ok(())
        } else {
            Err("came back damaged".to_owned())
        }
    }

    /// The device behind which an address is; none for the node's own.
    fn device_of(&self, addr: IpAddr) -> Option<u32> {
        if self.own.contains(&addr) || addr.is_loopback() {
            None
        } else if self.pods.iter().any(|cidr| cidr.contains(&addr)) {
            Some(LOCAL)
        } else {
            Some(UPLINK)
        }
    }

    /// Into the node by a device: XDP where there is one, TC, the stack, and out again unless it is for the node.
    fn enter<F: Cast + MapFamily>(&self, flow: &Flow, ends: Ends, mut bytes: Vec<u8>, device: u32) -> Way<Vec<u8>> {
        if device == UPLINK && flow.meets_xdp() {
            let (verdict, after, _) = self.hook::<XDP>(&bytes, device);
            match verdict {
                Verdict::Pass => bytes = after,
                Verdict::Reflect => return Ok(after),
                Verdict::Drop(_) => return Err(End::Dropped),
                Verdict::Deliver | Verdict::Output => return Err(End::Wrong(format!("XDP says {verdict:?}"))),
            }
        }
        let (verdict, after, _) = self.hook::<INGRESS>(&bytes, device);
        match verdict {
            Verdict::Pass => {}
            Verdict::Deliver => return Ok(after),
            Verdict::Drop(_) => return Err(End::Dropped),
            Verdict::Reflect if is_refusal(&after, ends) => return Err(End::Refused),
            Verdict::Reflect | Verdict::Output => return Err(End::Wrong(format!("TC ingress says {verdict:?}"))),
        }
        let Some((now, _)) = read::<F>(&after, flow.protocol, Stage::Opening) else {
            return Err(End::Wrong("TC ingress left no packet".to_owned()));
        };
        if self.own.contains(&now.src.ip()) {
            return Err(End::Wrong(format!(
                "came into the stack from the node's own {}",
                now.src
            )));
        }
        match self.device_of(now.dst.ip()) {
            None if now.dst.ip().is_loopback() => Err(End::Dropped), // a martian
            None => Ok(after),
            Some(device) => self.leave_by(now, &after, device),
        }
    }

    /// Out of the node's own stack.
    fn leave(&self, ends: Ends, bytes: Vec<u8>) -> Way<Vec<u8>> {
        match self.device_of(ends.dst.ip()) {
            None => Ok(bytes), // by the loopback device, which has no hooks
            Some(device) => self.leave_by(ends, &bytes, device),
        }
    }

    fn leave_by(&self, ends: Ends, bytes: &[u8], device: u32) -> Way<Vec<u8>> {
        let (verdict, after, _) = self.hook::<EGRESS>(bytes, device);
        match verdict {
            Verdict::Pass | Verdict::Output => Ok(after),
            Verdict::Drop(_) => Err(End::Dropped),
            Verdict::Reflect if is_refusal(&after, ends) => Err(End::Refused),
            Verdict::Reflect | Verdict::Deliver => Err(End::Wrong(format!("TC egress says {verdict:?}"))),
        }
    }

    fn hook<const HOOK: u8>(&self, bytes: &[u8], device: u32) -> (Verdict, Vec<u8>, u32) {
        let mut packet = FakePacket::<HOOK, true>::new(bytes, Be16::new(0));
        packet.ifindex = device;
        let verdict = datapath::run(&mut packet, &self.env);
        (verdict, packet.bytes, packet.aim)
    }
}

const fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => protocol::TCP,
        Protocol::Udp => protocol::UDP,
        Protocol::Sctp => protocol::SCTP,
    }
}
