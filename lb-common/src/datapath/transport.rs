//! Transport headers, in bounds.

use super::fragment::{Part, Piece};
use crate::abi::{Port, protocol};
use crate::env::Packet;
use crate::wire::{Be16, Sctp, SctpChunk, Tcp, Udp, sctp_chunk, tcp_flags};

/// Transport header: ports, TCP flags, checksum.
#[derive(Default)]
pub(super) struct Transport {
    /// Source port.
    pub src: Port,
    /// Destination port.
    pub dst: Port,
    /// See [`Headers::tcp_flags`](super::Headers).
    pub tcp_flags: u8,
    /// See [`Headers::check`](super::Headers).
    pub check: Be16,
}

/// The transport header of a protocol that most packets have.
#[inline(always)]
pub(super) fn plain<P: Packet>(packet: &P, protocol: u8, l4: u32) -> Option<Transport> {
    match protocol {
        protocol::TCP => {
            let tcp: Tcp = packet.load(l4)?;
            Some(Transport {
                src: tcp.src,
                dst: tcp.dst,
                tcp_flags: tcp.flags,
                check: tcp.check,
            })
        }
        protocol::UDP => {
            let udp: Udp = packet.load(l4)?;
            Some(Transport {
                src: udp.src,
                dst: udp.dst,
                tcp_flags: 0,
                check: udp.check,
            })
        }
        _ => None,
    }
}

#[inline(always)]
fn any<P: Packet>(packet: &P, protocol: u8, l4: u32) -> Option<Transport> {
    if protocol != protocol::SCTP {
        return plain(packet, protocol, l4);
    }
    let sctp: Sctp = packet.load(l4)?;
    let first: Option<SctpChunk> = packet.load(l4.wrapping_add(size_of::<Sctp>() as u32));
    let kind = first.map_or(0, |chunk| chunk.kind);
    Some(Transport {
        src: sctp.src,
        dst: sctp.dst,
        tcp_flags: MEANINGS.get(usize::from(kind)).copied().unwrap_or(0),
        check: Be16::default(),
    })
}

/// The transport header of a packet or of a first fragment; the rest of a datagram has none. SCTP's checksum cannot be
/// kept right in fragments: it depends on how many bytes there are in all.
#[inline(always)]
pub(super) fn of_piece<P: Packet>(packet: &P, protocol: u8, l4: u32, piece: Piece) -> Option<Transport> {
    match piece.part {
        Part::Whole => any(packet, protocol, l4),
        Part::First => plain(packet, protocol, l4),
        Part::Rest if matches!(protocol, protocol::TCP | protocol::UDP) => Some(Transport::default()),
        Part::Rest => None,
    }
}

/// The flags of TCP that a type of SCTP chunk amounts to. A table, since the verifier would walk the rest of a program
/// once for each flag that it knows to be set.
static MEANINGS: [u8; 256] = meanings();

#[expect(clippy::indexing_slicing, reason = "evaluated by the compiler, which would refuse")]
const fn meanings() -> [u8; 256] {
    let mut meanings = [0; 256];
    meanings[sctp_chunk::INIT as usize] = tcp_flags::SYN;
    meanings[sctp_chunk::SHUTDOWN as usize] = tcp_flags::FIN;
    meanings[sctp_chunk::SHUTDOWN_ACK as usize] = tcp_flags::FIN;
    meanings[sctp_chunk::SHUTDOWN_COMPLETE as usize] = tcp_flags::RST;
    meanings[sctp_chunk::ABORT as usize] = tcp_flags::RST;
    meanings
}

/// Whether it is a protocol that has ports.
#[inline(always)]
pub(super) fn is_ported(next: u8) -> bool {
    next == protocol::TCP || next == protocol::UDP || next == protocol::SCTP
}
