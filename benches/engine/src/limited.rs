//! `backfill.limited`: a first copy under the CRM's own call limit and a real distance.

use serde_json::json;

use crate::figures::{Figure, Figures, round};
use crate::process::cpu_seconds;
use crate::setup;

/// Records a second that 190 calls in 10 s of 100 records each allow.
const CONTRACT: f64 = 1_900.0;
/// Records copied: several windows of ten seconds, so that the calls at the very start weigh little.
const ROWS: u64 = 60_000;

pub(crate) async fn measure(figures: &mut Figures) {
    let emulator = crm_tests::EmulatorOptions::default()
        .contacts(ROWS)
        .arg("--latency-ms", "100")
        .arg("--hubspot-burst", "190");
    let pair = setup::start(setup::cluster(), emulator).await;
    let worker = pair.cluster.session_worker(&pair.db).await;
    let cpu = cpu_seconds(worker);
    setup::import(&pair.db, "hubspot", "contacts").await;
    setup::copied(&pair.db).await;
    let cpu = cpu_seconds(worker) - cpu;
    let sql = "SELECT extract(epoch FROM finished_at - started_at)::float8 FROM crm.backfill";
    let seconds: f64 = pair.db.one(sql).await;
    let calls = setup::calls(&pair, "hubspot");
    let refused: u64 = calls.iter().filter(|c| c.1 == "429").map(|c| c.2).sum();
    let all: u64 = calls.iter().map(|c| c.2).sum();
    let share = ROWS as f64 / seconds / CONTRACT;
    figures.add(Figure {
        id: "backfill.limited",
        value: json!([round(share), refused]),
        unit: "of the contract, 429s",
        baseline: format!(
            "{:.0} records/s with 190 calls in 10 s and 100 ms latency; the contract allows {CONTRACT:.0}",
            ROWS as f64 / seconds
        ),
        goal: ">= 0.9, aim 0.97; 0",
        met: Some(share >= 0.9 && refused == 0),
        range: None,
        more: json!({"calls": all, "seconds": round(seconds), "worker_cpu_s": round(cpu)}),
    });
}
