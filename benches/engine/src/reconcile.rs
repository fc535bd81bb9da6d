//! `reconcile.same`, `reconcile.k`: a mirror of 1,000,000 rows compared with its CRM, without and with 100 differences.

use crm_tests::Pair;
use serde_json::json;

use crate::figures::{Figure, Figures, round};
use crate::process::{cpu_seconds, main_thread_seconds};
use crate::setup;

/// Rows of the mirror.
const ROWS: u64 = 1_000_000;
/// Of the differences: edits, new records, removals.
const LOST: [u64; 3] = [40, 30, 30];

/// What a run took.
struct Run {
    calls: u64,
    listed: i64,
    missed: String,
    /// Seconds of CPU of the thread that compares, and of the whole worker.
    local: f64,
    worker: f64,
    seconds: f64,
}

pub(crate) async fn measure(figures: &mut Figures) {
    let pair = setup::start(setup::cluster(), setup::unlimited(ROWS)).await;
    for (server, object, mirror, page) in [
        ("hubspot", "contacts", "hubspot.contacts", 100),
        ("salesforce", "Contact", "salesforce.contact", 2_000),
    ] {
        setup::import(&pair.db, server, object).await;
        setup::copied(&pair.db).await;
        pair.db.exec(&format!("VACUUM ANALYZE {mirror}")).await;
        pair.db
            .exec("UPDATE crm.mirror SET reconcile_patience = '0'")
            .await;
        // The first one warms up.
        let _ = reconciled(&pair, server, mirror).await;
        let same = reconciled(&pair, server, mirror).await;
        assert_eq!(same.missed, "0 0 0", "{server}: nothing differs");
        let least = ROWS / page;
        report(figures, (server, false), &same, least);
        lose(&pair, server, object, mirror).await;
        let differing = reconciled(&pair, server, mirror).await;
        let (edits, creates, deletes) = (LOST[0], LOST[1], LOST[2]);
        assert_eq!(
            differing.missed,
            format!("{creates} {edits} {deletes}"),
            "{server}: all are found"
        );
        report(figures, (server, true), &differing, least + 1);
        pair.emulator.clear_faults();
        pair.db
            .exec(&format!("SELECT crm.mirror_drop('{mirror}')"))
            .await;
    }
}

fn report(figures: &mut Figures, (server, differs): (&str, bool), run: &Run, least: u64) {
    let id = match (server, differs) {
        ("hubspot", false) => "reconcile.same.hubspot",
        ("hubspot", true) => "reconcile.k.hubspot",
        (_, false) => "reconcile.same.salesforce",
        (_, true) => "reconcile.k.salesforce",
    };
    let ratio = run.calls as f64 / least as f64;
    figures.add(Figure {
        id,
        value: json!([run.calls, round(run.local)]),
        unit: "calls; s CPU",
        baseline: format!(
            "{least} calls are the least; {} records listed, missed creates, updates and removals: {}",
            run.listed, run.missed
        ),
        goal: "<= 1.05 x the least; all found; local part <= 2 s",
        met: Some(ratio <= 1.05 && run.local <= 2.0),
        range: None,
        more: json!({"calls_ratio": round(ratio), "worker_cpu_s": round(run.worker), "seconds": round(run.seconds)}),
    });
}

/// Edits, makes and removes records, of which no stream tells.
async fn lose(pair: &Pair, server: &str, object: &str, mirror: &str) {
    pair.emulator
        .fault(json!({"stream": "webhook", "lose": 100_000}));
    pair.emulator
        .fault(json!({"stream": "cdc", "lose": 100_000}));
    let step = ROWS.div_euclid(LOST[0] + LOST[2] + 1);
    let ids = pair
        .db
        .table(&format!(
            "SELECT id FROM {mirror} WHERE _id % {step} = 0 ORDER BY _id LIMIT {}",
            LOST[0] + LOST[2]
        ))
        .await
        .concat();
    let (edited, removed) = ids.split_at(usize::try_from(LOST[0]).expect("a small number"));
    let hubspot = server == "hubspot";
    for id in edited {
        let field = if hubspot { "city" } else { "MailingCity" };
        pair.emulator
            .edit(server, object, id, json!({ field: "Lost" }));
    }
    for id in removed {
        pair.emulator.delete(server, object, id);
    }
    for n in 0..LOST[1] {
        let email = format!("lost{n}@example.net");
        let fields = match hubspot {
            true => json!({"email": email, "lastname": "Lost"}),
            false => json!({"Email": email, "LastName": "Lost"}),
        };
        pair.emulator.create(server, object, fields);
    }
}

async fn reconciled(pair: &Pair, server: &str, mirror: &str) -> Run {
    let worker = pair.cluster.session_worker(&pair.db).await;
    let before = (main_thread_seconds(worker), cpu_seconds(worker));
    pair.emulator.reset_counts();
    let run: i64 = pair
        .db
        .one(&format!("SELECT crm.reconcile('{mirror}')"))
        .await;
    let done = format!("SELECT state = 'done' FROM crm.reconcile_run WHERE id = {run}");
    pair.db
        .wait_true("the run is done", setup::PATIENCE, &done)
        .await;
    let told = |what: &str| format!("SELECT {what} FROM crm.reconcile_progress WHERE id = {run}");
    let seconds = told("extract(epoch FROM finished_at - started_at)::float8");
    let missed = told("concat_ws(' ', missed_creates, missed_updates, missed_deletes)");
    let listed = told("listed");
    let calls = setup::total(pair, server);
    let counted: i64 = pair.db.one(&told("calls")).await;
    assert_eq!(calls, counted.cast_unsigned(), "the run says what it cost");
    let run = Run {
        calls,
        listed: pair.db.one(&listed).await,
        missed: pair.db.one(&missed).await,
        local: main_thread_seconds(worker) - before.0,
        worker: cpu_seconds(worker) - before.1,
        seconds: pair.db.one(&seconds).await,
    };
    eprintln!(
        "{server}: {} calls, {} listed, {} missed, {:.2} s compared, {:.2} s worker, {:.1} s",
        run.calls, run.listed, run.missed, run.local, run.worker, run.seconds
    );
    run
}
