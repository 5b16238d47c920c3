//! Packets in vectors, at each hook.

use core::cell::Cell;
use std::vec::Vec;

use super::{FakeEnv, World};
use crate::abi::Hook;
use crate::datapath::{self, Ip, Translation, Verdict};
use crate::env::Packet;
use crate::wire::{Be16, Wire, ethertype};

/// Index of the device that packets of scenarios pass: that of `lo`, which the kernel gives in test runs.
pub const DEVICE: u32 = 1;

/// A packet at the hook with this number (see [`Hook`]), with an Ethernet header or without.
pub struct FakePacket<const HOOK: u8, const ETHERNET: bool> {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The EtherType, where no header tells it.
    pub ethertype: Be16,
    /// The device.
    pub ifindex: u32,
    /// Loads and stores that reached beyond the packet, and came back with nothing.
    pub beyond: Cell<u32>,
    /// Whether the kernel gives no room for headers.
    pub is_rigid: bool,
    /// The device that the verdict is about, where it is about one; 0 = none was named.
    pub aim: u32,
}

impl<const HOOK: u8, const ETHERNET: bool> FakePacket<HOOK, ETHERNET> {
    /// A packet of these bytes.
    pub fn new(bytes: &[u8], ethertype: Be16) -> Self {
        Self {
            bytes: bytes.to_vec(),
            ethertype,
            ifindex: DEVICE,
            beyond: Cell::new(0),
            is_rigid: false,
            aim: 0,
        }
    }

    fn range<T>(&self, at: u32) -> Option<core::ops::Range<usize>> {
        let start = at as usize;
        let end = start.checked_add(size_of::<T>())?;
        if end > self.bytes.len() {
            self.beyond.set(self.beyond.get() + 1);
            return None;
        }
        Some(start..end)
    }
}

impl<const HOOK: u8, const ETHERNET: bool> Packet for FakePacket<HOOK, ETHERNET> {
    const HOOK: Hook = match HOOK {
        0 => Hook::Xdp,
        1 => Hook::Ingress,
        _ => Hook::Egress,
    };
    const ETHERNET: bool = ETHERNET;

    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    fn aim(&mut self, ifindex: u32) {
        self.aim = ifindex;
    }

    fn is_tagged_beside(&self) -> bool {
        false
    }

    fn ethertype(&self) -> Be16 {
        self.ethertype
    }

    fn load<T: Wire>(&self, at: u32) -> Option<T> {
        let range = self.range::<T>(at)?;
        T::read_from_bytes(self.bytes.get(range)?).ok()
    }

    fn store<T: Wire>(&mut self, at: u32, header: &T) -> Option<()> {
        let range = self.range::<T>(at)?;
        header.write_to(self.bytes.get_mut(range)?).ok()
    }

    fn translate<F: Ip>(&mut self, translation: &Translation<'_, F>) -> Option<()> {
        datapath::rewrite::direct(self, translation)
    }

    /// As `bpf_skb_change_tail` and `bpf_skb_adjust_room` do it: room is made behind the link header proper, and
    /// only for packets that say there that they are IP.
    fn open(&mut self, keep: u32, room: u32) -> Option<()> {
        if HOOK == Hook::Xdp as u8 || self.is_rigid {
            return None;
        }
        let (link, ethertype) = if ETHERNET {
            (14, self.load::<Be16>(12)?)
        } else {
            (0, self.ethertype)
        };
        self.bytes.resize(link + keep as usize, 0);
        if ethertype != ethertype::IPV4 && ethertype != ethertype::IPV6 {
            return None;
        }
        let headers = core::iter::repeat_n(0, room as usize);
        self.bytes.splice(link..link, headers);
        Some(())
    }

    fn resize(&mut self, len: u32) -> Option<()> {
        if HOOK == Hook::Xdp as u8 || self.is_rigid {
            return None;
        }
        self.bytes.resize(len as usize, 0);
        Some(())
    }
}

/// What a run of the packet logic left.
#[derive(Clone, PartialEq, Debug)]
pub struct Ran {
    /// The verdict.
    pub verdict: Verdict,
    /// The packet.
    pub packet: Vec<u8>,
    /// The device that the verdict is about; 0 = none was named.
    pub device: u32,
    /// The maps.
    pub world: World,
}

/// Runs a packet through the packet logic at a hook. `ethertype` is that of a packet without an Ethernet header;
/// with one it is not looked at.
///
/// # Panics
/// At [`Hook::Socket`], which has no packets.
pub fn run(hook: Hook, ethernet: bool, ethertype: Be16, packet: &[u8], world: &World) -> Ran {
    let env = FakeEnv::new(world.clone());
    let (verdict, packet, device) = match (hook, ethernet) {
        (Hook::Xdp, _) => at::<0, true>(packet, ethertype, &env),
        (Hook::Ingress, true) => at::<1, true>(packet, ethertype, &env),
        (Hook::Ingress, false) => at::<1, false>(packet, ethertype, &env),
        (Hook::Egress, true) => at::<2, true>(packet, ethertype, &env),
        (Hook::Egress, false) => at::<2, false>(packet, ethertype, &env),
        (Hook::Socket, _) => panic!("no packet passes the socket hooks"),
    };
    Ran {
        verdict,
        packet,
        device,
        world: env.world(),
    }
}

fn at<const HOOK: u8, const ETHERNET: bool>(bytes: &[u8], ethertype: Be16, env: &FakeEnv) -> (Verdict, Vec<u8>, u32) {
    let mut packet = FakePacket::<HOOK, ETHERNET>::new(bytes, ethertype);
    let verdict = datapath::run(&mut packet, env);
    (verdict, packet.bytes, packet.aim)
}
