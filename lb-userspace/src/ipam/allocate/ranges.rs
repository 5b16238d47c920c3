//! Sets of addresses of one family, as intervals: what a set costs depends on the number of its intervals, not on the
//! number of its addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::model::IpFamily;

/// A set of addresses of one family, as numbers: disjoint intervals in order, none of which touch.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Ranges(Vec<Range>);

/// Addresses from the first to the last, both included.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Range {
    pub(crate) first: u128,
    pub(crate) last: u128,
}

impl Ranges {
    /// All addresses that are in one of these.
    pub(crate) fn of(mut ranges: Vec<Range>) -> Self {
        ranges.sort_unstable();
        let mut merged: Vec<Range> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match merged.last_mut() {
                Some(before) if range.first <= before.last.saturating_add(1) => {
                    before.last = before.last.max(range.last);
                }
                _ => merged.push(range),
            }
        }
        Self(merged)
    }

    /// The intervals.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Range> {
        self.0.iter().copied()
    }

    /// Those that are in this set or in the other.
    pub(crate) fn union(&self, other: &Self) -> Self {
        Self::of(self.iter().chain(other.iter()).collect())
    }

    /// Those that are in both.
    pub(crate) fn intersection(&self, other: &Self) -> Self {
        let (mut ours, mut theirs) = (self.iter().peekable(), other.iter().peekable());
        let mut both = Vec::new();
        while let (Some(one), Some(two)) = (ours.peek(), theirs.peek()) {
            let (first, last) = (one.first.max(two.first), one.last.min(two.last));
            if first <= last {
                both.push(Range { first, last });
            }
            if one.last < two.last {
                ours.next();
            } else {
                theirs.next();
            }
        }
        Self(both)
    }

    /// Those that are not in the other set.
    pub(crate) fn without(&self, other: &Self) -> Self {
        let mut rest = Vec::new();
        let mut holes = other.iter().peekable();
        for Range { mut first, last } in self.iter() {
            let mut left = true;
            while let Some(hole) = holes.peek().copied() {
                if hole.last < first {
                    holes.next();
                    continue;
                }
                if hole.first > last {
                    break;
                }
                if let Some(end) = hole.first.checked_sub(1).filter(|end| *end >= first) {
                    rest.push(Range { first, last: end });
                }
                if hole.last >= last {
                    left = false;
                    break;
                }
                first = hole.last + 1;
            }
            if left {
                rest.push(Range { first, last });
            }
        }
        Self(rest)
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this address is one of them.
    pub(crate) fn contains(&self, address: u128) -> bool {
        let after = self.0.partition_point(|range| range.first <= address);
        after > 0 && address <= self.0[after - 1].last
    }

    /// The lowest of them that is not below a number and for which this holds.
    pub(crate) fn first_from(&self, from: u128, holds: impl Fn(u128) -> bool) -> Option<u128> {
        let begin = self.0.partition_point(|range| range.last < from);
        let ranges = self.0[begin..].iter();
        let mut numbers = ranges.flat_map(|range| range.first.max(from)..=range.last);
        numbers.find(|number| holds(*number))
    }

    /// How many they are; the largest number stands for one more as well.
    pub(crate) fn count(&self) -> u128 {
        let of_each = self.iter().map(|range| (range.last - range.first).saturating_add(1));
        of_each.fold(0, u128::saturating_add)
    }
}

impl Range {
    /// For people.
    pub(crate) fn text(self, family: IpFamily) -> String {
        let [first, last] = [self.first, self.last].map(|number| address(family, number));
        if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        }
    }
}

/// The number of an address in its family.
pub(crate) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// The address with this number in a family.
pub(crate) fn address(family: IpFamily, number: u128) -> IpAddr {
    match family {
        // A number of this family is no larger than its largest.
        IpFamily::V4 => Ipv4Addr::from_bits(u32::try_from(number).unwrap_or(u32::MAX)).into(),
        IpFamily::V6 => Ipv6Addr::from_bits(number).into(),
    }
}

/// Where to look for what is kept for each family.
pub(crate) const fn index(family: IpFamily) -> usize {
    match family {
        IpFamily::V4 => 0,
        IpFamily::V6 => 1,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn ranges() -> impl Strategy<Value = Ranges> {
        let end = prop_oneof![0..40_u128, Just(u128::MAX - 1), Just(u128::MAX)];
        vec((end.clone(), end), 0..6).prop_map(|ends| {
            let ordered = ends.into_iter().map(|(one, two)| Range {
                first: one.min(two),
                last: one.max(two),
            });
            Ranges::of(ordered.collect())
        })
    }

    /// The addresses that tests look at.
    fn members(ranges: &Ranges) -> BTreeSet<u128> {
        let numbers = (0..42).chain(u128::MAX - 2..=u128::MAX);
        numbers.filter(|number| ranges.contains(*number)).collect()
    }

    proptest! {
        #[test]
        fn they_are_sets(one in ranges(), two in ranges()) {
            let (a, b) = (members(&one), members(&two));
            prop_assert_eq!(members(&one.union(&two)), &a | &b);
            prop_assert_eq!(members(&one.intersection(&two)), &a & &b);
            prop_assert_eq!(members(&one.without(&two)), &a - &b);
            prop_assert_eq!(one.without(&two).is_empty(), one.iter().all(|range| {
                two.iter().any(|hole| hole.first <= range.first && range.last <= hole.last)
            }));
        }

        #[test]
        fn intervals_are_in_order_and_do_not_touch(one in ranges(), two in ranges()) {
            for set in [one.union(&two), one.without(&two), one.intersection(&two)] {
                let ends: Vec<_> = set.iter().collect();
                prop_assert!(ends.iter().all(|range| range.first <= range.last));
                prop_assert!(ends.windows(2).all(|pair| pair[0].last < pair[1].first), "{ends:?}");
            }
        }
    }

    #[test]
    fn a_whole_prefix_of_ipv6_is_counted() {
        let first = 0x2001_0db8_u128 << 96;
        let prefix = Ranges::of(vec![Range {
            first,
            last: first + (1 << 64) - 1,
        }]);
        assert_eq!(prefix.count(), 1 << 64);
        let all = Range {
            first: 0,
            last: u128::MAX,
        };
        assert_eq!(Ranges::of(vec![all]).count(), u128::MAX);
    }

    #[test]
    fn numbers_are_addresses_and_back() {
        for text in ["0.0.0.0", "255.255.255.255", "2001:db8::1", "::ffff:192.0.2.1"] {
            let parsed: IpAddr = text.parse().expect("it is an address");
            assert_eq!(address(IpFamily::of(&parsed), number(parsed)), parsed);
        }
    }
}
