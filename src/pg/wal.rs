//! Waiting for the disk when it matters.
//!
//! The session commits without waiting: what a crash could take back is taken
//! up again from the stored offset, the log of changes or the CRM. Two things
//! may not be taken back, and wait: a claim, before its request is sent, and the
//! events of a webhook, before it is answered.

use pgrx::pg_sys;

/// Returns when everything this session committed is on disk.
pub(crate) fn flush() {
    // SAFETY: reads a global of this process; the call is a no-op for what is
    // flushed already.
    unsafe { pg_sys::XLogFlush(pg_sys::XactLastCommitEnd) };
}

/// From here on the transaction's commit waits for the disk.
pub(crate) fn await_disk() {
    // SAFETY: a known setting with a valid value, inside a transaction, whose end
    // puts the old one back.
    unsafe {
        pg_sys::set_config_option(
            c"synchronous_commit".as_ptr(),
            c"on".as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            pg_sys::GucSource::PGC_S_SESSION,
            pg_sys::GucAction::GUC_ACTION_LOCAL,
            true,
            0,
            false,
        );
    }
}
