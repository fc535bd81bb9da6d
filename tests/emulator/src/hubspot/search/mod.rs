//! Search: its own, lagging view of the records, ordered by modification.

mod filter;
mod index;
mod route;

pub(crate) use index::SearchIndex;
pub(crate) use route::search;
