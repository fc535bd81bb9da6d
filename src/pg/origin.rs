//! Who makes a change: the engine or a user.
//!
//! The engine's own writes to a mirror must not be captured, but what a user's
//! trigger writes to another mirror meanwhile must be. So the mark is neither a
//! setting nor a transaction: it names relations and the trigger depth at which
//! their capture trigger then runs. It lives in this process and is reachable
//! from this library only, so nobody can forge it in SQL.

use super::{guc, report, timeout, tx};
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::cell::RefCell;

/// The statement that the engine is running.
struct Scope {
    relation: u32,
    /// Depth of a row trigger that the statement itself fires.
    depth: i32,
    /// The reference map whose work it is, for a statement that is captured.
    carries: Option<i32>,
}

thread_local! {
    static SCOPES: RefCell<Vec<Scope>> = const { RefCell::new(Vec::new()) };
}

/// Ends the scope on return and on unwinding.
struct Leave(usize);

impl Drop for Leave {
    fn drop(&mut self) {
        SCOPES.with_borrow_mut(|scopes| scopes.truncate(self.0));
    }
}

/// Runs `work`, whose statements on `relation` are the engine's own: not
/// captured, with the rights of the mirror's owner, and for a bounded time: users'
/// triggers run in it. Raises if the mirror is gone.
pub(crate) fn as_engine<T>(relation: u32, work: impl FnOnce() -> T) -> T {
    marked(relation, None, work)
}

/// Runs `work` with the rights of the mirror's owner and for a bounded time, as a user
/// of the mirror would: what its statements change is captured. They carry references
/// of `map` over.
pub(crate) fn as_owner<T>(relation: u32, map: i32, work: impl FnOnce() -> T) -> T {
    marked(relation, Some(map), work)
}

fn marked<T>(relation: u32, carries: Option<i32>, work: impl FnOnce() -> T) -> T {
    let owner = owner_of(relation);
    let scope = Scope {
        relation,
        depth: trigger_depth() + 1,
        carries,
    };
    let _leave = SCOPES.with_borrow_mut(|scopes| {
        scopes.push(scope);
        Leave(scopes.len() - 1)
    });
    timeout::within(guc::mirror_timeout(), || tx::as_role(owner, work))
}

/// The owner of a mirror as it is now. The lock keeps it so until the transaction
/// ends: work prepared for a former owner must not run with that one's rights.
fn owner_of(relation: u32) -> pg_sys::Oid {
    // SAFETY: inside a transaction; the descriptor is valid while it is open.
    unsafe {
        let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
        let opened = pg_sys::try_relation_open(pg_sys::Oid::from(relation), lock);
        if opened.is_null() {
            report::refuse(
                PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE,
                "the table of the mirror is missing".to_owned(),
                None,
                "SELECT crm.mirror_drop(…) forgets a mirror whose table is gone.",
            );
        }
        let owner = (*(*opened).rd_rel).relowner;
        pg_sys::relation_close(opened, pg_sys::NoLock as pg_sys::LOCKMODE);
        owner
    }
}

/// Does the row trigger that runs now belong to a statement of the engine?
pub(crate) fn is_engine(relation: pg_sys::Oid) -> bool {
    around(relation, |scope| scope.carries.is_none()).unwrap_or_default()
}

/// The reference map whose references are carried over by the statement that the row
/// trigger that runs now belongs to.
pub(crate) fn carries(relation: pg_sys::Oid) -> Option<i32> {
    around(relation, |scope| scope.carries).flatten()
}

/// What is asked of the statement of ours that the row trigger that runs now belongs to.
fn around<T>(relation: pg_sys::Oid, asked: impl FnOnce(&Scope) -> T) -> Option<T> {
    SCOPES.with_borrow(|scopes| {
        let named = |scope: &&Scope| scope.relation == relation.to_u32();
        let scope = scopes.iter().rev().find(named)?;
        (scope.depth == trigger_depth()).then(|| asked(scope))
    })
}

/// Nesting of triggers around us: 1 in a trigger that a statement fired directly.
fn trigger_depth() -> i32 {
    let mut call = pg_sys::FunctionCallInfoBaseData::default();
    // SAFETY: the function reads none of its call information.
    let depth = unsafe { pg_sys::pg_trigger_depth(&raw mut call) };
    depth.value() as i32
}
