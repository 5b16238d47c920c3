//! Drops, told to the agent one by one, if it asks (`--log-drops`). It switches logging off as it loads the programs
//! otherwise, and the kernel then removes all of this from them.

use aya_ebpf::EbpfContext;
use aya_log_ebpf::warn;
use lb_common::abi::{DropReason, Hook};

/// Tells of a dropped packet. Out of line: what it needs of the stack is not the packet logic's to spare.
#[inline(never)]
pub fn dropped<C: EbpfContext>(ctx: &C, hook: Hook, reason: DropReason) {
    warn!(
        ctx,
        "a packet was dropped: hook {}, reason {}", hook as u8, reason as u8
    );
}
