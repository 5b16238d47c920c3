//! New addresses and ports, with every checksum that covers them.

use super::fragment::Part;
use super::parse::{Headers, Ip};
use crate::abi::{Family, Mac, Port, protocol};
use crate::checksum::Delta;
use crate::crc32c;
use crate::env::Packet;
use crate::wire::{Be16, Sctp, TCP_CHECK_OFFSET, Tcp, UDP_CHECK_OFFSET, Udp};

/// A change of a packet's tuple.
#[derive(Clone, Copy, Debug)]
pub struct Translation<'a, F: Family> {
    /// The packet as it is.
    pub headers: &'a Headers<F>,
    /// New source; none where it stays.
    pub src: Option<(F::Addr, Port)>,
    /// New destination; none where it stays.
    pub dst: Option<(F::Addr, Port)>,
    /// Hops taken off, which must be left: one where we forward.
    pub hops: u8,
}

impl<'a, F: Family> Translation<'a, F> {
    /// No change yet.
    #[inline(always)]
    pub fn of(headers: &'a Headers<F>) -> Self {
        Self {
            headers,
            src: None,
            dst: None,
            hops: 0,
        }
    }

    /// Source and destination afterwards.
    #[inline(always)]
    pub fn halves(&self) -> ((F::Addr, Port), (F::Addr, Port)) {
        let h = self.headers;
        (
            self.src.unwrap_or((h.src, h.src_port)),
            self.dst.unwrap_or((h.dst, h.dst_port)),
        )
    }

    /// Addresses afterwards, of these before.
    #[inline(always)]
    pub(super) fn addresses(&self, src: F::Addr, dst: F::Addr) -> (F::Addr, F::Addr) {
        (
            self.src.map_or(src, |(addr, _)| addr),
            self.dst.map_or(dst, |(addr, _)| addr),
        )
    }

    /// Changes these ports. Returns the change of a checksum that covers the addresses, too.
    #[inline(always)]
    fn ports(&self, src: &mut Port, dst: &mut Port, addresses: Delta) -> Delta {
        let new_src = self.src.map_or(*src, |(_, port)| port);
        let new_dst = self.dst.map_or(*dst, |(_, port)| port);
        let delta = addresses.port(*src, new_src).port(*dst, new_dst);
        (*src, *dst) = (new_src, new_dst);
        delta
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

    /// Whether the packet has no transport header, as a fragment that is not the first: nothing but addresses changes.
    #[inline(always)]
    pub fn headless(&self) -> bool {
        self.headers.piece.part == Part::Rest
    }

    /// Whether the packet has no transport checksum of the internet's kind to keep right.
    #[inline(always)]
    pub fn unchecked(&self) -> bool {
        self.headless() || self.headers.protocol != protocol::TCP && self.headers.check.raw() == 0
    }
}

/// Translates a packet whose checksums are complete, by writing to it: XDP, and the host.
///
/// What is replaced is read again from the packet: kept from before the lookups, it would have to go by the kernel's
/// stack. (In TC checksums may be partial, to be finished by a device, or kept as a sum beside the packet: only the
/// kernel's helpers know.)
#[inline(always)]
pub fn direct<F: Ip, P: Packet>(packet: &mut P, t: &Translation<'_, F>) -> Option<()> {
    let addresses = F::rewrite(packet, t)?;
    if t.headless() {
        return Some(());
    }
    if t.headers.protocol == protocol::TCP {
        packet.update(t.headers.l4, |tcp: &mut Tcp| {
            tcp.check = t.ports(&mut tcp.src, &mut tcp.dst, addresses).apply(tcp.check);
        })
    } else if t.headers.protocol == protocol::UDP {
        packet.update(t.headers.l4, |udp: &mut Udp| {
            udp.check = t.ports(&mut udp.src, &mut udp.dst, addresses).apply_udp(udp.check);
        })
    } else {
        sctp(packet, t)
    }
}

/// Changes the ports of an SCTP packet, and the checksum with them, which covers no addresses.
#[inline(always)]
pub fn sctp<F: Ip, P: Packet>(packet: &mut P, t: &Translation<'_, F>) -> Option<()> {
    let h = t.headers;
    let len = F::extent(packet, h)?.len.wrapping_sub(h.l4.wrapping_sub(h.l3));
    let ((_, src), (_, dst)) = t.halves();
    sctp_apart(packet, h.l4, len, src, dst)
}

/// As a function of its own, for which the kernel's stack has room.
#[inline(never)]
fn sctp_apart<P: Packet>(packet: &mut P, l4: u32, len: u32, src: Port, dst: Port) -> Option<()> {
    packet.update(l4, |sctp: &mut Sctp| {
        let before = sctp.ports();
        (sctp.src, sctp.dst) = (src, dst);
        sctp.check = crc32c::after(sctp.check, before ^ sctp.ports(), len);
    })
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
