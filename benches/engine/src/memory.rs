//! `rss.*`: the session worker's highest memory while it copies, and while a CRM is down.

use std::time::Instant;

use crm_tests::Pair;
use serde_json::json;

use crate::figures::{Figure, Figures, round};
use crate::process::{Memory, Peak, megabytes};
use crate::setup;

/// A few shared buffers only: a process counts those that it touched as its own, and their number is the DBA's choice.
const BUFFERS: &str = "16MB";
/// Rows of one UPDATE of a million: one statement over all of them would be another test.
const STEP: u64 = 100_000;

pub(crate) async fn measure(figures: &mut Figures) {
    let small = copied(10_000, false).await;
    let large = copied(1_000_000, true).await;
    let peak = megabytes(small.copy.own);
    figures.add(Figure {
        id: "rss.10k",
        value: json!(round(peak)),
        unit: "MB",
        baseline: "10,000 contacts copied".into(),
        goal: "<= 64",
        met: Some(peak <= 64.0),
        range: None,
        more: json!({"with_shared_buffers_mb": round(megabytes(small.copy.highest)), "copy_s": round(small.seconds)}),
    });
    let more = megabytes(large.copy.own) / peak;
    figures.add(Figure {
        id: "rss.1m",
        value: json!(round(megabytes(large.copy.own))),
        unit: "MB",
        baseline: format!("1,000,000 contacts copied; {more:.3} x the 10,000"),
        goal: "<= 64 and <= 1.05 x",
        met: Some(megabytes(large.copy.own) <= 64.0 && more <= 1.05),
        range: None,
        more: json!({"with_shared_buffers_mb": round(megabytes(large.copy.highest)), "copy_s": round(large.seconds)}),
    });
    let (down, seconds) = large.down.expect("the large run waits for a CRM");
    figures.add(Figure {
        id: "rss.down",
        value: json!(round(megabytes(down.own))),
        unit: "MB",
        baseline: "the CRM is gone while 1,000,000 changes wait for it".into(),
        goal: "<= 64",
        met: Some(megabytes(down.own) <= 64.0),
        range: None,
        more: json!({"with_shared_buffers_mb": round(megabytes(down.highest)), "seconds": round(seconds)}),
    });
}

struct Peaks {
    copy: Memory,
    seconds: f64,
    down: Option<(Memory, f64)>,
}

/// Copies `contacts`; then, if asked, takes the CRM away and changes every row.
async fn copied(contacts: u64, then_down: bool) -> Peaks {
    let cluster = setup::cluster().setting("shared_buffers", BUFFERS);
    let pair = setup::start(cluster, setup::unlimited(contacts)).await;
    let worker = pair.cluster.session_worker(&pair.db).await;
    let (peak, began) = (Peak::of(worker), Instant::now());
    setup::import(&pair.db, "hubspot", "contacts").await;
    setup::copied(&pair.db).await;
    let seconds = began.elapsed().as_secs_f64();
    let copy = peak.end();
    let down = if then_down {
        Some(down(&pair, contacts).await)
    } else {
        None
    };
    Peaks {
        copy,
        seconds,
        down,
    }
}

async fn down(pair: &Pair, contacts: u64) -> (Memory, f64) {
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
    let taken = format!(
        "SELECT count(*) = {contacts} FROM crm.write WHERE state IN ('queued', 'in_flight', 'unknown')"
    );
    pair.db
        .wait_true("every change waits in the outbox", setup::PATIENCE, &taken)
        .await;
    // Some rounds of failing calls.
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    let still = pair.cluster.session_worker(&pair.db).await;
    assert_eq!(still, worker, "the worker lives on");
    (peak.end(), began.elapsed().as_secs_f64())
}
