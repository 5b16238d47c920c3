//! Fragments. Of a datagram that is sent in several the first alone has ports: they are noted for the others, which then
//! go the same way, each as it comes. Nothing is put together, so a fragment that overtakes the first one passes as it
//! came, as do those at XDP, which leaves fragments to TC.

use super::parse::Headers;
use crate::abi::{DatagramKey, DatagramPorts, Direction, Family, Hook};
use crate::env::{Draft, Env, Packet, Tables};
use crate::hash;
use crate::wire::{Fragment, Ipv4};

/// Where in a datagram a packet belongs.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Part {
    /// It is all of it.
    #[default]
    Whole,
    /// It is the beginning, with the transport header.
    First,
    /// It is something after that.
    Rest,
}

/// What of which datagram a packet is.
#[derive(Clone, Copy, Default, Debug)]
pub struct Piece {
    /// Where in it.
    pub part: Part,
    /// The sender's number for it; 0 for what is not in fragments.
    pub id: u32,
}

impl Piece {
    #[inline(always)]
    fn new(offset: u16, more: bool, id: u32) -> Self {
        match (offset, more) {
            (0, false) => Self::default(),
            (0, true) => Self { part: Part::First, id },
            _ => Self { part: Part::Rest, id },
        }
    }

    /// As the IPv4 header has it.
    #[inline(always)]
    pub(super) fn v4(ip: &Ipv4) -> Self {
        let fragment = ip.fragment.get();
        Self::new(fragment & 0x1fff, fragment & 0x2000 != 0, u32::from(ip.id.get()))
    }

    /// As the fragment header of IPv6 has it.
    #[inline(always)]
    pub(super) fn v6(header: &Fragment) -> Self {
        let offset = header.offset.get();
        let id = u32::from(header.id_high.get()) << 16 | u32::from(header.id_low.get());
        Self::new(offset >> 3, offset & 1 != 0, id)
    }
}

/// Notes the ports of a first fragment, or finds those of another. Nothing is returned where there are none: it passes.
#[inline(always)]
pub(super) fn complete<F: Family, P: Packet, E: Env + Tables<F>>(
    env: &E,
    direction: Direction,
    headers: &mut Headers<F>,
    draft: &mut Draft<F::Addr>,
) -> Option<()> {
    if matches!(P::HOOK, Hook::Xdp) {
        return None;
    }
    draft.datagram = DatagramKey {
        src: headers.src,
        dst: headers.dst,
        id: headers.piece.id,
        protocol: headers.protocol,
        direction: direction as u8,
        pad: [0; 2],
    };
    if headers.piece.part == Part::Rest {
        let ports = Tables::<F>::datagram(env, &draft.datagram)?;
        (headers.src_port, headers.dst_port) = (ports.src, ports.dst);
        return Some(());
    }
    // Only where one of its addresses could make it ours.
    let from = env.address_class(hash::filter_bucket(&headers.src));
    let to = env.address_class(hash::filter_bucket(&headers.dst));
    if from | to != 0 {
        let ports = DatagramPorts {
            src: headers.src_port,
            dst: headers.dst_port,
        };
        Tables::<F>::note_datagram(env, &draft.datagram, &ports);
    }
    Some(())
}
