//! What ties records of HubSpot to each other and to the account: associations as tables of their own, and the owners,
//! pipelines and stages that records name.

use crm_tests::{EmulatorOptions, PATIENCE, Pair, PairOptions};
use serde_json::json;

async fn small() -> Pair {
    Pair::start(PairOptions {
        emulator: EmulatorOptions::default().contacts(20),
        ..PairOptions::default()
    })
    .await
}

/// A report by owner or stage showed ids that nobody knows: the names are tables beside the records.
#[tokio::test(flavor = "multi_thread")]
async fn owners_and_stages_are_joined_with_the_records_that_name_them() {
    let pair = small().await;
    pair.import(
        "hubspot",
        &["deals", "owners", "deal_pipelines", "deal_stages"],
    )
    .await;
    pair.backfilled().await;
    let strangers = "SELECT count(*) FROM hubspot.deals d
        WHERE NOT EXISTS (SELECT FROM hubspot.deal_stages s JOIN hubspot.deal_pipelines p ON p.id = s.pipelineid
                          WHERE s.id = d.dealstage AND p.id = d.pipeline AND s.isclosed IS NOT NULL)
           OR NOT EXISTS (SELECT FROM hubspot.owners o WHERE o.id = d.hubspot_owner_id AND o.email IS NOT NULL)";
    assert_eq!(pair.db.one::<i64>(strangers).await, 0);
    let deals: i64 = pair.db.one("SELECT count(*) FROM hubspot.deals").await;
    assert!(deals > 0, "no deals to look at");
    // Archived owners still stand on old records: the first poll brings them, marked.
    pair.db
        .wait_true(
            "the archived owner is there",
            PATIENCE,
            "SELECT count(*) = 1 FROM hubspot.owners WHERE archived AND _deleted_at IS NOT NULL AND userid IS NULL AND useridincludinginactive IS NOT NULL",
        )
        .await;
    let often: String = pair
        .db
        .one("SELECT string_agg(DISTINCT poll_interval::text, ',') FROM crm.mirror WHERE object <> 'deals'")
        .await;
    assert_eq!(often, "01:00:00");
}

/// A stage that was renamed, one that was removed and an owner who left were shown as before for good.
#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_brings_what_changed_in_references_and_marks_what_is_gone() {
    let pair = small().await;
    pair.import("hubspot", &["owners", "ticket_stages"]).await;
    pair.backfilled().await;
    let first = "SELECT count(*) = 1 FROM hubspot.owners WHERE archived";
    pair.db
        .wait_true("the first poll is done", PATIENCE, first)
        .await;
    let admin = &pair.emulator;
    admin.edit(
        "hubspot",
        "ticket_stages",
        "1",
        json!({"label": "Brand new"}),
    );
    admin.delete("hubspot", "ticket_stages", "2");
    admin.delete("hubspot", "owners", "71001");
    for mirror in ["hubspot.ticket_stages", "hubspot.owners"] {
        pair.db
            .exec(&format!("SELECT crm.refresh('{mirror}')"))
            .await;
    }
    pair.db
        .wait_true(
            "the stages show it",
            PATIENCE,
            "SELECT bool_and(CASE id WHEN '1' THEN label = 'Brand new' WHEN '2' THEN _deleted_at IS NOT NULL ELSE _deleted_at IS NULL END)
             FROM hubspot.ticket_stages",
        )
        .await;
    pair.db
        .wait_true(
            "the owner is marked",
            PATIENCE,
            "SELECT archived AND _deleted_at IS NOT NULL AND email = 'olga.owner@example.com' FROM hubspot.owners WHERE id = '71001'",
        )
        .await;
    let kept: i64 = pair.db.one("SELECT count(*) FROM hubspot.owners").await;
    assert_eq!(kept, 4, "archived owners stay");
}

/// A row that was written here would have waited as a dead letter: HubSpot takes none of it.
#[tokio::test(flavor = "multi_thread")]
async fn references_refuse_writes_at_once_and_say_why() {
    let pair = small().await;
    pair.import("hubspot", &["owners", "deal_stages"]).await;
    pair.backfilled().await;
    for (sql, state) in [
        ("UPDATE hubspot.owners SET email = 'x@y.z'", "428C9"),
        ("INSERT INTO hubspot.owners DEFAULT VALUES", "0A000"),
        ("DELETE FROM hubspot.deal_stages", "0A000"),
    ] {
        let error = pair.db.error(sql).await;
        assert_eq!(error.code().code(), state, "{sql}: {error:?}");
        assert!(error.hint().is_some(), "{sql}: {error:?}");
    }
    let writes: i64 = pair.db.one("SELECT count(*) FROM crm.write").await;
    assert_eq!(writes, 0);
}
