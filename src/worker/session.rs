//! The loop of one database.

use super::SessionContext;

/// Longest sleep when nothing wakes the session: changes of prepared
/// transactions become visible without a wake.
const IDLE_MS: u64 = 5_000;

/// Works until the extension changes; ends with the process otherwise.
pub(crate) fn run(context: &mut SessionContext) {
    loop {
        if context.wait(None, IDLE_MS).recheck {
            return;
        }
    }
}
