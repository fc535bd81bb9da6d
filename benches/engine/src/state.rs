//! `state.*`: bytes kept beside the mirrors: per linked record that nobody touched, and per change.

use crm_tests::Db;
use serde_json::json;

use crate::figures::{Figure, Figures, round};
use crate::setup;

/// Contacts of each CRM; four fifths of them are linked.
const CONTACTS: u64 = 20_000;
/// People whose phone number is changed, one half in HubSpot's mirror and one half in Salesforce's.
const CHANGES: u64 = 4_000;

/// Everything of ours that grows with records or events, with its indexes.
const KEPT: &str = "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_class c
     WHERE c.relnamespace = 'crm'::regnamespace AND c.relkind = 'r' AND";

const LEDGER: &str = "(c.oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'crm.event'::regclass) OR c.relname = 'event_seen')";

async fn bytes(db: &Db, which: &str) -> f64 {
    db.exec("CHECKPOINT").await;
    db.one::<i64>(&format!("{KEPT} {which}")).await as f64
}

pub(crate) async fn measure(figures: &mut Figures) {
    let pair = setup::linked(setup::cluster(), setup::unlimited(CONTACTS)).await;
    let db = &pair.db;
    setup::calm(db).await;
    let records = db.one::<i64>("SELECT count(*) FROM crm.xref").await as f64;
    assert!(records >= CONTACTS as f64, "only {records} are linked");
    let xref = bytes(db, "c.relname = 'xref'").await;
    let others = "c.relname IN ('field_state', 'write', 'deferred', 'review_item')";
    let unsettled: i64 = db.one("SELECT count(*) FROM crm.field_state").await;
    assert_eq!(unsettled, 0, "an untouched record has no state");
    let others = bytes(db, others).await;
    let per_record = xref / records;
    figures.add(Figure {
        id: "state.record",
        value: json!(round(per_record)),
        unit: "B",
        baseline: format!("{records} linked records, untouched: crm.xref with its indexes; queues and states of the whole database {others} B"),
        goal: "<= 120",
        met: Some(per_record <= 120.0),
        range: None,
        more: json!({"rows_of_other_state": unsettled}),
    });
    changes(figures, db).await;
}

async fn changes(figures: &mut Figures, db: &Db) {
    let count = "SELECT count(*) FROM crm.event";
    let (before, first) = (db.one::<i64>(count).await, bytes(db, LEDGER).await);
    // In pieces, as people do: one statement over all would be one transaction of the worker.
    let step = CHANGES / 20;
    for n in 0..20 {
        let (low, high) = (n * step, (n + 1) * step);
        let (table, column) = if n % 2 == 0 {
            ("hubspot.contacts", "phone")
        } else {
            ("salesforce.contact", "phone")
        };
        db.exec(&format!(
            "UPDATE {table} t SET {column} = '+44 20 ' || lpad(t._id::text, 8, '0') FROM crm.xref x
             WHERE x.row_id = t._id AND x.mirror = (SELECT id FROM crm.mirror m WHERE format('%I.%I', m.schema_name, m.table_name) = '{table}')
               AND t._id > {low} AND t._id <= {high}"
        ))
        .await;
    }
    setup::calm(db).await;
    // The echo of each write to each CRM.
    let echoes = "SELECT count(*) >= (SELECT count(*) FROM crm.event WHERE source = 'result') FROM crm.event WHERE decision @> '[{\"step\": \"echo\"}]'";
    db.wait_true("the echoes are there", setup::PATIENCE, echoes)
        .await;
    let lines = (db.one::<i64>(count).await - before) as f64;
    let edits: i64 = db
        .one("SELECT count(*) FROM crm.event WHERE source = 'sql' AND kind = 'update'")
        .await;
    let grown = bytes(db, LEDGER).await - first;
    let ledger_only = grown
        - db.one::<i64>("SELECT pg_total_relation_size('crm.event_seen')")
            .await as f64;
    let per_line = grown / lines;
    figures.add(Figure {
        id: "state.change",
        value: json!(round(per_line)),
        unit: "B",
        baseline: format!(
            "{lines} observed changes of one field (edits by SQL, both CRMs' answers and echoes): crm.event and crm.event_seen with their indexes"
        ),
        goal: "<= 400",
        met: Some(per_line <= 400.0),
        range: None,
        more: json!({
            "edits": edits,
            "bytes_per_edit_with_all_that_follows": round(grown / edits as f64),
            "kept_beyond_four_days": round(ledger_only / lines),
        }),
    });
}
