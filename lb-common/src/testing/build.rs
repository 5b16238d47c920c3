//! Packets from their parts. Checksums are computed over the whole packet: nothing is shared with the incremental
//! code under test.

use std::vec;
use std::vec::Vec;

use super::Cast;
use super::cast::{CLIENT_MAC, NODE_1_MAC, NODE_2_MAC};
use super::sums::{checksum, crc32c, octets};
use crate::abi::{Mac, protocol};
use crate::wire::{next_header, sctp_chunk, tcp_flags};

/// A packet, in parts. Fields may be changed freely; [`Frame::build`] makes lengths and checksums right.
#[derive(Clone, Debug)]
pub struct Frame<F: Cast> {
    /// Link addresses, destination first; none for packets without an Ethernet header.
    pub link: Option<(Mac, Mac)>,
    /// VLAN tags, outermost first: EtherType of the tag and its control word.
    pub tags: Vec<(u16, u16)>,
    /// Source address.
    pub src: F::Addr,
    /// Destination address.
    pub dst: F::Addr,
    /// Hops left.
    pub ttl: u8,
    /// DSCP and ECN, or the traffic class.
    pub class: u8,
    /// IPv4 identification.
    pub id: u16,
    /// IPv4 flags and fragment offset.
    pub fragment: u16,
    /// IPv4 options, a multiple of 4 bytes.
    pub options: Vec<u8>,
    /// IPv6 extension headers: the number of each, and its bytes from the third on (what is before is filled in).
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// The transport header.
    pub transport: Transport,
    /// What follows.
    pub payload: Vec<u8>,
}

/// A transport header, in parts.
#[derive(Clone, Copy, Debug)]
pub enum Transport {
    /// TCP.
    Tcp {
        /// Source port.
        src: u16,
        /// Destination port.
        dst: u16,
        /// See [`crate::wire::tcp_flags`].
        flags: u8,
    },
    /// UDP.
    Udp {
        /// Source port.
        src: u16,
        /// Destination port.
        dst: u16,
        /// Whether it has a checksum.
        checked: bool,
    },
    /// SCTP.
    Sctp {
        /// Source port.
        src: u16,
        /// Destination port.
        dst: u16,
        /// Type of its first chunk, see [`crate::wire::sctp_chunk`]; none for a packet without chunks.
        chunk: Option<u8>,
        /// Whether its checksum is computed already.
        checked: bool,
    },
    /// ICMP or ICMPv6, as the family has it.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// Rest of the header.
        rest: [u8; 4],
    },
    /// Any other protocol, without a header of its own.
    Other(u8),
}

impl<F: Cast> Frame<F> {
    /// A packet from a client's router to this node, hops left 60, without options, and with a short payload.
    pub fn new(src: F::Addr, dst: F::Addr, transport: Transport) -> Self {
        Self {
            link: Some((NODE_1_MAC, CLIENT_MAC)),
            tags: vec![],
            src,
            dst,
            ttl: 60,
            class: 0,
            id: 0x1f2e,
            fragment: 0x4000,
            options: vec![],
            extensions: vec![],
            transport,
            payload: b"GET / HTTP/1.1\r\nHost: myapp.example.com\r\n\r\n".to_vec(),
        }
    }

    /// A TCP segment with these flags.
    pub fn tcp(src: (F::Addr, u16), dst: (F::Addr, u16), flags: u8) -> Self {
        Self::new(
            src.0,
            dst.0,
            Transport::Tcp {
                src: src.1,
                dst: dst.1,
                flags,
            },
        )
    }

    /// A UDP datagram.
    pub fn udp(src: (F::Addr, u16), dst: (F::Addr, u16)) -> Self {
        Self::new(
            src.0,
            dst.0,
            Transport::Udp {
                src: src.1,
                dst: dst.1,
                checked: true,
            },
        )
    }

    /// An SCTP packet whose first chunk is of this type.
    pub fn sctp(src: (F::Addr, u16), dst: (F::Addr, u16), chunk: u8) -> Self {
        Self::new(
            src.0,
            dst.0,
            Transport::Sctp {
                src: src.1,
                dst: dst.1,
                chunk: Some(chunk),
                checked: true,
            },
        )
    }

    /// The first packet of a connection by this protocol: a SYN, a datagram, an INIT.
    pub fn first(protocol: u8, src: (F::Addr, u16), dst: (F::Addr, u16)) -> Self {
        match protocol {
            protocol::TCP => Self::tcp(src, dst, tcp_flags::SYN),
            protocol::SCTP => Self::sctp(src, dst, sctp_chunk::INIT),
            _ => Self::udp(src, dst),
        }
    }

