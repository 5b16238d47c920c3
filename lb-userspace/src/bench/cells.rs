//! What is measured, against what, and the goals.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, ensure};
use aya::programs::ProgramFd;
use lb_common::abi::protocol::{SCTP, TCP, UDP};

use super::objects::{Fairway, Kind, Reference, client, frontend, stranger};
use super::packets::{ACK, Course, Packet, SYN};
use super::report::{Cell, Report};
use super::rounds::time;

const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;

/// Packets in one turn of one program, of one flow: about a millisecond, so that few turns are disturbed.
const TURN: u32 = 8_000;
/// Packets in one turn over many flows.
const LONG_TURN: u32 = 50_000;
/// New connections in one turn.
const NEW_TURN: u32 = 16_384;
/// Room for entries where one flow is measured.
const ROOM: u32 = 1 << 16;
/// Entries of a connection with source translation, and without.
const WITH_SNAT: u32 = 4;
const WITHOUT_SNAT: u32 = 2;

/// What to measure.
pub struct Plan {
    /// Fewer rounds and flows.
    pub quick: bool,
    /// Only cells whose name contains this.
    pub only: Option<String>,
}

impl Plan {
    fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|part| name.contains(part))
    }

    fn rounds(&self, full: u32) -> u32 {
        if self.quick { full / 4 } else { full }
    }

    /// How often the objects are loaded anew: code placement alone moves results by some nanoseconds.
    fn loads(&self) -> u32 {
        if self.quick { 1 } else { 4 }
    }

    fn flows(&self) -> &'static [u32] {
        if self.quick {
            &[1_000, 10_000]
        } else {
            &[1_000, 10_000, 100_000, 1_000_000]
        }
    }

    fn new_flows(&self) -> u32 {
        if self.quick { 1 << 17 } else { 1 << 20 }
    }
}

/// Measures everything that the plan wants.
pub fn measure(plan: &Plan, object: &[u8]) -> Result<Report> {
    let mut report = Report::new();
    one_flow(plan, object, &mut report)?;
    for flows in plan.flows() {
        many_flows(plan, object, *flows, &mut report)?;
    }
    for (kind, entries) in [(Kind::Masqueraded, WITH_SNAT), (Kind::Kept, WITHOUT_SNAT)] {
        new_flows(plan, object, kind, entries, &mut report)?;
    }
    full_table(plan, object, &mut report)?;
    Ok(report)
}

/// A packet of one flow, made ready to be measured.
struct Single {
    name: &'static str,
    what: &'static str,
    goal: Option<f64>,
    packet: Packet,
    /// The packet that opens the connection, where there is one.
    opening: Option<Packet>,
    /// Whether the reply to what was forwarded is measured.
    is_reply: bool,
    verdict: u32,
}

fn singles() -> Vec<Single> {
    let packet = |kind, v6, protocol, flags| Packet {
        src: client(v6),
        dst: frontend(kind, v6),
        protocol,
        flags,
    };
    let known = |name, what, goal, kind, v6, protocol, verdict| Single {
        name,
        what,
        goal,
        packet: packet(kind, v6, protocol, ACK),
        opening: Some(packet(kind, v6, protocol, SYN)),
        is_reply: false,
        verdict,
    };
    let fast = "established, backend on another node, both halves translated, sent out";
    let reply = "reply of such a connection, both halves translated, sent out";
    let local = "established, backend on this node, destination translated, passed on";
    let foreign = "to no frontend, of no connection, passed on";
    let other = |name, goal, v6| Single {
        name,
        what: foreign,
        goal,
        packet: Packet {
            src: client(v6),
            dst: stranger(v6),
            protocol: TCP,
            flags: ACK,
        },
        opening: None,
        is_reply: false,
        verdict: XDP_PASS,
    };
    vec![
        known("tcp4", fast, Some(1.6), Kind::Masqueraded, false, TCP, XDP_TX),
        known("udp4", fast, Some(1.6), Kind::Masqueraded, false, UDP, XDP_TX),
        known("sctp4", fast, None, Kind::Masqueraded, false, SCTP, XDP_TX),
        known("tcp6", fast, Some(1.9), Kind::Masqueraded, true, TCP, XDP_TX),
        Single {
            is_reply: true,
            ..known("tcp4-reply", reply, None, Kind::Masqueraded, false, TCP, XDP_TX)
        },
        Single {
            is_reply: true,
            ..known("tcp6-reply", reply, None, Kind::Masqueraded, true, TCP, XDP_TX)
        },
        known("tcp4-local", local, None, Kind::Local, false, TCP, XDP_PASS),
        known("udp4-local", local, None, Kind::Local, false, UDP, XDP_PASS),
        known("tcp6-local", local, None, Kind::Local, true, TCP, XDP_PASS),
        Single {
            what: "SYN of a known flow, sent out",
            packet: packet(Kind::Masqueraded, false, TCP, SYN),
            ..known("syn4", fast, Some(1.8), Kind::Masqueraded, false, TCP, XDP_TX)
        },
        other("other4", Some(0.4), false),
        other("other6", Some(0.4), true),
    ]
}

