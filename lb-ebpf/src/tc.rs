//! A packet as TC sees it: an skb, whose checksums may be partial or complete, whose data may lie in pages, and
//! which may be many packets in one (GSO). All writes therefore go through the kernel's helpers.

use aya_ebpf::bindings::{
    __sk_buff, BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM, TC_ACT_SHOT, TC_ACT_UNSPEC,
    bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
};
use aya_ebpf::helpers::generated::{
    bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_skb_adjust_room,
    bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes,
};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use core::mem::MaybeUninit;
use lb_common::abi::{Address, Hook, Port, protocol};
use lb_common::checksum::Delta;
use lb_common::datapath::{self, Ip, Translation, Verdict};
use lb_common::env::Packet;
use lb_common::wire::{Be16, Ethernet, Wire};

use crate::env::Kernel;
use crate::log;
use crate::maps::launder;

/// `BPF_F_IPV6` of `bpf_l4_csum_replace`: since Linux 6.16 it keeps the sum beside the packet right when IPv6
/// addresses change, which no header checksum makes up for. Older kernels refuse it.
const BPF_F_IPV6: u64 = 1 << 7;

/// See `xdp::FARTHEST`.
const FARTHEST: u32 = 0x7ff;

/// A packet at a TC hook: ingress or egress, of a device with Ethernet headers or without.
pub struct TcPacket<const EGRESS: bool, const ETHERNET: bool> {
    skb: *mut __sk_buff,
    aim: u32,
}

impl<const EGRESS: bool, const ETHERNET: bool> TcPacket<EGRESS, ETHERNET> {
    /// Offset of the IP header when there are no tags.
    const L3: u32 = if ETHERNET { size_of::<Ethernet>() as u32 } else { 0 };

    #[inline(always)]
    fn store_bytes<T>(&mut self, at: u32, value: &T, flags: u64) -> Option<()> {
        // SAFETY: the helper checks the bounds of the packet; `value` is readable for its size.
        let code = unsafe {
            bpf_skb_store_bytes(
                self.skb,
                at,
                core::ptr::from_ref(value).cast(),
                size_of::<T>() as u32,
                flags,
            )
        };
        if code == 0 { Some(()) } else { None }
    }

    /// Brings a transport checksum in line with a change of addresses.
    #[inline(always)]
    fn check_addresses<F: Ip>(&mut self, t: &Translation<'_, F>, delta: Delta) -> Option<()> {
        let flags = u64::from(BPF_F_PSEUDO_HDR) | mangled(t);
        let sum = u64::from(delta.sum());
        // SAFETY: the helper checks the bounds of the packet.
        let replace = |flags| unsafe { bpf_l4_csum_replace(self.skb, t.check_offset(), 0, sum, flags) };
        if F::IS_V6 && replace(flags | BPF_F_IPV6) == 0 {
            return Some(());
        }
        if replace(flags) == 0 { Some(()) } else { None }
    }

    /// Brings a transport checksum in line with a change of ports.
    #[inline(always)]
    fn check_ports<F: Ip>(&mut self, t: &Translation<'_, F>, delta: Delta) -> Option<()> {
        // SAFETY: the helper checks the bounds of the packet.
        let code = unsafe { bpf_l4_csum_replace(self.skb, t.check_offset(), 0, u64::from(delta.sum()), mangled(t)) };
        if code == 0 { Some(()) } else { None }
    }
}

/// UDP: no checksum stays none, and a sum of zero becomes all ones.
#[inline(always)]
fn mangled<F: Ip>(t: &Translation<'_, F>) -> u64 {
    if t.headers.protocol == protocol::UDP {
        u64::from(BPF_F_MARK_MANGLED_0)
    } else {
        0
    }
}

