//! Many histories at once, one seed each; what fails is made small enough to
//! read.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::history::History;
use crate::trace;

/// What ran.
pub struct Report {
    pub histories: u64,
    pub divergent: u64,
    pub per_second: u64,
    /// Seeds that failed first, and how.
    pub failures: Vec<(u64, String)>,
}

/// Which histories to run; the first limit stops.
pub struct Plan {
    pub first: u64,
    pub histories: u64,
    pub within: Duration,
    pub threads: usize,
}

/// Runs one history; what broke, if anything. A panic is a failure too.
pub fn run_one(seed: u64, mask: u64) -> Result<(), String> {
    let run = || History::new(seed).run(mask);
    std::panic::catch_unwind(run).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        Err(format!("panic: {}", text.unwrap_or_default()))
    })
}

/// Runs a plan on several threads.
pub fn run(plan: &Plan) -> Report {
    let started = Instant::now();
    let next = AtomicU64::new(0);
    let done = AtomicU64::new(0);
    let failed = Mutex::new((0, Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..plan.threads.max(1) {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= plan.histories || started.elapsed() > plan.within {
                        break;
                    }
                    let seed = plan.first + n;
                    let result = run_one(seed, u64::MAX);
                    done.fetch_add(1, Ordering::Relaxed);
                    if let (Err(fault), Ok(mut failed)) = (result, failed.lock()) {
                        failed.0 += 1;
                        if failed.1.len() < 1_000 {
                            failed.1.push((seed, fault));
                        }
                    }
                }
            });
        }
    });
    let (divergent, mut failures) = failed.into_inner().unwrap_or_default();
    failures.sort();
    let histories = done.into_inner();
    let micros = started.elapsed().as_micros().max(1) as u64;
    Report {
        histories,
        divergent,
        per_second: histories.saturating_mul(1_000_000) / micros,
        failures,
    }
}

/// How often each kind of failure came: the words without the numbers.
pub fn kinds(failures: &[(u64, String)]) -> Vec<(usize, u64, String)> {
    let mut kinds: std::collections::BTreeMap<String, (usize, u64)> = Default::default();
    for (seed, fault) in failures {
        let words: String = fault
            .chars()
            .filter(|c| !c.is_ascii_digit())
            .take(70)
            .collect();
        kinds.entry(words).or_insert((0, *seed)).0 += 1;
    }
    let mut kinds: Vec<_> = kinds
        .into_iter()
        .map(|(k, (n, seed))| (n, seed, k))
        .collect();
    kinds.sort_by(|a, b| b.cmp(a));
    kinds
}

/// Leaves out acts for as long as the history still fails.
pub fn shrink(seed: u64) -> u64 {
    let mut mask = ((1 << History::new(seed).acts()) - 1) | (1 << crate::history::BURST);
    loop {
        let before = mask;
        for act in (0..64).rev().filter(|a| before >> a & 1 == 1) {
            let fewer = mask & !(1 << act);
            if run_one(seed, fewer).is_err() {
                mask = fewer;
            }
        }
        if mask == before {
            return mask;
        }
    }
}

/// What happened in a history, line by line.
pub fn tell(seed: u64, mask: u64) -> Vec<String> {
    trace::start();
    let result = run_one(seed, mask);
    let mut lines = trace::take();
    lines.push(match result {
        Ok(()) => "all sides agree".to_owned(),
        Err(fault) => format!("FAULT: {fault}"),
    });
    lines
}
