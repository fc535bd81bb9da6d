//! Whether anything waits for the session, at the price of one statement.

use crate::pg::store::{changes, spi};
use crate::pg::tx;
use crate::worker::engine::Step;

/// What waits in the database, read in one statement.
#[derive(Default)]
pub(super) struct Pending {
    pub(super) config: bool,
    pub(super) changes: bool,
    pub(super) webhooks: bool,
    /// Stewards have answered questions.
    pub(super) answers: bool,
    /// References to carry over.
    pub(super) references: bool,
}

/// Looks once; none before the installation has begun.
pub(super) fn pending() -> Step<Option<Pending>> {
    tx::in_transaction(|| {
        // Of a long log the first part is drained: no look through all of that.
        let changes = match changes::known_to_wait() {
            true => "true",
            false => "EXISTS (SELECT 1 FROM crm.change_0) OR EXISTS (SELECT 1 FROM crm.change_1)",
        };
        let sql = format!(
            "SELECT EXISTS (SELECT 1 FROM crm.config_change), {changes}, \
             EXISTS (SELECT 1 FROM crm.webhook_queue), \
             EXISTS (SELECT 1 FROM crm.review_item WHERE resolution IS NOT NULL), \
             EXISTS (SELECT 1 FROM crm.reference_due WHERE next_at <= clock_timestamp()) FROM crm.installation"
        );
        let found = spi::read_rows(&sql, &[], |row| {
            let waits = |column| -> spi::Result<bool> { Ok(row.get(column)?.unwrap_or_default()) };
            Ok(Pending {
                config: waits(1)?,
                changes: waits(2)?,
                webhooks: waits(3)?,
                answers: waits(4)?,
                references: waits(5)?,
            })
        })?;
        Ok(found.into_iter().next())
    })
}
