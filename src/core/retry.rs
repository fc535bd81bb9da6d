//! Back-off as data: how long until the next attempt, if there is one.

use crate::model::Millis;

/// Delays that double from `first_ms` to `max_ms`, for at most `attempts` repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Delay after the first failure.
    pub first_ms: Millis,
    /// Longest delay of our own choice.
    pub max_ms: Millis,
    /// Repeats; 0 means never again.
    pub attempts: u32,
}

impl Backoff {
    /// Delay after failure number `failure` (from 1), or `None` when it is
    /// time to give up. Between half and the whole of the nominal delay,
    /// picked by `seed`, so that clients which failed together do not return
    /// together. What the CRM asked for (`retry_after_ms`) is a lower bound, with
    /// jitter on top.
    pub fn delay(&self, failure: u32, seed: u64, retry_after_ms: Option<Millis>) -> Option<Millis> {
        if failure > self.attempts {
            return None;
        }
        let doublings = failure.saturating_sub(1).min(40);
        let nominal = self
            .first_ms
            .max(1)
            .saturating_mul(1 << doublings)
            .min(self.max_ms.max(1));
        let half = nominal / 2;
        let jitter = draw(seed, failure) % (nominal - half + 1).unsigned_abs();
        let own = half + Millis::try_from(jitter).unwrap_or(0);
        Some(match retry_after_ms {
            Some(asked) if asked > own => asked.saturating_add(own / 4),
            _ => own,
        })
    }

    /// The instant of the next attempt; see [`Self::delay`].
    pub fn next_attempt(
        &self,
        now: Millis,
        failure: u32,
        seed: u64,
        retry_after_ms: Option<Millis>,
    ) -> Option<Millis> {
        self.delay(failure, seed, retry_after_ms)
            .map(|d| now.saturating_add(d))
    }
}

/// A well-mixed number of seed and step (the finalizer of SplitMix64).
fn draw(seed: u64, step: u32) -> u64 {
    let mut z = seed.wrapping_add(u64::from(step).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test panics")]
mod tests {
    use super::*;

    const POLICY: Backoff = Backoff {
        first_ms: 100,
        max_ms: 5_000,
        attempts: 10,
    };

    #[test]
    fn delays_double_up_to_the_maximum_and_then_end() {
        for failure in 1..=10 {
            let nominal = (100_i64 << (failure - 1)).min(5_000);
            for seed in 0..100 {
                let d = POLICY.delay(failure, seed, None).unwrap();
                assert!(d >= nominal / 2 && d <= nominal, "{failure} {seed}: {d}");
            }
        }
        assert_eq!(POLICY.delay(11, 1, None), None);
    }

    #[test]
    fn seeds_spread_clients_that_failed_together() {
        let mut seen: Vec<_> = (0..64).map(|s| POLICY.delay(6, s, None)).collect();
        seen.sort_unstable();
        seen.dedup();
        assert!(seen.len() > 40, "{}", seen.len());
        assert_eq!(POLICY.delay(6, 7, None), POLICY.delay(6, 7, None));
    }

    #[test]
    fn the_crm_is_never_asked_earlier_than_it_said() {
        for seed in 0..100 {
            assert!(POLICY.delay(1, seed, Some(10_000)).unwrap() >= 10_000);
            assert!(POLICY.next_attempt(5, 1, seed, Some(10)).unwrap() >= 55);
        }
    }

    #[test]
    fn extreme_policies_do_not_overflow() {
        let p = Backoff {
            first_ms: i64::MAX / 2,
            max_ms: i64::MAX,
            attempts: u32::MAX,
        };
        assert!(p.delay(u32::MAX, 1, Some(i64::MAX)).unwrap() > 0);
        assert!(p.next_attempt(i64::MAX, 40, 1, Some(i64::MAX)).is_some());
    }
}
