//! A packet as XDP sees it: memory between two pointers, complete checksums.

use aya_ebpf::bindings::{xdp_action, xdp_md};
use aya_ebpf::helpers::generated::bpf_jiffies64;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use lb_common::abi::Hook;
use lb_common::datapath::{self, Ip, Translation, Verdict};
use lb_common::env::Packet;
use lb_common::wire::{Be16, Wire};

use crate::env::Kernel;
use crate::log;
use crate::maps::{CLOCK, launder};

/// No header that we look for begins beyond this byte. A constant bound on offsets is what the verifier asks for.
const FARTHEST: u32 = 0x7ff;

/// A packet at the XDP hook.
pub struct XdpPacket {
    ctx: *mut xdp_md,
}

impl XdpPacket {
    /// Where a header of `T` at byte `at` lies, if the packet holds all of it.
    #[inline(always)]
    fn at<T>(&self, at: u32) -> Option<*mut T> {
        // SAFETY: the kernel gives a valid context, and its fields are plain numbers.
        let (data, end) = unsafe { ((*self.ctx).data as usize, (*self.ctx).data_end as usize) };
        let start = data.wrapping_add((at & FARTHEST) as usize);
        if start.wrapping_add(size_of::<T>()) > end {
            None
        } else {
            Some(start as *mut T)
        }
    }
}

impl Packet for XdpPacket {
    const HOOK: Hook = Hook::Xdp;
    const ETHERNET: bool = true;

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: as in `at`.
        unsafe { (*self.ctx).ingress_ifindex }
    }

    #[inline(always)]
    fn aim(&mut self, _ifindex: u32) {} // No such verdict in XDP.

    #[inline(always)]
    fn launder(&self, number: u32) -> u32 {
        launder(number)
    }

    #[inline(always)]
    fn is_tagged_beside(&self) -> bool {
        false // Drivers that strip tags do not tell programs of this kind.
    }

    #[inline(always)]
    fn ethertype(&self) -> Be16 {
        Be16::default()
    }

    #[inline(always)]
    fn load<T: Wire>(&self, at: u32) -> Option<T> {
        // SAFETY: in bounds, and any bytes are a `T`. It may be unaligned, which loads on this target may be: a
        // byte-wise read, which would be right everywhere, costs a multiple.
        self.at::<T>(at).map(|header| unsafe { header.read() })
    }

    #[inline(always)]
    fn store<T: Wire>(&mut self, at: u32, header: &T) -> Option<()> {
        // SAFETY: as in `load`.
        self.at::<T>(at).map(|place| unsafe { place.write(*header) })
    }

    #[inline(always)]
    fn translate<F: Ip>(&mut self, translation: &Translation<'_, F>) -> Option<()> {
        datapath::rewrite::direct(self, translation)
    }

    #[inline(always)]
    fn open(&mut self, _keep: u32, _room: u32) -> Option<()> {
        None // ICMP messages are made in TC.
    }

    #[inline(always)]
    fn resize(&mut self, _len: u32) -> Option<()> {
        None // Addresses are announced in TC.
    }
}

/// Translates what comes in by an uplink, and sends it on where the next hop is known.
#[xdp]
fn fairway_xdp(ctx: XdpContext) -> u32 {
    match datapath::run(&mut XdpPacket { ctx: ctx.ctx }, &Kernel) {
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::Reflect => xdp_action::XDP_TX,
        Verdict::Drop(reason) => {
            log::dropped(&ctx, Hook::Xdp, reason);
            xdp_action::XDP_DROP
        }
        // Verdicts of TC.
        Verdict::Deliver | Verdict::Output => xdp_action::XDP_DROP,
    }
}

/// Tells jiffies, which no system call does. The agent runs it by BPF_PROG_TEST_RUN; it is attached nowhere.
#[xdp]
fn fairway_clock(_ctx: XdpContext) -> u32 {
    if let Some(clock) = CLOCK.get_ptr_mut(0) {
        // SAFETY: the value is one number, and the helper takes nothing.
        unsafe { *clock = bpf_jiffies64() };
    }
    xdp_action::XDP_PASS
}
