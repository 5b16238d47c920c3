//! What Fairway's packet costs are measured against: `cargo xtask bench packet` loads this object beside Fairway's.
//! Nothing of it is ever attached.
//!
//! | program | what it is |
//! | --- | --- |
//! | `reference_wrapper` | puts the packet back to what the [`Course`] says, then goes on in the program in `TARGET` |
//! | `reference_empty` | the floor: what the wrapper itself costs |
//! | `reference` | R, the least that stateful translation can do: parse, one lookup, both halves and both checksums |
//! | `reference_record` | adds the packet's flow to R's table |
//! | `reference_insert` | adds as many entries of the size of Fairway's as the course says, and does nothing else |
//!
//! Written against memory and helpers directly, without `lb_common`, so that neither is measured against itself.
#![no_std]
#![no_main]
#![expect(
    clippy::needless_pass_by_value,
    reason = "the macros of the entry points ask for contexts by value"
)]

use core::ptr;

use aya_ebpf::bindings::{BPF_ANY, xdp_action};
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_ns};
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, HashMap, ProgramArray};
use aya_ebpf::programs::XdpContext;

/// Never reached.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

/// Words of 64 bits that are put back: Ethernet, IPv6 and TCP up to the checksum lie within.
const TEMPLATE_WORDS: usize = 10;

/// Which packets the wrapper makes: one and the same, or one of many flows. Mirrored in `lb-userspace`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Course {
    /// The packet's first bytes.
    template: [u64; TEMPLATE_WORDS],
    /// How many flows there are. 1: the template as it is.
    flows: u32,
    /// The last number drawn.
    state: u32,
    /// 0: the flows in turn, from `state` on. Else: at random, by the generator `state * multiplier + 1013904223`.
    multiplier: u32,
    /// Not 0 for IPv6.
    is_v6: u32,
    /// Entries that `reference_insert` adds, at most 4.
    inserts: u32,
    pad: u32,
}

/// R's key: the 5-tuple in 20 bytes.
#[repr(C)]
pub struct FlowKey {
    src: u32,
    dst: u32,
    ports: u32,
    protocol: u32,
    zone: u32,
}

/// R's value: both halves of the new tuple, link addresses, and when the flow was last seen.
#[repr(C)]
pub struct Flow {
    src: u32,
    dst: u32,
    ports: u32,
    /// Both link addresses as they lie in the packet: 8 bytes, then 4.
    macs: [u32; 3],
    last_seen: u32,
}

/// One value: the course.
#[map]
static COURSE: Array<Course> = Array::with_max_entries(1, 0);

/// The program that is measured.
#[map]
static TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// R's table.
#[map]
static FLOWS: HashMap<FlowKey, Flow> = HashMap::with_max_entries(1024, 0);

/// A table like Fairway's connections, IPv4.
#[map]
static INSERTS: HashMap<[u32; 4], [u32; 10]> = HashMap::with_max_entries(1024, 0);

/// Start of the packet, if it has `len` bytes.
#[inline(always)]
fn packet(ctx: &XdpContext, len: usize) -> Option<*mut u8> {
    let start = ctx.data();
    if start + len > ctx.data_end() {
        None
    } else {
        Some(start as *mut u8)
    }
}

#[xdp]
fn reference_wrapper(ctx: XdpContext) -> u32 {
    let Some(course) = COURSE.get_ptr_mut(0) else {
        return xdp_action::XDP_ABORTED;
    };
    let Some(start) = packet(&ctx, TEMPLATE_WORDS * 8) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: the map's value is one `Course`; the packet has as many bytes as the template, checked above, and
    // loads and stores may be unaligned on this target.
    unsafe {
        for word in 0..TEMPLATE_WORDS {
            start.cast::<u64>().add(word).write((*course).template[word]);
        }
        if (*course).flows > 1 {
            let flow = next(&mut *course);
            let (addr, port) = if (*course).is_v6 == 0 { (26, 34) } else { (34, 54) };
            start
                .add(addr)
                .cast::<u32>()
                .write((0x0a40_0000 + (flow >> 14)).to_be());
            start
                .add(port)
                .cast::<u16>()
                .write((1024 + (flow & 0x3fff) as u16).to_be());
        }
        // A packet's bytes were written long before a program reads them. The clock waits until all that came
        // before is done; its time is in the floor.
        bpf_ktime_get_ns();
        TARGET.tail_call(&ctx, 0);
    }
    xdp_action::XDP_ABORTED
}

/// The next flow's number.
#[inline(always)]
fn next(course: &mut Course) -> u32 {
    if course.multiplier == 0 {
        let flow = course.state;
        course.state = flow.wrapping_add(1);
        return flow;
    }
    course.state = course.state.wrapping_mul(course.multiplier).wrapping_add(1_013_904_223);
    ((u64::from(course.state) * u64::from(course.flows)) >> 32) as u32
}

