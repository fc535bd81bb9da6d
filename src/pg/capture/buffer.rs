//! Changes of the current transaction that are not written yet.
//!
//! Bounded: a full buffer is written. A change made in a subtransaction goes with
//! it: aborted, it is forgotten; committed, it belongs to the parent. What a
//! parent has buffered is never written while a subtransaction runs, because the
//! rows would then be undone with it.
//!
//! Order: `ord` counts through the transaction; `flush` is one number per write,
//! taken after all its changes were made. Row locks make (`flush`, `ord`) the
//! order of the changes of each row: whoever changes a row after us waits until
//! we have committed, and takes its number later. Changes that stay behind at a
//! write get that write's number too, so that they sort before it by `ord`.

use super::encode::Out;
use super::flush;
use super::relation::Mirror;
use crate::pg::{guc, report, wake};
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::cell::{Cell, RefCell};

/// Changes kept in memory before they are written.
const MAX_ENTRIES: usize = 1_000;
/// Bytes of old values kept in memory before they are written.
const MAX_BYTES: usize = 256 * 1024;
/// Rows after which the guard's settings are read again.
const GUARD_PERIOD: u64 = 64;
/// The number that the server gives to a transaction's outermost level.
const TOP: u32 = 1;

/// What was done to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Op {
    Insert = b'I',
    Update = b'U',
    Delete = b'D',
}

/// One change; its old values are `bytes[start..end]` of the buffer.
#[derive(Debug)]
pub(super) struct Entry {
    /// Number of the write it belongs to, 0 while it has none.
    pub(super) flush: i64,
    pub(super) ord: i32,
    pub(super) mirror: i32,
    pub(super) op: Op,
    pub(super) row_id: i64,
    pub(super) start: usize,
    pub(super) end: usize,
    level: u32,
}

/// Rows of one mirror changed at one level of subtransactions.
#[derive(Debug)]
struct Tally {
    mirror: i32,
    level: u32,
    rows: u64,
    deletes: u64,
}

/// Settings of the guard as they were when last read.
#[derive(Debug, Default, Clone, Copy)]
struct Limits {
    soft: Option<u64>,
    hard: Option<u64>,
    deletes: Option<u64>,
}

#[derive(Debug)]
struct Buffer {
    entries: Vec<Entry>,
    bytes: Vec<u8>,
    tallies: Vec<Tally>,
    limits: Limits,
    /// Innermost running subtransaction.
    level: u32,
    next_ord: i32,
    /// Number of the transaction: that of its first write; 0 before.
    tx: i64,
    /// Entries before this one already have the number of a write.
    stamped: usize,
    /// Start time of the statement that made the first change.
    at: pg_sys::TimestampTz,
}

thread_local! {
    static BUFFER: RefCell<Buffer> = const { RefCell::new(Buffer::new()) };
    static LAST_TX: Cell<Option<i64>> = const { Cell::new(None) };
    /// While a statement is only explained: its first change, and how many it may make.
    static BOUND: Cell<Option<(i32, i32)>> = const { Cell::new(None) };
}

/// Number of this session's last transaction with changes.
pub(super) fn last_tx() -> Option<i64> {
    LAST_TX.get()
}

/// Has the running transaction changed mirrors?
pub(super) fn has_changes() -> bool {
    BUFFER.with_borrow(|buffer| buffer.next_ord != 0)
}

/// The facts of a transaction that its header row keeps.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub(super) tx: i64,
    pub(super) rows: i32,
    pub(super) held: bool,
    pub(super) at: pg_sys::TimestampTz,
}

/// Takes back the bound on return and on unwinding.
struct Unbound;

impl Drop for Unbound {
    fn drop(&mut self) {
        BOUND.set(None);
    }
}

/// Runs a statement of which at most `most` changes are taken, the next one is
/// an error; then writes them to the log, as a commit would, so that this
/// (sub)transaction can read them there. `None` if it changed nothing.
pub(super) fn staged(most: i32, statement: impl FnOnce()) -> Option<(Header, i32)> {
    let first = BUFFER.with_borrow(|buffer| buffer.next_ord);
    {
        let _unbound = Unbound;
        BOUND.set(Some((first, most)));
        statement();
    }
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.next_ord == first {
            return None;
        }
        buffer.write();
        let header = buffer.header();
        flush::write_header(&header);
        Some((header, first))
    })
}

/// Registers the callbacks, in the postmaster, so that every backend knows its
/// subtransaction level from the start.
pub(super) fn register() {
    // SAFETY: static callbacks, registered once and inherited by every backend.
    unsafe {
        pg_sys::RegisterXactCallback(Some(on_xact), std::ptr::null_mut());
        pg_sys::RegisterSubXactCallback(Some(on_subxact), std::ptr::null_mut());
    }
}

