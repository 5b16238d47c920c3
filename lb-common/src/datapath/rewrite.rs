//! New addresses and ports, with every checksum that covers them.

use super::parse::{Headers, Ip};
use crate::abi::{Family, Mac, Port, protocol};
use crate::checksum::Delta;
use crate::env::Packet;
use crate::wire::{Be16, TCP_CHECK_OFFSET, UDP_CHECK_OFFSET};

/// A change of a packet's tuple.
#[derive(Clone, Copy, Debug)]
pub struct Translation<'a, F: Family> {
    /// The packet as it is.
    pub headers: &'a Headers<F>,
    /// New source.
    pub src: (F::Addr, Port),
    /// New destination.
    pub dst: (F::Addr, Port),
    /// Hops left afterwards: one less where we forward, which only XDP does.
    pub ttl: u8,
}

impl<'a, F: Family> Translation<'a, F> {
    /// No change yet.
    #[inline(always)]
    pub fn of(headers: &'a Headers<F>) -> Self {
        Self {
            headers,
            src: (headers.src, headers.src_port),
            dst: (headers.dst, headers.dst_port),
            ttl: headers.ttl,
        }
    }

    /// Offset of the transport checksum in the packet.
    #[inline(always)]
    pub fn check_offset(&self) -> u32 {
        let within = if self.headers.protocol == protocol::TCP {
            TCP_CHECK_OFFSET
        } else {
            UDP_CHECK_OFFSET
        };
        self.headers.l4.wrapping_add(within)
    }

    /// Whether the packet has no transport checksum to keep right.
    #[inline(always)]
    pub fn unchecked(&self) -> bool {
        self.headers.protocol == protocol::UDP && self.headers.check.raw() == 0
    }
}

/// Both ports, as all transport headers begin.
#[repr(C)]
#[derive(Clone, Copy, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
struct Ports {
    src: Port,
    dst: Port,
}

/// Translates a packet whose checksums are complete, by writing to it: XDP, and the host.
///
/// (In TC they may be partial, to be finished by a device, or kept as a sum beside the packet: only the kernel's
/// helpers know.)
#[inline(always)]
pub fn direct<F: Ip, P: Packet>(packet: &mut P, t: &Translation<'_, F>) -> Option<()> {
    let h = t.headers;
    let addresses = Delta::default().address(&h.src, &t.src.0).address(&h.dst, &t.dst.0);
    F::write(packet, h, &t.src.0, &t.dst.0, t.ttl, addresses)?;
    packet.store(
        h.l4,
        &Ports {
            src: t.src.1,
            dst: t.dst.1,
        },
    )?;
    let all = addresses.port(h.src_port, t.src.1).port(h.dst_port, t.dst.1);
    // One store for each protocol: a constant offset, so that the bounds check is a comparison.
    if h.protocol == protocol::TCP {
        packet.store(h.l4.wrapping_add(TCP_CHECK_OFFSET), &all.apply(h.check))
    } else {
        packet.store(h.l4.wrapping_add(UDP_CHECK_OFFSET), &all.apply_udp(h.check))
    }
}

/// Addresses a frame to the next hop.
#[inline(always)]
pub fn link<P: Packet>(packet: &mut P, src: Mac, dst: Mac) -> Option<()> {
    packet.store(0, &Macs { dst, src })
}

/// The addresses of an Ethernet header.
#[repr(C)]
#[derive(Clone, Copy, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
pub(super) struct Macs {
    pub(super) dst: Mac,
    pub(super) src: Mac,
}

/// The addresses of the frame, if it has any.
#[inline(always)]
pub(super) fn macs<P: Packet>(packet: &P) -> Option<Macs> {
    if P::ETHERNET { packet.load(0) } else { None }
}

/// The ones' complement sum of `len` bytes (even, at most 128) from byte `at`.
#[inline(always)]
pub(super) fn sum<P: Packet>(packet: &P, at: u32, len: u32) -> Option<u64> {
    let mut total = 0u64;
    for i in 0..64u32 {
        let offset = i.wrapping_mul(2);
        if offset >= len {
            break;
        }
        let word: Be16 = packet.load(at.wrapping_add(offset))?;
        total = total.wrapping_add(u64::from(word.raw()));
    }
    Some(total)
}
