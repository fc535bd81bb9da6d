//! Values that their type cannot hold: one of them must spoil neither its record nor its page, and must not vanish.

use crm_tests::{EmulatorOptions, PATIENCE, Pair, PairOptions};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_is_no_number_is_parked_and_the_rest_of_its_record_applies() {
    let pair = Pair::start(PairOptions {
        emulator: EmulatorOptions::default().contacts(20),
        ..PairOptions::default()
    })
    .await;
    pair.import("hubspot", &["companies"]).await;
    pair.backfilled().await;
    // Somebody made the property a text since the import: the mirror takes numbers.
    pair.db
        .exec(
            "ALTER TABLE hubspot.companies ALTER zip TYPE numeric USING NULL;
             UPDATE crm.mirror_column SET field_type = 'number' WHERE column_name = 'zip'",
        )
        .await;
    pair.worker_has_read().await;
    let id: String = pair
        .db
        .one("SELECT id FROM hubspot.companies ORDER BY _id LIMIT 1")
        .await;
    let row = format!("FROM hubspot.companies WHERE id = '{id}'");
    let edit = |fields| pair.emulator.edit("hubspot", "companies", &id, fields);
    edit(json!({"zip": "89073"}));
    let before = format!("SELECT zip = 89073 {row}");
    pair.db
        .wait_true("a number arrives", PATIENCE, &before)
        .await;
    edit(json!({"zip": "a dozen", "city": "Ulm"}));
    let parked = format!(
        "SELECT count(*) = 1 FROM crm.dead_letter WHERE direction = 'in' AND record_id = '{id}' AND code = '22P02'
           AND change = '{{\"field\": \"zip\", \"text\": \"a dozen\"}}' AND error LIKE '%zip%a dozen%number%'"
    );
    pair.db.wait_true("it is parked", PATIENCE, &parked).await;
    pair.db
        .wait_true(
            "the rest applies",
            PATIENCE,
            &format!("SELECT city = 'Ulm' AND zip = 89073 {row}"),
        )
        .await;

    // Told again, by an event and by a page, it stands there once.
    edit(json!({"city": "Bath"}));
    pair.db
        .exec("UPDATE crm.mirror SET poll_interval = '1 second'")
        .await;
    let polled = "SELECT count(*) > 0 FROM crm.event WHERE source = 'poll'";
    pair.emulator
        .fault(json!({"stream": "webhook", "lose": 1000}));
    edit(json!({"city": "Wells"}));
    pair.db.wait_true("a poll saw it", PATIENCE, polled).await;
    pair.db.wait_true("still once", PATIENCE, &parked).await;
    let kept: bool = pair.db.one(&before).await;
    assert!(kept, "a page does not blank what it cannot tell");

    edit(json!({"zip": "12"}));
    pair.db
        .wait_true(
            "corrected, it arrives",
            PATIENCE,
            &format!("SELECT zip = 12 AND city = 'Wells' {row}"),
        )
        .await;
    pair.db
        .exec("SELECT crm.dead_letter_retry(direction => 'in')")
        .await;
    pair.quiet().await;
    let left: i64 = pair.db.one("SELECT count(*) FROM crm.dead_letter").await;
    assert_eq!(left, 0);
}
