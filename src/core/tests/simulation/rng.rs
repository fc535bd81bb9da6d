//! Random numbers from a seed, the same on every machine.

/// SplitMix64.
pub struct Rng(pub u64);

impl Rng {
    /// The numbers of one act of a history: leaving out an act leaves the
    /// others as they are.
    pub fn of(seed: u64, act: u64) -> Self {
        let mut rng = Self(seed ^ act.wrapping_mul(0xd6e8_feb8_6659_fd93));
        rng.next();
        rng
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % (n.max(1) as u64)) as usize
    }

    /// True in `percent` of a hundred.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// A length of time: mostly short.
    pub fn delay(&mut self) -> i64 {
        let most = match self.below(10) {
            0 => 60_000,
            1..=3 => 5_000,
            _ => 500,
        };
        self.below(most) as i64
    }
}
