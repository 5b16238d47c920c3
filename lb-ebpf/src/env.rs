//! The environment of the packet logic, on the maps.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_jiffies64, bpf_ktime_get_boot_ns};
use aya_ebpf::maps::lpm_trie::Key;
use lb_common::abi::{
    Adjacency, AffinityEntry, AffinityKey, AffinityMember, Announced, AnnouncedKey, Backend, Config, Connection,
    DatagramKey, DatagramPorts, DropReason, Family, Frontend, FrontendKey, Hook, Mac, Outcome, Peer, SocketKey, Tuple,
    V4, V6,
};
use lb_common::datapath::connection::{self, Opening};
use lb_common::datapath::icmp::{self, Relation};
use lb_common::env::{ConnectionEntry, Draft, Env, InsertError, Tables};

use crate::maps::{
    AFFINITY_MEMBERS, ANNOUNCE_UNTIL, CONFIG, COUNTERS, FILTER, MAGLEV, Maps, NODE_PORTS, POD_DEVICES, SourceRange,
    address_bits,
};

const EEXIST: i32 = -17;

/// The maps, as the packet logic sees them.
pub struct Kernel;

/// An entry in its map. It may be reused for another connection after a delete, at any time between two reads: the
/// worst is one packet of an expired connection that goes astray. What is written to it is a stamp and a few bits, so
/// the worst of that is a connection that lives a little longer.
pub struct Entry<F: Family>(*mut Connection<F::Addr>);

impl<F: Family> ConnectionEntry<F> for Entry<F> {
    #[inline(always)]
    fn get(&self) -> Connection<F::Addr> {
        // SAFETY: the pointer came from a lookup in this run of the program, and map values stay readable for it.
        unsafe { self.0.read() }
    }

    #[inline(always)]
    fn touch(&self, last_seen: u32, state: u8) {
        // SAFETY: as above; both fields lie in the value, and any value of them is valid.
        unsafe {
            (&raw mut (*self.0).last_seen).write(last_seen);
            (&raw mut (*self.0).state).write(state);
        }
    }

    #[inline(always)]
    fn learn(&self, client_mac: Mac, ifindex: u32) {
        // SAFETY: as above.
        unsafe {
            (&raw mut (*self.0).client_mac).write(client_mac);
            (&raw mut (*self.0).ifindex).write(ifindex);
        }
    }
}

/// The opening of a connection, as functions of their own: the verifier walks through them once a call, not once for
/// every way that leads there, and each has the kernel's small stack to itself.
pub trait Open: Sized {
    fn choose() -> Result<Opening, DropReason>;
    fn record() -> Result<(), DropReason>;
    fn relate(hook: Hook) -> Relation;
}

impl Open for V4 {
    #[inline(never)]
    fn choose() -> Result<Opening, DropReason> {
        connection::choose::<Self, _>(&Kernel)
    }

    #[inline(never)]
    fn record() -> Result<(), DropReason> {
        connection::record::<Self, _>(&Kernel)
    }

    #[inline(never)]
    fn relate(hook: Hook) -> Relation {
        icmp::relate::<Self, _>(&Kernel, hook)
    }
}

impl Open for V6 {
    #[inline(never)]
    fn choose() -> Result<Opening, DropReason> {
        connection::choose::<Self, _>(&Kernel)
    }

    #[inline(never)]
    fn record() -> Result<(), DropReason> {
        connection::record::<Self, _>(&Kernel)
    }

    #[inline(never)]
    fn relate(hook: Hook) -> Relation {
        icmp::relate::<Self, _>(&Kernel, hook)
    }
}

#[inline(always)]
fn insert_error(code: i32) -> InsertError {
    if code == EEXIST {
        InsertError::Exists
    } else {
        InsertError::Full
    }
}

impl<F: Maps + Open> Tables<F> for Kernel {
    type Entry = Entry<F>;
    type Draft = &'static mut Draft<F::Addr>;

