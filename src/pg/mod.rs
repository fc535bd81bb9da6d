//! Everything that talks to PostgreSQL: settings, shared memory, transactions,
//! the capture trigger, and the store. No other folder names `pgrx::Spi` or
//! `pgrx::pg_sys` (the two worker entry points excepted).

pub(crate) mod amend;
pub(crate) mod api;
pub(crate) mod bulk;
pub(crate) mod capture;
pub(crate) mod catalog;
pub(crate) mod copy;
pub(crate) mod fence;
mod form;
pub(crate) mod guc;
pub(crate) mod image;
pub(crate) mod load;
pub(crate) mod origin;
pub(crate) mod report;
mod retype;
pub(crate) mod shmem;
pub(crate) mod signal;
pub(crate) mod statement;
pub(crate) mod store;
pub(crate) mod timeout;
pub(crate) mod tx;
pub(crate) mod utility;
pub(crate) mod wake;
pub(crate) mod wal;

/// The operating system's number of the account that the server runs under.
pub(crate) fn account() -> u32 {
    // SAFETY: cannot fail and touches no memory of ours.
    unsafe { libc::geteuid() }
}