fn one_flow(plan: &Plan, object: &[u8], report: &mut Report) -> Result<()> {
    let singles: Vec<_> = singles().into_iter().filter(|single| plan.wants(single.name)).collect();
    if singles.is_empty() {
        return Ok(());
    }
    let mut figures: Vec<_> = singles.iter().map(|_| (Vec::new(), Vec::new())).collect();
    for _ in 0..plan.loads() {
        let fairway = Fairway::load(object, ROOM)?;
        let program = fairway.program()?;
        let mut bench = Reference::load(ROOM)?;
        let r = known_to_reference(&mut bench)?;
        let empty = bench.program("reference_empty")?;
        let base = bench.program("reference")?;
        let mut courses = Vec::new();
        for single in &singles {
            let course = ready(&mut bench, &program, single).with_context(|| format!("cell {}", single.name))?;
            courses.push(course);
        }
        for _ in 0..plan.rounds(60) {
            for (course, (ours, references)) in courses.iter().zip(&mut figures) {
                let floor = time(&mut bench, &empty, &r, TURN)?;
                references.push(time(&mut bench, &base, &r, TURN)? - floor);
                let floor = time(&mut bench, &empty, course, TURN)?;
                ours.push(time(&mut bench, &program, course, TURN)? - floor);
            }
        }
    }
    for (single, (ours, references)) in singles.iter().zip(figures) {
        report.cells.push(Cell::new(
            single.name,
            single.what,
            &ours,
            "R",
            &references,
            single.goal,
        ));
    }
    Ok(())
}

/// Lets R know one flow, and checks that it translates it.
fn known_to_reference(bench: &mut Reference) -> Result<Course> {
    let packet = Packet {
        src: client(false),
        dst: frontend(Kind::Masqueraded, false),
        protocol: TCP,
        flags: ACK,
    };
    let course = Course::one(&packet);
    let record = bench.program("reference_record")?;
    bench.prepare(&record, &course)?;
    bench.run(1)?;
    let r = bench.program("reference")?;
    bench.prepare(&r, &course)?;
    ensure!(
        bench.run(1)?.verdict == XDP_TX,
        "the reference program does not know its own flow"
    );
    Ok(course)
}

/// Opens the connection, and checks that the packet to be measured gets the verdict that it should.
fn ready(bench: &mut Reference, program: &ProgramFd, single: &Single) -> Result<Course> {
    let mut packet = single.packet;
    if let Some(opening) = &single.opening {
        bench.prepare(program, &Course::one(opening))?;
        bench.run(1)?;
        let course = Course::one(&packet);
        bench.prepare(program, &course)?;
        let forwarded = bench.run(1)?;
        if single.is_reply {
            packet = reply_to(&forwarded.frame, packet.protocol)?;
        }
    }
    let course = Course::one(&packet);
    bench.prepare(program, &course)?;
    let outcome = bench.run(1)?;
    ensure!(
        outcome.verdict == single.verdict,
        "verdict {} instead of {} on {packet:?}",
        outcome.verdict,
        single.verdict
    );
    Ok(course)
}

/// The answer to a frame that was sent out.
fn reply_to(frame: &[u8], protocol: u8) -> Result<Packet> {
    let bytes = |at: usize, len: usize| frame.get(at..at + len).context("the frame is too short");
    let port = |at: usize| -> Result<u16> { Ok(u16::from_be_bytes(bytes(at, 2)?.try_into()?)) };
    let (src, dst, l4): (IpAddr, IpAddr, usize) = if bytes(14, 1)?[0] >> 4 == 4 {
        let address = |at| -> Result<Ipv4Addr> { Ok(Ipv4Addr::from(<[u8; 4]>::try_from(bytes(at, 4)?)?)) };
        (address(26)?.into(), address(30)?.into(), 34)
    } else {
        let address = |at| -> Result<Ipv6Addr> { Ok(Ipv6Addr::from(<[u8; 16]>::try_from(bytes(at, 16)?)?)) };
        (address(22)?.into(), address(38)?.into(), 54)
    };
    Ok(Packet {
        src: (dst, port(l4 + 2)?),
        dst: (src, port(l4)?),
        protocol,
        flags: ACK,
    })
}

