//! `rss.*`: the session worker's highest memory while it copies, and while a CRM is down.

use std::time::{Duration, Instant};

use crm_tests::Pair;
use serde_json::json;

use crate::figures::{Figure, Figures, round};
use crate::process::{Peak, megabytes};
use crate::setup;

/// A few shared buffers only: a process counts those that it touched as its own, and their number is the DBA's choice.
const BUFFERS: &str = "16MB";
/// Rows of one UPDATE of a million: one statement over all of them would be another test.
const STEP: u64 = 100_000;

/// Longest time that the drain of a million changes is waited for.
const DRAIN: Duration = Duration::from_secs(150);

pub(crate) async fn measure(figures: &mut Figures) {
    let (small, _) = copied(figures, "rss.10k", 10_000, None).await;
    let (_, pair) = copied(figures, "rss.1m", 1_000_000, Some(small)).await;
    down(figures, &pair, 1_000_000).await;
}

/// Copies `contacts` and reports the peak, beside that of `small`.
async fn copied(
    figures: &mut Figures,
    id: &'static str,
    contacts: u64,
    small: Option<f64>,
) -> (f64, Pair) {
    let cluster = setup::cluster().setting("shared_buffers", BUFFERS);
    let pair = setup::start(cluster, setup::unlimited(contacts)).await;
    let worker = pair.cluster.session_worker(&pair.db).await;
    let (peak, began) = (Peak::of(worker), Instant::now());
    setup::import(&pair.db, "hubspot", "contacts").await;
    setup::copied(&pair.db).await;
    let seconds = began.elapsed().as_secs_f64();
    let rows: i64 = pair.db.one("SELECT count(*) FROM hubspot.contacts").await;
    assert_eq!(rows, contacts.cast_signed(), "the copy is complete");
    let peak = peak.end();
    let own = megabytes(peak.own);
    let more = small.map(|small| own / small);
    let beside = more.map_or(String::new(), |m| format!("; {m:.3} x the 10,000"));
    figures.add(Figure {
        id,
        value: json!(round(own)),
        unit: "MB",
        baseline: format!("{contacts} contacts copied{beside}"),
        goal: if small.is_some() {
            "<= 64, <= 1.05 x"
        } else {
            "<= 64"
        },
        met: Some(own <= 64.0 && more.is_none_or(|m| m <= 1.05)),
        range: None,
        more: json!({"with_shared_buffers_mb": round(megabytes(peak.highest)), "copy_s": round(seconds)}),
    });
    (own, pair)
}

/// Takes the CRM away and changes every row.
async fn down(figures: &mut Figures, pair: &Pair, contacts: u64) {
    pair.db.exec("SELECT crm.go_live('hubspot.contacts')").await;
    setup::calm(&pair.db).await;
    pair.emulator.signal("KILL");
    let worker = pair.cluster.session_worker(&pair.db).await;
    let (peak, began) = (Peak::of(worker), Instant::now());
    let mut first = 1;
    while first <= contacts {
        let next = first + STEP;
        pair.db
            .exec(&format!(
                "UPDATE hubspot.contacts SET jobtitle = 'Waiting' WHERE _id >= {first} AND _id < {next}"
            ))
            .await;
        first = next;
    }
    let queued = "SELECT count(*) FROM crm.write WHERE state IN ('queued', 'in_flight', 'unknown')";
    let mut waiting: i64 = 0;
    while waiting < contacts.cast_signed() && began.elapsed() < DRAIN {
        tokio::time::sleep(Duration::from_secs(1)).await;
        waiting = pair.db.one(queued).await;
    }
    let seconds = began.elapsed().as_secs_f64();
    // Some rounds of failing calls.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let still = pair.cluster.session_worker(&pair.db).await;
    assert_eq!(still, worker, "the worker lives on");
    let peak = peak.end();
    let own = megabytes(peak.own);
    figures.add(Figure {
        id: "rss.down",
        value: json!(round(own)),
        unit: "MB",
        baseline: format!(
            "the CRM is gone, {contacts} rows changed; after {seconds:.0} s {waiting} wait in the outbox, the rest in the change log"
        ),
        goal: "<= 64",
        met: Some(own <= 64.0),
        range: None,
        more: json!({
            "with_shared_buffers_mb": round(megabytes(peak.highest)),
            "queued_per_s": round(waiting as f64 / seconds),
        }),
    });
}