    #[inline(always)]
    fn draft(&self) -> Option<&'static mut Draft<F::Addr>> {
        // SAFETY: the value is this CPU's own, the packet logic holds one at a time, and programs on a CPU do not
        // run at once (an XDP and a TC program never nest).
        F::drafts().get_ptr_mut(0).map(|draft| unsafe { &mut *draft })
    }

    #[inline(always)]
    fn choose(&self) -> Result<Opening, DropReason> {
        F::choose()
    }

    #[inline(always)]
    fn record(&self) -> Result<(), DropReason> {
        F::record()
    }

    #[inline(always)]
    fn relate(&self, hook: Hook) -> Relation {
        F::relate(hook)
    }

    #[inline(always)]
    fn connection(&self, key: &Tuple<F::Addr>) -> Option<Entry<F>> {
        F::connections().get_ptr_mut(key).map(Entry)
    }

    #[inline(always)]
    fn add_connection(&self, key: &Tuple<F::Addr>, value: &Connection<F::Addr>) -> Result<(), InsertError> {
        F::connections()
            .insert(key, value, u64::from(BPF_NOEXIST))
            .map_err(insert_error)
    }

    #[inline(always)]
    fn put_connection(&self, key: &Tuple<F::Addr>, value: &Connection<F::Addr>) -> Result<(), InsertError> {
        F::connections()
            .insert(key, value, u64::from(BPF_ANY))
            .map_err(insert_error)
    }

    #[inline(always)]
    fn remove_connection(&self, key: &Tuple<F::Addr>) {
        // It may be gone already, which is what was wanted.
        let _ = F::connections().remove(key);
    }

    #[inline(always)]
    fn datagram(&self, key: &DatagramKey<F::Addr>) -> Option<DatagramPorts> {
        // SAFETY: the value is copied at once.
        unsafe { F::datagrams().get(key) }.copied()
    }

    #[inline(always)]
    fn note_datagram(&self, key: &DatagramKey<F::Addr>, ports: &DatagramPorts) {
        let _ = F::datagrams().insert(key, ports, u64::from(BPF_ANY));
    }

    #[inline(always)]
    fn frontend(&self, key: &FrontendKey<F::Addr>) -> Option<Frontend> {
        // SAFETY: the value is copied at once. The map is not preallocated, so it is not reused meanwhile.
        unsafe { F::frontends().get(key) }.copied()
    }

    #[inline(always)]
    fn backend(&self, id: u32) -> Option<Backend<F::Addr>> {
        F::backends().get(id).copied()
    }

    #[inline(always)]
    fn adjacency(&self, id: u32) -> Option<Adjacency<F::Addr>> {
        F::adjacencies().get(id).copied()
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey<F::Addr>) -> Option<AffinityEntry> {
        // SAFETY: the value is copied at once; both its fields are checked before use.
        unsafe { F::affinity().get(key) }.copied()
    }

    #[inline(always)]
    fn pin(&self, key: &AffinityKey<F::Addr>, entry: &AffinityEntry) {
        let _ = F::affinity().insert(key, entry, u64::from(BPF_ANY));
    }

    #[inline(always)]
    fn in_source_ranges(&self, service_port: u32, client: &F::Addr) -> bool {
        let bits = 32u32.wrapping_add(address_bits::<F::Addr>());
        F::source_ranges()
            .get(Key::new(
                bits,
                SourceRange {
                    service_port,
                    addr: *client,
                },
            ))
            .is_some()
    }

    #[inline(always)]
    fn is_pod_address(&self, address: &F::Addr) -> bool {
        F::pod_cidrs()
            .get(Key::new(address_bits::<F::Addr>(), *address))
            .is_some()
    }

    #[inline(always)]
    fn is_service_address(&self, address: &F::Addr) -> bool {
        F::service_cidrs()
            .get(Key::new(address_bits::<F::Addr>(), *address))
            .is_some()
    }

    #[inline(always)]
    fn announced(&self, key: &AnnouncedKey<F::Addr>) -> Option<Announced> {
        // SAFETY: the value is copied at once. The map is not preallocated, so it is not reused meanwhile.
        unsafe { F::announced().get(key) }.copied()
    }

    #[inline(always)]
    fn peer(&self, key: &SocketKey<F::Addr>) -> Option<Peer<F::Addr>> {
        // SAFETY: the value is copied at once.
        unsafe { F::sockets().get(key) }.copied()
    }

    #[inline(always)]
    fn note_peer(&self, key: &SocketKey<F::Addr>, peer: &Peer<F::Addr>) {
        let _ = F::sockets().insert(key, peer, u64::from(BPF_ANY));
    }
}

impl Env for Kernel {
    #[inline(always)]
    fn config(&self) -> Config {
        CONFIG.get(0).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn now(&self) -> u32 {
        // SAFETY: the helper takes nothing and returns a number.
        (unsafe { bpf_jiffies64() }) as u32
    }

    #[inline(always)]
    fn now_ns(&self) -> u64 {
        // SAFETY: the helper takes nothing and returns a number.
        unsafe { bpf_ktime_get_boot_ns() }
    }

    #[inline(always)]
    fn announce_until_ns(&self) -> u64 {
        ANNOUNCE_UNTIL.get(0).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: the helper takes nothing and returns a number.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn address_class(&self, bucket: u32) -> u8 {
        FILTER
            .get(0)
            .and_then(|classes| classes.get(bucket as usize))
            .copied()
            .unwrap_or(0)
    }

    #[inline(always)]
    fn is_node_port(&self, port: u16) -> bool {
        let byte = NODE_PORTS
            .get(0)
            .and_then(|bits| bits.get(usize::from(port >> 3)))
            .copied()
            .unwrap_or(0);
        byte & (1 << (port & 7)) != 0
    }

    #[inline(always)]
    fn is_pod_device(&self, ifindex: u32) -> bool {
        POD_DEVICES.get_ptr(ifindex).is_some()
    }

    #[inline(always)]
    fn maglev(&self, slot: u32) -> Option<u32> {
        MAGLEV.get(slot).copied()
    }

    #[inline(always)]
    fn is_member(&self, offset: u32, backend: u32) -> bool {
        AFFINITY_MEMBERS.get_ptr(AffinityMember { offset, backend }).is_some()
    }

    #[inline(always)]
    fn count(&self, hook: Hook, outcome: Outcome) {
        if let Some(count) = COUNTERS.get_ptr_mut(outcome.slot(hook)) {
            // SAFETY: the value is this CPU's own, and programs on a CPU do not run at once.
            unsafe { *count = (*count).wrapping_add(1) };
        }
    }
}
