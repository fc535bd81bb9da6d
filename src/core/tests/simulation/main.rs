//! Simulation of two to four CRMs, SQL, and a network that loses, repeats and
//! delays. See docs/simulation.md; `make sim` runs many histories.
#![allow(unreachable_pub, dead_code, clippy::cast_possible_truncation)]
#![allow(
    clippy::disallowed_methods,
    reason = "the bans keep the core pure; this program tells a person how fast it was, and reads what to replay"
)]

mod calls;
mod campaign;
mod check;
mod crm;
mod engine;
mod history;
mod ledger;
mod model;
mod network;
mod outbox;
mod people;
mod record_check;
mod records;
mod returns;
mod rng;
mod stages;
mod trace;
mod world;

use std::time::Duration;

use campaign::Plan;

#[test]
fn all_sides_agree_after_any_history() {
    let report = campaign::run(&Plan {
        first: 1,
        histories: if cfg!(debug_assertions) {
            1_500
        } else {
            15_000
        },
        within: Duration::from_secs(60),
        threads: 2,
    });
    assert_eq!(report.divergent, 0, "{:?}", report.failures);
}

#[test]
fn histories_that_once_failed_stay_repaired() {
    let seeds = include_str!("seeds.txt").lines();
    let seeds = seeds.filter(|l| !l.is_empty() && !l.starts_with('#'));
    for line in seeds {
        let seed = line.split_whitespace().next().unwrap_or_default();
        let seed = seed.parse().expect("a line begins with a seed");
        if let Err(fault) = campaign::run_one(seed, u64::MAX) {
            panic!("SEED={seed}: {fault} ({line})");
        }
    }
}
