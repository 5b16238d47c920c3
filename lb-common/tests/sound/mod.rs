//! Packets held against etherparse, a parser and checksums that share nothing with ours.

use etherparse::{IpNumber, IpPayloadSlice, NetSlice, SlicedPacket, TransportSlice};
use lb_common::testing::sums::crc32c;

/// Demands that a frame parses, and that every checksum in it is right.
pub fn assert_sound(bytes: &[u8]) {
    let packet = SlicedPacket::from_ethernet(bytes).unwrap_or_else(|error| panic!("{error}: {bytes:02x?}"));
    let Some(transport) = packet.transport.as_ref() else {
        return assert_sctp_is_sound(
            packet
                .net
                .as_ref()
                .and_then(NetSlice::ip_payload_ref)
                .expect("an IP payload"),
        );
    };
    match packet.net.as_ref().expect("an IP header") {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(
                header.header_checksum,
                header.calc_header_checksum(),
                "IPv4 header checksum"
            );
            let (src, dst) = (ip.header().source(), ip.header().destination());
            match transport {
                TransportSlice::Tcp(tcp) => {
                    assert_eq!(Ok(tcp.checksum()), tcp.calc_checksum_ipv4(src, dst), "TCP checksum");
                }
                TransportSlice::Udp(udp) => {
                    let right = udp.to_header().calc_checksum_ipv4_raw(src, dst, udp.payload());
                    assert_eq!(Ok(udp.checksum()), right, "UDP checksum");
                }
                TransportSlice::Icmpv4(icmp) => {
                    let right = icmp.icmp_type().calc_checksum(icmp.payload());
                    assert_eq!(icmp.checksum(), right, "ICMP checksum");
                }
                other => panic!("{other:?}"),
            }
        }
        NetSlice::Ipv6(ip) => {
            let (src, dst) = (ip.header().source(), ip.header().destination());
            match transport {
                TransportSlice::Tcp(tcp) => {
                    assert_eq!(Ok(tcp.checksum()), tcp.calc_checksum_ipv6(src, dst), "TCP checksum");
                }
                TransportSlice::Udp(udp) => {
                    let right = udp.to_header().calc_checksum_ipv6_raw(src, dst, udp.payload());
                    assert_eq!(Ok(udp.checksum()), right, "UDP checksum");
                }
                TransportSlice::Icmpv6(icmp) => assert!(icmp.is_checksum_valid(src, dst), "ICMPv6 checksum"),
                other => panic!("{other:?}"),
            }
        }
        NetSlice::Arp(arp) => panic!("{arp:?}"),
    }
}

/// The parser knows no SCTP: a header of twelve bytes, and the checksum of the whole in it, over zeros in its place.
fn assert_sctp_is_sound(payload: &IpPayloadSlice<'_>) {
    assert_eq!(payload.ip_number, IpNumber::SCTP);
    let mut bytes = payload.payload.to_vec();
    let check = u32::from_le_bytes(bytes[8..12].try_into().expect("four bytes"));
    bytes[8..12].fill(0);
    assert_eq!(check, crc32c(&bytes), "SCTP checksum");
}
