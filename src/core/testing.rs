//! Seeded randomness for tests; the seed is printed by what fails.

/// splitmix64.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, which is not 0.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(n).unwrap()).unwrap()
    }

    /// Text made of the characters that parsers care for.
    pub(crate) fn text(&mut self, max: usize) -> String {
        const CHARS: &[char] = &[
            '0', '1', '2', '3', '4', '9', '-', '+', ':', '.', ';', 'T', 'Z', 'e', ' ', 't', '"',
            '\\', '{', '}', ',', '\0', 'é', '%',
        ];
        let len = self.below(max);
        (0..len).map(|_| CHARS[self.below(CHARS.len())]).collect()
    }

    /// `bytes`, cut short, with bytes changed, or both.
    pub(crate) fn damage(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = bytes.to_vec();
        if self.below(2) == 0 {
            out.truncate(self.below(bytes.len() + 1));
        }
        for _ in 0..self.below(6) {
            if out.is_empty() {
                break;
            }
            let at = self.below(out.len());
            out[at] = match self.below(4) {
                0 => b'"',
                1 => 0xff,
                2 => b'0',
                _ => u8::try_from(self.below(256)).unwrap(),
            };
        }
        out
    }
}
