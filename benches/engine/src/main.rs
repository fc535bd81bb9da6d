//! Measures the engine: from a signed webhook to the row, from the CRM's pages to the table, from one CRM to the other.
//!
//! `crm-bench OUT.json [PIECE…]` runs the pieces (all by default) one after the other, each on a cluster and an emulator
//! of its own, and writes every figure to `OUT.json` as soon as it is known. What the figures mean is in
//! `docs/benchmarks.md`. Which programs run comes from `CRM_TEST_PG_BIN` and `CRM_EMULATOR`; `CRM_BENCH_ROUNDS` sets the
//! rounds (default 6, of which the first is dropped).
//!
//! Anything unexpected is a panic: a wrong measurement must not look like a figure.

mod apply;
mod ask;
mod backfill;
mod calls;
mod creates;
mod figures;
mod idle;
mod latency;
mod limited;
mod memory;
mod outage;
mod process;
mod reconcile;
mod setup;
mod state;
mod sustained;
mod webhook;

use figures::Figures;

/// The pieces in the order in which they run.
const PIECES: [&str; 13] = [
    "backfill",
    "apply",
    "latency",
    "calls",
    "creates",
    "idle",
    "limited",
    "sustained",
    "outage",
    "memory",
    "state",
    "ask",
    "reconcile",
];

fn main() {
    let mut arguments = std::env::args().skip(1);
    let Some(out) = arguments.next() else {
        eprintln!("usage: crm-bench OUT.json [{}]", PIECES.join("|"));
        std::process::exit(64);
    };
    let mut wanted: Vec<String> = arguments.collect();
    if wanted.is_empty() {
        wanted = PIECES.map(str::to_owned).to_vec();
    }
    if let Some(unknown) = wanted.iter().find(|w| !PIECES.contains(&w.as_str())) {
        eprintln!("no piece `{unknown}`: expected {}", PIECES.join(", "));
        std::process::exit(64);
    }
    let mut figures = Figures::new(out.into());
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("start the runtime")
        .block_on(run(&wanted, &mut figures));
}

async fn run(wanted: &[String], figures: &mut Figures) {
    for piece in wanted {
        eprintln!("-- {piece}");
        match piece.as_str() {
            "backfill" => backfill::measure(figures).await,
            "apply" => apply::measure(figures).await,
            "latency" => latency::measure(figures).await,
            "calls" => calls::measure(figures).await,
            "creates" => creates::measure(figures).await,
            "idle" => idle::measure(figures).await,
            "ask" => ask::measure(figures).await,
            "reconcile" => reconcile::measure(figures).await,
            "state" => state::measure(figures).await,
            "limited" => limited::measure(figures).await,
            "sustained" => sustained::measure(figures).await,
            "outage" => outage::measure(figures).await,
            _ => memory::measure(figures).await,
        }
    }
}