impl<const EGRESS: bool, const ETHERNET: bool> Packet for TcPacket<EGRESS, ETHERNET> {
    const HOOK: Hook = if EGRESS { Hook::Egress } else { Hook::Ingress };
    const ETHERNET: bool = ETHERNET;

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the kernel gives a valid context, and its fields are plain numbers.
        unsafe { (*self.skb).ifindex }
    }

    #[inline(always)]
    fn aim(&mut self, ifindex: u32) {
        self.aim = ifindex;
    }

    #[inline(always)]
    fn launder(&self, number: u32) -> u32 {
        launder(number)
    }

    #[inline(always)]
    fn is_tagged_beside(&self) -> bool {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.skb).vlan_present != 0 }
    }

    #[inline(always)]
    fn ethertype(&self) -> Be16 {
        // SAFETY: as above; the field holds the EtherType in network order.
        Be16::from_raw(unsafe { (*self.skb).protocol } as u16)
    }

    #[inline(always)]
    fn load<T: Wire>(&self, at: u32) -> Option<T> {
        // SAFETY: as in `ifindex`.
        let (data, end) = unsafe { ((*self.skb).data as usize, (*self.skb).data_end as usize) };
        let start = data.wrapping_add((at & FARTHEST) as usize);
        if start.wrapping_add(size_of::<T>()) <= end {
            // SAFETY: in bounds, and any bytes are a `T`; unaligned loads are allowed on this target.
            return Some(unsafe { (start as *const T).read() });
        }
        // The header lies in pages, not in the linear part.
        let mut header = MaybeUninit::<T>::uninit();
        // SAFETY: `header` is writable for its size; the helper checks the bounds of the packet.
        let code =
            unsafe { bpf_skb_load_bytes(self.skb.cast(), at, header.as_mut_ptr().cast(), size_of::<T>() as u32) };
        if code == 0 {
            // SAFETY: the helper has filled it, and any bytes are a `T`.
            Some(unsafe { header.assume_init() })
        } else {
            None
        }
    }

    #[inline(always)]
    fn store<T: Wire>(&mut self, at: u32, header: &T) -> Option<()> {
        self.store_bytes(at, header, 0)
    }

    #[inline(always)]
    fn translate<F: Ip>(&mut self, t: &Translation<'_, F>) -> Option<()> {
        let h = t.headers;
        let (src, dst) = t.halves();
        let addresses = Delta::default().address(&h.src, &src.0).address(&h.dst, &dst.0);
        let addresses_at = if F::IS_V6 { 8 } else { 12 };
        if h.src != src.0 || h.dst != dst.0 {
            if !F::IS_V6 {
                // SAFETY: the helper checks the bounds of the packet.
                let code =
                    unsafe { bpf_l3_csum_replace(self.skb, h.l3.wrapping_add(10), 0, u64::from(addresses.sum()), 0) };
                if code != 0 {
                    return None;
                }
            }
            if !t.unchecked() {
                self.check_addresses(t, addresses)?;
            }
            // The sum beside the packet: in IPv4 the header's own checksum makes up for it, in IPv6 nothing does.
            let flags = if F::IS_V6 && t.headless() {
                u64::from(BPF_F_RECOMPUTE_CSUM)
            } else {
                0
            };
            self.store_bytes(h.l3.wrapping_add(addresses_at), &[src.0, dst.0], flags)?;
        }
        if t.headless() {
            return Some(());
        }
        if h.src_port != src.1 || h.dst_port != dst.1 {
            if h.protocol == protocol::SCTP {
                return datapath::rewrite::sctp(self, t);
            }
            if !t.unchecked() {
                self.check_ports(t, Delta::default().port(h.src_port, src.1).port(h.dst_port, dst.1))?;
            }
            self.store_bytes::<[Port; 2]>(h.l4, &[src.1, dst.1], 0)?;
        }
        Some(())
    }

    #[inline(always)]
    fn open(&mut self, keep: u32, room: u32) -> Option<()> {
        // SAFETY: both helpers check what they are asked for.
        let code = unsafe { bpf_skb_change_tail(self.skb, Self::L3.wrapping_add(keep), 0) };
        if code != 0 {
            return None;
        }
        // SAFETY: as above.
        let code = unsafe { bpf_skb_adjust_room(self.skb, room as i32, BPF_ADJ_ROOM_MAC, 0) };
        if code == 0 { Some(()) } else { None }
    }

    #[inline(always)]
    fn resize(&mut self, len: u32) -> Option<()> {
        // SAFETY: the helper checks what it is asked for.
        let code = unsafe { bpf_skb_change_tail(self.skb, len, 0) };
        if code == 0 { Some(()) } else { None }
    }
}

/// Packets go on to the next program of the hook, if there is one, and then their way.
#[inline(always)]
fn act<const EGRESS: bool>(verdict: Verdict, own: u32, aim: u32) -> i32 {
    let (ifindex, flags) = match verdict {
        Verdict::Pass => return TC_ACT_UNSPEC,
        Verdict::Drop(_) => return TC_ACT_SHOT,
        Verdict::Reflect if !EGRESS => (own, 0),
        Verdict::Reflect => (own, u64::from(BPF_F_INGRESS)),
        Verdict::Deliver => (aim, u64::from(BPF_F_INGRESS)),
        Verdict::Output => {
            // SAFETY: without parameters, the helper routes by the packet's own destination.
            return unsafe { bpf_redirect_neigh(aim, core::ptr::null_mut(), 0, 0) } as i32;
        }
    };
    // SAFETY: the helper notes the device for the kernel to act on, and returns TC_ACT_REDIRECT.
    (unsafe { bpf_redirect(ifindex, flags) }) as i32
}

#[inline(always)]
fn run<const EGRESS: bool, const ETHERNET: bool>(ctx: &TcContext) -> i32 {
    let mut packet = TcPacket::<EGRESS, ETHERNET> {
        skb: ctx.skb.skb,
        aim: 0,
    };
    let verdict = datapath::run(&mut packet, &Kernel);
    if let Verdict::Drop(reason) = verdict {
        log::dropped(ctx, TcPacket::<EGRESS, ETHERNET>::HOOK, reason);
    }
    act::<EGRESS>(verdict, packet.ifindex(), packet.aim)
}

/// Into the node by a device with Ethernet headers.
#[classifier]
fn fairway_ingress(ctx: TcContext) -> i32 {
    run::<false, true>(&ctx)
}

/// Out of the node by a device with Ethernet headers.
#[classifier]
fn fairway_egress(ctx: TcContext) -> i32 {
    run::<true, true>(&ctx)
}

/// Into the node by a device without link headers.
#[classifier]
fn fairway_ingress_l3(ctx: TcContext) -> i32 {
    run::<false, false>(&ctx)
}

/// Out of the node by a device without link headers.
#[classifier]
fn fairway_egress_l3(ctx: TcContext) -> i32 {
    run::<true, false>(&ctx)
}

/// An array of two addresses lies in memory as the header has it.
const _: () = {
    const fn fits<A: Address>() -> bool {
        size_of::<[A; 2]>() == 2 * size_of::<A>()
    }
    assert!(fits::<lb_common::abi::Addr4>() && fits::<lb_common::abi::Addr6>());
};
