//! A CRM that does not answer: how soon one call tries it again, and when it
//! is back. Without this every waiting batch finds out for itself, again and
//! again, and pauses on its own for minutes after the CRM has come back.

use crate::model::{ErrorClass, Millis, WriteResult};
use crate::retry::Backoff;

/// Calls in vain, one after the other, before the others wait: a single one is
/// nobody's outage.
const SIGNS: u32 = 3;
/// Pauses between tries.
const PAUSE: Backoff = Backoff {
    first_ms: 1_000,
    max_ms: 30_000,
    attempts: u32::MAX,
};

/// What the last calls to a server came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outage {
    /// Calls in vain since the last answer.
    failures: u32,
    next: Millis,
}

impl Outage {
    /// A call came to nothing, and not for a reason of its own.
    pub fn failed(&mut self, now: Millis, seed: u64) {
        self.failures = self.failures.saturating_add(1);
        let step = self.failures.saturating_sub(SIGNS).saturating_add(1);
        let pause = PAUSE.delay(step, seed, None).unwrap_or(PAUSE.max_ms);
        self.next = now.saturating_add(pause);
    }

    /// A call was answered; whether that ends an outage.
    pub fn answered(&mut self) -> bool {
        let was = self.is_out();
        *self = Self::default();
        was
    }

    /// Whether the server is taken to be out of reach.
    pub fn is_out(&self) -> bool {
        self.failures >= SIGNS
    }

    /// Whether this call in vain made it so.
    pub fn has_begun(&self) -> bool {
        self.failures == SIGNS
    }

    /// When the next try is due, if nothing else may be sent before.
    pub fn next_try(&self) -> Option<Millis> {
        self.is_out().then_some(self.next)
    }
}

/// What answers to the writes of one call say of the server: nothing of it came
/// through, or it does answer. None where they say neither: a limit, a log-in.
pub fn sign(results: &[WriteResult]) -> Option<bool> {
    // A record that is locked is no trouble of the server's.
    let vain = |r: &WriteResult| match r {
        WriteResult::Unknown(_) => true,
        WriteResult::Failed(e) => {
            e.class == ErrorClass::Retry && (e.status == 0 || e.status >= 500)
        }
        _ => false,
    };
    let silent = |r: &WriteResult| match r {
        WriteResult::Failed(e) => {
            matches!(
                e.class,
                ErrorClass::Wait | ErrorClass::Reauth | ErrorClass::Stop
            )
        }
        _ => false,
    };
    match results {
        [] => None,
        all if all.iter().all(vain) => Some(true),
        all if all.iter().all(silent) => None,
        _ => Some(false),
    }
}

/// What the first of them says.
pub fn words(results: &[WriteResult]) -> &str {
    results
        .iter()
        .find_map(|r| match r {
            WriteResult::Unknown(e) | WriteResult::Failed(e) => Some(e.message.as_str()),
            WriteResult::Done { .. } | WriteResult::Exists { .. } => None,
        })
        .unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test panics")]
mod tests {
    use super::*;
    use crate::model::RemoteError;

    fn failed(class: ErrorClass) -> WriteResult {
        WriteResult::Failed(RemoteError {
            class,
            status: 0,
            code: String::new(),
            message: String::new(),
            fields: Vec::new(),
            advice: "",
            retry_after_ms: None,
            maybe_applied: false,
        })
    }

    #[test]
    fn one_failed_call_stops_nobody_and_three_leave_one_try_at_a_time() {
        let mut outage = Outage::default();
        for n in 1..=2 {
            outage.failed(n, 7);
            assert_eq!(outage.next_try(), None, "after {n} failures");
        }
        outage.failed(3, 7);
        assert!(outage.has_begun());
        let next = outage.next_try().unwrap();
        assert!((503..=1_003).contains(&next), "{next}");
    }

    #[test]
    fn an_hour_of_outage_costs_few_calls_and_is_over_half_a_minute_after_its_end() {
        for seed in 0..100 {
            let (mut outage, mut now, mut calls) = (Outage::default(), 0, 0);
            while now < 3_600_000 {
                outage.failed(now, seed);
                calls += 1;
                now = outage.next_try().unwrap_or(now);
            }
            assert!(calls < 260, "{calls} calls, seed {seed}");
            assert!(now < 3_630_000, "{now}, seed {seed}");
        }
    }

    #[test]
    fn an_answer_ends_it_and_says_so_once() {
        let mut outage = Outage::default();
        (0..5).for_each(|n| outage.failed(n, 1));
        assert!(outage.answered());
        assert!(!outage.answered());
        assert!(!outage.is_out());
    }

    #[test]
    fn a_limit_or_a_refused_record_is_no_outage() {
        let done = || failed(ErrorClass::FixData);
        assert_eq!(sign(&[failed(ErrorClass::Retry), done()]), Some(false));
        assert_eq!(sign(&[failed(ErrorClass::Wait)]), None);
        let mut locked = failed(ErrorClass::Retry);
        if let WriteResult::Failed(e) = &mut locked {
            e.status = 423;
        }
        assert_eq!(sign(&[locked]), Some(false));
        assert_eq!(sign(&[failed(ErrorClass::Retry)]), Some(true));
        assert_eq!(sign(&[]), None);
    }
}
