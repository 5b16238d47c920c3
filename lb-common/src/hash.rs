//! Hashes: of a flow, for the choice of a backend, and of an address, for the filter.
//!
//! Both are part of what all nodes must agree on (the flow hash) or of the map layout (the filter), so they are
//! written out here instead of taken from a library that may change them. They mix 64-bit words by
//! multiplication and folding; u128 products do not link on the BPF target.

use crate::abi::{Address, FILTER_BUCKETS, Tuple};

const PRIME_1: u64 = 0x9E37_79B1_85EB_CA87;
const PRIME_2: u64 = 0xC2B2_AE3D_27D4_EB4F;

/// One round: spreads every bit of `word` over the upper half of the state, then brings it down.
#[inline(always)]
const fn mix(state: u64, word: u64) -> u64 {
    let x = (state ^ word).wrapping_mul(PRIME_1);
    x ^ (x >> 32)
}

/// The hash of a flow by its tuple as the client sent it. The same on every node, whatever the direction field.
#[inline(always)]
pub fn flow<A: Address>(tuple: &Tuple<A>) -> u32 {
    let [a, b, c, d] = tuple.src.words();
    let [e, f, g, h] = tuple.dst.words();
    let ports = pair(u32::from(tuple.src_port.raw()), u32::from(tuple.dst_port.raw()));
    let mut x = mix(PRIME_2, pair(a, e));
    x = mix(x, ports ^ (u64::from(tuple.protocol) << 16));
    if size_of::<A>() > 4 {
        x = mix(x, pair(b, f));
        x = mix(x, pair(c, g));
        x = mix(x, pair(d, h));
    }
    finish(x)
}

/// The bucket of the address filter in which `address` lies, below [`FILTER_BUCKETS`].
#[inline(always)]
pub fn filter_bucket<A: Address>(address: &A) -> u32 {
    let [a, b, c, d] = address.words();
    let mut x = u64::from(a).wrapping_mul(PRIME_1);
    if size_of::<A>() > 4 {
        x = mix(x, pair(b, c));
        x = (x ^ u64::from(d)).wrapping_mul(PRIME_1);
    }
    (x >> 40) as u32 & (FILTER_BUCKETS as u32).wrapping_sub(1)
}

#[inline(always)]
const fn pair(high: u32, low: u32) -> u64 {
    ((high as u64) << 32) | low as u64
}

#[inline(always)]
const fn finish(x: u64) -> u32 {
    let x = x.wrapping_mul(PRIME_2);
    (x >> 32) as u32 ^ x as u32
}
