//! `make sim`: many histories, and one history as a trace.
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

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|t| !t.is_empty())?;
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    match parsed {
        Ok(number) => Some(number),
        Err(_) => {
            eprintln!("error: {name}={text} is not a number");
            std::process::exit(2);
        }
    }
}

fn main() {
    let first = number("SEED").unwrap_or(1);
    if let Some(mask) = number("ACTS") {
        for line in campaign::tell(first, mask) {
            println!("{line}");
        }
    }
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let plan = Plan {
        first,
        histories: number("HISTORIES").unwrap_or(100_000),
        within: Duration::from_secs(number("DURATION").unwrap_or(60)),
        threads: number("THREADS").map_or(cores, |n| n as usize),
    };
    println!(
        "from SEED={first}, at most {} histories, {:?}",
        plan.histories, plan.within
    );
    // What panics is counted and shown as any other failure.
    std::panic::set_hook(Box::new(|_| {}));
    let report = campaign::run(&plan);
    if let Some((seed, _)) = report.failures.first() {
        let mask = campaign::shrink(*seed);
        println!("SEED={seed} HISTORIES=1 ACTS={mask:#x}:");
        for line in campaign::tell(*seed, mask) {
            println!("  {line}");
        }
    }
    if number("LIST").is_some() {
        for (seed, fault) in &report.failures {
            println!("{seed} {fault}");
        }
    }
    for (n, seed, kind) in campaign::kinds(&report.failures).iter().take(40) {
        println!("{n} times, first SEED={seed} HISTORIES=1: {kind}");
    }
    println!(
        "histories={} divergent={} per_second={}",
        report.histories, report.divergent, report.per_second
    );
    std::process::exit(i32::from(report.divergent > 0));
}