fn many_flows(plan: &Plan, object: &[u8], flows: u32, report: &mut Report) -> Result<()> {
    let name = format!("tcp4-{}", short(flows));
    if !plan.wants(&name) {
        return Ok(());
    }
    let packet = Packet {
        src: client(false),
        dst: frontend(Kind::Masqueraded, false),
        protocol: TCP,
        flags: ACK,
    };
    let entries = (flows * WITH_SNAT).next_power_of_two();
    let fairway = Fairway::load(object, entries)?;
    let mut bench = Reference::load(entries)?;
    let program = fairway.program()?;
    let (empty, base) = (bench.program("reference_empty")?, bench.program("reference")?);
    let record = bench.program("reference_record")?;
    let in_turn = Course::in_turn(&packet, 0).with_inserts(WITH_SNAT);
    for filler in [&record, &program] {
        bench.prepare(filler, &in_turn)?;
        ensure!(
            bench.run(flows)?.verdict == XDP_TX,
            "the tables do not take {flows} flows"
        );
    }
    let (mut ours, mut references) = (Vec::new(), Vec::new());
    for round in 0..plan.rounds(40) {
        let course = Course::random(&packet, flows, round);
        let floor = time(&mut bench, &empty, &course, LONG_TURN)?;
        references.push(time(&mut bench, &base, &course, LONG_TURN)? - floor);
        ours.push(time(&mut bench, &program, &course, LONG_TURN)? - floor);
    }
    let what = format!("established as tcp4, {flows} flows with {WITH_SNAT} entries each, in random order");
    let base = format!("R, {flows} flows with {WITH_SNAT} entries each");
    report
        .cells
        .push(Cell::new(name, what, &ours, base, &references, Some(1.4)));
    Ok(())
}

fn new_flows(plan: &Plan, object: &[u8], kind: Kind, entries: u32, report: &mut Report) -> Result<()> {
    let (name, what) = match kind {
        Kind::Masqueraded => ("new4-snat", "first packet of a connection with source translation"),
        _ => ("new4", "first packet of a connection without source translation"),
    };
    if !plan.wants(name) {
        return Ok(());
    }
    let flows = plan.new_flows();
    let packet = Packet {
        src: client(false),
        dst: frontend(kind, false),
        protocol: TCP,
        flags: SYN,
    };
    let room = flows * entries * 2;
    let fairway = Fairway::load(object, room)?;
    let mut bench = Reference::load(room)?;
    let program = fairway.program()?;
    let (empty, insert) = (bench.program("reference_empty")?, bench.program("reference_insert")?);
    let (mut ours, mut inserts) = (Vec::new(), Vec::new());
    for turn in 0..flows / NEW_TURN {
        let course = Course::in_turn(&packet, turn * NEW_TURN).with_inserts(entries);
        let floor = time(&mut bench, &empty, &course, NEW_TURN)?;
        inserts.push(time(&mut bench, &insert, &course, NEW_TURN)? - floor);
        ours.push(time(&mut bench, &program, &course, NEW_TURN)? - floor);
    }
    let what = format!("{what}, {flows} of them one after the other into a table with room for twice as many");
    let base = format!("{entries} inserts into such a table");
    report
        .cells
        .push(Cell::new(name, what, &ours, base, &inserts, Some(1.4)));
    Ok(())
}

fn full_table(plan: &Plan, object: &[u8], report: &mut Report) -> Result<()> {
    let name = "new4-full";
    if !plan.wants(name) {
        return Ok(());
    }
    let packet = Packet {
        src: client(false),
        dst: frontend(Kind::Masqueraded, false),
        protocol: TCP,
        flags: SYN,
    };
    let roomy = Fairway::load(object, 1 << 20)?;
    let full = Fairway::load(object, ROOM)?;
    let mut bench = Reference::load(ROOM)?;
    let (into_room, into_full) = (roomy.program()?, full.program()?);
    let empty = bench.program("reference_empty")?;
    bench.prepare(&into_full, &Course::in_turn(&packet, 1 << 20))?;
    bench.run(ROOM)?;
    let (mut ours, mut others) = (Vec::new(), Vec::new());
    const TURNS: u32 = 12;
    for turn in 0..TURNS {
        let course = Course::in_turn(&packet, turn * NEW_TURN);
        let floor = time(&mut bench, &empty, &course, NEW_TURN)?;
        others.push(time(&mut bench, &into_room, &course, NEW_TURN)? - floor);
        ours.push(time(&mut bench, &into_full, &course, NEW_TURN)? - floor);
    }
    let what = format!("as new4-snat, into a table of {ROOM} entries that is full: dropped");
    let base = "the same with room";
    report
        .cells
        .push(Cell::new(name, what, &ours, base, &others, Some(1.0)));
    Ok(())
}

/// 1k, 10k, ... as the cells are named.
fn short(flows: u32) -> String {
    if flows >= 1_000_000 {
        format!("{}M", flows / 1_000_000)
    } else {
        format!("{}k", flows / 1_000)
    }
}
