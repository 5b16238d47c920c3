//! Frames with right checksums, and the course on which the wrapper program sends them.

use std::net::IpAddr;

use lb_common::abi::protocol;

/// Every frame is this long: a small packet with all its headers, as most are.
const FRAME_LEN: usize = 96;
/// What the wrapper puts back.
const TEMPLATE_LEN: usize = 80;

/// Flags of a TCP header.
pub const SYN: u8 = 2;
/// Flags of a TCP header.
pub const ACK: u8 = 16;

/// The node's Ethernet address.
pub const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// The Ethernet address of the client's next hop.
pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// The Ethernet address of the other node.
pub const BACKEND_MAC: [u8; 6] = [2, 0, 0, 0, 0, 3];

/// A packet to be made.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    /// Source address and port.
    pub src: (IpAddr, u16),
    /// Destination address and port; of the same family.
    pub dst: (IpAddr, u16),
    /// TCP, UDP or SCTP.
    pub protocol: u8,
    /// TCP flags.
    pub flags: u8,
}

impl Packet {
    /// The frame, as it comes in from the client's next hop.
    pub fn frame(&self) -> Vec<u8> {
        let mut frame = [NODE_MAC, CLIENT_MAC].concat();
        let transport = self.transport();
        match (self.src.0, self.dst.0) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                frame.extend([0x08, 0x00]);
                let mut header = vec![0x45, 0];
                header.extend((FRAME_LEN as u16 - 14).to_be_bytes());
                header.extend([0, 1, 0x40, 0, 64, self.protocol, 0, 0]);
                header.extend(src.octets());
                header.extend(dst.octets());
                let check = checksum(&header).to_be_bytes();
                header[10..12].copy_from_slice(&check);
                frame.extend(header);
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend((FRAME_LEN as u16 - 54).to_be_bytes());
                frame.extend([self.protocol, 64]);
                frame.extend(src.octets());
                frame.extend(dst.octets());
            }
            _ => unreachable!("addresses of two families"),
        }
        frame.extend(transport);
        frame
    }

    /// Transport header and payload.
    fn transport(&self) -> Vec<u8> {
        let addresses = match (self.src.0, self.dst.0) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => [src.octets(), dst.octets()].concat(),
            (IpAddr::V6(src), IpAddr::V6(dst)) => [src.octets(), dst.octets()].concat(),
            _ => Vec::new(),
        };
        let len = FRAME_LEN - 14 - if addresses.len() == 8 { 20 } else { 40 };
        let mut bytes = [self.src.1.to_be_bytes(), self.dst.1.to_be_bytes()].concat();
        if self.protocol == protocol::SCTP {
            // A tag, and a checksum that is none of this packet: it is changed, and looked at by nobody.
            bytes.extend([1; 8]);
            bytes.resize(len, 0);
            return bytes;
        }
        let check_at = if self.protocol == protocol::TCP {
            bytes.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, self.flags, 0x10, 0, 0, 0, 0, 0]);
            16
        } else {
            bytes.extend((len as u16).to_be_bytes());
            bytes.extend([0, 0]);
            6
        };
        bytes.resize(len, 0x5a);
        let mut covered = addresses;
        covered.extend([0, self.protocol]);
        covered.extend((len as u16).to_be_bytes());
        covered.extend(&bytes);
        let check = checksum(&covered).to_be_bytes();
        bytes[check_at..check_at + 2].copy_from_slice(&check);
        bytes
    }
}

/// RFC 1071, of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u64 = bytes
        .chunks(2)
        .map(|pair| u64::from(pair[0]) << 8 | u64::from(pair[1]))
        .sum();
    let mut sum = sum;
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

/// Which packets the wrapper makes. The layout is that of `Course` in `lb-ebpf/src/reference/main.rs`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Course {
    template: [u8; TEMPLATE_LEN],
    flows: u32,
    state: u32,
    multiplier: u32,
    is_v6: u32,
    inserts: u32,
    pad: u32,
}

impl Course {
    /// The packet again and again.
    pub fn one(packet: &Packet) -> Self {
        let mut template = [0; TEMPLATE_LEN];
        template.copy_from_slice(&packet.frame()[..TEMPLATE_LEN]);
        Self {
            template,
            flows: 1,
            state: 0,
            multiplier: 0,
            is_v6: u32::from(packet.src.0.is_ipv6()),
            inserts: 0,
            pad: 0,
        }
    }

    /// The packet, from one of so many clients each time, in random order.
    pub fn random(packet: &Packet, flows: u32, seed: u32) -> Self {
        Self {
            flows,
            state: seed,
            multiplier: 1_664_525,
            ..Self::one(packet)
        }
    }

    /// The packet from one client after the other, from `first` on.
    pub fn in_turn(packet: &Packet, first: u32) -> Self {
        Self {
            flows: u32::MAX,
            state: first,
            ..Self::one(packet)
        }
    }

    /// The course with so many entries for each flow, for the programs that insert.
    pub fn with_inserts(self, inserts: u32) -> Self {
        Self { inserts, ..self }
    }
}
