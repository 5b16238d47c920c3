//! Addresses that this node announces on its local networks: it answers ARP and NDP for them.
//!
//! No device of the node has such an address, so the kernel would never answer; see [`crate::datapath::announce`].

use super::{Addr4, Addr6, Mac};

/// Key of `ANNOUNCED`: an address, on the network that a device leads to.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct AnnouncedKey<A> {
    /// The address.
    pub addr: A,
    /// Index of the device.
    pub ifindex: u32,
}

/// Value of `ANNOUNCED`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Announced {
    /// The link address that is told: the device's own.
    pub mac: Mac,
    /// Zero.
    pub pad: [u8; 2],
}

const _: () = {
    assert!(size_of::<AnnouncedKey<Addr4>>() == 8 && size_of::<AnnouncedKey<Addr6>>() == 20);
    assert!(size_of::<Announced>() == 8);
};
