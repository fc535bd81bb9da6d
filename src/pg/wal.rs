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
