//! Differences, readable: headers first, then the bytes that differ.

use core::fmt::Debug;
use core::hash::Hash;
use std::collections::{BTreeMap, HashMap};
use std::format;
use std::string::{String, ToString as _};
use std::vec::Vec;

use super::env::FamilyMaps;
use super::scenario::{Expected, Output};
use super::{Scenario, World};
use crate::abi::{Hook, Outcome};

/// What differs between what was demanded and what came, or nothing.
pub fn difference(scenario: &Scenario, wanted: &Expected, came: &Expected) -> Option<String> {
    if wanted == came {
        return None;
    }
    let mut lines = Vec::from([format!("{} [{}]", scenario.sentence, scenario.family)]);
    match (&wanted.output, &came.output) {
        (Output::Packet(verdict, packet, device), Output::Packet(came_verdict, came_packet, came_device)) => {
            if verdict != came_verdict {
                lines.push(format!("  verdict: wanted {verdict:?}, came {came_verdict:?}"));
            }
            if device != came_device {
                lines.push(format!("  device: wanted {device}, came {came_device}"));
            }
            if packet != came_packet {
                lines.push(format!("  packet wanted: {}", headers(packet)));
                lines.push(format!("  packet came:   {}", headers(came_packet)));
                lines.extend(hex_difference(packet, came_packet));
            }
        }
        (wanted, came) if wanted != came => lines.push(format!("  wanted {wanted:?}, came {came:?}")),
        _ => {}
    }
    worlds(&wanted.world, &came.world, &mut lines);
    Some(lines.join("\n"))
}

fn worlds(wanted: &World, came: &World, lines: &mut Vec<String>) {
    counts(&wanted.counts, &came.counts, lines);
    family(&wanted.v4, &came.v4, lines);
    family(&wanted.v6, &came.v6, lines);
    if wanted.now != came.now {
        lines.push(format!("  clock: wanted {}, came {}", wanted.now, came.now));
    }
}

fn family<A: Eq + Hash + Debug>(wanted: &FamilyMaps<A>, came: &FamilyMaps<A>, lines: &mut Vec<String>) {
    maps("connection", &wanted.connections, &came.connections, lines);
    maps("affinity", &wanted.affinity, &came.affinity, lines);
    maps("datagram", &wanted.datagrams, &came.datagrams, lines);
    maps("socket", &wanted.sockets, &came.sockets, lines);
    maps("frontend", &wanted.frontends, &came.frontends, lines);
    maps("backend", &wanted.backends, &came.backends, lines);
    maps("adjacency", &wanted.adjacencies, &came.adjacencies, lines);
}

fn maps<K: Eq + Hash + Debug, V: PartialEq + Debug>(
    what: &str,
    wanted: &HashMap<K, V>,
    came: &HashMap<K, V>,
    lines: &mut Vec<String>,
) {
    for (key, value) in wanted {
        match came.get(key) {
            None => lines.push(format!("  {what} missing: {key:?}\n      {value:?}")),
            Some(other) if other != value => {
                lines.push(format!("  {what} {key:?}\n    wanted {value:?}\n    came   {other:?}"));
            }
            Some(_) => {}
        }
    }
    for (key, value) in came.iter().filter(|(key, _)| !wanted.contains_key(key)) {
        lines.push(format!("  {what} not wanted: {key:?}\n      {value:?}"));
    }
}

fn counts(wanted: &BTreeMap<u32, u64>, came: &BTreeMap<u32, u64>, lines: &mut Vec<String>) {
    for hook in Hook::ALL {
        for outcome in Outcome::ALL {
            let of = |counts: &BTreeMap<u32, u64>| counts.get(&outcome.slot(hook)).copied().unwrap_or(0);
            if of(wanted) != of(came) {
                lines.push(format!(
                    "  count {} {}: wanted {}, came {}",
                    hook.name(),
                    outcome.name(),
                    of(wanted),
                    of(came)
                ));
            }
        }
    }
}

/// A line that tells what a packet with an Ethernet header (or without) is.
pub fn headers(packet: &[u8]) -> String {
    let Some((link, mut rest)) = split_link(packet) else {
        return format!("{} bytes", packet.len());
    };
    let mut line = link;
    match rest.first().map(|byte| byte >> 4) {
        Some(4) if rest.len() >= 20 => {
            let address = |at: usize| core::net::Ipv4Addr::new(rest[at], rest[at + 1], rest[at + 2], rest[at + 3]);
            line += &format!(
                "{} > {} protocol {} ttl {} length {}",
                address(12),
                address(16),
                rest[9],
                rest[8],
                u16::from_be_bytes([rest[2], rest[3]])
            );
            rest = rest.get(usize::from(rest[0] & 15) * 4..).unwrap_or_default();
        }
        Some(6) if rest.len() >= 40 => {
            let address =
                |at: usize| core::net::Ipv6Addr::from(<[u8; 16]>::try_from(&rest[at..at + 16]).unwrap_or_default());
            line += &format!(
                "{} > {} next header {} hop limit {} length {}",
                address(8),
                address(24),
                rest[6],
                rest[7],
                u16::from_be_bytes([rest[4], rest[5]])
            );
            rest = &rest[40..];
        }
        _ => {}
    }
    if rest.len() >= 4 {
        let ports = (
            u16::from_be_bytes([rest[0], rest[1]]),
            u16::from_be_bytes([rest[2], rest[3]]),
        );
        line += &format!(" | {} > {}", ports.0, ports.1);
    }
    line
}

fn split_link(packet: &[u8]) -> Option<(String, &[u8])> {
    if packet.len() < 14 {
        return None;
    }
    let mac = |bytes: &[u8]| {
        let parts: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        parts.join(":")
    };
    let mut at = 12;
    while matches!(packet.get(at..at + 2), Some([0x81, 0x00] | [0x88, 0xa8])) {
        at += 4;
    }
    match packet.get(at..at + 2) {
        Some([0x08, 0x00] | [0x86, 0xdd]) => {
            let link = format!(
                "{} > {}{} ",
                mac(&packet[6..12]),
                mac(&packet[..6]),
                " tagged".repeat((at - 12) / 4)
            );
            Some((link, &packet[at + 2..]))
        }
        _ => Some((String::new(), packet)),
    }
}

/// The rows of 16 bytes in which two packets differ.
fn hex_difference(wanted: &[u8], came: &[u8]) -> Vec<String> {
    let row = |packet: &[u8], at: usize| {
        let end = packet.len().min(at + 16);
        let bytes: Vec<String> = packet
            .get(at..end)
            .unwrap_or_default()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        bytes.join(" ")
    };
    let mut lines = Vec::new();
    for at in (0..wanted.len().max(came.len())).step_by(16) {
        let (one, other) = (row(wanted, at), row(came, at));
        if one != other {
            lines.push(format!("    {at:04x} wanted {one}"));
            lines.push(format!("         came   {other}"));
        }
    }
    if lines.is_empty() {
        lines.push("    (no byte differs)".to_string());
    }
    lines
}
