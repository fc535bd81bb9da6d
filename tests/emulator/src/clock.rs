//! Time as each CRM sees it, and the seeded generator of everything that looks random.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use crate::shared::Side;

/// Real time plus a skew per CRM that the admin interface sets; that of HubSpot can be stopped.
#[derive(Default)]
pub(crate) struct Clock {
    hubspot_skew_ms: AtomicI64,
    /// Where HubSpot's clock stands still; 0 while it runs.
    hubspot_stopped_ms: AtomicI64,
    salesforce_skew_ms: AtomicI64,
}

impl Clock {
    /// Milliseconds since 1970 by the clock of `side`.
    pub(crate) fn now_ms(&self, side: Side) -> i64 {
        let stopped = self.hubspot_stopped_ms.load(Ordering::Relaxed);
        if side == Side::HubSpot && stopped != 0 {
            return stopped;
        }
        real_ms() + self.skew(side).load(Ordering::Relaxed)
    }

    /// Stops HubSpot's clock, so that many changes have one stamp, or lets it run.
    pub(crate) fn stop(&self, stop: bool) {
        let at = if stop { self.now_ms(Side::HubSpot) } else { 0 };
        self.hubspot_stopped_ms.store(at, Ordering::Relaxed);
    }

    /// Sets how far the clock of `side` is ahead of real time.
    pub(crate) fn set_skew_ms(&self, side: Side, skew_ms: i64) {
        self.skew(side).store(skew_ms, Ordering::Relaxed);
    }

    fn skew(&self, side: Side) -> &AtomicI64 {
        match side {
            Side::HubSpot => &self.hubspot_skew_ms,
            Side::Salesforce => &self.salesforce_skew_ms,
        }
    }
}

/// Milliseconds since 1970 without skew: for windows of rate limits and delays.
pub(crate) fn real_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

/// SplitMix64: small, fast, the same on every machine. Not for secrets.
#[derive(Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    pub(crate) fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number in `0..bound` (0 when `bound` is 0).
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 {
            0
        } else {
            self.next_u64() % bound
        }
    }

    /// Puts `items` into a random order.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let j = usize::try_from(self.below(i as u64 + 1)).unwrap_or(0);
            items.swap(i, j);
        }
    }
}

/// The finishing step of SplitMix64: spreads any number over 64 bits.
pub(crate) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_yields_the_published_sequence_for_seed_0() {
        let mut rng = Rng::new(0);
        assert_eq!(rng.next_u64(), 0xe220_a839_7b1d_cdaf);
        assert_eq!(rng.next_u64(), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn skew_moves_one_crm_and_leaves_the_other() {
        let clock = Clock::default();
        clock.set_skew_ms(Side::HubSpot, 3_600_000);
        let ahead = clock.now_ms(Side::HubSpot) - clock.now_ms(Side::Salesforce);
        assert!((3_599_000..=3_601_000).contains(&ahead), "{ahead}");
    }
}
