//! The lagging view that search sees. It stays ordered by `(modified, id)`: base records by
//! arithmetic, written ones in a tree, so that a page of recent changes costs no scan.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    clock,
    hubspot::store::{Ground, Record, View},
};

/// Records by id and by stamp, as search sees them.
pub(crate) struct Index {
    ground: Ground,
    overlay: BTreeMap<u64, Arc<Record>>,
    by_modified: BTreeSet<(i64, u64)>,
    /// How many base records up to n have been written since: a Fenwick tree.
    moved: Vec<u32>,
    count: u64,
}

struct Pending {
    due_ms: i64,
    id: u64,
    record: Arc<Record>,
}

/// [`Index`] with the writes it does not show yet.
pub(crate) struct SearchIndex {
    lag_ms: i64,
    pending: Mutex<VecDeque<Pending>>,
    index: Mutex<Index>,
}

impl SearchIndex {
    pub(crate) fn new(ground: Ground, lag_ms: u64) -> SearchIndex {
        SearchIndex {
            lag_ms: i64::try_from(lag_ms).unwrap_or(i64::MAX / 2),
            pending: Mutex::default(),
            index: Mutex::new(Index {
                count: ground.count,
                ground,
                overlay: BTreeMap::new(),
                by_modified: BTreeSet::new(),
                moved: Vec::new(),
            }),
        }
    }

    /// Announces the new state of a record; it shows after the lag.
    pub(crate) fn note(&self, id: u64, record: Arc<Record>) {
        self.pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(Pending {
                due_ms: clock::real_ms() + self.lag_ms,
                id,
                record,
            });
        // Keeps the queue short when nobody searches; a search in progress does it otherwise.
        if let Ok(mut index) = self.index.try_lock() {
            self.catch_up(&mut index);
        }
    }

    fn catch_up(&self, index: &mut Index) {
        let now = clock::real_ms();
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        while pending.front().is_some_and(|p| p.due_ms <= now) {
            if let Some(next) = pending.pop_front() {
                index.apply(next.id, next.record);
            }
        }
    }

    /// The view as of now minus the lag.
    pub(crate) fn open(&self) -> MutexGuard<'_, Index> {
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        self.catch_up(&mut index);
        index
    }
}

impl Index {
    fn apply(&mut self, id: u64, record: Arc<Record>) {
        let was_live = match self.overlay.get(&id) {
            Some(old) => {
                self.by_modified.remove(&(old.modified_ms, id));
                old.is_live()
            }
            None => {
                let n = self.ground.number(id);
                if n > 0 {
                    self.mark_moved(n);
                }
                n > 0
            }
        };
        match (was_live, record.is_live()) {
            (true, false) => self.count -= 1,
            (false, true) => self.count += 1,
            _ => {}
        }
        if record.is_live() {
            self.by_modified.insert((record.modified_ms, id));
        }
        self.overlay.insert(id, record);
    }

    fn mark_moved(&mut self, n: u64) {
        if self.moved.is_empty() {
            self.moved = vec![0; self.ground.count as usize + 1];
        }
        let mut at = n as usize;
        while at < self.moved.len() {
            self.moved[at] += 1;
            at += at & at.wrapping_neg();
        }
    }

    /// Written base records among 1..=n.
    fn moved_up_to(&self, n: u64) -> u64 {
        if self.moved.is_empty() {
            return 0;
        }
        let (mut at, mut sum) = (n as usize, 0);
        while at > 0 {
            sum += u64::from(self.moved[at]);
            at -= at & at.wrapping_neg();
        }
        sum
    }

