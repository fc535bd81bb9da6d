//! The guard's memory of time: how many rows one writer changed lately.
//!
//! A limit per transaction does not stop a loop that changes one row at a time,
//! so changes are also counted per writer in a sliding window of their own time.

use std::collections::{BTreeMap, HashMap};

use crate::model::Millis;

/// Writers remembered; the one that was quiet longest makes room.
const WRITERS_MAX: usize = 1_000;
/// Parts of a window; a row counts for one part longer at most.
const PARTS: i64 = 12;

/// Changed rows of each writer within a sliding window.
#[derive(Clone, Debug, Default)]
pub struct Window {
    span_ms: i64,
    /// Rows by part of time, by writer.
    writers: HashMap<String, BTreeMap<i64, u64>>,
}

impl Window {
    /// Sets the length of the window; what was counted with another is forgotten.
    pub fn set_span(&mut self, span_ms: i64) {
        if self.span_ms != span_ms {
            self.span_ms = span_ms;
            self.writers.clear();
        }
    }

    /// Counts rows that a writer changed at a time; its rows in the window that
    /// ends then, these included.
    pub fn count(&mut self, writer: &str, at: Millis, rows: u64) -> u64 {
        let part = (self.span_ms / PARTS).max(1);
        let now = at.div_euclid(part);
        if !self.writers.contains_key(writer) && self.writers.len() >= WRITERS_MAX {
            let last = |parts: &BTreeMap<i64, u64>| parts.keys().next_back().copied();
            let quiet = self.writers.iter().min_by_key(|(_, parts)| last(parts));
            if let Some(name) = quiet.map(|(name, _)| name.clone()) {
                self.writers.remove(&name);
            }
        }
        let parts = self.writers.entry(writer.to_owned()).or_default();
        *parts.entry(now).or_default() += rows;
        // Transactions come roughly in order: what is two windows old is over.
        *parts = parts.split_off(&(now - 2 * PARTS));
        parts.range(now - PARTS..=now).map(|(_, n)| n).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window() -> Window {
        let mut window = Window::default();
        window.set_span(60_000);
        window
    }

    #[test]
    fn a_loop_of_single_rows_adds_up() {
        let mut window = window();
        let last = (0..500).map(|i| window.count("app", i * 100, 1)).last();
        assert_eq!(last, Some(500));
    }

    #[test]
    fn slow_work_never_adds_up() {
        let mut window = window();
        let most = (0..10_000).map(|i| window.count("app", i * 6_000, 1)).max();
        assert!(most <= Some(11), "{most:?}");
    }

    #[test]
    fn writers_do_not_pay_for_each_other() {
        let mut window = window();
        window.count("loop", 0, 1_000);
        assert_eq!(window.count("portal", 10, 1), 1);
    }

    #[test]
    fn what_is_taken_up_late_counts_at_its_own_time() {
        let mut window = window();
        window.count("app", 1_000_000, 5);
        assert_eq!(window.count("app", 930_000, 1), 1);
        assert_eq!(window.count("app", 1_000_000, 1), 6);
    }

    #[test]
    fn memory_is_bounded() {
        let mut window = window();
        for i in 0..5_000 {
            window.count(&format!("writer {i}"), i, 1);
        }
        assert_eq!(window.writers.len(), WRITERS_MAX);
        assert_eq!(window.count("writer 4999", 5_000, 1), 2, "the latest stay");
    }
}