    /// A packet in the midst of such a connection.
    pub fn later(protocol: u8, src: (F::Addr, u16), dst: (F::Addr, u16)) -> Self {
        match protocol {
            protocol::TCP => Self::tcp(src, dst, tcp_flags::ACK),
            protocol::SCTP => Self::sctp(src, dst, 0),
            _ => Self::udp(src, dst),
        }
    }

    /// The same packet from another source.
    #[must_use]
    pub fn from(mut self, source: (F::Addr, u16)) -> Self {
        self.src = source.0;
        match &mut self.transport {
            Transport::Tcp { src, .. } | Transport::Udp { src, .. } | Transport::Sctp { src, .. } => *src = source.1,
            Transport::Icmp { .. } | Transport::Other(_) => {}
        }
        self
    }

    /// The same packet to another destination.
    #[must_use]
    pub fn to(mut self, destination: (F::Addr, u16)) -> Self {
        self.dst = destination.0;
        match &mut self.transport {
            Transport::Tcp { dst, .. } | Transport::Udp { dst, .. } | Transport::Sctp { dst, .. } => {
                *dst = destination.1;
            }
            Transport::Icmp { .. } | Transport::Other(_) => {}
        }
        self
    }

    /// The same packet from one next hop to another, with one hop less to go.
    #[must_use]
    pub fn forwarded(mut self, dst: Mac, src: Mac) -> Self {
        self.link = Some((dst, src));
        self.ttl -= 1;
        self
    }

    /// The same packet, as the other node sends it to this one.
    #[must_use]
    pub fn from_node_2(mut self) -> Self {
        self.link = Some((NODE_1_MAC, NODE_2_MAC));
        self
    }

    /// The same packet with something changed.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// The same packet with the last two bytes of its payload (of even length) such that its transport checksum
    /// comes out as zero.
    #[must_use]
    pub fn summing_to_zero(mut self) -> Self {
        let at = self.payload.len() - 2;
        self.payload[at..].fill(0);
        let check = self.transport_checksum();
        self.payload[at..].copy_from_slice(&check.to_be_bytes());
        self
    }

    /// Number of the protocol of the transport header.
    pub fn protocol(&self) -> u8 {
        match self.transport {
            Transport::Tcp { .. } => protocol::TCP,
            Transport::Udp { .. } => protocol::UDP,
            Transport::Sctp { .. } => protocol::SCTP,
            Transport::Icmp { .. } if F::IS_V6 => next_header::ICMPV6,
            Transport::Icmp { .. } => next_header::ICMP,
            Transport::Other(number) => number,
        }
    }

    /// The transport header with a checksum of zero, and the payload.
    fn unchecked(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self.transport {
            Transport::Tcp { src, dst, flags } => {
                bytes.extend(src.to_be_bytes());
                bytes.extend(dst.to_be_bytes());
                bytes.extend([1, 2, 3, 4, 5, 6, 7, 8, 0x50, flags, 0xfa, 0xf0, 0, 0, 0, 0]);
            }
            Transport::Udp { src, dst, .. } => {
                bytes.extend(src.to_be_bytes());
                bytes.extend(dst.to_be_bytes());
                bytes.extend((8 + self.payload.len() as u16).to_be_bytes());
                bytes.extend([0, 0]);
            }
            Transport::Sctp { src, dst, chunk, .. } => {
                bytes.extend(src.to_be_bytes());
                bytes.extend(dst.to_be_bytes());
                bytes.extend([0x7a, 0x91, 0x0b, 0x3c, 0, 0, 0, 0]);
                if let Some(chunk) = chunk {
                    bytes.extend([chunk, 0]);
                    bytes.extend((4 + self.payload.len() as u16).to_be_bytes());
                }
            }
            Transport::Icmp { kind, code, rest } => {
                bytes.extend([kind, code, 0, 0]);
                bytes.extend(rest);
            }
            Transport::Other(_) => {}
        }
        bytes.extend(&self.payload);
        bytes
    }

    fn transport_checksum(&self) -> u16 {
        let bytes = self.unchecked();
        let mut covered = Vec::new();
        if F::IS_V6 || !matches!(self.transport, Transport::Icmp { .. }) {
            covered.extend(octets(&self.src));
            covered.extend(octets(&self.dst));
            covered.extend((bytes.len() as u32).to_be_bytes());
            covered.extend([0, 0, 0, self.protocol()]);
        }
        covered.extend(bytes);
        checksum(&covered)
    }

