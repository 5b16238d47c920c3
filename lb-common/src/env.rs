//! What the packet logic needs of the world, as small traits: a packet, the tables, and a clock.
//!
//! The kernel programs implement them on packet memory and BPF maps, the tests on vectors and hash maps. A rule
//! for every implementation: nothing may panic, and whatever the packet says stays inside the packet.

use core::ops::DerefMut;

use crate::abi::{
    Adjacency, AffinityEntry, AffinityKey, Announced, AnnouncedKey, Backend, Config, Connection, DatagramKey,
    DatagramPorts, DropReason, Family, Frontend, FrontendKey, Hook, Outcome, Peer, SocketKey, Tuple, V4, V6,
};
use crate::datapath::connection::Opening;
use crate::datapath::icmp::Relation;
use crate::datapath::{Ip, Translation};
use crate::wire::Wire;

/// A packet at a hook.
pub trait Packet {
    /// The hook.
    const HOOK: Hook;
    /// Whether the packet begins with an Ethernet header; else with the IP header.
    const ETHERNET: bool;

    /// Index of the device it came in by (ingress, XDP) or leaves by (egress).
    fn ifindex(&self) -> u32;

    /// Names the device that the verdicts [`Deliver`](crate::datapath::Verdict::Deliver) and [`Output`](crate::datapath::Verdict::Output) are about. (In the verdict
    /// itself it would be undefined for the others, which the verifier does not take.)
    fn aim(&mut self, ifindex: u32);

    /// The same number, of which the verifier then knows nothing. It walks the rest of a program once for every value
    /// that it knows an offset to have; the rare ones are not worth that.
    fn launder(&self, number: u32) -> u32 {
        number
    }

    /// Whether the packet has a VLAN tag beside its bytes, where the kernel or the device has put it.
    fn is_tagged_beside(&self) -> bool;

    /// The EtherType, of packets without an Ethernet header.
    fn ethertype(&self) -> crate::wire::Be16;

    /// The header at byte `at`, or nothing where the packet ends before its end.
    fn load<T: Wire>(&self, at: u32) -> Option<T>;

    /// Writes a header at byte `at`. Nothing is written, and nothing returned, where the packet ends before.
    fn store<T: Wire>(&mut self, at: u32, header: &T) -> Option<()>;

    /// Changes a header at byte `at`. Nothing is written, and nothing returned, where the packet ends before.
    #[inline(always)]
    fn update<T: Wire>(&mut self, at: u32, change: impl FnOnce(&mut T)) -> Option<()> {
        let mut header = self.load(at)?;
        change(&mut header);
        self.store(at, &header)
    }

    /// Rewrites addresses and ports, and keeps all checksums right. Returns nothing if the packet could not be
    /// written.
    fn translate<F: Ip>(&mut self, translation: &Translation<'_, F>) -> Option<()>;

    /// Makes room for headers in front of the IP header, of `room` bytes, and cuts the packet after the first
    /// `keep` bytes that follow the link header. Offsets found before are void.
    fn open(&mut self, keep: u32, room: u32) -> Option<()>;

    /// Makes the packet `len` bytes long, link header included: cuts its end, or adds zeros to it.
    fn resize(&mut self, len: u32) -> Option<()>;
}

/// An entry of the connection table that was found.
pub trait ConnectionEntry<F: Family> {
    /// A copy of it, or of those fields of it that are used: read at once, not before. So it is better got again
    /// after a lookup than kept over it, which costs the kernel a way by its stack for each field.
    fn get(&self) -> Connection<F::Addr>;
    /// Sets when it was last seen and its state, without a further lookup.
    fn touch(&self, last_seen: u32, state: u8);
    /// Sets where the client is met, its next hop and the device, without a further lookup.
    fn learn(&self, client_mac: crate::abi::Mac, ifindex: u32);
}

/// Why an entry was not inserted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InsertError {
    /// There is one already.
    Exists,
    /// The table is full.
    Full,
}

/// An ICMP error, and the packet that it quotes.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct Quote<A> {
    /// Who sends it.
    pub from: A,
    /// To whom.
    pub to: A,
    /// The quoted packet.
    pub packet: Tuple<A>,
}

/// The entries of a connection while they are drawn up. Too large for the kernel's stack of 512 bytes, so it
/// lies in a map.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct Draft<A> {
    /// Key of the entry for the client's packets into the node.
    pub primary_key: Tuple<A>,
    /// That entry.
    pub primary: Connection<A>,
    /// Key of the entry for replies out of the node.
    pub reply_key: Tuple<A>,
    /// That entry; then the one for replies into the node. Before, its adjacency is that of the backend's node.
    pub reply: Connection<A>,
    /// Key of the entry for replies into the node, of a source-translated connection.
    pub reply_in_key: Tuple<A>,
    /// Key of the entry for the client's packets out of the node, of a source-translated connection.
    pub out_key: Tuple<A>,
    /// That entry.
    pub out: Connection<A>,
    /// Key of the datagram that the packet is a fragment of, if it is one.
    pub datagram: DatagramKey<A>,
    /// An ICMP error that is being translated.
    pub quote: Quote<A>,
}

