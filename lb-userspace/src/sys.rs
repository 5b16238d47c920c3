//! What the kernel offers and no crate wraps: batched map calls, memory-mapped arrays, replacing the program of
//! a link, frames from a packet socket, and a few numbers. All `unsafe` of the agent is in this file.
//!
//! The functions take and give file descriptors and plain values; what they mean is said by their callers.

use std::ffi::CString;
use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use lb_common::abi::{
    Address, Adjacency, AffinityEntry, AffinityKey, AffinityMember, Announced, AnnouncedKey, Backend, Config,
    Connection, Frontend, FrontendKey, LpmKey, Peer, SocketKey, SourceRangeKey, Tuple,
};

/// A type that may be copied to and from the kernel as bytes.
///
/// # Safety
///
/// It has no padding, and every pattern of bits is a value of it.
pub unsafe trait Plain: Copy + 'static {}

macro_rules! plain {
    ($($plain:ty),* $(,)?) => {
        // SAFETY: integers and arrays of them; the types of `abi` are `repr(C)`, made of such, without padding
        // (their sizes are asserted where they are defined).
        $(unsafe impl Plain for $plain {})*
    };
}

macro_rules! plain_by_address {
    ($($plain:ident),* $(,)?) => {
        // SAFETY: as above, for both families.
        $(unsafe impl<A: Address> Plain for $plain<A> {})*
    };
}

plain!(u8, u32, u64, Frontend, AffinityEntry, AffinityMember, Announced, Config);
plain_by_address!(
    Tuple,
    Connection,
    FrontendKey,
    Backend,
    Adjacency,
    AffinityKey,
    AnnouncedKey,
    LpmKey,
    SourceRangeKey,
    SocketKey,
    Peer,
);
// SAFETY: an array of a plain type.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

/// Commands of the `bpf` system call, `enum bpf_cmd` in `include/uapi/linux/bpf.h`.
#[derive(Clone, Copy)]
#[repr(i32)]
enum Command {
    Lookup = 1,
    Update = 2,
    Delete = 3,
    NextKey = 4,
    ObjGet = 7,
    TestRun = 10,
    ObjInfo = 15,
    LookupBatch = 24,
    UpdateBatch = 26,
    DeleteBatch = 27,
    LinkUpdate = 29,
    LinkDetach = 34,
    ObjPin = 6,
}

#[repr(C)]
#[derive(Default)]
struct ElementAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct ObjectAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdateAttr {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

#[repr(C)]
#[derive(Default)]
struct TestRunAttr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

/// Calls `bpf(2)`.
fn bpf<T>(command: Command, attr: &mut T) -> io::Result<i64> {
    // SAFETY: `attr` is one of the structs above, whose prefix of `union bpf_attr` the kernel reads and writes
    // within `size_of::<T>()`; pointers in it come from references that live across the call.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            std::ptr::from_mut(attr),
            size_of::<T>(),
        )
    };
    if ret < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(ret)
    }
}

fn address_of<T>(value: &T) -> u64 {
    std::ptr::from_ref(value) as u64
}

fn raw(fd: &impl AsFd) -> u32 {
    fd.as_fd().as_raw_fd().unsigned_abs()
}

/// Opens an object pinned on bpffs.
pub fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = ObjectAttr {
        path: path.as_ptr() as u64,
        ..Default::default()
    };
    let fd = bpf(Command::ObjGet, &mut attr)?;
    let fd = i32::try_from(fd).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    // SAFETY: the kernel has just given us this descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins an object on bpffs.
pub fn pin(object: &impl AsFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = ObjectAttr {
        path: path.as_ptr() as u64,
        fd: raw(object),
        flags: 0,
    };
    bpf(Command::ObjPin, &mut attr).map(drop)
}

/// Replaces the program of a link. Packets meet the old one or the new one, never none.
pub fn replace_program(link: &impl AsFd, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdateAttr {
        link_fd: raw(link),
        new_prog_fd: raw(&program),
        ..Default::default()
    };
    bpf(Command::LinkUpdate, &mut attr).map(drop)
}

/// Detaches a link at once. Removing its pin alone lets the kernel do it a little later.
pub fn detach_link(link: &impl AsFd) -> io::Result<()> {
    let mut attr = LinkUpdateAttr {
        link_fd: raw(link),
        ..Default::default()
    };
    bpf(Command::LinkDetach, &mut attr).map(drop)
}

/// What the kernel says of a link.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct LinkInfo {
    /// `enum bpf_link_type`.
    pub kind: u32,
    /// The link's id.
    pub id: u32,
    /// The id of its program.
    pub program: u32,
    pad: u32,
    /// XDP and TCX: the device's index, 0 once the device is gone. Cgroup: the low half of the cgroup's id.
    pub target: u32,
    /// TCX: the attach type. Cgroup: the high half of the cgroup's id.
    pub detail: u32,
    rest: [u64; 8],
}

