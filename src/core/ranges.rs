//! A first copy in several ranges of ids at once: one answer after the other is
//! too slow where a page is small and the CRM far away.
//!
//! Cursors of pages are ids of records, in the order of [`id_order`]. What is
//! left to copy is kept as text, so that a copy goes on after a crash.

use std::cmp::Ordering;

use crate::model::Record;

/// Decimal ids by value: the longer is the larger, equal lengths compare as text.
pub fn id_order(a: &str, b: &str) -> Ordering {
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

/// Ids that part the numbers up to `highest` into `parts` equal pieces; none if
/// it is not a number that is large enough.
pub fn marks(highest: &str, parts: u64) -> Vec<String> {
    match highest.parse::<u64>() {
        Ok(highest) if highest >= parts && parts > 1 => (1..parts)
            .map(|k| (highest / parts * k).to_string())
            .collect(),
        _ => Vec::new(),
    }
}

/// One range: where its next page starts, and the id before which it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// Cursor of the next page; `None` for the very first.
    pub at: Option<String>,
    /// First id that is another range's; `None` for the end of all.
    pub end: Option<String>,
}

/// What is left of a copy. Finished ranges keep their place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranges(Vec<Option<Range>>);

impl Ranges {
    /// Everything, split at these ids.
    pub fn split_at(mut starts: Vec<String>) -> Self {
        starts.sort_by(|a, b| id_order(a, b));
        starts.dedup();
        let ends = starts.iter().cloned().map(Some).chain([None]);
        let begins = std::iter::once(None).chain(starts.iter().cloned().map(Some));
        Self(
            begins
                .zip(ends)
                .map(|(at, end)| Some(Range { at, end }))
                .collect(),
        )
    }

    /// Splits the range that holds `start`, also while it is copied: it ends
    /// there, and a new one goes on. The number of that; `None` if `start` was
    /// passed already or is a start itself.
    pub fn split(&mut self, start: &str) -> Option<usize> {
        let before = |a: &str, b: &str| id_order(a, b) == Ordering::Less;
        let holds = |r: &&mut Range| {
            r.at.as_deref().is_none_or(|at| before(at, start))
                && r.end.as_deref().is_none_or(|end| before(start, end))
        };
        let range = self.0.iter_mut().flatten().find(holds)?;
        let end = range.end.replace(start.to_owned());
        self.0.push(Some(Range {
            at: Some(start.to_owned()),
            end,
        }));
        Some(self.0.len() - 1)
    }

    /// From stored text; anything else than our own form is a plain cursor.
    pub fn decode(text: Option<&str>) -> Self {
        let Some(text) = text else {
            return Self::split_at(Vec::new());
        };
        let pairs: Result<Vec<(Option<String>, Option<String>)>, _> = serde_json::from_str(text);
        match pairs {
            Ok(pairs) if text.starts_with('[') => Self(
                pairs
                    .into_iter()
                    .map(|(at, end)| Some(Range { at, end }))
                    .collect(),
            ),
            _ => Self(vec![Some(Range {
                at: Some(text.to_owned()),
                end: None,
            })]),
        }
    }

    /// As text; `None` when nothing is left.
    pub fn encode(&self) -> Option<String> {
        let left: Vec<_> = self.0.iter().flatten().map(|r| (&r.at, &r.end)).collect();
        if left.is_empty() {
            return None;
        }
        serde_json::to_string(&left).ok()
    }

    /// Numbers of the ranges that are not finished.
    pub fn open(&self) -> Vec<usize> {
        (0..self.0.len()).filter(|i| self.0[*i].is_some()).collect()
    }

    /// A range that is not finished.
    pub fn get(&self, index: usize) -> Option<&Range> {
        self.0.get(index)?.as_ref()
    }

