//! Where it is written down what this node answers for: the maps `ANNOUNCED_V4`, `ANNOUNCED_V6` and `ANNOUNCE_UNTIL`, and
//! the multicast groups in which IPv6 addresses are asked for.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, UdpSocket};

use lb_common::abi::{Addr4, Addr6, Address, Announced, AnnouncedKey, Mac};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tracing::warn;

use crate::datapath::pin::PinDir;
use crate::maps::MapsError;
use crate::maps::bpf::BpfMap;

/// An address on a device.
pub type Key = (IpAddr, u32);

/// The maps and the groups. The programs are silent by themselves once the time in `ANNOUNCE_UNTIL` has passed.
pub struct Place {
    v4: BpfMap<AnnouncedKey<Addr4>, Announced>,
    v6: BpfMap<AnnouncedKey<Addr6>, Announced>,
    until: BpfMap<u32, u64>,
    groups: BTreeMap<Key, UdpSocket>,
}

impl Place {
    /// Opens the maps.
    ///
    /// # Errors
    /// If one is not there or has another layout.
    pub fn open(pins: &PinDir) -> Result<Self, MapsError> {
        Ok(Self {
            v4: BpfMap::open(pins, "ANNOUNCED_V4")?,
            v6: BpfMap::open(pins, "ANNOUNCED_V6")?,
            until: BpfMap::open(pins, "ANNOUNCE_UNTIL")?,
            groups: BTreeMap::new(),
        })
    }

    /// Answers are given until then, nanoseconds since the machine was started; 0: none are.
    ///
    /// # Errors
    /// If the map cannot be written.
    pub fn until(&self, ns: u64) -> Result<(), MapsError> {
        self.until.set(&0, &ns)
    }

    /// Has requests for an address on a device answered with this link address.
    ///
    /// # Errors
    /// If the map cannot be written, or is full.
    pub fn put(&mut self, (addr, ifindex): Key, mac: Mac) -> Result<(), MapsError> {
        let announced = Announced { mac, pad: [0; 2] };
        match addr {
            IpAddr::V4(addr) => {
                let addr = addr.into();
                self.v4.set(&AnnouncedKey { addr, ifindex }, &announced)
            }
            IpAddr::V6(addr) => {
                self.join(addr, ifindex);
                let addr = addr.into();
                self.v6.set(&AnnouncedKey { addr, ifindex }, &announced)
            }
        }
    }

    /// Answers for it no more.
    ///
    /// # Errors
    /// If the map cannot be written.
    pub fn remove(&mut self, (addr, ifindex): Key) -> Result<(), MapsError> {
        self.groups.remove(&(addr, ifindex));
        match addr {
            IpAddr::V4(addr) => {
                let addr = addr.into();
                self.v4.remove(&AnnouncedKey { addr, ifindex }).map(drop)
            }
            IpAddr::V6(addr) => {
                let addr = addr.into();
                self.v6.remove(&AnnouncedKey { addr, ifindex }).map(drop)
            }
        }
    }

    /// All that the maps hold.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn entries(&self) -> Result<BTreeMap<Key, Mac>, MapsError> {
        fn add<A: Address>(all: &mut BTreeMap<Key, Mac>, chunk: &[(AnnouncedKey<A>, Announced)]) {
            all.extend(
                chunk
                    .iter()
                    .map(|(key, value)| ((key.addr.into(), key.ifindex), value.mac)),
            );
        }
        let mut all = BTreeMap::new();
        self.v4.walk(|chunk| add(&mut all, chunk))?;
        self.v6.walk(|chunk| add(&mut all, chunk))?;
        Ok(all)
    }

    /// Devices and switches pass a question on to those only that listen to its group.
    fn join(&mut self, addr: Ipv6Addr, ifindex: u32) {
        let key = (IpAddr::V6(addr), ifindex);
        if self.groups.contains_key(&key) {
            return;
        }
        match listen(group_of(addr), ifindex) {
            Ok(socket) => {
                self.groups.insert(key, socket);
            }
            Err(error) => {
                warn!(%addr, ifindex, %error, "its multicast group cannot be joined: some devices and switches will not pass questions for it on");
            }
        }
    }
}

/// The group in which those listen who may have this address (RFC 4291 section 2.7.1).
fn group_of(addr: Ipv6Addr) -> Ipv6Addr {
    let [.., x, y, z] = addr.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, x, y, z])
}

/// Listens to a group as long as the socket is open. It is bound to no port, and so hears nothing itself.
fn listen(group: Ipv6Addr, ifindex: u32) -> io::Result<UdpSocket> {
    let socket = socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let socket = UdpSocket::from(socket);
    socket.join_multicast_v6(&group, ifindex)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_has_the_last_bytes_of_the_address() {
        let group = |text: &str| group_of(text.parse().expect("an address")).to_string();
        assert_eq!(group("2001:db8::1:2345"), "ff02::1:ff01:2345");
    }
}