/// Asks for [`LinkInfo`].
pub fn link_info(link: &impl AsFd) -> io::Result<LinkInfo> {
    let mut info = LinkInfo::default();
    object_info(link, &mut info)?;
    Ok(info)
}

/// What the kernel says of a map.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct MapInfo {
    /// `enum bpf_map_type`.
    pub kind: u32,
    /// The map's id.
    pub id: u32,
    /// Bytes in a key.
    pub key_size: u32,
    /// Bytes in a value.
    pub value_size: u32,
    /// How many entries it takes.
    pub max_entries: u32,
    /// `BPF_F_*`.
    pub flags: u32,
}

/// Asks for [`MapInfo`].
pub fn map_info(map: &impl AsFd) -> io::Result<MapInfo> {
    let mut info = MapInfo::default();
    object_info(map, &mut info)?;
    Ok(info)
}

fn object_info<T>(object: &impl AsFd, info: &mut T) -> io::Result<()> {
    let len = u32::try_from(size_of::<T>()).unwrap_or(u32::MAX);
    let mut attr = InfoAttr {
        fd: raw(object),
        len,
        info: std::ptr::from_mut(info) as u64,
    };
    bpf(Command::ObjInfo, &mut attr).map(drop)
}

/// Runs a program once over 64 zero bytes, for what it writes into its maps.
pub fn run_once(program: &impl AsFd) -> io::Result<()> {
    let packet = [0_u8; 64];
    let mut attr = TestRunAttr {
        prog_fd: raw(program),
        data_size_in: 64,
        data_in: address_of(&packet),
        repeat: 1,
        ..Default::default()
    };
    bpf(Command::TestRun, &mut attr).map(drop)
}