/// Adds a change. `fill` writes the old values and returns the row's key, or
/// `None` if nothing changed.
pub(super) fn append(mirror: &Mirror, op: Op, fill: impl FnOnce(&mut Out<'_>) -> Option<i64>) {
    BUFFER.with_borrow_mut(|buffer| {
        let start = buffer.bytes.len();
        let Some(row_id) = fill(&mut Out::new(&mut buffer.bytes)) else {
            return;
        };
        if buffer.next_ord == 0 {
            buffer.begin();
        }
        buffer.entries.push(Entry {
            flush: 0,
            ord: buffer.next_ord,
            mirror: mirror.id,
            op,
            row_id,
            start,
            end: buffer.bytes.len(),
            level: buffer.level,
        });
        buffer.next_ord += 1;
        if let Some((first, most)) = BOUND.get()
            && buffer.next_ord - first > most
        {
            refuse_bound(most);
        }
        buffer.count(mirror, op);
        if buffer.is_full() {
            buffer.write();
        }
    });
}

impl Buffer {
    const fn new() -> Self {
        Self {
            entries: Vec::new(),
            bytes: Vec::new(),
            tallies: Vec::new(),
            limits: Limits {
                soft: None,
                hard: None,
                deletes: None,
            },
            level: TOP,
            next_ord: 0,
            tx: 0,
            stamped: 0,
            at: 0,
        }
    }

    /// First change of a transaction.
    fn begin(&mut self) {
        // SAFETY: reads a time that the backend keeps.
        self.at = unsafe { pg_sys::GetCurrentStatementStartTimestamp() };
        self.limits = Limits::read();
        wake::at_commit();
    }

    /// Index of the first change that belongs to the running subtransaction.
    fn own_start(&self) -> usize {
        let level = self.level;
        let others = self.entries.iter().rposition(|entry| entry.level != level);
        others.map_or(0, |at| at + 1)
    }

    fn is_full(&self) -> bool {
        let room = self.entries.len() < MAX_ENTRIES && self.bytes.len() < MAX_BYTES;
        if room {
            return false;
        }
        // What must stay in memory does not count.
        let first = self.own_start();
        let kept = self
            .entries
            .get(first)
            .map_or(self.bytes.len(), |entry| entry.start);
        self.entries.len() - first >= MAX_ENTRIES || self.bytes.len() - kept >= MAX_BYTES
    }

    /// Writes what belongs to the running subtransaction.
    fn write(&mut self) {
        let first = self.own_start();
        if first == self.entries.len() {
            return;
        }
        if self.stamped < self.entries.len() {
            let number = flush::next_number();
            for entry in &mut self.entries[self.stamped..] {
                entry.flush = number;
            }
            if self.tx == 0 {
                self.tx = number;
            }
        }
        flush::write(self.tx, &self.entries[first..], &self.bytes);
        self.bytes.truncate(self.entries[first].start);
        self.entries.truncate(first);
        self.stamped = first;
    }

    fn count(&mut self, mirror: &Mirror, op: Op) {
        let deletes = u64::from(op == Op::Delete);
        let level = self.level;
        let same = |tally: &&mut Tally| tally.mirror == mirror.id && tally.level == level;
        match self.tallies.iter_mut().rev().find(same) {
            Some(tally) => {
                tally.rows += 1;
                tally.deletes += deletes;
            }
            None => self.tallies.push(Tally {
                mirror: mirror.id,
                level,
                rows: 1,
                deletes,
            }),
        }
        let (rows, deleted) = self.total(mirror.id);
        if rows % GUARD_PERIOD == 0 || self.limits.exceeded(rows, deleted).is_some() {
            self.limits = Limits::read();
            if let Some(over) = self.limits.exceeded(rows, deleted) {
                refuse(mirror, rows, deleted, over);
            }
        }
    }

    fn total(&self, mirror: i32) -> (u64, u64) {
        let ours = self.tallies.iter().filter(|tally| tally.mirror == mirror);
        ours.fold((0, 0), |sum, tally| {
            (sum.0 + tally.rows, sum.1 + tally.deletes)
        })
    }

    fn header(&self) -> Header {
        let soft = Limits::read().soft;
        let over = |tally: &Tally| soft.is_some_and(|soft| self.total(tally.mirror).0 > soft);
        let rows: u64 = self.tallies.iter().map(|tally| tally.rows).sum();
        Header {
            tx: self.tx,
            rows: i32::try_from(rows).unwrap_or(i32::MAX),
            held: self.tallies.iter().any(over),
            at: self.at,
        }
    }

    /// End of the transaction, before it becomes permanent.
    fn finish(&mut self) {
        self.write();
        if self.tx != 0 && !self.tallies.is_empty() {
            flush::write_header(&self.header());
            LAST_TX.set(Some(self.tx));
        }
    }

    /// Keeps the memory for the next transaction, up to the bounds.
    fn clear(&mut self) {
        self.entries.clear();
        self.entries.shrink_to(MAX_ENTRIES);
        self.bytes.clear();
        self.bytes.shrink_to(2 * MAX_BYTES);
        self.tallies.clear();
        self.level = TOP;
        self.next_ord = 0;
        self.tx = 0;
        self.stamped = 0;
    }

    fn committed_sub(&mut self, level: u32, parent: u32) {
        for entry in self
            .entries
            .iter_mut()
            .rev()
            .take_while(|entry| entry.level >= level)
        {
            entry.level = parent;
        }
        for tally in self.tallies.iter_mut().filter(|tally| tally.level >= level) {
            tally.level = parent;
        }
        self.level = parent;
    }

    fn aborted_sub(&mut self, level: u32, parent: u32) {
        let kept = self.entries.partition_point(|entry| entry.level < level);
        if let Some(first) = self.entries.get(kept) {
            self.bytes.truncate(first.start);
        }
        self.entries.truncate(kept);
        self.stamped = self.stamped.min(kept);
        self.tallies.retain(|tally| tally.level < level);
        self.level = parent;
    }
}

/// A limit of the guard that a transaction went over.
#[derive(Debug, Clone, Copy)]
enum Over {
    Rows(u64),
    Deletes(u64),
}

impl Limits {
    fn read() -> Self {
        Self {
            soft: guc::guard_soft_rows(),
            hard: guc::guard_hard_rows(),
            deletes: guc::guard_hard_deletes(),
        }
    }

    fn exceeded(&self, rows: u64, deletes: u64) -> Option<Over> {
        let deletes = self
            .deletes
            .filter(|limit| deletes > *limit)
            .map(Over::Deletes);
        deletes.or_else(|| self.hard.filter(|limit| rows > *limit).map(Over::Rows))
    }
}

#[cold]
fn refuse(mirror: &Mirror, rows: u64, deletes: u64, over: Over) -> ! {
    let (what, limit, setting) = match over {
        Over::Rows(limit) => ("change", limit, "guard_hard_rows"),
        Over::Deletes(limit) => ("delete", limit, "guard_hard_deletes"),
    };
    report::refuse(
        PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
        format!(
            "this transaction would {what} more than {limit} rows of mirror \"{}\"",
            mirror.name
        ),
        Some(format!(
            "So far it has changed {rows} rows, {deletes} of them deleted."
        )),
        &format!(
            "Every row becomes a write to the CRM. If that is meant, a superuser can raise pg_crm_sync.{setting} for the session."
        ),
    )
}

#[cold]
fn refuse_bound(most: i32) -> ! {
    report::refuse(
        PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
        format!("the statement changes more than {most} rows, which is more than are explained"),
        Some("Nothing was changed.".to_owned()),
        "Explain it for fewer rows with a narrower WHERE, or give a higher max_rows (at most 10000).",
    )
}

#[pg_guard]
unsafe extern "C-unwind" fn on_xact(event: pg_sys::XactEvent::Type, _arg: *mut std::ffi::c_void) {
    use pg_sys::XactEvent::*;
    match event {
        XACT_EVENT_PRE_COMMIT | XACT_EVENT_PRE_PREPARE => BUFFER.with_borrow_mut(|buffer| {
            if buffer.next_ord != 0 {
                buffer.finish();
            }
        }),
        XACT_EVENT_COMMIT | XACT_EVENT_ABORT | XACT_EVENT_PREPARE => {
            BUFFER.with_borrow_mut(Buffer::clear);
        }
        _ => {}
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn on_subxact(
    event: pg_sys::SubXactEvent::Type,
    level: pg_sys::SubTransactionId,
    parent: pg_sys::SubTransactionId,
    _arg: *mut std::ffi::c_void,
) {
    use pg_sys::SubXactEvent::*;
    BUFFER.with_borrow_mut(|buffer| match event {
        SUBXACT_EVENT_START_SUB => buffer.level = level,
        SUBXACT_EVENT_COMMIT_SUB => buffer.committed_sub(level, parent),
        SUBXACT_EVENT_ABORT_SUB => buffer.aborted_sub(level, parent),
        _ => {}
    });
}
