//! Fairway's kernel programs.
//!
//! Entry points only: what happens to a packet is written in `lb_common::datapath`, and read there on one page.
//!
//! | file | what is in it |
//! | --- | --- |
//! | `maps.rs` | the maps |
//! | `env.rs` | the packet logic's environment on those maps |
//! | `xdp.rs`, `tc.rs` | a packet, as XDP and TC see it, and the programs |
//! | `socket.rs` | the programs for sockets |
//! | `log.rs` | drops, told to the agent |
#![no_std]
#![no_main]
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic,
    clippy::expect_used
)]
#![expect(
    clippy::needless_pass_by_value,
    reason = "the macros of the entry points ask for contexts by value"
)]

mod env;
mod log;
mod maps;
mod socket;
mod tc;
mod xdp;

/// Never reached: nothing here can panic, which `cargo xtask lint` checks in the object.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The helpers that these programs call are for GPL programs; see LICENSE-GPL-2.0.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
