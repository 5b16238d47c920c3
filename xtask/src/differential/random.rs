//! Random numbers that a seed repeats, on every machine and with every release: what a round makes depends on nothing
//! else. The generator is `SplitMix64` (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).

/// A source of random choices.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The source of this round of this seed. Rounds do not depend on each other, so each can be repeated alone.
    pub const fn of_round(seed: u64, round: u32) -> Self {
        Self(mix(seed ^ mix(round as u64 + 1)))
    }

    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `bound`; 0 if there is none.
    pub const fn below(&mut self, bound: usize) -> usize {
        if bound == 0 {
            0
        } else {
            (self.next() % bound as u64) as usize
        }
    }

    /// True so many times in a hundred.
    pub const fn percent(&mut self, chance: u64) -> bool {
        self.next() % 100 < chance
    }

    /// One of these.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        from.get(self.below(from.len()))
    }

    /// One of these values.
    pub const fn one<T: Copy, const N: usize>(&mut self, from: [T; N]) -> T {
        from[self.below(N)]
    }

    /// Some of these, each so many times in a hundred, in their order.
    pub fn some<T: Clone>(&mut self, from: &[T], chance: u64) -> Vec<T> {
        from.iter().filter(|_| self.percent(chance)).cloned().collect()
    }
}

const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_and_a_round_repeat_their_choices_and_differ_from_others() {
        let choices = |seed, round| {
            let mut random = Random::of_round(seed, round);
            [(); 8].map(|()| random.below(1000))
        };
        assert_eq!(choices(7, 3), choices(7, 3));
        assert_ne!(choices(7, 3), choices(7, 4));
        assert_ne!(choices(7, 3), choices(8, 3));
    }

    #[test]
    fn chances_are_kept_over_many_choices() {
        let mut random = Random::of_round(1, 1);
        let hits = (0..10_000).filter(|_| random.percent(30)).count();
        assert!((2700..3300).contains(&hits), "{hits}");
    }
}