/// One element of a map, or `None` if there is none with this key.
pub fn lookup<K: Plain, V: Plain>(map: &impl AsFd, key: &K) -> io::Result<Option<V>> {
    let mut value = MaybeUninit::<V>::uninit();
    let mut attr = ElementAttr {
        map_fd: raw(map),
        key: address_of(key),
        value: value.as_mut_ptr() as u64,
        ..Default::default()
    };
    match bpf(Command::Lookup, &mut attr) {
        // SAFETY: on success the kernel has written the map's value size, which `BpfMap::open` compared with V's.
        Ok(_) => Ok(Some(unsafe { value.assume_init() })),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

/// One element of a per-CPU map of `u64`: the values of all possible CPUs.
pub fn lookup_per_cpu(map: &impl AsFd, key: u32, cpus: usize) -> io::Result<Vec<u64>> {
    let mut values = vec![0_u64; cpus];
    let mut attr = ElementAttr {
        map_fd: raw(map),
        key: address_of(&key),
        value: values.as_mut_ptr() as u64,
        ..Default::default()
    };
    bpf(Command::Lookup, &mut attr)?;
    Ok(values)
}

/// Sets an element.
pub fn update<K: Plain, V: Plain>(map: &impl AsFd, key: &K, value: &V) -> io::Result<()> {
    let mut attr = ElementAttr {
        map_fd: raw(map),
        key: address_of(key),
        value: address_of(value),
        ..Default::default()
    };
    bpf(Command::Update, &mut attr).map(drop)
}

/// Deletes an element; `false` if there was none.
pub fn delete<K: Plain>(map: &impl AsFd, key: &K) -> io::Result<bool> {
    let mut attr = ElementAttr {
        map_fd: raw(map),
        key: address_of(key),
        ..Default::default()
    };
    match bpf(Command::Delete, &mut attr) {
        Ok(_) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

/// The key after this one, the first for `None`; `None` at the end.
pub fn next_key<K: Plain>(map: &impl AsFd, key: Option<&K>) -> io::Result<Option<K>> {
    let mut next = MaybeUninit::<K>::uninit();
    let mut attr = ElementAttr {
        map_fd: raw(map),
        key: key.map_or(0, address_of),
        value: next.as_mut_ptr() as u64,
        ..Default::default()
    };
    match bpf(Command::NextKey, &mut attr) {
        // SAFETY: on success the kernel has written a key; its size was compared with K's by `BpfMap::open`.
        Ok(_) => Ok(Some(unsafe { next.assume_init() })),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Where a batched walk over a map stands. Hash maps keep a bucket number in it, others a key.
#[derive(Clone, Copy, Default)]
pub struct Cursor {
    bytes: [u64; 8],
    begun: bool,
}

/// Reads the next elements of a map, as many as fit; `false` in the second place at the end.
///
/// # Errors
///
/// `ENOSPC` if one bucket of a hash map holds more than `room` elements.
pub fn lookup_batch<K: Plain, V: Plain>(
    map: &impl AsFd,
    cursor: &mut Cursor,
    room: usize,
    out: &mut Vec<(K, V)>,
) -> io::Result<bool> {
    let mut keys = Vec::<K>::with_capacity(room);
    let mut values = Vec::<V>::with_capacity(room);
    let mut next = Cursor::default();
    let mut attr = BatchAttr {
        in_batch: if cursor.begun { address_of(&cursor.bytes) } else { 0 },
        out_batch: std::ptr::from_mut(&mut next.bytes) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: u32::try_from(room).unwrap_or(u32::MAX),
        map_fd: raw(map),
        ..Default::default()
    };
    let more = match bpf(Command::LookupBatch, &mut attr) {
        Ok(_) => true,
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => false,
        Err(e) => return Err(e),
    };
    let read = (attr.count as usize).min(room);
    // SAFETY: the kernel has written `count` keys and values, both with room for `room` of them.
    unsafe {
        keys.set_len(read);
        values.set_len(read);
    }
    out.extend(keys.into_iter().zip(values));
    next.begun = true;
    *cursor = next;
    Ok(more)
}

/// Sets many elements; returns how many were set before the first failure.
pub fn update_batch<K: Plain, V: Plain>(map: &impl AsFd, keys: &[K], values: &[V]) -> (usize, io::Result<()>) {
    let count = keys.len().min(values.len());
    batch(
        Command::UpdateBatch,
        map,
        keys.as_ptr() as u64,
        values.as_ptr() as u64,
        count,
    )
}

/// Deletes many elements; returns how many were deleted before the first that was not there.
pub fn delete_batch<K: Plain>(map: &impl AsFd, keys: &[K]) -> (usize, io::Result<()>) {
    batch(Command::DeleteBatch, map, keys.as_ptr() as u64, 0, keys.len())
}

fn batch(command: Command, map: &impl AsFd, keys: u64, values: u64, count: usize) -> (usize, io::Result<()>) {
    if count == 0 {
        return (0, Ok(()));
    }
    let mut attr = BatchAttr {
        keys,
        values,
        count: u32::try_from(count).unwrap_or(u32::MAX),
        map_fd: raw(map),
        ..Default::default()
    };
    let result = bpf(command, &mut attr).map(drop);
    let done = if result.is_ok() {
        count
    } else {
        (attr.count as usize).min(count)
    };
    (done, result)
}

/// An array map in our own memory (`BPF_F_MMAPABLE`): written without a system call per element.
pub struct MappedArray<V> {
    base: NonNull<u8>,
    bytes: usize,
    stride: usize,
    entries: usize,
    value: PhantomData<V>,
}

// SAFETY: the memory belongs to the map and stays mapped until drop; all access to it is atomic.
unsafe impl<V: Plain> Send for MappedArray<V> {}
// SAFETY: as above.
unsafe impl<V: Plain> Sync for MappedArray<V> {}

impl<V: Plain> MappedArray<V> {
    /// Maps an array of `entries` elements of V.
    pub fn new(map: &impl AsFd, entries: u32) -> io::Result<Self> {
        // The kernel rounds elements up to 8 bytes and the area to pages (kernel/bpf/arraymap.c, 6.18).
        let stride = size_of::<V>().next_multiple_of(8);
        let entries = entries as usize;
        let bytes = stride.saturating_mul(entries).next_multiple_of(page_size());
        // SAFETY: a new shared mapping at an address of the kernel's choice; the result is checked.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_fd().as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(Self {
            base,
            bytes,
            stride,
            entries,
            value: PhantomData,
        })
    }

    /// How many elements there are.
    pub fn len(&self) -> usize {
        self.entries
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// The element, `None` out of bounds.
    pub fn get(&self, index: usize) -> Option<V> {
        if index >= self.entries {
            return None;
        }
        let mut value = MaybeUninit::<V>::uninit();
        let out = value.as_mut_ptr().cast::<u8>();
        // SAFETY: the element lies inside the mapping, `out` has room for it, and V takes any bits.
        unsafe {
            for offset in (0..size_of::<V>()).step_by(Self::word()) {
                let at = self.base.as_ptr().add(index * self.stride + offset);
                if Self::word() == 4 {
                    out.add(offset)
                        .cast::<u32>()
                        .write_unaligned((*at.cast::<AtomicU32>()).load(Ordering::Relaxed));
                } else {
                    out.add(offset).write((*at.cast::<AtomicU8>()).load(Ordering::Relaxed));
                }
            }
            Some(value.assume_init())
        }
    }

    /// Sets the element, word by word, only words that differ; `false` out of bounds.
    pub fn set(&self, index: usize, value: &V) -> bool {
        if index >= self.entries {
            return false;
        }
        let from = std::ptr::from_ref(value).cast::<u8>();
        // SAFETY: the element lies inside the mapping, which is aligned to 8 bytes, and `value` is as long.
        unsafe {
            for offset in (0..size_of::<V>()).step_by(Self::word()) {
                let at = self.base.as_ptr().add(index * self.stride + offset);
                if Self::word() == 4 {
                    let word = from.add(offset).cast::<u32>().read_unaligned();
                    let cell = &*at.cast::<AtomicU32>();
                    if cell.load(Ordering::Relaxed) != word {
                        cell.store(word, Ordering::Release);
                    }
                } else {
                    let byte = from.add(offset).read();
                    let cell = &*at.cast::<AtomicU8>();
                    if cell.load(Ordering::Relaxed) != byte {
                        cell.store(byte, Ordering::Release);
                    }
                }
            }
        }
        true
    }

    const fn word() -> usize {
        if size_of::<V>().is_multiple_of(4) { 4 } else { 1 }
    }
}

impl<const N: usize> MappedArray<[u8; N]> {
    /// One byte of the one element, `None` out of bounds.
    pub fn byte(&self, index: usize) -> Option<u8> {
        // SAFETY: inside the first element.
        (index < N).then(|| unsafe { (*self.base.as_ptr().add(index).cast::<AtomicU8>()).load(Ordering::Relaxed) })
    }

    /// Sets one byte of the one element; `false` out of bounds.
    pub fn set_byte(&self, index: usize, byte: u8) -> bool {
        if index >= N {
            return false;
        }
        // SAFETY: inside the first element.
        unsafe { (*self.base.as_ptr().add(index).cast::<AtomicU8>()).store(byte, Ordering::Release) };
        true
    }
}

impl<V> Drop for MappedArray<V> {
    fn drop(&mut self) {
        // SAFETY: our own mapping, not used after this.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

fn page_size() -> usize {
    // SAFETY: no pointers involved.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// The cookie of the network namespace that this process is in.
pub fn netns_cookie() -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket = std::net::UdpSocket::bind(("127.0.0.1", 0))
        .or_else(|_| std::net::UdpSocket::bind(("0.0.0.0", 0)))
        .or_else(|_| std::net::UdpSocket::bind(("::", 0)))?;
    let mut cookie = 0_u64;
    let mut len = 8 as libc::socklen_t;
    // SAFETY: `cookie` has the 8 bytes that `len` says.
    let ret = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &raw mut len,
        )
    };
    if ret < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(cookie)
    }
}

/// Jiffies per second. `sysconf(_SC_CLK_TCK)` is another number (always 100): the tick is the resolution of the
/// coarse clocks.
pub fn hz() -> u32 {
    let mut tick = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `tick` is a timespec of our own.
    let ret = unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &raw mut tick) };
    match u64::try_from(tick.tv_nsec) {
        Ok(ns) if ret == 0 && ns > 0 => u32::try_from((1_000_000_000 + ns / 2) / ns).unwrap_or(250),
        _ => 250,
    }
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
pub fn monotonic_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

/// Nanoseconds of `CLOCK_BOOTTIME`: as the monotonic clock, but it goes on while the machine sleeps.
pub fn boot_ns() -> u64 {
    clock_ns(libc::CLOCK_BOOTTIME)
}

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a timespec of our own.
    unsafe { libc::clock_gettime(clock, &raw mut now) };
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Sends a frame, link header included, out of a device. Needs the capability `CAP_NET_RAW`.
pub fn send_frame(ifindex: u32, frame: &[u8]) -> io::Result<()> {
    // No protocol: the socket is for sending, and receives nothing.
    // SAFETY: no pointers involved.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor, which nobody else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: a struct of integers, for which zeros are values.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::sa_family_t::try_from(libc::AF_PACKET).unwrap_or_default();
    to.sll_ifindex = libc::c_int::try_from(ifindex).unwrap_or_default();
    let len = libc::socklen_t::try_from(size_of_val(&to)).unwrap_or_default();
    // SAFETY: `frame` and `to` are readable for the lengths that are given.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            libc::MSG_DONTWAIT,
            std::ptr::from_ref(&to).cast(),
            len,
        )
    };
    if sent < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Lifts the limit of locked memory, which kernels before 5.11 charge maps to. Best effort.
pub fn lift_memlock() {
    let limit = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: `limit` is a struct of our own.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tick_is_one_that_kernels_are_built_with() {
        assert!([100, 250, 300, 1000].contains(&hz()), "{}", hz());
    }

    #[test]
    fn the_namespace_has_a_cookie() {
        assert_ne!(netns_cookie().unwrap(), 0);
    }
}
