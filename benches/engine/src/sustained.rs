//! `limits.sustained`: what is reached of the rate that a contract allows, over many windows and with edits in between.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::figures::{Figure, Figures, round};
use crate::setup;

/// Calls per window of ten seconds, HubSpot's for private apps.
const MAX: u64 = 190;
/// Windows that count, and those before them in which the first calls were made in a burst.
const WINDOWS: u64 = 12;
const WARM_UP: u64 = 2;
/// Enough pages of 100 records for all of them.
const ROWS: u64 = 300_000;
/// Pause between two edits in SQL.
const EDIT_EVERY: Duration = Duration::from_secs(2);

pub(crate) async fn measure(figures: &mut Figures) {
    let emulator = crm_tests::EmulatorOptions::default()
        .contacts(ROWS)
        .arg("--latency-ms", "100")
        .arg("--hubspot-burst", &MAX.to_string());
    let pair = setup::start(setup::cluster(), emulator).await;
    // Users' writes go on beside the copy: on companies, which are few.
    setup::import_all(&pair.db, "hubspot", "companies").await;
    setup::copied(&pair.db).await;
    pair.db
        .exec("UPDATE crm.mirror SET mode = 'live'; SELECT crm.activate()")
        .await;
    setup::import(&pair.db, "hubspot", "contacts").await;
    pair.db
        .wait_true(
            "the copy runs",
            setup::PATIENCE,
            "SELECT count(*) > 5000 FROM hubspot.contacts",
        )
        .await;
    let window = Duration::from_secs(10);
    tokio::time::sleep(window * u32::try_from(WARM_UP).expect("a few")).await;

    let (began, first) = (Instant::now(), setup::total(&pair, "hubspot"));
    let end = began + window * u32::try_from(WINDOWS).expect("a few");
    let mut edits = 0_u64;
    while Instant::now() + EDIT_EVERY < end {
        tokio::time::sleep(EDIT_EVERY).await;
        edits += 1;
        let sql = format!(
            "UPDATE hubspot.companies SET city = 'Town {edits}' WHERE _id = 1 + {edits} % 100"
        );
        pair.db.exec(&sql).await;
    }
    tokio::time::sleep(end.saturating_duration_since(Instant::now())).await;
    let (seconds, last) = (
        began.elapsed().as_secs_f64(),
        setup::total(&pair, "hubspot"),
    );
    let running: bool = pair
        .db
        .one("SELECT count(*) = 1 FROM crm.backfill b JOIN crm.mirror m ON m.id = b.mirror WHERE m.object = 'contacts' AND b.state = 'running'")
        .await;
    assert!(running, "the copy ended before the measurement did");
    let refused: u64 = setup::calls(&pair, "hubspot")
        .iter()
        .filter(|c| c.1 == "429")
        .map(|c| c.2)
        .sum();
    let rate = (last - first) as f64 / seconds;
    let share = rate / (MAX as f64 / 10.0);
    figures.add(Figure {
        id: "limits.sustained",
        value: json!([round(share), refused]),
        unit: "of the contract, 429s",
        baseline: format!(
            "{rate:.2} calls/s over {seconds:.0} s with {MAX} calls in 10 s and 100 ms latency; the contract allows {:.1}",
            MAX as f64 / 10.0
        ),
        goal: ">= 0.97; 0",
        met: Some(share >= 0.97 && refused == 0),
        range: None,
        more: json!({"calls": last - first, "edits": edits}),
    });
}
