//! Addresses, ports and MACs, in network byte order inside their types.

use core::fmt;
use core::hash::Hash;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An IPv4 address. Kept as one word, since the BPF target loads it with one instruction that way; the bytes in
/// memory are those of the packet.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Addr4(u32);

/// An IPv6 address, as four words for the reason given at [`Addr4`].
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Addr6([u32; 4]);

/// A port number of TCP, UDP or SCTP.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Port(u16);

/// An Ethernet address.
#[repr(C, align(2))]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Mac(pub [u8; 6]);

impl Addr4 {
    /// The address with these bytes, most significant first.
    #[inline(always)]
    pub const fn from_octets(octets: [u8; 4]) -> Self {
        Self(u32::from_ne_bytes(octets))
    }

    /// The bytes, most significant first.
    #[inline(always)]
    pub const fn octets(self) -> [u8; 4] {
        self.0.to_ne_bytes()
    }
}

impl Addr6 {
    /// The address with these bytes, most significant first.
    pub const fn from_octets(o: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, p, q] = o;
        Self([
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, g, h]),
            u32::from_ne_bytes([i, j, k, l]),
            u32::from_ne_bytes([m, n, p, q]),
        ])
    }

    /// The bytes, most significant first.
    pub const fn octets(self) -> [u8; 16] {
        let [a, b, c, d] = self.0;
        let [a, b, c, d] = [a.to_ne_bytes(), b.to_ne_bytes(), c.to_ne_bytes(), d.to_ne_bytes()];
        [
            a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3],
        ]
    }
}

impl Port {
    /// The port with this number, given in host order.
    #[inline(always)]
    pub const fn new(number: u16) -> Self {
        Self(number.to_be())
    }

    /// The number in host order.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }

    /// The two bytes of the packet as they lie in memory, for checksums.
    #[inline(always)]
    pub const fn raw(self) -> u16 {
        self.0
    }

    /// The port of two bytes as they lie in memory.
    #[inline(always)]
    pub const fn from_raw(raw: u16) -> Self {
        Self(raw)
    }
}

/// What the packet logic needs of an address, whichever its family.
pub trait Address: Copy + Eq + Hash + Default + fmt::Debug + Into<IpAddr> + FromBytes + 'static {
    /// The address as 32-bit words in memory order. IPv4 fills the first and leaves three zeros, which change
    /// neither a hash nor a checksum.
    fn words(&self) -> [u32; 4];

    /// The address of such words.
    fn from_words(words: [u32; 4]) -> Self;

    /// The address that stands for all loopback addresses among frontends.
    const LOOPBACK: Self;

    /// Whether it is a loopback address.
    fn is_loopback(&self) -> bool;
}

impl Address for Addr4 {
    #[inline(always)]
    fn words(&self) -> [u32; 4] {
        [self.0, 0, 0, 0]
    }

    #[inline(always)]
    fn from_words(words: [u32; 4]) -> Self {
        let [first, ..] = words;
        Self(first)
    }

    const LOOPBACK: Self = Self::from_octets([127, 0, 0, 1]);

    #[inline(always)]
    fn is_loopback(&self) -> bool {
        let [first, ..] = self.octets();
        first == 127
    }
}

impl Address for Addr6 {
    #[inline(always)]
    fn words(&self) -> [u32; 4] {
        self.0
    }

    #[inline(always)]
    fn from_words(words: [u32; 4]) -> Self {
        Self(words)
    }

    const LOOPBACK: Self = Self::from_octets([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

    #[inline(always)]
    fn is_loopback(&self) -> bool {
        *self == Self::LOOPBACK
    }
}

/// An address family, as a type, so that one function serves both and the compiler makes two.
pub trait Family: Copy + Eq + Hash + Default + fmt::Debug + 'static {
    /// The family's address.
    type Addr: Address;
    /// Whether this is IPv6.
    const IS_V6: bool;
}

/// IPv4.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct V4;

/// IPv6.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct V6;

impl Family for V4 {
    type Addr = Addr4;
    const IS_V6: bool = false;
}

impl Family for V6 {
    type Addr = Addr6;
    const IS_V6: bool = true;
}

impl From<Ipv4Addr> for Addr4 {
    fn from(a: Ipv4Addr) -> Self {
        Self::from_octets(a.octets())
    }
}

impl From<Ipv6Addr> for Addr6 {
    fn from(a: Ipv6Addr) -> Self {
        Self::from_octets(a.octets())
    }
}

impl From<Addr4> for IpAddr {
    fn from(a: Addr4) -> Self {
        Self::V4(a.octets().into())
    }
}

impl From<Addr6> for IpAddr {
    fn from(a: Addr6) -> Self {
        Self::V6(a.octets().into())
    }
}

impl fmt::Debug for Addr4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ipv4Addr::from(self.octets()).fmt(f)
    }
}

impl fmt::Debug for Addr6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ipv6Addr::from(self.octets()).fmt(f)
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
