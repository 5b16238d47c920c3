//! The few SCTP packets (RFC 9260) that a client and a server of a world exchange: the four of the handshake, and
//! a HEARTBEAT with its answer for every later request.
//!
//! Both sides use the flow's number as their tag, so each packet tells its flow.

use super::wire::{REQUEST_BYTES, Request, ports};

/// The common header: ports, tag, checksum.
const HEADER_BYTES: usize = 12;

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const HEARTBEAT: u8 = 4;
const HEARTBEAT_ACK: u8 = 5;
const ABORT: u8 = 6;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;

/// What a packet is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Chunk {
    Init,
    InitAck,
    CookieEcho,
    CookieAck,
    Heartbeat(Request),
    HeartbeatAck(Request),
    Abort,
}

/// A packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet {
    pub source: u16,
    pub destination: u16,
    pub flow: u32,
    pub chunk: Chunk,
}

impl Packet {
    /// Its bytes, from the common header on.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64);
        bytes.extend(self.source.to_be_bytes());
        bytes.extend(self.destination.to_be_bytes());
        let tag = if self.chunk == Chunk::Init { 0 } else { self.flow };
        bytes.extend(tag.to_be_bytes());
        bytes.extend([0; 4]);
        let (kind, value): (u8, Vec<u8>) = match self.chunk {
            Chunk::Init => (INIT, self.init()),
            Chunk::InitAck => {
                // The cookie, which comes back as it was.
                let mut value = self.init();
                value.extend([0, 7, 0, 8, b'c', b'o', b'o', b'k']);
                (INIT_ACK, value)
            }
            Chunk::CookieEcho => (COOKIE_ECHO, b"cook".to_vec()),
            Chunk::CookieAck => (COOKIE_ACK, Vec::new()),
            Chunk::Heartbeat(request) => (HEARTBEAT, heartbeat(request.question())),
            Chunk::HeartbeatAck(request) => (HEARTBEAT_ACK, heartbeat(request.answer())),
            Chunk::Abort => (ABORT, Vec::new()),
        };
        bytes.extend([kind, 0]);
        bytes.extend((value.len() as u16 + 4).to_be_bytes());
        bytes.extend(value);
        let sum = crc32c(&bytes);
        bytes[8..HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// The fixed part of INIT and INIT ACK: tag, window, streams out and in, first TSN.
    fn init(&self) -> Vec<u8> {
        let mut value = self.flow.to_be_bytes().to_vec();
        value.extend(65_536u32.to_be_bytes());
        value.extend([0, 1, 0, 1]);
        value.extend(1u32.to_be_bytes());
        value
    }

    /// The packet that these bytes are, if it is one of those that are used here.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (source, destination) = ports(bytes)?;
        let word = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let value = bytes.get(HEADER_BYTES + 4..)?;
        let request = value.get(4..4 + REQUEST_BYTES);
        let (chunk, flow) = match *bytes.get(HEADER_BYTES)? {
            INIT => (Chunk::Init, word(HEADER_BYTES + 4)?),
            INIT_ACK => (Chunk::InitAck, word(4)?),
            COOKIE_ECHO => (Chunk::CookieEcho, word(4)?),
            COOKIE_ACK => (Chunk::CookieAck, word(4)?),
            HEARTBEAT => (Chunk::Heartbeat(Request::from_question(request?)?), word(4)?),
            HEARTBEAT_ACK => (Chunk::HeartbeatAck(Request::from_answer(request?)?), word(4)?),
            ABORT => (Chunk::Abort, word(4)?),
            _ => return None,
        };
        Some(Self {
            source,
            destination,
            flow,
            chunk,
        })
    }

    /// What a server answers.
    pub fn answer(&self) -> Option<Self> {
        let chunk = match self.chunk {
            Chunk::Init => Chunk::InitAck,
            Chunk::CookieEcho => Chunk::CookieAck,
            Chunk::Heartbeat(request) => Chunk::HeartbeatAck(request),
            Chunk::InitAck | Chunk::CookieAck | Chunk::HeartbeatAck(_) | Chunk::Abort => return None,
        };
        Some(Self {
            source: self.destination,
            destination: self.source,
            flow: self.flow,
            chunk,
        })
    }

    /// The request that an arrival of this packet is.
    pub fn request(&self) -> Option<Request> {
        match self.chunk {
            Chunk::Init => Some(Request {
                flow: self.flow,
                number: 0,
            }),
            Chunk::Heartbeat(request) => Some(request),
            _ => None,
        }
    }
}

fn heartbeat(request: [u8; REQUEST_BYTES]) -> Vec<u8> {
    let mut value = vec![0, 1, 0, 4 + REQUEST_BYTES as u8];
    value.extend(request);
    value
}

/// Whether the checksum of a packet is right.
pub fn is_whole(bytes: &[u8]) -> bool {
    let (Some(head), Some(sum), Some(rest)) = (bytes.get(..8), bytes.get(8..12), bytes.get(12..)) else {
        return false;
    };
    let mut zeroed = head.to_vec();
    zeroed.extend([0; 4]);
    zeroed.extend(rest);
    crc32c(&zeroed).to_le_bytes() == sum
}

/// CRC32c (RFC 9260, appendix A), bit by bit: packets here are short.
fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 {
                (crc >> 1) ^ POLYNOMIAL
            } else {
                crc >> 1
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_castagnoli_one() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_packet_is_read_as_it_was_written() {
        let request = Request { flow: 5, number: 1 };
        for chunk in [
            Chunk::Init,
            Chunk::InitAck,
            Chunk::CookieEcho,
            Chunk::CookieAck,
            Chunk::Heartbeat(request),
            Chunk::HeartbeatAck(request),
            Chunk::Abort,
        ] {
            let packet = Packet {
                source: 1,
                destination: 2,
                flow: 5,
                chunk,
            };
            let bytes = packet.bytes();
            assert_eq!(Packet::parse(&bytes), Some(packet));
            assert!(is_whole(&bytes));
            assert_eq!(bytes.len() % 4, 0);
        }
    }

    #[test]
    fn a_changed_port_breaks_the_checksum() {
        let packet = Packet {
            source: 1,
            destination: 2,
            flow: 5,
            chunk: Chunk::Init,
        };
        let mut bytes = packet.bytes();
        bytes[3] = 9;
        assert!(!is_whole(&bytes));
    }
}