    /// The IP packet's bytes after its header and extension headers.
    fn transport_bytes(&self) -> Vec<u8> {
        let check = self.transport_checksum();
        let mut bytes = self.unchecked();
        let (at, check) = match self.transport {
            Transport::Tcp { .. } => (16, check),
            Transport::Udp { checked: false, .. } => (6, 0),
            Transport::Udp { .. } => (6, if check == 0 { 0xffff } else { check }),
            Transport::Icmp { .. } => (2, check),
            Transport::Sctp { checked, .. } => {
                if checked {
                    let check = crc32c(&bytes).to_le_bytes();
                    bytes[8..12].copy_from_slice(&check);
                }
                return bytes;
            }
            Transport::Other(_) => return bytes,
        };
        bytes[at..at + 2].copy_from_slice(&check.to_be_bytes());
        bytes
    }

    fn ip_v4(&self) -> Vec<u8> {
        let rest = self.transport_bytes();
        let header_len = 20 + self.options.len();
        let mut ip = vec![0x40 | (header_len / 4) as u8, self.class];
        ip.extend(((header_len + rest.len()) as u16).to_be_bytes());
        ip.extend(self.id.to_be_bytes());
        ip.extend(self.fragment.to_be_bytes());
        ip.extend([self.ttl, self.protocol(), 0, 0]);
        ip.extend(octets(&self.src));
        ip.extend(octets(&self.dst));
        ip.extend(&self.options);
        let check = checksum(&ip);
        ip[10..12].copy_from_slice(&check.to_be_bytes());
        ip.extend(rest);
        ip
    }

    fn ip_v6(&self) -> Vec<u8> {
        let mut rest = Vec::new();
        let numbers = self.extensions.iter().map(|(number, _)| *number);
        let after: Vec<u8> = numbers.clone().skip(1).chain([self.protocol()]).collect();
        for ((number, body), next) in self.extensions.iter().zip(after) {
            let len = 2 + body.len();
            let length = match *number {
                next_header::AUTHENTICATION => len / 4 - 2,
                next_header::FRAGMENT => 0,
                _ => len / 8 - 1,
            };
            rest.extend([next, length as u8]);
            rest.extend(body);
        }
        let first = numbers.chain([self.protocol()]).next().unwrap();
        rest.extend(self.transport_bytes());
        let mut ip = vec![0x60 | (self.class >> 4), self.class << 4, 0, 0];
        ip.extend((rest.len() as u16).to_be_bytes());
        ip.extend([first, self.ttl]);
        ip.extend(octets(&self.src));
        ip.extend(octets(&self.dst));
        ip.extend(rest);
        ip
    }

    /// The IP packet.
    pub fn ip(&self) -> Vec<u8> {
        if F::IS_V6 { self.ip_v6() } else { self.ip_v4() }
    }

    /// The packet.
    pub fn build(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let Some((dst, src)) = self.link {
            bytes.extend(dst.0);
            bytes.extend(src.0);
            for (tag, control) in &self.tags {
                bytes.extend(tag.to_be_bytes());
                bytes.extend(control.to_be_bytes());
            }
            bytes.extend(Self::ethertype().to_be_bytes());
        }
        bytes.extend(self.ip());
        bytes
    }

    /// The EtherType of the family, in host order.
    pub fn ethertype() -> u16 {
        if F::IS_V6 { 0x86dd } else { 0x0800 }
    }

    /// The ICMP port unreachable that answers this packet: from its destination to its source, by the device that
    /// it came in by, with the packet up to `quoted` bytes after its transport header's begin.
    #[must_use]
    pub fn unreachable(&self, quoted: usize) -> Self {
        let ip = self.ip();
        let headers = ip.len() - self.transport_bytes().len();
        let (kind, code) = if F::IS_V6 { (1, 4) } else { (3, 3) };
        let mut message = Self::new(
            self.dst,
            self.src,
            Transport::Icmp {
                kind,
                code,
                rest: [0; 4],
            },
        );
        message.payload = ip[..ip.len().min(headers + quoted) & !1].to_vec();
        message.link = self.link.map(|(dst, src)| (src, dst));
        message.ttl = 64;
        message.id = 0;
        message
    }
}
