//! Internet checksums (RFC 1071) and their incremental update (RFC 1624).
//!
//! A checksum is the complement of the ones' complement sum of all 16-bit words. Ones' complement addition does
//! not care about byte order as long as all words are read alike, so everything here works on words *as they lie
//! in memory*; nothing is swapped. When a word `m` becomes `m'`, the new checksum is `~(~old + ~m + m')`: a
//! [`Delta`] collects `~m + m'` over all the words that change, once, and is then applied to each checksum that
//! covers them (the IPv4 header's, TCP's or UDP's).

use crate::abi::{Address, Port};
use crate::wire::Be16;

/// The sum of `~old + new` over the words that change. (`~old` is all ones less `old`: the ones of all words are one
/// constant to the compiler.) Grows by less than 2^33 a step, so a 64-bit sum holds any
/// number of steps that a packet has.
#[derive(Clone, Copy, Default, Debug)]
pub struct Delta(u64);

impl Delta {
    /// An address changes.
    #[inline(always)]
    pub fn address<A: Address>(self, old: &A, new: &A) -> Self {
        let ([a, b, c, d], [e, f, g, h]) = (old.words(), new.words());
        let first = self.word(a, e);
        if size_of::<A>() == 4 {
            return first;
        }
        first.word(b, f).word(c, g).word(d, h)
    }

    /// A port changes.
    #[inline(always)]
    pub fn port(self, old: Port, new: Port) -> Self {
        self.half_word(old.raw(), new.raw())
    }

    /// A word of 32 bits changes.
    #[inline(always)]
    pub fn word(self, old: u32, new: u32) -> Self {
        Self(
            self.0
                .wrapping_add(0xffff_ffff)
                .wrapping_sub(u64::from(old))
                .wrapping_add(u64::from(new)),
        )
    }

    /// A word of 16 bits changes.
    #[inline(always)]
    pub fn half_word(self, old: u16, new: u16) -> Self {
        Self(
            self.0
                .wrapping_add(0xffff)
                .wrapping_sub(u64::from(old))
                .wrapping_add(u64::from(new)),
        )
    }

    /// The first byte in memory of a word of 16 bits becomes so much less; it must be that large.
    #[inline(always)]
    pub fn first_byte_less(self, by: u8) -> Self {
        // ~m + (m - d) is ~d, whatever m is.
        Self(self.0.wrapping_add(u64::from(!u16::from_ne_bytes([by, 0]))))
    }

    /// The sum in 32 bits, as the kernel's checksum helpers take it.
    #[inline(always)]
    pub const fn sum(self) -> u32 {
        let once = (self.0 >> 32).wrapping_add(self.0 & 0xffff_ffff);
        (once >> 32).wrapping_add(once & 0xffff_ffff) as u32
    }

    /// The checksum after the change.
    #[inline(always)]
    pub fn apply(self, check: Be16) -> Be16 {
        Be16::from_raw(!fold(self.0.wrapping_add(0xffff).wrapping_sub(u64::from(check.raw()))))
    }

    /// A UDP checksum after the change: 0 (none) stays, and a sum of 0 is sent as all ones (RFC 768).
    #[inline(always)]
    pub fn apply_udp(self, check: Be16) -> Be16 {
        if check.raw() == 0 {
            return check;
        }
        let new = self.apply(check);
        if new.raw() == 0 { Be16::from_raw(0xffff) } else { new }
    }
}

/// Brings a sum down to 16 bits with end-around carry.
#[inline(always)]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32).wrapping_add(sum & 0xffff_ffff);
    let sum = (sum >> 16).wrapping_add(sum & 0xffff);
    let sum = (sum >> 16).wrapping_add(sum & 0xffff);
    let sum = (sum >> 16).wrapping_add(sum & 0xffff);
    sum as u16
}
