//! `calls.*`: API calls per 1,000 changes, and `total.wal`: the log they write on their whole way.

use crm_tests::Pair;
use serde_json::{Value, json};

use crate::figures::{Figure, Figures, median, round, rounds};
use crate::process::cpu_seconds;
use crate::setup;

/// Contacts on each side.
const CONTACTS: u64 = 20_000;
/// Rows of one UPDATE, of which each goes to both CRMs.
const CHANGED: u64 = 1_000;

/// Calls that one round caused.
struct Round {
    hubspot: Called,
    salesforce: Called,
    /// Calls that an UPDATE to the same values caused.
    noop: u64,
    /// Bytes of log per changed row and CRM.
    wal: f64,
    seconds: f64,
    cpu: f64,
}

/// Calls to one CRM.
#[derive(Default)]
pub(crate) struct Called {
    pub(crate) writes: u64,
    pub(crate) others: u64,
    pub(crate) failed: u64,
    pub(crate) routes: Vec<String>,
}

pub(crate) async fn measure(figures: &mut Figures) {
    let pair = setup::linked(setup::cluster(), setup::unlimited(CONTACTS)).await;
    setup::calm(&pair.db).await;
    pair.db.exec("VACUUM ANALYZE").await;
    pair.db.exec("CHECKPOINT").await;
    let mut kept = Vec::new();
    for round in 0..rounds() {
        let run = changed(&pair, round).await;
        eprintln!(
            "round {round}: hubspot {:?}, salesforce {:?}, {:.0} WAL bytes per row, {:.2} s, worker {:.2} s",
            run.hubspot.routes, run.salesforce.routes, run.wal, run.seconds, run.cpu
        );
        if round > 0 {
            kept.push(run);
        }
    }
    figure(figures, "calls.hubspot", "10; 0; 0; 0", 10, &kept, |r| {
        &r.hubspot
    });
    figure(figures, "calls.salesforce", "5; 0; 0; 0", 5, &kept, |r| {
        &r.salesforce
    });
    let (wal, range) = median(&kept.iter().map(|r| r.wal).collect::<Vec<_>>());
    let (rate, _) = median(
        &kept
            .iter()
            .map(|r| CHANGED as f64 / r.seconds)
            .collect::<Vec<_>>(),
    );
    let (cpu, _) = median(
        &kept
            .iter()
            .map(|r| r.cpu * 1e6 / CHANGED as f64)
            .collect::<Vec<_>>(),
    );
    figures.add(Figure {
        id: "total.wal",
        value: json!(round(wal)),
        unit: "bytes/row",
        baseline: "one field of a linked row, to both CRMs and back: capture, drain, events, outbox, results, echoes".into(),
        goal: "state it",
        met: None,
        range: Some(range),
        more: json!({"rows_per_s": round(rate), "worker_cpu_us_per_row": round(cpu)}),
    });
}

fn figure(
    figures: &mut Figures,
    id: &'static str,
    goal: &'static str,
    most: u64,
    kept: &[Round],
    of: fn(&Round) -> &Called,
) {
    let most_of = |f: &dyn Fn(&Round) -> u64| kept.iter().map(f).max().unwrap_or(0);
    let writes = most_of(&|r| of(r).writes);
    let others = most_of(&|r| of(r).others);
    let failed = most_of(&|r| of(r).failed);
    let noop = most_of(&|r| r.noop);
    figures.add(Figure {
        id,
        value: json!([writes, others, noop]),
        unit: "calls/1,000",
        baseline: "writes of an UPDATE of 1,000 rows; reads before it and calls for its 1,000 echoes; calls of an UPDATE that changes nothing".into(),
        goal,
        met: Some(writes <= most && others == 0 && noop == 0 && failed == 0),
        range: None,
        more: json!({"failed": failed, "routes": of(&kept[0]).routes}),
    });
}

async fn changed(pair: &Pair, round: usize) -> Round {
    let first = 1 + 1_000 * (round as u64 % (CONTACTS / CHANGED));
    let rows = format!("_id >= {first} AND _id < {}", first + CHANGED);
    let worker = pair.cluster.session_worker(&pair.db).await;
    // Images of whole pages after the checkpoint are not the price of a change.
    pair.db
        .exec(&format!(
            "UPDATE hubspot.contacts SET city = 'Warm {round}' WHERE {rows}"
        ))
        .await;
    echoed(pair).await;
    pair.emulator.reset_counts();
    let (cpu, began) = (cpu_seconds(worker), std::time::Instant::now());
    let wal: String = pair
        .db
        .one("SELECT pg_current_wal_insert_lsn()::text")
        .await;
    pair.db
        .exec(&format!(
            "UPDATE hubspot.contacts SET jobtitle = 'Round {round}' WHERE {rows}"
        ))
        .await;
    setup::calm(&pair.db).await;
    let seconds = began.elapsed().as_secs_f64();
    echoed(pair).await;
    let bytes: f64 = pair
        .db
        .one(&format!(
            "SELECT (pg_current_wal_insert_lsn() - '{wal}'::pg_lsn)::float8"
        ))
        .await;
    let cpu = cpu_seconds(worker) - cpu;
    let landed: i64 = pair
        .db
        .one(&format!(
            "SELECT count(*) FROM salesforce.contact WHERE title = 'Round {round}'"
        ))
        .await;
    assert_eq!(
        landed,
        CHANGED.cast_signed(),
        "every change reached the other CRM"
    );
    let (hubspot, salesforce) = (called(pair, "hubspot"), called(pair, "salesforce"));
    pair.emulator.reset_counts();
    pair.db
        .exec(&format!(
            "UPDATE hubspot.contacts SET jobtitle = jobtitle WHERE {rows}"
        ))
        .await;
    echoed(pair).await;
    Round {
        hubspot,
        salesforce,
        noop: setup::total(pair, "hubspot") + setup::total(pair, "salesforce"),
        wal: bytes / CHANGED as f64,
        seconds,
        cpu,
    }
}

/// Waits until the CRMs have told everything, it is taken, and for two seconds nothing more came of it.
pub(crate) async fn echoed(pair: &Pair) {
    let mut last = Value::Null;
    let mut quiet = std::time::Instant::now();
    let end = quiet + setup::PATIENCE;
    while quiet.elapsed().as_secs_f64() < 2.0 {
        assert!(
            std::time::Instant::now() < end,
            "the CRMs never came to rest"
        );
        setup::calm(&pair.db).await;
        let events = pair
            .db
            .table("SELECT sum(events), sum(duplicates) FROM crm.stream")
            .await;
        let now = json!([
            events,
            pair.emulator.counts(),
            pair.emulator.admin("GET", "/_admin/webhooks", None)
        ]);
        if now != last {
            (last, quiet) = (now, std::time::Instant::now());
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

/// What a CRM was asked since the counts were reset.
pub(crate) fn called(pair: &Pair, crm: &str) -> Called {
    let mut called = Called::default();
    for (what, status, count) in setup::calls(pair, crm) {
        // Streams stay open and sessions are refreshed, whatever changes.
        if what.contains("oauth") {
            continue;
        }
        called.routes.push(format!("{count} {what} {status}"));
        let write = what.contains("/batch/update")
            || what.contains("/batch/create")
            || what.contains("/batch/upsert")
            || what.starts_with("PATCH ")
            || what.contains("/composite");
        *if write {
            &mut called.writes
        } else {
            &mut called.others
        } += count;
        if !status.starts_with('2') {
            called.failed += count;
        }
    }
    called
}
