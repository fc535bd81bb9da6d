//! Calls under way: an org refuses more while too many of them run long.

use crate::salesforce::error::Error;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[derive(Default)]
struct Inner {
    next: u64,
    since: BTreeMap<u64, Instant>,
}

/// All calls under way.
#[derive(Clone, Default)]
pub(crate) struct Running(Arc<Mutex<Inner>>);

/// A call under way, until it is dropped.
pub(crate) struct Turn {
    running: Running,
    number: u64,
}

impl Running {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a call, unless `most` others have run for `long` already.
    pub(crate) fn begin(&self, most: Option<usize>, long: Duration) -> Result<Turn, Error> {
        let mut inner = self.lock();
        let now = Instant::now();
        let long_ones = inner.since.values().filter(|s| now - **s >= long).count();
        if most.is_some_and(|most| long_ones >= most) {
            return Err(Error::new(
                403,
                "REQUEST_LIMIT_EXCEEDED",
                "ConcurrentPerOrgLongTxn Limit exceeded.",
            ));
        }
        inner.next += 1;
        let number = inner.next;
        inner.since.insert(number, now);
        Ok(Turn {
            running: self.clone(),
            number,
        })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.running.lock().since.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_calls_that_run_long_stand_in_the_way() {
        let running = Running::default();
        let short = Duration::from_secs(1_000);
        let first: Vec<Turn> = (0..5)
            .map(|_| running.begin(Some(2), short).unwrap())
            .collect();
        let refused = running.begin(Some(2), Duration::ZERO).err().unwrap();
        assert_eq!(refused.status, 403);
        assert!(running.begin(None, Duration::ZERO).is_ok());
        drop(first);
        assert!(running.begin(Some(1), Duration::ZERO).is_ok());
    }
}
