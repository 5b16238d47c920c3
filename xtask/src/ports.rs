//! Ports for programs that have to be told where to listen.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

/// Below those that the kernel gives to sockets which ask for any: between the choice of a port and the start of the
/// program that is to listen there, no other connection of this machine takes it.
const FIRST: u16 = 12_000;
const COUNT: u16 = 16_000;

/// An address of loopback with a port that is free, and that nobody else in this process is given.
///
/// # Panics
/// If no port is free.
pub fn free_address() -> SocketAddr {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    // Processes that run side by side begin at different ports.
    let first = std::process::id().wrapping_mul(101);
    (0..COUNT)
        .map(|_| first.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed)) % u32::from(COUNT))
        .filter_map(|number| u16::try_from(number).ok())
        .map(|number| SocketAddr::from((Ipv4Addr::LOCALHOST, FIRST + number)))
        .find(|address| TcpListener::bind(address).is_ok())
        .expect("a port is free")
}
