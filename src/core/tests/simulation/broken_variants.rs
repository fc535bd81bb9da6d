//! The simulation can fail: each mistake of `crm_core::broken` is noticed.
#![allow(unreachable_pub, dead_code, clippy::cast_possible_truncation)]
#![allow(
    clippy::disallowed_methods,
    reason = "the bans keep the core pure; this program tells a person how long it took"
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
use crm_core::broken::{Mistake, choose};

/// Histories within which a mistake must be noticed.
const WITHIN: u64 = 10_000;

/// The first history that notices, and how.
fn noticed(mistake: Mistake) -> Option<(u64, String)> {
    choose(Some(mistake));
    let mut first = None;
    for chunk in 0..WITHIN / 100 {
        let report = campaign::run(&Plan {
            first: 1 + chunk * 100,
            histories: 100,
            within: Duration::from_secs(60),
            threads: 2,
        });
        choose(None);
        let mut failures = report.failures.into_iter();
        first = failures.find(|(seed, _)| campaign::run_one(*seed, u64::MAX).is_ok());
        if first.is_some() {
            break;
        }
        choose(Some(mistake));
    }
    choose(None);
    first
}

#[test]
fn every_mistake_is_noticed() {
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = Vec::new();
    for mistake in Mistake::ALL {
        match noticed(mistake) {
            Some((seed, fault)) => println!("{mistake:?}: SEED={seed}: {fault:.120}"),
            None => missed.push(mistake),
        }
    }
    let _ = std::panic::take_hook();
    assert!(missed.is_empty(), "not noticed: {missed:?}");
}
