//! Packets of flows, as bytes: made, and read again with their checksums.

use std::net::{IpAddr, SocketAddr};

use fairway::maps::MapFamily;
use lb_common::datapath::parse;
use lb_common::testing::build::Transport;
use lb_common::testing::{Cast, FakePacket, Frame};
use lb_common::wire::{Be16, next_header, sctp_chunk, tcp_flags};

use super::Protocol;

/// Types of SCTP chunks (RFC 9260) that no program looks at.
const INIT_ACK: u8 = 2;
const HEARTBEAT: u8 = 4;

/// Where a packet is from and where it goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ends {
    /// Its source.
    pub src: SocketAddr,
    /// Its destination.
    pub dst: SocketAddr,
}

impl Ends {
    /// Of the answer.
    pub const fn reversed(self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
        }
    }
}

/// Where in a flow a packet stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// The client's first one.
    Opening,
    /// The answer to that.
    Accepting,
    /// A later one.
    Established,
}

/// A packet, in parts; none if its ends are not of the family.
fn frame<F: Cast + MapFamily>(ends: Ends, of: Protocol, stage: Stage) -> Option<Frame<F>> {
    let (src, dst) = (ends.src.port(), ends.dst.port());
    let transport = match of {
        Protocol::Tcp => Transport::Tcp {
            src,
            dst,
            flags: match stage {
                Stage::Opening => tcp_flags::SYN,
                Stage::Accepting => tcp_flags::SYN | tcp_flags::ACK,
                Stage::Established => tcp_flags::ACK,
            },
        },
        Protocol::Udp => Transport::Udp {
            src,
            dst,
            checked: true,
        },
        Protocol::Sctp => Transport::Sctp {
            src,
            dst,
            chunk: Some(match stage {
                Stage::Opening => sctp_chunk::INIT,
                Stage::Accepting => INIT_ACK,
                Stage::Established => HEARTBEAT,
            }),
            checked: true,
        },
    };
    Some(Frame::<F>::new(
        F::addr(ends.src.ip())?,
        F::addr(ends.dst.ip())?,
        transport,
    ))
}

/// A packet's bytes.
pub fn build<F: Cast + MapFamily>(ends: Ends, of: Protocol, stage: Stage) -> Option<Vec<u8>> {
    Some(frame::<F>(ends, of, stage)?.build())
}

/// The ends of a packet, and whether everything else of it is as it was made.
pub fn read<F: Cast + MapFamily>(bytes: &[u8], of: Protocol, stage: Stage) -> Option<(Ends, bool)> {
    let packet = FakePacket::<1, true>::new(bytes, Be16::new(0));
    let link = parse::link(&packet)?;
    let headers = F::parse(&packet, &link)?;
    let ends = Ends {
        src: SocketAddr::new(headers.src.into(), headers.src_port.get()),
        dst: SocketAddr::new(headers.dst.into(), headers.dst_port.get()),
    };
    let mut wanted = frame::<F>(ends, of, stage)?;
    let ip = bytes.get(14..)?;
    // Sending it on costs a hop.
    wanted.ttl = *ip.get(if ends.src.is_ipv4() { 8 } else { 7 })?;
    Some((ends, wanted.ip() == ip))
}

/// Whether a packet is an ICMP port unreachable from a flow's destination to its source.
pub fn is_refusal(bytes: &[u8], of: Ends) -> bool {
    let ip = bytes.get(14..).unwrap_or_default();
    let (numbers, addresses, icmp) = if of.src.is_ipv4() {
        (ip.get(9), ip.get(12..20), ip.get(20..22))
    } else {
        (ip.get(6), ip.get(8..40), ip.get(40..42))
    };
    let (number, kind) = if of.src.is_ipv4() {
        (next_header::ICMP, [3, 3])
    } else {
        (next_header::ICMPV6, [1, 4])
    };
    let octets = |addr: IpAddr| match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    };
    let wanted = [octets(of.dst.ip()), octets(of.src.ip())].concat();
    numbers == Some(&number) && addresses == Some(&*wanted) && icmp == Some(&kind)
}