    /// Live records.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The live record with this id.
    pub(crate) fn view(&self, id: u64) -> Option<View<'_>> {
        match self.overlay.get(&id) {
            Some(record) => record
                .is_live()
                .then(|| View::new(&self.ground, id, Some(record))),
            None => (self.ground.number(id) > 0).then(|| View::new(&self.ground, id, None)),
        }
    }

    /// Numbers of base records with stamps in `low..=high`.
    fn base_range(&self, low: i64, high: i64) -> (u64, u64) {
        let (people, kind) = (&self.ground.people, self.ground.kind);
        let from = people.first_modified_from(kind, low);
        let to = match high.checked_add(1) {
            Some(above) => people.first_modified_from(kind, above),
            None => self.ground.count + 1,
        };
        (from, to.max(from))
    }

    /// How many live records have stamps in `low..=high`.
    pub(crate) fn count_modified(&self, low: i64, high: i64) -> u64 {
        if low > high {
            return 0;
        }
        let (from, to) = self.base_range(low, high);
        let base = (to - from) - (self.moved_up_to(to - 1) - self.moved_up_to(from - 1));
        base + self.count_written(low, high)
    }

    /// Written live records with stamps in `low..=high`. Walks those inside and those outside by
    /// turns: polls ask for the newest, first pages for nearly all, and both end soon.
    fn count_written(&self, low: i64, high: i64) -> u64 {
        let mut inside = self.by_modified.range((low, 0)..=(high, u64::MAX));
        let below = self.by_modified.range(..(low, 0));
        let above = (Bound::Excluded((high, u64::MAX)), Bound::Unbounded);
        let mut outside = below.chain(self.by_modified.range(above));
        let mut steps = 0;
        loop {
            if inside.next().is_none() {
                return steps;
            }
            if outside.next().is_none() {
                return self.by_modified.len() as u64 - steps;
            }
            steps += 1;
        }
    }

    /// How many live records have ids in `low..=high`.
    pub(crate) fn count_ids(&self, low: u64, high: u64) -> u64 {
        if low > high {
            return 0;
        }
        let id_base = self.ground.id_base;
        let first = low.saturating_sub(id_base).max(1);
        let last = high.saturating_sub(id_base).min(self.ground.count);
        let base = if first > last {
            0
        } else {
            let moved = self.moved_up_to(last) - self.moved_up_to(first - 1);
            last - first + 1 - moved
        };
        let written = self.overlay.range(low..=high);
        base + written.filter(|(_, record)| record.is_live()).count() as u64
    }

    /// `(stamp, id)` of live records with stamps in `low..=high`, in order.
    pub(crate) fn by_modified(
        &self,
        low: i64,
        high: i64,
        descending: bool,
    ) -> Box<dyn Iterator<Item = (i64, u64)> + '_> {
        if low > high {
            return Box::new(std::iter::empty());
        }
        let (from, to) = self.base_range(low, high);
        let stamp = move |n| {
            let id = self.ground.id(n);
            let ms = self.ground.people.modified_ms(self.ground.kind, n);
            (!self.overlay.contains_key(&id)).then_some((ms, id))
        };
        let written = self.by_modified.range((low, 0)..=(high, u64::MAX)).copied();
        if descending {
            merge((from..to).rev().filter_map(stamp), written.rev(), |a, b| {
                a > b
            })
        } else {
            merge((from..to).filter_map(stamp), written, |a, b| a < b)
        }
    }

    /// Live ids in `low..=high`, in order.
    pub(crate) fn by_id(
        &self,
        low: u64,
        high: u64,
        descending: bool,
    ) -> Box<dyn Iterator<Item = (i64, u64)> + '_> {
        if low > high {
            return Box::new(std::iter::empty());
        }
        let first = self.ground.id(1);
        let last = self.ground.id(self.ground.count);
        let base = (low.max(first)..last.min(high).saturating_add(1))
            .filter(|id| !self.overlay.contains_key(id));
        let written = self
            .overlay
            .range(low..=high)
            .filter(|(_, record)| record.is_live())
            .map(|(id, _)| *id);
        let pair = |id| (0, id);
        if descending {
            merge(base.rev().map(pair), written.rev().map(pair), |a, b| a > b)
        } else {
            merge(base.map(pair), written.map(pair), |a, b| a < b)
        }
    }
}

/// Merges two sorted sequences; `first` says which of two comes first.
fn merge<'a>(
    left: impl Iterator<Item = (i64, u64)> + 'a,
    right: impl Iterator<Item = (i64, u64)> + 'a,
    first: fn(&(i64, u64), &(i64, u64)) -> bool,
) -> Box<dyn Iterator<Item = (i64, u64)> + 'a> {
    let (mut left, mut right) = (left.peekable(), right.peekable());
    Box::new(std::iter::from_fn(move || {
        match (left.peek(), right.peek()) {
            (Some(a), Some(b)) if first(a, b) => left.next(),
            (_, Some(_)) => right.next(),
            (Some(_), None) => left.next(),
            (None, None) => None,
        }
    }))
}