/// The tables of one address family.
pub trait Tables<F: Family> {
    /// A found connection.
    type Entry: ConnectionEntry<F>;
    /// A place to draw up a connection.
    type Draft: DerefMut<Target = Draft<F::Addr>>;

    /// The place to draw up a connection; holds what was left there last.
    fn draft(&self) -> Option<Self::Draft>;

    /// [`connection::choose`](crate::datapath::connection::choose), for the kernel to have it out of line.
    ///
    /// # Errors
    /// As that.
    fn choose(&self) -> Result<Opening, DropReason>;

    /// [`connection::record`](crate::datapath::connection::record), for the kernel to have it out of line.
    ///
    /// # Errors
    /// As that.
    fn record(&self) -> Result<(), DropReason>;

    /// [`icmp::relate`](crate::datapath::icmp::relate), for the kernel to have it out of line.
    fn relate(&self, hook: Hook) -> Relation;

    /// Looks up a connection.
    fn connection(&self, key: &Tuple<F::Addr>) -> Option<Self::Entry>;
    /// Adds a connection that is not there yet.
    ///
    /// # Errors
    /// If there is one with that key, or no room.
    fn add_connection(&self, key: &Tuple<F::Addr>, value: &Connection<F::Addr>) -> Result<(), InsertError>;
    /// Adds or replaces a connection.
    ///
    /// # Errors
    /// If there is no room.
    fn put_connection(&self, key: &Tuple<F::Addr>, value: &Connection<F::Addr>) -> Result<(), InsertError>;
    /// Removes a connection, if it is there.
    fn remove_connection(&self, key: &Tuple<F::Addr>);

    /// The ports of a datagram whose first fragment has been seen.
    fn datagram(&self, key: &DatagramKey<F::Addr>) -> Option<DatagramPorts>;
    /// Notes the ports of a datagram. May fail silently: its other fragments then pass as they come.
    fn note_datagram(&self, key: &DatagramKey<F::Addr>, ports: &DatagramPorts);

    /// Looks up a frontend.
    fn frontend(&self, key: &FrontendKey<F::Addr>) -> Option<Frontend>;
    /// Looks up a backend by its id.
    fn backend(&self, id: u32) -> Option<Backend<F::Addr>>;
    /// Looks up a next hop by its id.
    fn adjacency(&self, id: u32) -> Option<Adjacency<F::Addr>>;

    /// The backend that a client is pinned to.
    fn affinity(&self, key: &AffinityKey<F::Addr>) -> Option<AffinityEntry>;
    /// Pins a client to a backend. May fail silently: the client is then not pinned.
    fn pin(&self, key: &AffinityKey<F::Addr>, entry: &AffinityEntry);

    /// Whether a client is in the source ranges of a Service port.
    fn in_source_ranges(&self, service_port: u32, client: &F::Addr) -> bool;
    /// Whether an address is that of a pod on this node, where pods are known by their addresses.
    fn is_pod_address(&self, address: &F::Addr) -> bool;
    /// Whether an address lies in a Service CIDR.
    fn is_service_address(&self, address: &F::Addr) -> bool;

    /// What is announced of an address on a device.
    fn announced(&self, key: &AnnouncedKey<F::Addr>) -> Option<Announced>;

    /// The frontend that a socket believes to talk to.
    fn peer(&self, key: &SocketKey<F::Addr>) -> Option<Peer<F::Addr>>;
    /// Notes the frontend that a socket believes to talk to. May fail silently.
    fn note_peer(&self, key: &SocketKey<F::Addr>, peer: &Peer<F::Addr>);
}

/// The tables of both families, what they share, and the clock.
pub trait Env: Tables<V4> + Tables<V6> {
    /// What the agent has configured.
    fn config(&self) -> Config;
    /// Now, in jiffies, low 32 bits.
    fn now(&self) -> u32;
    /// Now, in nanoseconds since the machine was started, time asleep included.
    fn now_ns(&self) -> u64;
    /// Until when announced addresses are answered for, on that clock.
    fn announce_until_ns(&self) -> u64;
    /// A number that a client cannot foresee.
    fn random(&self) -> u32;
    /// The classes of addresses in a bucket of the filter, see [`crate::abi::address_class`].
    fn address_class(&self, bucket: u32) -> u8;
    /// Whether some Service has this NodePort (host order), in any protocol.
    fn is_node_port(&self, port: u16) -> bool;
    /// Whether packets that come in by this device are of pods on this node, where pods are known by their devices.
    fn is_pod_device(&self, ifindex: u32) -> bool;
    /// The backend id in a slot of the Maglev array.
    fn maglev(&self, slot: u32) -> Option<u32>;
    /// Whether a backend is in the set of a Service with affinity that begins at `offset`.
    fn is_member(&self, offset: u32, backend: u32) -> bool;
    /// Counts a packet.
    fn count(&self, hook: Hook, outcome: Outcome);
}
