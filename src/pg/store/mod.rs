//! What the engine reads and writes, as owned values and whole batches.

mod append;
pub(crate) mod ask;
mod backlog;
pub(crate) mod budgets;
pub(crate) mod catalog;
pub(crate) mod changes;
pub(crate) mod config;
pub(crate) mod creates;
pub(crate) mod drift;
pub(crate) mod ends;
pub(crate) mod functions;
pub(crate) mod given_up;
pub(crate) mod jobs;
pub(crate) mod ledger;
pub(crate) mod lives;
pub(crate) mod matches;
pub(crate) mod pairs;
pub(crate) mod past;
pub(crate) mod policy;
pub(crate) mod reconciles;
pub(crate) mod replays;
pub(crate) mod reviews;
pub(crate) mod rows;
pub(crate) mod scopes;
pub(crate) mod spi;
pub(crate) mod streams;
pub(crate) mod writes;