    /// Takes a page of a range: records behind its end go, the range moves on.
    /// True if it has more.
    pub fn received(
        &mut self,
        index: usize,
        records: &mut Vec<Record>,
        next: Option<String>,
    ) -> bool {
        let Some(Some(range)) = self.0.get_mut(index) else {
            return false;
        };
        let behind = |id: &str, end: &str| id_order(id, end) != Ordering::Less;
        let before = records.len();
        if let Some(end) = &range.end {
            records.retain(|r| !behind(&r.id, end));
        }
        let cut = records.len() < before;
        let more = next.filter(|n| !cut && !range.end.as_ref().is_some_and(|end| behind(n, end)));
        match more {
            Some(next) => {
                range.at = Some(next);
                true
            }
            None => {
                self.0[index] = None;
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(ids: std::ops::Range<u64>) -> Vec<Record> {
        ids.map(|id| Record {
            id: id.to_string(),
            ..Record::default()
        })
        .collect()
    }

    /// Copies ids 0..n by pages of 7 over the ranges, in a fixed mixture.
    fn copied(ranges: Ranges, n: u64, restart_every: usize) -> Vec<u64> {
        copied_split(ranges, n, restart_every, usize::MAX, Vec::new())
    }

    /// The same, splitting at `starts` after `split_after` pages.
    fn copied_split(
        mut ranges: Ranges,
        n: u64,
        restart_every: usize,
        split_after: usize,
        starts: Vec<String>,
    ) -> Vec<u64> {
        let mut out = Vec::new();
        let mut turn = 0;
        while let Some(index) = {
            let open = ranges.open();
            (!open.is_empty()).then(|| open[turn % open.len()])
        } {
            turn += 1;
            if turn == split_after {
                // In any order: answers overtake each other.
                for s in starts.iter().rev() {
                    ranges.split(s);
                }
            }
            let start: u64 = ranges
                .get(index)
                .and_then(|r| r.at.as_ref())
                .map_or(0, |at| at.parse().expect("numeric cursor"));
            let end = (start + 7).min(n);
            let mut page = records(start..end);
            let next = (end < n).then(|| end.to_string());
            ranges.received(index, &mut page, next);
            out.extend(
                page.iter()
                    .map(|r| r.id.parse::<u64>().expect("numeric id")),
            );
            if turn.is_multiple_of(restart_every) {
                ranges = match ranges.encode() {
                    Some(text) => Ranges::decode(Some(&text)),
                    None => break,
                };
            }
        }
        out.sort_unstable();
        out
    }

    #[test]
    fn every_record_is_copied_once_whatever_the_ranges_and_restarts() {
        for n in [1, 6, 7, 8, 100, 1234] {
            for parts in 1..6 {
                for restart_every in [1, 3, 1000] {
                    let ranges = Ranges::split_at(marks(&(n - 1).to_string(), parts));
                    let expected: Vec<u64> = (0..n).collect();
                    assert_eq!(
                        copied(ranges, n, restart_every),
                        expected,
                        "n={n} parts={parts}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_range_that_is_being_copied_can_be_split_anywhere_ahead() {
        for n in [8, 100, 1234] {
            for split_after in [1, 2, 5, 100] {
                let starts = marks(&(n - 1).to_string(), 4);
                let expected: Vec<u64> = (0..n).collect();
                let one = Ranges::split_at(Vec::new());
                let ids = copied_split(one, n, 3, split_after, starts);
                assert_eq!(ids, expected, "n={n} split_after={split_after}");
            }
        }
        let mut ranges = Ranges::decode(Some("50"));
        // Passed already, ahead, ahead of what is left.
        let split = ["10", "90", "70", "90"].map(|start| ranges.split(start));
        assert_eq!(split, [None, Some(1), Some(2), None]);
        let ends = [0, 1, 2].map(|i| ranges.get(i).and_then(|r| r.end.as_deref()));
        assert_eq!(ends, [Some("70"), None, Some("90")]);
    }

    #[test]
    fn ids_of_different_length_are_ordered_by_value() {
        assert_eq!(id_order("99", "734931097788"), Ordering::Less);
        assert_eq!(id_order("100", "99"), Ordering::Greater);
    }

    #[test]
    fn a_plain_cursor_of_an_older_release_goes_on_as_one_range() {
        let ranges = Ranges::decode(Some("4711"));
        assert_eq!(ranges.open(), [0]);
        assert_eq!(ranges.get(0).and_then(|r| r.at.as_deref()), Some("4711"));
    }

    #[test]
    fn ids_that_are_no_numbers_are_not_split() {
        assert!(marks("003xx0000000001AAA", 4).is_empty());
        assert!(marks("2", 4).is_empty());
    }
}
