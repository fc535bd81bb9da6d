//! A long log of changes, read once for many batches: to look for the changes of
//! given rows is to read the log whole, which for a million of them in batches
//! costs more than all else together.
//!
//! What was found holds only while nobody adds to the log. Whether somebody did
//! is asked again at every use, after the rows were locked, and then everything
//! is looked for anew in the usual way. So this changes how long a drain takes,
//! never what it finds.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::time::{Duration, Instant};

use pgrx::pg_sys;

use super::spi::{self, Result};
use crate::pg::image::Tid;

/// Bytes of a log that is long: a shorter one is read in no time.
const LONG: i64 = 4 << 20;
/// Changes whose places are kept, at most about: a megabyte.
const PLACES: usize = 8_000;
/// Rows in a part of [`Rows`], and most of these: two megabytes.
const PART: usize = 1_024;
const PARTS: usize = 16_384;
/// After somebody added to the log it is not read ahead for so long.
const PAUSE: Duration = Duration::from_secs(1);
/// Where the row's number and the mirror's stand in a change, behind its header:
/// see `capture::flush`.
const ROW_AT: usize = 16;
const MIRROR_AT: usize = 28;

/// Mirror and row.
pub(super) type Key = (i32, i64);

/// Segment and place in it.
pub(super) type Place = (u8, Tid);

