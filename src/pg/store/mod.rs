//! What the engine reads and writes, as owned values and whole batches.

pub(crate) mod catalog;
