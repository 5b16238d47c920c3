//! What the kernel programs and the agent share: the layouts of the maps and the packet logic itself.
//!
//! Everything here is `no_std`, safe, and generic over a small environment ([`env`]), so that the very same
//! functions run in three places: in the kernel (`lb-ebpf` implements the environment on BPF maps), in tests
//! on the host (the `testing` feature implements it on ordinary collections), and in the command line.
//!
//! Start reading at [`datapath`]: it is the whole path of a packet on one page.
#![no_std]
#![forbid(unsafe_code)]
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic,
    clippy::expect_used
)]

#[cfg(any(test, feature = "testing"))]
extern crate std;

pub mod abi;
pub mod checksum;
pub mod crc32c;
pub mod datapath;
pub mod env;
pub mod hash;
#[cfg(feature = "testing")]
pub mod testing;
pub mod wire;
