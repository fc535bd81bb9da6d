//! What is asked of the I/O thread, so that its answers find their way.

use crm_core::connectors::Keyset;
use crm_core::model::Millis;

use crate::pg::store::writes::WriteRow;
use crate::worker::deliver::Batch;
use crate::worker::origins::Origins;
use crate::worker::pairs::Asked;
use crate::worker::returns::Who;

/// What an answer is for.
pub(crate) enum Job {
    /// Number of records before a first copy.
    Count { mirror: i32 },
    /// The highest id and the number of records, before a first copy in ranges.
    Highest { mirror: i32 },
    /// A record where a range may start.
    Seek { mirror: i32 },
    /// A page of a range of a first copy; answers to an earlier run are ignored.
    Backfill { mirror: i32, range: usize, run: u32 },
    /// A new bulk job for a first copy.
    BulkStart { mirror: i32 },
    /// How far the bulk job of a first copy is: the place of its rows.
    BulkAsk { mirror: i32, place: String },
    /// A request of a bulk job that writes.
    BulkWrite { id: u64 },
    /// A look into the journal of a server.
    Journal { server: u32 },
    /// The end of a bulk job, whose answer does not matter.
    BulkEnd,
    /// A page of changes.
    Poll { mirror: i32, since: Keyset },
    /// A page of removed records.
    Removed { mirror: i32 },
    /// A page of the list of a reconciliation; answers to an earlier turn are ignored.
    Compare { mirror: i32, turn: u64 },
    /// Records that a reconciliation found to differ.
    Repair { mirror: i32, turn: u64 },
    /// An account's time zone.
    Zone { server: String },
    /// What became of records that are gone.
    Fate {
        mirror: i32,
        ids: Vec<String>,
        who: Who,
    },
    /// A page of a copy of columns: its number, and the fields asked for.
    Fill {
        mirror: i32,
        what: (i64, Vec<String>),
    },
    /// Records that events named.
    Read { mirror: i32, ids: Vec<String> },
    /// Records whose writes are in doubt.
    Settle {
        mirror: i32,
        writes: Vec<WriteRow>,
        asked_at: Millis,
    },
    /// Pairs of records.
    Pairs(Box<Asked>),
    /// Possible results of creates that are in doubt.
    FindCreated { mirror: i32, write: Box<WriteRow> },
    /// Records that creates in doubt may have made, by our own key; those that were
    /// removed since, if there are no others.
    FindMade {
        mirror: i32,
        writes: Vec<WriteRow>,
        removed: bool,
    },
    /// Records that have the unique keys of creates: the column asked for.
    Look { batch: Batch, column: usize },
    /// What the records were before that creates are made from.
    Origins(Box<Origins>),
    /// A batch of writes.
    Push(Batch),
    /// Part of a catalog refresh.
    Catalog { server: u32, part: usize },
    /// Part of a server check.
    Check { ticket: i64, part: usize },
    /// What an account says of its limits.
    Account { server: u32 },
}

impl Job {
    /// The same job, for the pages of a list that follow.
    pub(crate) fn repeated(&self) -> Option<Self> {
        match self {
            Self::Backfill { mirror, range, run } => Some(Self::Backfill {
                mirror: *mirror,
                range: *range,
                run: *run,
            }),
            Self::Compare { mirror, turn } => Some(Self::Compare {
                mirror: *mirror,
                turn: *turn,
            }),
            _ => None,
        }
    }

    /// Its answer brings records that are applied.
    pub(crate) fn is_of_records(&self) -> bool {
        matches!(
            self,
            Self::Backfill { .. }
                | Self::Poll { .. }
                | Self::Removed { .. }
                | Self::Read { .. }
                | Self::Compare { .. }
                | Self::Repair { .. }
                | Self::Look { .. }
                | Self::Origins(_)
        )
    }

    /// The mirror whose records were asked for.
    pub(crate) fn mirror(&self) -> Option<i32> {
        match self {
            Self::Count { mirror }
            | Self::BulkStart { mirror }
            | Self::BulkAsk { mirror, .. }
            | Self::Backfill { mirror, .. }
            | Self::Compare { mirror, .. }
            | Self::Repair { mirror, .. }
            | Self::Poll { mirror, .. }
            | Self::Removed { mirror }
            | Self::Fill { mirror, .. }
            | Self::Read { mirror, .. }
            | Self::Fate { mirror, .. }
            | Self::Settle { mirror, .. }
            | Self::Highest { mirror, .. }
            | Self::Seek { mirror, .. }
            | Self::FindCreated { mirror, .. }
            | Self::FindMade { mirror, .. } => Some(*mirror),
            Self::Look { batch, .. } => Some(batch.mirror),
            Self::Pairs(asked) => Some(asked.mirror),
            Self::Origins(asked) => Some(asked.mirror),
            Self::Push(_)
            | Self::BulkEnd
            | Self::Journal { .. }
            | Self::Zone { .. }
            | Self::BulkWrite { .. }
            | Self::Catalog { .. }
            | Self::Check { .. }
            | Self::Account { .. } => None,
        }
    }
}
