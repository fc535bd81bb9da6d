//! Simulation of two or three CRMs, SQL, and a network that loses, repeats and
//! delays; see `history`. `SEED=n` replays one history, `HISTORIES=n` runs so
//! many from `SEED` on.
#![allow(unreachable_pub, clippy::cast_possible_truncation)]
#![allow(
    clippy::disallowed_methods,
    reason = "the bans keep the core pure; this program tells a person how fast it was, and reads what to replay"
)]

mod crm;
mod engine;
mod history;
mod rng;

use history::History;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn run(first: u64, count: u64) {
    let started = std::time::Instant::now();
    let mut divergent = Vec::new();
    for seed in first..first + count {
        if let Err(fault) = History::new(seed).run() {
            divergent.push((seed, fault));
        }
    }
    let per_second = count * 1_000_000 / (started.elapsed().as_micros() as u64).max(1);
    for (seed, fault) in divergent.iter().take(10) {
        println!("SEED={seed} HISTORIES=1: {fault:.120}");
    }
    println!(
        "histories={count} divergent={} per_second={per_second}",
        divergent.len()
    );
    assert!(divergent.is_empty(), "first: {:?}", divergent[0]);
}

#[test]
fn all_sides_agree_after_any_history() {
    let default = if cfg!(debug_assertions) {
        5_000
    } else {
        50_000
    };
    let first = number("SEED").unwrap_or(1);
    println!("SEED={first}");
    run(first, number("HISTORIES").unwrap_or(default));
}

#[test]
fn histories_that_once_failed_stay_repaired() {
    for seed in [
        59, 587, 933, 1732, 1962, 3450, 8621, 12_256, 16_388, 15_534, 17_542, 25_038, 27_005,
    ] {
        run(seed, 1);
    }
}
