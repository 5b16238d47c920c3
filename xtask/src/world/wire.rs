//! What the clients and servers of a world say. Every request carries the number of its flow and its own number
//! in that flow, wherever its protocol has room, so that an arrival can be told without asking the client.
//!
//! | protocol | a new flow | a later request |
//! | --- | --- | --- |
//! | TCP | the sequence number of its SYN is the flow's | [`Request`] in the stream |
//! | UDP | [`Request`] in a datagram | the same |
//! | SCTP | the initiate tag of its INIT is the flow's | a HEARTBEAT under that tag, which carries a [`Request`] |

use std::net::{IpAddr, SocketAddr};

/// A request, or the answer to it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Request {
    /// The flow.
    pub flow: u32,
    /// Which request of the flow: the first has 0.
    pub number: u32,
}

/// The length of a request.
pub const REQUEST_BYTES: usize = 12;
const QUESTION: &[u8; 4] = b"FWQ?";
const ANSWER: &[u8; 4] = b"FWA!";

impl Request {
    pub fn question(self) -> [u8; REQUEST_BYTES] {
        self.bytes(QUESTION)
    }

    pub fn answer(self) -> [u8; REQUEST_BYTES] {
        self.bytes(ANSWER)
    }

    fn bytes(self, kind: &[u8; 4]) -> [u8; REQUEST_BYTES] {
        let mut bytes = [0; REQUEST_BYTES];
        bytes[..4].copy_from_slice(kind);
        bytes[4..8].copy_from_slice(&self.flow.to_be_bytes());
        bytes[8..].copy_from_slice(&self.number.to_be_bytes());
        bytes
    }

    pub fn from_question(bytes: &[u8]) -> Option<Self> {
        Self::parse(bytes, QUESTION)
    }

    pub fn from_answer(bytes: &[u8]) -> Option<Self> {
        Self::parse(bytes, ANSWER)
    }

    fn parse(bytes: &[u8], kind: &[u8; 4]) -> Option<Self> {
        (bytes.get(..4)? == kind).then_some(())?;
        Some(Self {
            flow: word(bytes, 4)?,
            number: word(bytes, 8)?,
        })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

/// Ports of a TCP, UDP or SCTP packet: source, destination.
pub fn ports(transport: &[u8]) -> Option<(u16, u16)> {
    Some((half(transport, 0)?, half(transport, 2)?))
}

/// The flow that a TCP segment opens.
pub fn opened_by_tcp(segment: &[u8]) -> Option<Request> {
    const SYN: u8 = 2;
    const ACK: u8 = 16;
    (segment.get(13)? & (SYN | ACK) == SYN).then_some(())?;
    Some(Request {
        flow: word(segment, 4)?,
        number: 0,
    })
}

/// The request in a UDP datagram.
pub fn asked_by_udp(datagram: &[u8]) -> Option<Request> {
    Request::from_question(datagram.get(8..)?)
}

/// Source, transport header on, and destination of a packet with an IPv4 header.
pub fn ipv4(packet: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    let header = usize::from(packet.first()? & 15) * 4;
    let addr = |at: usize| -> Option<IpAddr> { Some(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?.into()) };
    Some((addr(12)?, addr(16)?, packet.get(header..)?))
}

/// One arrival of a request in a namespace.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Arrival {
    /// Where it came from, as it was seen there.
    pub source: SocketAddr,
    /// Where it was delivered.
    pub destination: SocketAddr,
    /// Whether its checksum was right, where the kernel does not look at it.
    pub whole: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: Request = Request { flow: 7, number: 2 };

    #[test]
    fn an_answer_is_no_question() {
        assert_eq!(Request::from_question(&REQUEST.question()), Some(REQUEST));
        assert_eq!(Request::from_answer(&REQUEST.answer()), Some(REQUEST));
        assert_eq!(Request::from_question(&REQUEST.answer()), None);
        assert_eq!(Request::from_question(b"FWQ?"), None);
    }

    #[test]
    fn only_a_first_segment_opens_a_flow() {
        let mut segment = [0; 20];
        segment[7] = 9;
        segment[13] = 2;
        assert_eq!(opened_by_tcp(&segment), Some(Request { flow: 9, number: 0 }));
        segment[13] = 18;
        assert_eq!(opened_by_tcp(&segment), None);
        assert_eq!(opened_by_tcp(&segment[..10]), None);
    }

    #[test]
    fn the_transport_header_comes_after_the_options() {
        let mut packet = vec![0; 24];
        packet[0] = 0x46;
        packet[12..16].copy_from_slice(&[10, 0, 0, 1]);
        packet[16..20].copy_from_slice(&[10, 0, 0, 2]);
        packet.extend([1, 2]);
        let (source, destination, rest) = ipv4(&packet).expect("a packet");
        assert_eq!((source, destination), ([10, 0, 0, 1].into(), [10, 0, 0, 2].into()));
        assert_eq!(rest, [1, 2]);
    }
}
