//! Decisions and CRM wire formats of pg_crm_sync, as pure functions.
//!
//! Nothing in this crate waits, reads a clock, opens a socket, starts a thread,
//! looks at the environment or knows PostgreSQL. Time, seeds and input are
//! arguments; requests, rows and decisions come out. What is hard to test here
//! in milliseconds is in the wrong place.
#![forbid(unsafe_code)]

pub mod again;
pub mod broken;
pub mod budget;
mod carry;
mod case;
pub mod catalog;
pub mod cells;
pub mod compare;
pub mod connectors;
pub mod credential;
pub mod decide;
pub mod drift;
mod echo;
mod effect;
pub mod evaluate;
pub mod group;
pub mod guard;
pub mod http;
pub mod identity;
pub mod join;
pub mod limiter;
pub mod mapping;
pub mod matching;
pub mod memory;
pub mod merge;
pub mod model;
mod order;
pub mod outage;
pub mod outgoing;
mod own_page;
mod past;
pub mod plan;
pub mod policy;
pub mod ranges;
pub mod reconcile;
mod replay;
pub mod retry;
mod rules;
pub mod secret;
mod sent;
mod special;
pub mod stamps;
pub mod state;
mod steps;
pub mod strategy;
pub mod structure;
mod timeline;
pub mod transform;
pub mod transport;
pub mod value;
pub mod what_if;

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test panics")]
mod testing;
