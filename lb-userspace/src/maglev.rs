//! Maglev tables: consistent hashing with even shares.
//!
//! Each backend has a permutation of the table's slots, made of its address and port only, so that every node makes
//! the same table. In turn, each takes the next slot of its permutation that is still free. Shares differ by one
//! slot at most, and when a backend comes or goes few slots of the others change.
//!
//! Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, section 3.4.

use lb_common::abi::Address;

/// Sizes of tables: primes, each about 1.4 times the one before.
const SIZES: [u32; 24] = [
    509, 719, 1021, 1447, 2039, 2887, 4093, 5791, 8191, 11587, 16381, 23173, 32749, 46337, 65521, 92683, 131_071,
    185_369, 262_139, 370_723, 524_287, 741_431, 1_048_573, 2_097_143,
];

/// Slots per backend, at least, so that shares differ by about 3 % at most.
const SLOTS_PER_BACKEND: u32 = 32;

/// The sizes that a table of this many backends may have, best first: others are for when room is short.
pub fn table_sizes(backends: usize) -> impl Iterator<Item = u32> {
    let backends = u32::try_from(backends).unwrap_or(u32::MAX);
    let best = backends.saturating_mul(SLOTS_PER_BACKEND);
    let last = SIZES.partition_point(|size| *size < best).min(SIZES.len() - 1);
    let trivial = (backends <= 1).then_some(backends);
    let ladder = SIZES[..=last]
        .iter()
        .rev()
        .copied()
        .filter(move |size| *size >= backends);
    trivial.into_iter().chain(ladder.filter(move |_| backends > 1))
}

/// The table of these backends: in each slot the id of one of them. The order of the backends must be the same on
/// every node (that of address and port); their ids need not be.
pub fn table<A: Address>(backends: &[(A, u16, u32)], size: u32) -> Vec<u32> {
    let mut slots = vec![0; size as usize];
    if let [(_, _, id)] = backends {
        slots.fill(*id);
        return slots;
    }
    let mut walks: Vec<Walk> = backends
        .iter()
        .map(|(addr, port, id)| Walk::new(addr, *port, *id, size))
        .collect();
    let mut left = slots.len();
    while left > 0 && !walks.is_empty() {
        for walk in &mut walks {
            while slots[walk.next as usize] != 0 {
                walk.step(size);
            }
            slots[walk.next as usize] = walk.id;
            left -= 1;
            if left == 0 {
                break;
            }
        }
    }
    slots
}

/// A backend's way through the slots of a table: all of them, since the size is a prime.
struct Walk {
    next: u32,
    skip: u32,
    id: u32,
}

impl Walk {
    fn new<A: Address>(addr: &A, port: u16, id: u32, size: u32) -> Self {
        let [a, b, c, d] = addr.words().map(|word| u64::from(u32::from_be(word)));
        let mut hash = mix(0x5bd1_e995_9d1b_54a5 ^ u64::from(port));
        for word in [a << 32 | b, c << 32 | d] {
            hash = mix(hash ^ word);
        }
        let size = u64::from(size);
        Self {
            next: ((hash & 0xffff_ffff) % size) as u32,
            skip: ((hash >> 32) % (size - 1) + 1) as u32,
            id,
        }
    }

    #[inline]
    const fn step(&mut self, size: u32) {
        self.next += self.skip;
        if self.next >= size {
            self.next -= size;
        }
    }
}

/// The finaliser of SplitMix64 (Steele et al., 2014). Part of what all nodes must agree on: never change it.
const fn mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use lb_common::abi::Addr4;
    use proptest::prelude::*;

    use super::*;

    fn backends(count: u32) -> Vec<(Addr4, u16, u32)> {
        let addr = |n: u32| Addr4::from_octets((0x0a00_0001 + n).to_be_bytes());
        (0..count).map(|n| (addr(n), 8080, n + 1)).collect()
    }

    #[test]
    fn every_size_is_a_prime() {
        for size in SIZES {
            let root = f64::from(size).sqrt() as u32 + 1;
            assert!((2..=root).all(|d| !size.is_multiple_of(d)), "{size}");
        }
    }

    #[test]
    fn tables_have_at_least_32_slots_a_backend_and_one_backend_needs_one_slot() {
        assert_eq!(table_sizes(0).next(), Some(0));
        assert_eq!(table_sizes(1).collect::<Vec<_>>(), [1]);
        assert_eq!(table_sizes(2).next(), Some(509));
        assert_eq!(table_sizes(50).next(), Some(2039));
        assert_eq!(table_sizes(50).last(), Some(509));
        assert_eq!(table_sizes(1000).last(), Some(1021));
    }

    #[test]
    fn a_table_never_changes_between_releases() {
        let table = table(&backends(3), 509);
        let sum = table
            .iter()
            .enumerate()
            .fold(0u64, |sum, (i, id)| sum + (i as u64 + 1) * u64::from(*id));
        insta::assert_snapshot!(format!("{:?} {sum}", &table[..16]), @"[1, 2, 2, 3, 3, 3, 3, 2, 2, 2, 2, 1, 2, 3, 3, 3] 257135");
    }

    #[test]
    fn few_slots_move_when_a_backend_goes() {
        let size = 2039;
        let before = table(&backends(50), size);
        let after = table(&backends(49), size);
        let moved = before.iter().zip(&after).filter(|(b, a)| **b != 50 && b != a).count();
        assert!(moved < size as usize / 10, "{moved} of {size} moved needlessly");
    }

    proptest! {
        #[test]
        fn shares_differ_by_one_slot_at_most(count in 2u32..200) {
            let backends = backends(count);
            for size in table_sizes(backends.len()) {
                let mut shares: HashMap<u32, u32> = HashMap::new();
                for id in table(&backends, size) {
                    *shares.entry(id).or_default() += 1;
                }
                prop_assert_eq!(shares.len(), backends.len());
                let (min, max) = (shares.values().min(), shares.values().max());
                prop_assert!(max.copied().unwrap_or(0) - min.copied().unwrap_or(0) <= 1);
            }
        }

        #[test]
        fn the_table_depends_on_addresses_not_on_ids(count in 1u32..60, shift in 1u32..1000) {
            let ours = backends(count);
            let theirs: Vec<_> = ours.iter().map(|(addr, port, id)| (*addr, *port, id + shift)).collect();
            let size = table_sizes(ours.len()).next().unwrap_or(0);
            let shifted: Vec<u32> = table(&theirs, size).iter().map(|id| id - shift).collect();
            prop_assert_eq!(table(&ours, size), shifted);
        }
    }
}
