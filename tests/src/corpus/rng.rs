//! Numbers from a seed (splitmix64).

use vmferry_guest::pattern::mix;

pub(super) struct Rng(u64);

impl Rng {
    /// A sequence for page `number` of those made from `seed`.
    pub(super) fn of_page(seed: u64, number: u64) -> Self {
        Self(mix(seed ^ mix(number)))
    }

    pub(super) fn next(&mut self) -> u64 {
        let out = mix(self.0);
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        out
    }

    /// Below `n`, which is not zero.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// Once in `n` times.
    pub(super) fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Small more often than large, below `n`: as counts, sizes and times mostly are.
    pub(super) fn small(&mut self, n: u64) -> u64 {
        self.below(n) * self.below(n) / n
    }

    pub(super) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}