#[xdp]
fn reference_empty(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

#[xdp]
fn reference(ctx: XdpContext) -> u32 {
    const LEN: usize = 54;
    let Some(start) = packet(&ctx, LEN) else {
        return xdp_action::XDP_PASS;
    };
    // SAFETY: all reads and writes are within the first `LEN` bytes of the packet, and the value of the map.
    unsafe {
        let Some(key) = key(start) else {
            return xdp_action::XDP_PASS;
        };
        let Some(flow) = FLOWS.get_ptr_mut(&key) else {
            return xdp_action::XDP_PASS;
        };
        (*flow).last_seen = bpf_jiffies64() as u32;
        let (src, dst, ports) = ((*flow).src, (*flow).dst, (*flow).ports);
        let addresses = u64::from(!key.src) + u64::from(src) + u64::from(!key.dst) + u64::from(dst);
        let all = addresses + u64::from(!key.ports) + u64::from(ports);
        let ip_check = start.add(24).cast::<u16>();
        ip_check.write(!fold(addresses + u64::from(!ip_check.read())));
        let check = start.add(50).cast::<u16>();
        check.write(!fold(all + u64::from(!check.read())));
        start.add(26).cast::<u32>().write(src);
        start.add(30).cast::<u32>().write(dst);
        start.add(34).cast::<u32>().write(ports);
        let macs = start.cast::<u32>();
        macs.write((*flow).macs[0]);
        macs.add(1).write((*flow).macs[1]);
        macs.add(2).write((*flow).macs[2]);
    }
    xdp_action::XDP_TX
}

/// The key of an IPv4 packet with TCP, without options.
///
/// # Safety
/// `start` must be that of a packet with at least 54 bytes.
#[inline(always)]
unsafe fn key(start: *mut u8) -> Option<FlowKey> {
    const IPV4: u16 = 0x0800u16.to_be();
    const TCP: u8 = 6;
    // SAFETY: by the caller.
    unsafe {
        if start.add(12).cast::<u16>().read() != IPV4 || start.add(14).read() != 0x45 || start.add(23).read() != TCP {
            return None;
        }
        Some(FlowKey {
            src: start.add(26).cast::<u32>().read(),
            dst: start.add(30).cast::<u32>().read(),
            ports: start.add(34).cast::<u32>().read(),
            protocol: u32::from(TCP),
            zone: 0,
        })
    }
}

/// Brings a sum down to 16 bits with end-around carry.
#[inline(always)]
fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + (sum & 0xffff)) as u16
}

#[xdp]
fn reference_record(ctx: XdpContext) -> u32 {
    let Some(start) = packet(&ctx, 54) else {
        return xdp_action::XDP_ABORTED;
    };
    let Some(course) = COURSE.get_ptr_mut(0) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: in bounds, as checked; the map's value is one `Course`.
    unsafe {
        let Some(mut key) = key(start) else {
            return xdp_action::XDP_ABORTED;
        };
        let flow = Flow {
            src: 0xc0a8_0001u32.to_be(),
            dst: 0x0a01_0002u32.to_be(),
            ports: key.ports,
            macs: [0x0202_0202, 0x0303_0202, 0x0303_0303],
            last_seen: 0,
        };
        // Further entries of the same flow, as Fairway has them, are never looked up.
        for zone in 0..4 {
            if zone > 0 && zone >= (*course).inserts {
                break;
            }
            key.zone = zone;
            if FLOWS.insert(&key, &flow, u64::from(BPF_ANY)).is_err() {
                return xdp_action::XDP_DROP;
            }
        }
    }
    xdp_action::XDP_TX
}

#[xdp]
fn reference_insert(ctx: XdpContext) -> u32 {
    let Some(start) = packet(&ctx, 54) else {
        return xdp_action::XDP_ABORTED;
    };
    let Some(course) = COURSE.get_ptr_mut(0) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: in bounds, as checked; the map's value is one `Course`.
    unsafe {
        let mut tuple = [
            start.add(26).cast::<u32>().read(),
            start.add(30).cast::<u32>().read(),
            start.add(34).cast::<u32>().read(),
            0,
        ];
        let value = [0u32; 10];
        for number in 0..4 {
            if number >= (*course).inserts {
                break;
            }
            ptr::write_volatile(&raw mut tuple[3], number);
            if INSERTS.insert(tuple, value, u64::from(BPF_ANY)).is_err() {
                return xdp_action::XDP_DROP;
            }
        }
    }
    xdp_action::XDP_TX
}