thread_local! {
    static FOUND: RefCell<Option<Found>> = const { RefCell::new(None) };
    static NOT_BEFORE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// A look at the whole log.
struct Found {
    state: State,
    /// Rows in the order in which their first change stands in the log, and how
    /// many of them were handed out.
    rows: Vec<Key>,
    handed: usize,
    /// Of rows that were not taken yet: all their changes.
    places: HashMap<Key, Vec<Place>>,
    /// All rows that had changes waiting, these or others.
    all: Rows,
}

/// What tells whether anything was added: the number of the last write, and the
/// sizes of the segments.
#[derive(Clone, Copy, PartialEq, Eq)]
struct State {
    last: i64,
    sizes: [i64; 2],
}

impl State {
    fn now() -> Result<Self> {
        let rows = spi::write_rows(
            "SELECT s.last_value, pg_catalog.pg_relation_size('crm.change_0'), pg_catalog.pg_relation_size('crm.change_1') \
             FROM crm.change_flush_seq s",
            &[],
            |row| {
                let size = |i| row.get::<i64>(i).map(Option::unwrap_or_default);
                Ok(Self {
                    last: size(1)?,
                    sizes: [size(2)?, size(3)?],
                })
            },
        )?;
        Ok(rows.first().copied().unwrap_or(Self {
            last: 0,
            sizes: [0, 0],
        }))
    }
}

/// A set of rows. Their numbers are given one after the other, so a bit for each
/// takes little. It may say yes of rows that are not in it where they lie too far
/// apart for that, never no of those that are.
#[derive(Default)]
struct Rows {
    parts: HashMap<(i32, i64), [u64; PART / 64]>,
    all: bool,
}

impl Rows {
    fn at((mirror, row): Key) -> ((i32, i64), usize, u64) {
        let bit = row.rem_euclid(PART as i64) as usize;
        let part = row.div_euclid(PART as i64);
        ((mirror, part), bit / 64, 1 << (bit % 64))
    }

    fn add(&mut self, key: Key) {
        let (part, word, bit) = Self::at(key);
        if self.parts.len() >= PARTS && !self.parts.contains_key(&part) {
            self.all = true;
            return;
        }
        self.parts.entry(part).or_insert([0; PART / 64])[word] |= bit;
    }

    fn may_hold(&self, key: Key) -> bool {
        let (part, word, bit) = Self::at(key);
        self.all || self.parts.get(&part).is_some_and(|p| p[word] & bit != 0)
    }
}

/// Rows that have changes waiting, up to `limit` changes, if the log is long and
/// nobody adds to it; they are not named again before the log is read anew.
pub(super) fn next(limit: usize) -> Result<Option<Vec<Key>>> {
    let pick = || FOUND.with_borrow_mut(|found| found.as_mut().and_then(|f| f.next(limit)));
    if is_current()?
        && let Some(rows) = pick()
    {
        return Ok(Some(rows));
    }
    forget();
    if NOT_BEFORE.get().is_some_and(|at| Instant::now() < at) {
        return Ok(None);
    }
    let state = State::now()?;
    if state.sizes.iter().sum::<i64>() < LONG || !is_quiet()? {
        return Ok(None);
    }
    let found = read(state)?;
    FOUND.set(Some(found));
    Ok(pick())
}

impl Found {
    fn next(&mut self, limit: usize) -> Option<Vec<Key>> {
        let mut changes = 0;
        let mut rows = Vec::new();
        while let Some(key) = self.rows.get(self.handed) {
            let count = self.places.get(key).map_or(0, Vec::len);
            if changes > 0 && changes + count > limit {
                break;
            }
            self.handed += 1;
            changes += count;
            if count > 0 {
                rows.push(*key);
            }
        }
        (!rows.is_empty()).then_some(rows)
    }
}

/// Whether rows were found that have not been handed out.
pub(super) fn is_open() -> bool {
    FOUND.with_borrow(|found| found.as_ref().is_some_and(|f| f.handed < f.rows.len()))
}

/// Forgets what was found: a transaction that took changes was undone.
pub(super) fn forget() {
    FOUND.set(None);
}

/// Whether something is found that nobody has added to since. Ends what is not
/// so, and what has been handed out.
fn is_current() -> Result<bool> {
    let Some(state) = FOUND.with_borrow(|f| f.as_ref().map(|f| f.state)) else {
        return Ok(false);
    };
    let now = State::now()?;
    if now.last != state.last {
        NOT_BEFORE.set(Some(Instant::now() + PAUSE));
    }
    if now != state {
        forget();
    }
    Ok(now == state)
}

/// Of these rows, those that may have changes waiting; `None` if that is not known.
pub(super) fn suspects(mirror: i32, rows: &[i64]) -> Result<Option<Vec<i64>>> {
    if !is_current()? {
        return Ok(None);
    }
    let of = |found: &Found| {
        let held = |row: &&i64| found.all.may_hold((mirror, **row));
        rows.iter().filter(held).copied().collect()
    };
    Ok(FOUND.with_borrow(|found| found.as_ref().map(of)))
}

/// Where all the changes of these rows stand, which are thereby taken, with the
/// row of each; `None` if that is not known.
pub(super) fn take(mirror: i32, rows: &[i64]) -> Result<Option<Vec<(i64, Place)>>> {
    if !is_current()? {
        return Ok(None);
    }
    Ok(FOUND.with_borrow_mut(|found| {
        let found = found.as_mut()?;
        let known = |row: &i64| found.places.contains_key(&(mirror, *row));
        if !rows.iter().all(known) {
            return None;
        }
        let mut places = Vec::with_capacity(rows.len());
        for row in rows {
            let of_row = found.places.remove(&(mirror, *row)).unwrap_or_default();
            places.extend(of_row.into_iter().map(|place| (*row, place)));
        }
        Some(places)
    }))
}

/// Whether nobody is about to add to the log. Whoever changes a mirror holds a
/// lock on it from before a number is drawn for the change to the end of the
/// transaction, prepared ones included.
fn is_quiet() -> Result<bool> {
    let busy = spi::write_rows(
        "SELECT 1 FROM pg_catalog.pg_locks l WHERE l.locktype = 'relation' AND l.mode = 'RowExclusiveLock' \
         AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database()) \
         AND l.pid IS DISTINCT FROM pg_backend_pid() \
         AND (l.relation IN ('crm.change_0'::regclass, 'crm.change_1'::regclass) \
           OR EXISTS (SELECT FROM pg_catalog.pg_trigger t WHERE t.tgrelid = l.relation AND t.tgname = 'zz_crm_capture')) LIMIT 1",
        &[],
        |_| Ok(()),
    )?;
    Ok(busy.is_empty())
}

/// Reads the log.
fn read(state: State) -> Result<Found> {
    let mut found = Found {
        state,
        rows: Vec::new(),
        handed: 0,
        places: HashMap::new(),
        all: Rows::default(),
    };
    let mut kept = 0;
    for segment in 0..2_u8 {
        let table = spi::write_rows(
            "SELECT ('crm.change_' || $1)::regclass::oid",
            &[i32::from(segment).to_string().into()],
            |row| Ok(row.get::<pg_sys::Oid>(1)?.unwrap_or(pg_sys::InvalidOid)),
        )?;
        for oid in table {
            scan(oid, |key, tid| {
                found.all.add(key);
                let known = found.places.get_mut(&key);
                match known {
                    Some(places) => places.push((segment, tid)),
                    None if kept < PLACES => {
                        found.rows.push(key);
                        found.places.insert(key, vec![(segment, tid)]);
                    }
                    None => return,
                }
                kept += 1;
            });
        }
    }
    Ok(found)
}

/// Shows each change of a segment that is there now.
fn scan(table: pg_sys::Oid, mut show: impl FnMut(Key, Tid)) {
    // SAFETY: a sequential scan of a table of ours, inside a transaction; every
    // tuple is read before the scan moves on. Its columns up to `old` are of fixed
    // length and never null, so they stand where the capture has put them.
    unsafe {
        let relation = pg_sys::table_open(table, pg_sys::AccessShareLock as i32);
        let snapshot = pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot());
        let flags = pg_sys::ScanOptions::SO_TYPE_SEQSCAN
            | pg_sys::ScanOptions::SO_ALLOW_STRAT
            | pg_sys::ScanOptions::SO_ALLOW_PAGEMODE;
        let none = std::ptr::null_mut();
        let scan = pg_sys::heap_beginscan(relation, snapshot, 0, none, std::ptr::null_mut(), flags);
        loop {
            let tuple = pg_sys::heap_getnext(scan, pg_sys::ScanDirection::ForwardScanDirection);
            if tuple.is_null() {
                break;
            }
            let header = (*tuple).t_data;
            let values = header.cast::<u8>().add((*header).t_hoff as usize);
            let row: i64 = values.add(ROW_AT).cast::<i64>().read_unaligned();
            let mirror: i32 = values.add(MIRROR_AT).cast::<i32>().read_unaligned();
            show((mirror, row), Tid::of((*tuple).t_self));
        }
        pg_sys::heap_endscan(scan);
        pg_sys::UnregisterSnapshot(snapshot);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as i32);
    }
}
