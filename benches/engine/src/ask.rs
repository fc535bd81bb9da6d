//! `why` and `what_if`: questions, on as many records and events as people have.

use std::time::Instant;

use crm_tests::catalog::{mirrors, uncaptured};
use crm_tests::{Cluster, Db};
use serde_json::json;

use crate::figures::{Figure, Figures, median, quantile, round, rounds};
use crate::setup;

/// Linked records.
const RECORDS: i64 = 1_000_000;
/// Events of the ledger.
const EVENTS: i64 = 100_000;
/// Records asked about in a round.
const ASKED: i64 = 200;

pub(crate) async fn measure(figures: &mut Figures) {
    let (cluster, db) = filled().await;
    why(figures, &cluster, &db).await;
    what_if(figures, &db).await;
}

/// Two linked mirrors, every tenth pair of which differs, without a CRM: questions call nobody.
async fn filled() -> (Cluster, Db) {
    let cluster = Cluster::start(setup::cluster()).await;
    let db = cluster.connect("postgres").await;
    db.exec("CREATE EXTENSION pg_crm_sync").await;
    mirrors(&db).await;
    let partition = "SELECT to_regclass('crm.event_0') IS NOT NULL";
    db.wait_true("the ledger has a partition", setup::PATIENCE, partition)
        .await;
    db.exec("SELECT crm.link('hubspot.contacts', 'salesforce.contact')")
        .await;
    let rows = format!(
        "INSERT INTO hubspot.contacts (id, email, firstname, lastname, phone, city)
             SELECT n, 'p' || n || '@example.com', 'First ' || n, 'Last ' || n, '+1 555 ' || n, 'City ' || n % 1000 FROM generate_series(1, {RECORDS}) n;
         INSERT INTO salesforce.contact (id, email, firstname, lastname, phone, mailingcity)
             SELECT '003' || lpad(n::text, 15, '0'), 'p' || n || '@example.com', 'First ' || n, 'Last ' || n, '+1 555 ' || n + (n % 10 = 0)::int, 'City ' || n % 1000
             FROM generate_series(1, {RECORDS}) n;
         INSERT INTO crm.xref (mirror, row_id, entity)
             SELECT m.id, n, n FROM generate_series(1, {RECORDS}) n, crm.mirror m WHERE m.object IN ('contacts', 'Contact')"
    );
    uncaptured(&db, &rows).await;
    db.exec("UPDATE crm.backfill SET state = 'done'; UPDATE crm.mirror SET mode = 'live'; UPDATE crm.link SET mode = 'live'")
        .await;
    for table in ["hubspot.contacts", "salesforce.contact", "crm.xref"] {
        db.exec(&format!("VACUUM ANALYZE {table}")).await;
    }
    (cluster, db)
}

/// Milliseconds of asking about `count` records from `first` on, each.
async fn asked(db: &Db, first: i64, count: i64) -> Vec<f64> {
    let mut spent = Vec::new();
    for n in first..first + count {
        // Spread over the table; every tenth differs.
        let id = n * 7_919 % RECORDS + 1;
        let began = Instant::now();
        let sql = format!("SELECT * FROM crm.why('hubspot.contacts', '{id}')");
        let answer = db.table(&sql).await;
        spent.push(began.elapsed().as_secs_f64() * 1_000.0);
        let differs = answer.iter().any(|r| r[0] == "values" && r[1] == "differs");
        assert_eq!(differs, id % 10 == 0, "record {id}: {answer:?}");
    }
    spent
}

async fn why(figures: &mut Figures, cluster: &Cluster, db: &Db) {
    let (mut middles, mut slowest, mut first) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..i64::try_from(rounds()).expect("few rounds") {
        let fresh = cluster.connect("postgres").await;
        first.extend(asked(&fresh, round, 1).await);
        let mut spent = asked(db, round * ASKED, ASKED).await;
        if round > 0 {
            spent.sort_by(f64::total_cmp);
            middles.push(median(&spent).0);
            slowest.push(quantile(&spent, 0.99));
        }
    }
    let (middle, range) = median(&middles);
    let (p99, first) = (median(&slowest).0, median(&first).0);
    figures.add(Figure {
        id: "why",
        value: json!([round(middle), round(p99), round(first)]),
        unit: "ms: median, p99, first of a session",
        baseline: format!("crm.why of one of {RECORDS} linked records, {ASKED} a round"),
        goal: "<= 10",
        met: Some(middle <= 10.0),
        range: Some(range),
        more: json!({}),
    });
}

/// A ledger of edits on both sides and SQL: every tenth a conflict that the later edit won, every seventh an echo.
fn ledger() -> String {
    format!(
        "INSERT INTO crm.event (seq, row_id, entity, occurred_at, received_at, mirror, policy_version, kind, origin, source, record_id, fields, old_values, new_values, decision)
         SELECT n, n % 40000 + 1, n % 40000 + 1, now() - interval '1 day' + n * interval '10 ms', now() - interval '1 day' + n * interval '10 ms', m.id, 1, 'update',
                CASE n % 3 WHEN 0 THEN m.server WHEN 1 THEN m.server ELSE 'local' END, CASE n % 3 WHEN 2 THEN 'sql' ELSE 'webhook' END, n::text,
                CASE m.server WHEN 'hubspot' THEN ARRAY['phone', 'city'] ELSE ARRAY['Phone', 'MailingCity'] END,
                ARRAY['+1 555 ' || n - 1, 'City ' || n % 1000], ARRAY['+1 555 ' || n, 'City ' || (n + 1) % 1000],
                CASE WHEN n % 10 = 0 THEN jsonb_build_array(jsonb_build_object('field', 'phone', 'step', 'conflict', 'rule', p.id, 'strategy', 'last_write_wins', 'conflict', true,
                         'winner', m.server, 'value', '+1 555 ' || n, 'losers', jsonb_build_array(jsonb_build_object('origin', 'other', 'value', 'x'))))
                     WHEN n % 7 = 0 THEN '[{{\"field\": \"phone\", \"step\": \"echo\"}}, {{\"field\": \"city\", \"step\": \"echo\"}}]' END
         FROM generate_series(1, {EVENTS}) n
         JOIN crm.mirror m ON m.object = CASE n % 2 WHEN 0 THEN 'contacts' ELSE 'Contact' END
         JOIN crm.conflict_policy p ON p.field = '*'"
    )
}

async fn what_if(figures: &mut Figures, db: &Db) {
    db.exec(&ledger()).await;
    db.exec("VACUUM ANALYZE crm.event").await;
    // One field decided by an owner, the other by an order: all that can differ does.
    let sql = r#"SELECT count(*) FROM crm.what_if('[{"link": "contacts", "field": "phone", "strategy": "owner", "winner": "salesforce"},
        {"link": "contacts", "field": "city", "strategy": "priority", "winner": "salesforce,hubspot"}]', max_rows => 1000000)"#;
    let (mut spent, mut differ) = (Vec::new(), 0);
    for round in 0..rounds() {
        let began = Instant::now();
        differ = db.one::<i64>(sql).await;
        if round > 0 {
            spent.push(began.elapsed().as_secs_f64());
        }
    }
    assert!(differ > 0, "nothing would differ: the replay did nothing");
    let (middle, range) = median(&spent);
    figures.add(Figure {
        id: "what_if",
        value: json!(round(middle)),
        unit: "s",
        baseline: format!("{EVENTS} events of two fields replayed, {differ} cells would differ"),
        goal: "<= 5",
        met: Some(middle <= 5.0),
        range: Some(range),
        more: json!({"events_per_second": (EVENTS as f64 / middle).round()}),
    });
}
