//! Telling the network where an address is now, unasked: gratuitous ARP (RFC 5227 section 3) and unsolicited neighbour
//! advertisements (RFC 4861 section 7.2.6).
//!
//! Those who know the address from before have the link address of another node. They are told several times, since
//! nobody answers to it and frames get lost.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use lb_common::abi::Mac;

use crate::sys;

/// When it is told, counted from the first time.
const TIMES: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_secs(1),
    Duration::from_secs(3),
];

/// An address that is being told of on a device.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Telling {
    addr: IpAddr,
    ifindex: u32,
    mac: Mac,
    began: Instant,
    times: usize,
}

impl Telling {
    fn due(&self) -> Option<Instant> {
        TIMES.get(self.times).map(|after| self.began + *after)
    }
}

/// All that are being told of.
#[derive(Debug, Default)]
pub struct Tellings(Vec<Telling>);

impl Tellings {
    /// Begins to tell of an address on a device, from now on.
    pub fn begin(&mut self, addr: IpAddr, ifindex: u32, mac: Mac, now: Instant) {
        self.end(addr, ifindex);
        self.0.push(Telling {
            addr,
            ifindex,
            mac,
            began: now,
            times: 0,
        });
    }

    /// Tells of it no more.
    pub fn end(&mut self, addr: IpAddr, ifindex: u32) {
        self.0
            .retain(|telling| (telling.addr, telling.ifindex) != (addr, ifindex));
    }

    /// When something is to be told next.
    pub fn next(&self) -> Option<Instant> {
        self.0.iter().filter_map(Telling::due).min()
    }

    /// Tells what is due by now.
    ///
    /// # Errors
    /// If a frame cannot be sent: the last such error. Everything else is told.
    pub fn tell(&mut self, now: Instant) -> io::Result<()> {
        let mut result = Ok(());
        for telling in &mut self.0 {
            if telling.due().is_none_or(|due| due > now) {
                continue;
            }
            telling.times += 1;
            for frame in frames(telling.addr, telling.mac) {
                if let Err(error) = sys::send_frame(telling.ifindex, &frame) {
                    result = Err(error);
                }
            }
        }
        self.0.retain(|telling| telling.due().is_some());
        result
    }
}

/// The frames that tell of an address: of ARP both forms, since some listen to one and some to the other.
fn frames(addr: IpAddr, mac: Mac) -> Vec<Vec<u8>> {
    match addr {
        IpAddr::V4(addr) => vec![arp(addr, mac, 1), arp(addr, mac, 2)],
        IpAddr::V6(addr) => vec![advertisement(addr, mac)],
    }
}

fn arp(addr: Ipv4Addr, mac: Mac, operation: u8) -> Vec<u8> {
    const BROADCAST: [u8; 6] = [0xff; 6];
    let target = if operation == 1 { [0; 6] } else { BROADCAST };
    let mut frame = [&BROADCAST, &mac.0[..], &[8, 6, 0, 1, 8, 0, 6, 4, 0, operation]].concat();
    frame.extend([&mac.0[..], &addr.octets(), &target, &addr.octets()].concat());
    // Shorter frames are padded by some drivers only.
    frame.resize(60, 0);
    frame
}

fn advertisement(addr: Ipv6Addr, mac: Mac) -> Vec<u8> {
    const OVERRIDE: u8 = 0x20;
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let mut message = [&[136, 0, 0, 0, OVERRIDE, 0, 0, 0][..], &addr.octets(), &[2, 1], &mac.0].concat();
    let len = u8::try_from(message.len()).unwrap_or(u8::MAX);
    let ends = [addr.octets(), all_nodes.octets()].concat();
    let pseudo = [&ends[..], &[0, 0, 0, len, 0, 0, 0, 58], &message].concat();
    message[2..4].copy_from_slice(&checksum(&pseudo).to_be_bytes());
    let mut frame = [&[0x33, 0x33, 0, 0, 0, 1][..], &mac.0, &[0x86, 0xdd]].concat();
    frame.extend([0x60, 0, 0, 0, 0, len, 58, 255]);
    frame.extend(ends);
    frame.extend(message);
    frame
}

/// The internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use etherparse::{ArpPacketSlice, Icmpv6Slice, Ipv6HeaderSlice};

    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 7]);

    #[test]
    fn gratuitous_arp_is_about_its_own_sender() {
        for frame in frames("192.0.2.10".parse().expect("an address"), MAC) {
            assert_eq!((&frame[..6], &frame[6..12]), (&[0xff; 6][..], &MAC.0[..]));
            let arp = ArpPacketSlice::from_slice(&frame[14..]).expect("it is ARP");
            assert_eq!(arp.sender_hw_addr(), MAC.0);
            assert_eq!(arp.sender_protocol_addr(), [192, 0, 2, 10]);
            assert_eq!(arp.target_protocol_addr(), [192, 0, 2, 10]);
        }
    }

    #[test]
    fn an_unsolicited_advertisement_is_sound_and_overrides() {
        let addr: Ipv6Addr = "2001:db8::10".parse().expect("an address");
        let frames = frames(addr.into(), MAC);
        let frame = &frames[0];
        let ip = Ipv6HeaderSlice::from_slice(&frame[14..]).expect("it is IPv6");
        assert_eq!((ip.hop_limit(), ip.source_addr()), (255, addr));
        assert_eq!(ip.payload_length() as usize, frame.len() - 14 - 40);
        let message = Icmpv6Slice::from_slice(&frame[14 + 40..]).expect("it is ICMPv6");
        assert!(message.is_checksum_valid(ip.source(), ip.destination()));
        assert_eq!((message.type_u8(), frame[14 + 40 + 4]), (136, 0x20));
        assert_eq!(frame[frame.len() - 8..], [&[2, 1], &MAC.0[..]].concat());
    }

    #[test]
    fn it_is_told_four_times_and_no_more_of_what_has_ended() {
        let mut tellings = Tellings::default();
        let began = Instant::now();
        let addr = "192.0.2.10".parse().expect("an address");
        tellings.begin(addr, u32::MAX, MAC, began);
        let mut times = Vec::new();
        while let Some(next) = tellings.next() {
            times.push((next - began).as_millis());
            // There is no such device, and often no right to send: that ends nothing.
            tellings.tell(next).expect_err("nothing can be sent there");
        }
        assert_eq!(times, [0, 100, 1000, 3000]);
        tellings.begin(addr, 3, MAC, began);
        tellings.end(addr, 3);
        assert_eq!(tellings.next(), None);
    }
}
