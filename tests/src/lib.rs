//! Fixtures of the external tests: everything is real, and everything is thrown away.
//!
//! * [`Cluster`] a PostgreSQL cluster of its own with the extension preloaded, [`Db`] a connection to it;
//! * [`Emulator`] both CRMs in one process, with levers for edits, faults and a look at the truth;
//! * [`Pair`] both put together: servers, mirrors, a link, live;
//! * [`catalog`] servers and mirrors without a CRM behind them, for the SQL functions;
//! * [`Pair::agree`] compares the three sides record by record;
//! * [`schema`] fields of a CRM that its administrators change;
//! * [`references`] contacts and companies of both CRMs, and what ties them;
//! * [`wait_until`] the only way to wait.
//!
//! Fixtures panic with a text that says what was expected: they serve tests, where a panic is the report.
//!
//! Where things are comes from the environment: `CRM_TEST_PG_BIN` (folder of the server binaries; default Debian's
//! PostgreSQL 15) and `CRM_EMULATOR` (the emulator's binary; default beside the test binary). When the tests run as
//! root, servers run as `CRM_TEST_PG_USER` (default `postgres`), because PostgreSQL refuses to run as root.

mod acts;
pub mod catalog;
mod cluster;
mod db;
mod emulator;
mod http;
mod pair;
pub mod references;
mod refusals;
pub mod schema;
mod system;
mod truth;
mod wait;

pub use cluster::{Cluster, Options, Stop};
pub use db::Db;
pub use emulator::{Emulator, EmulatorOptions};
pub use http::{post, send_raw};
pub use pair::{Pair, PairOptions, servers_sql};
pub use system::{Account, Scratch};
pub use truth::{FIELDS, Person, theirs, written};
pub use wait::{PATIENCE, wait_until};
