//! SPI as the engine uses it: plans kept, values owned, errors as values.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys;
use pgrx::spi::Spi;

use super::cells::{self, Cells};
use super::plan::Plan;

/// An SPI status or conversion error. SQL errors are caught around the
/// transaction, see [`crate::pg::tx`].
pub(crate) type Result<T> = std::result::Result<T, pgrx::spi::Error>;

/// One argument of a statement.
pub(crate) type Arg<'a> = DatumWithOid<'a>;

/// Most statements whose plans are kept; past it all are dropped, since
/// statements on mirrors change with their columns.
const PLANS: usize = 400;

type Plans = RefCell<HashMap<String, Kept>>;

thread_local! {
    static WRITING: Plans = RefCell::new(HashMap::new());
    /// Plans of statements that only read.
    static READING: Plans = RefCell::new(HashMap::new());
    /// Rows of all larger batches so far.
    static BATCHED: Cell<u64> = const { Cell::new(0) };
}

/// The plans of one statement. Of a few rows planning costs more than the rows,
/// and how they are found is no question: one plan serves for all calls. Of many
/// rows the server looks each time how many there are.
#[derive(Default)]
struct Kept {
    few: Option<Plan>,
    many: Option<Plan>,
}

impl Kept {
    fn of(&mut self, few: bool) -> &mut Option<Plan> {
        if few { &mut self.few } else { &mut self.many }
    }
}

/// Drops every kept plan; for when the configuration changed.
pub(crate) fn forget_plans() {
    WRITING.with_borrow_mut(HashMap::clear);
}

/// Tables have grown by so many rows: plans that were made before may look
/// through them whole.
pub(crate) fn grown(rows: usize) {
    BATCHED.set(BATCHED.get() + rows as u64);
}

/// Runs a statement by a kept plan and takes its answer.
fn run<T>(
    plans: &'static std::thread::LocalKey<Plans>,
    sql: &str,
    args: &[Arg<'_>],
    reads: bool,
    answer: impl FnOnce(usize) -> Result<T>,
) -> Result<T> {
    let rows = args.iter().filter_map(Plan::length).max();
    let few = rows.is_some_and(|n| n <= Plan::FEW);
    if let (Some(rows), false) = (rows, few) {
        grown(rows);
    }
    Spi::connect(|_| {
        // Out of its place while it runs: a user's trigger may come back here.
        let kept = plans.with_borrow_mut(|p| p.get_mut(sql).and_then(|k| k.of(few).take()));
        let mut plan = match kept.filter(|p| p.serves(BATCHED.get())) {
            Some(plan) => plan,
            None => Plan::make(sql, args, few, BATCHED.get())?,
        };
        let count = plan.run(args, reads)?;
        let answer = answer(count)?;
        plans.with_borrow_mut(|plans| {
            if let Some(kept) = plans.get_mut(sql) {
                *kept.of(few) = Some(plan);
                return;
            }
            if plans.len() >= PLANS {
                plans.clear();
            }
            *plans.entry(sql.to_owned()).or_default().of(few) = Some(plan);
        });
        Ok(answer)
    })
}

/// Runs a statement that writes (or must see what this transaction's earlier
/// statements and other sessions' commits wrote) and maps its rows.
pub(crate) fn write_rows<T>(
    sql: &str,
    args: &[Arg<'_>],
    map: impl FnMut(&Cells) -> Result<T>,
) -> Result<Vec<T>> {
    take_xid();
    run(&WRITING, sql, args, false, |_| cells::map(map))
}

/// Runs a statement that writes; the number of rows it touched.
pub(crate) fn write(sql: &str, args: &[Arg<'_>]) -> Result<usize> {
    take_xid();
    run(&WRITING, sql, args, false, Ok)
}

/// From here on reads of this transaction see what it wrote.
fn take_xid() {
    // SAFETY: inside a transaction.
    unsafe {
        pg_sys::GetCurrentTransactionId();
    }
}

/// Runs a statement that only reads, without taking a transaction id, and maps
/// its rows.
pub(crate) fn read_rows<T>(
    sql: &str,
    args: &[Arg<'_>],
    map: impl FnMut(&Cells) -> Result<T>,
) -> Result<Vec<T>> {
    // SAFETY: inside a transaction.
    let wrote = unsafe { pg_sys::GetCurrentTransactionIdIfAny() } != pg_sys::InvalidTransactionId;
    run(&READING, sql, args, !wrote, |_| cells::map(map))
}

/// Reads without taking a transaction id; sees the transaction's first snapshot.
pub(crate) fn read_text(sql: &str) -> Result<Option<String>> {
    Spi::connect(|client| {
        let table = client.select(sql, Some(1), &[])?;
        if table.is_empty() {
            return Ok(None);
        }
        table.first().get_one::<String>()
    })
}

/// Runs a statement that writes and returns the text of its first row and column.
pub(crate) fn write_text(sql: &str, args: &[Arg<'_>]) -> Result<Option<String>> {
    let rows = write_rows(sql, args, |row| row.get::<String>(1))?;
    Ok(rows.into_iter().next().flatten())
}
