//! The ledger as SQL sees it: consumers, retention, bad input. No CRM takes part.

use crm_tests::catalog::{mirrors, uncaptured};
use crm_tests::{Cluster, Db, Options, PATIENCE};

async fn start() -> (Cluster, Db) {
    let cluster = Cluster::start(Options::default()).await;
    let db = cluster.connect("postgres").await;
    db.exec("CREATE EXTENSION pg_crm_sync").await;
    mirrors(&db).await;
    db.wait_true(
        "the ledger has a partition",
        PATIENCE,
        "SELECT to_regclass('crm.event_1') IS NOT NULL",
    )
    .await;
    // What the worker itself notes when it first reads the configuration.
    db.wait_true(
        "the policy is noted",
        PATIENCE,
        "SELECT EXISTS (SELECT FROM crm.event WHERE kind = 'policy')",
    )
    .await;
    db.exec("DELETE FROM crm.event; SELECT setval('crm.event_seq', 1, false)")
        .await;
    (cluster, db)
}

/// Events `from`..`to` of contact 7, one minute apart, the newest `age` old.
fn events(from: i64, to: i64, age: &str) -> String {
    format!(
        "INSERT INTO crm.event (seq, mirror, row_id, record_id, kind, origin, source, occurred_at, received_at, fields, old_values, new_values)
         SELECT n, m.id, 7, '77', 'update', 'hubspot', 'webhook', t, t, '{{phone}}', ARRAY[(n - 1)::text], ARRAY[n::text]
         FROM generate_series({from}, {to}) n, crm.mirror m, LATERAL (SELECT now() - interval '{age}' - ({to} - n) * interval '1 minute') x (t)
         WHERE m.object = 'contacts';
         SELECT setval('crm.event_seq', greatest({to}, (SELECT last_value FROM crm.event_seq)))"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_reads_every_event_once_and_in_order_at_its_own_pace() {
    let (_cluster, db) = start().await;
    db.exec(&events(1, 30, "1 hour")).await;
    assert_eq!(
        db.one::<i64>("SELECT crm.consumer_create('billing', from_seq => 0)")
            .await,
        0
    );
    assert_eq!(
        db.one::<i64>("SELECT crm.consumer_create('late')").await,
        30
    );
    let at = "SELECT crm.consumer_create('from time', from_time => (SELECT received_at FROM crm.event WHERE seq = 21))";
    assert_eq!(db.one::<i64>(at).await, 20);
    let read = "SELECT string_agg(seq::text, ' ') FROM crm.consumer_read('billing', 4)";
    assert_eq!(db.one::<String>(read).await, "1 2 3 4");
    assert_eq!(
        db.one::<String>(read).await,
        "1 2 3 4",
        "the same until it commits"
    );
    db.exec("BEGIN; SELECT crm.consumer_commit('billing', 4); ROLLBACK")
        .await;
    assert_eq!(
        db.one::<String>(read).await,
        "1 2 3 4",
        "committed with the work"
    );
    db.exec("SELECT crm.consumer_commit('billing', 4)").await;
    assert_eq!(db.one::<String>(read).await, "5 6 7 8");
    db.exec(&events(500, 501, "0 s")).await;
    assert_eq!(
        db.table(
            "SELECT name, committed, waiting, missed, lag > '10 minutes' FROM crm.consumer ORDER BY name"
        )
        .await,
        [
            ["billing", "4", "28", "f", "t"],
            ["from time", "20", "12", "f", "t"],
            ["late", "30", "2", "f", "f"],
        ]
    );
    let status = "SELECT state, waiting FROM crm.status WHERE kind = 'consumer' AND name = 'late'";
    assert_eq!(db.table(status).await, [["behind", "2"]]);
    assert_eq!(db.one::<i64>("SELECT crm.consumer_drop('late')").await, 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_is_told_what_it_may_not_do() {
    let (_cluster, db) = start().await;
    db.exec(&events(1, 501, "1 hour")).await;
    db.exec("SELECT crm.consumer_create('billing', from_seq => 5)")
        .await;
    db.refuses(&[
        (
            "SELECT crm.consumer_read('biling')",
            "42704",
            "Did you mean billing?",
        ),
        (
            "SELECT crm.consumer_read('billing', 0)",
            "22023",
            "1 to 100000",
        ),
        ("SELECT crm.consumer_create('billing')", "42710", "up to 4"),
        ("SELECT crm.consumer_create('')", "22023", "visible"),
        (
            "SELECT crm.consumer_create('x', from_seq => 900)",
            "22023",
            "ends at 501",
        ),
        (
            "SELECT crm.consumer_create('x', from_seq => 1, from_time => now())",
            "22023",
            "one of them",
        ),
        (
            "SELECT crm.consumer_commit('billing', 3)",
            "22023",
            "forward only",
        ),
        (
            "SELECT crm.consumer_commit('billing', 502)",
            "22023",
            "ends at 501",
        ),
        ("SELECT crm.consumer_commit('none', 3)", "42704", "billing"),
        ("SELECT crm.consumer_drop(NULL)", "42704", "billing"),
        (
            "SELECT crm.replay('hubspot webhook', 1)",
            "42704",
            "Streams are",
        ),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_members_of_its_owner_move_a_consumer_and_readers_may_read() {
    let (cluster, db) = start().await;
    db.exec(&events(1, 3, "1 hour")).await;
    db.exec(
        "CREATE ROLE app LOGIN IN ROLE crm_operator; CREATE ROLE helper LOGIN IN ROLE crm_reader; CREATE ROLE stranger LOGIN;
         GRANT USAGE ON SCHEMA hubspot TO helper; GRANT SELECT ON hubspot.contacts TO helper",
    )
    .await;
    let app = cluster.connect_as("app", "postgres").await;
    let helper = cluster.connect_as("helper", "postgres").await;
    let stranger = cluster.connect_as("stranger", "postgres").await;
    app.exec("SELECT crm.consumer_create('app', from_seq => 0)")
        .await;
    assert_eq!(
        helper
            .one::<i64>("SELECT count(*) FROM crm.consumer_read('app')")
            .await,
        3
    );
    let error = helper.error("SELECT crm.consumer_commit('app', 1)").await;
    assert_eq!(error.code().code(), "42501", "{error:?}");
    assert!(
        error.hint().unwrap_or_default().contains("GRANT app"),
        "{error:?}"
    );
    for sql in [
        "SELECT crm.consumer_create('mine')",
        "SELECT crm.consumer_drop('app')",
        "SELECT crm.replay('x', 1)",
    ] {
        assert_eq!(helper.error(sql).await.code().code(), "42501", "{sql}");
    }
    assert_eq!(
        stranger
            .error("SELECT crm.consumer_read('app')")
            .await
            .code()
            .code(),
        "42501"
    );
    app.exec("SELECT crm.consumer_commit('app', 2)").await;
    db.exec("GRANT app TO helper").await;
    helper.exec("SELECT crm.consumer_commit('app', 3)").await;
    // What readers see of a record that is gone from its table.
    assert_eq!(
        helper
            .one::<i64>("SELECT count(*) FROM crm.lineage('hubspot.contacts', '77', 'phone')")
            .await,
        3
    );
    helper.exec("SELECT * FROM crm.status").await;
    helper.exec("SELECT * FROM crm.consumer").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_drops_whole_parts_and_keeps_what_a_consumer_needs() {
    let (_cluster, db) = start().await;
    db.exec(&events(1, 30, "100 days")).await;
    db.exec("SELECT crm.consumer_create('slow', from_seq => 10)")
        .await;
    db.exec("SELECT setval('crm.event_seq', 1000000), crm._event_partition_ensure()")
        .await;
    db.exec(&events(1_000_001, 1_000_005, "0 s")).await;
    // The worker does the same once a minute.
    assert_eq!(
        db.one::<Option<String>>("SELECT crm._event_retain()").await,
        None
    );
    let ledger = "SELECT state, detail, advice FROM crm.status WHERE kind = 'ledger'";
    let row = db.table(ledger).await.remove(0);
    assert_eq!(row[0], "kept for consumers", "{row:?}");
    assert!(
        row[2].contains("crm.consumer_drop('slow')") && row[1].contains("kept 90 days"),
        "{row:?}"
    );
    db.exec("SELECT crm._event_retain(at_most => '99 days')")
        .await;
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM crm.event").await,
        5,
        "the old part is gone"
    );
    let error = db.error("SELECT crm.consumer_read('slow')").await;
    assert_eq!(error.code().code(), "55000", "{error:?}");
    assert!(
        error
            .hint()
            .unwrap_or_default()
            .contains("crm.consumer_commit('slow', 30)"),
        "{error:?}"
    );
    assert_eq!(
        db.table("SELECT state FROM crm.status WHERE kind = 'consumer'")
            .await,
        [["events missed"]]
    );
    db.exec("SELECT crm.consumer_commit('slow', 30)").await;
    let read = "SELECT min(seq) FROM crm.consumer_read('slow')";
    assert_eq!(db.one::<i64>(read).await, 1_000_001);
    behind_the_drop(&db).await;
}

/// Half a minute was rounded to none, which is for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_time_to_keep_events_is_never_rounded_to_for_ever() {
    let (cluster, db) = start().await;
    for (given, kept) in [
        ("16 s", "00:00:16"),
        ("500 us", "00:00:00.0005"),
        ("1234567 s", "342:56:10"),
        ("90", "01:30:00"),
        ("30 d", "30 days"),
        ("0", ""),
        ("0 d", ""),
    ] {
        for setting in ["retention", "retention_max"] {
            cluster.set(&format!("pg_crm_sync.{setting}"), given);
        }
        cluster.reload();
        let sql = format!(
            "SELECT coalesce(crm._keep('retention')::text, '') = '{kept}' AND coalesce(crm._keep('retention_max')::text, '') = '{kept}'"
        );
        db.wait_true(given, PATIENCE, &sql).await;
    }
}

/// What can be asked for when events up to 30 were dropped.
async fn behind_the_drop(db: &Db) {
    assert_eq!(
        db.one::<Option<String>>("SELECT crm._event_retain('0.1 s', '0.1 s')")
            .await,
        None,
        "the part that is written to stays"
    );
    uncaptured(
        db,
        "INSERT INTO hubspot.contacts (_id, id) OVERRIDING SYSTEM VALUE VALUES (7, '77')",
    )
    .await;
    db.refuses(&[
        (
            "SELECT crm.consumer_create('x', from_seq => 7)",
            "22023",
            "from_seq => 0",
        ),
        (
            "SELECT crm.consumer_create('x', from_time => now() - interval '200 days')",
            "22023",
            "up to 30",
        ),
        (
            "SELECT crm.record_as_of('hubspot.contacts', '77', now() - interval '101 days')",
            "22023",
            "begins at",
        ),
    ])
    .await;
    assert_eq!(
        db.one::<i64>("SELECT crm.consumer_create('all', from_seq => 0)")
            .await,
        30
    );
    // Who set a value that no event tells of is not known: it need not be the first copy.
    let told = db
        .table("SELECT outcome, origin, source, at = (SELECT dropped_until FROM crm.ledger_state) FROM crm.lineage('hubspot.contacts', '77', 'email')")
        .await;
    assert_eq!(told, [["older than the ledger", "∅", "∅", "t"]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_fills_slowly_is_closed_so_that_it_can_be_dropped_in_time() {
    let (_cluster, db) = start().await;
    db.exec(&events(1, 2, "10 days")).await;
    db.exec("SELECT crm._event_partition_ensure()").await;
    assert_eq!(
        db.one::<i64>("SELECT last_value FROM crm.event_seq").await,
        2,
        "ten days of ninety are no reason"
    );
    db.exec(&events(3, 4, "12 days")).await;
    db.exec("UPDATE crm.event SET received_at = now() - interval '12 days'; SELECT crm._event_partition_ensure()")
        .await;
    assert_eq!(
        db.one::<i64>("SELECT last_value FROM crm.event_seq").await,
        999_999
    );
    assert!(
        db.one::<bool>("SELECT to_regclass('crm.event_2') IS NOT NULL")
            .await
    );
    // Identities are forgotten by slices, and together these are all.
    db.exec(
        "INSERT INTO crm.event_seen SELECT gen_random_uuid(), current_date - n % 10 FROM generate_series(1, 1000) n;
         INSERT INTO crm.event_seen VALUES ('00000000-0000-0000-0000-000000000000', '2020-01-01'), ('ffffffff-ffff-ffff-ffff-ffffffffffff', '2020-01-01')",
    )
    .await;
    db.exec("SELECT sum(crm._event_seen_forget(n)) FROM generate_series(0, 59) n")
        .await;
    assert_eq!(
        db.table("SELECT count(*), min(seen_on) >= current_date - 4 FROM crm.event_seen")
            .await,
        [["500", "t"]]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_past_is_asked_for_with_clear_answers_to_bad_questions() {
    let (_cluster, db) = start().await;
    uncaptured(
        &db,
        "INSERT INTO hubspot.contacts (_id, id, phone, tags, score, birthday, city) OVERRIDING SYSTEM VALUE
         VALUES (7, '77', '4', '{a,b}', 5, '2020-02-29', 'York'), (8, NULL, NULL, NULL, NULL, NULL, NULL)",
    )
    .await;
    db.exec("UPDATE crm.mirror SET created_at = now() - interval '1 day'")
        .await;
    db.exec(&events(1, 4, "1 hour")).await;
    db.exec(
        "INSERT INTO crm.event (seq, mirror, row_id, record_id, kind, origin, source, occurred_at, received_at, fields, old_values, new_values, unknown)
         SELECT 5, m.id, 7, '77', 'update', 'local', 'sql', now() - interval '30 minutes', now(), '{tags,score,birthday,city}', '{x;y,NULL,2019-01-01,NULL}', '{a;b,5,2020-02-29,York}', '{city}'
         FROM crm.mirror m WHERE m.object = 'contacts'; SELECT setval('crm.event_seq', 5)",
    )
    .await;
    let at = |ago: &str| {
        format!("SELECT concat_ws(' ', r ->> 'phone', r ->> 'tags', coalesce(r ->> 'score', 'null'), r ->> 'birthday', r ->> '_unknown', r ? 'city')
                 FROM crm.record_as_of('hubspot.contacts', '77', now() - interval '{ago}') r")
    };
    assert_eq!(
        db.one::<String>(&at("1 minute")).await,
        r#"4 ["a", "b"] 5 2020-02-29 t"#
    );
    assert_eq!(
        db.one::<String>(&at("40 minutes")).await,
        r#"4 ["x", "y"] null 2019-01-01 ["city"] f"#,
        "an unknown value is not shown as a null"
    );
    assert_eq!(
        db.one::<String>(&at("61 minutes 30 seconds")).await,
        r#"2 ["x", "y"] null 2019-01-01 ["city"] f"#
    );
    assert_eq!(
        db.table("SELECT old_value, new_value, stands, outcome, origin FROM crm.lineage('hubspot.contacts', '77', 'phone') ORDER BY seq DESC LIMIT 2")
            .await,
        [["3", "4", "t", "applied", "hubspot"], ["2", "3", "f", "applied", "hubspot"]]
    );
    assert_eq!(
        db.table("SELECT new_value, stands, outcome, source FROM crm.lineage('hubspot.contacts', '77', 'email')")
            .await,
        [["∅", "t", "first copy", "backfill"]]
    );
    assert_eq!(
        db.one::<Option<String>>(
            "SELECT crm.record_as_of('hubspot.contacts', '#8', now()) ->> 'id'"
        )
        .await,
        None
    );
    bad_questions(&db).await;
}

async fn bad_questions(db: &Db) {
    db.exec("BEGIN; UPDATE hubspot.contacts SET phone = '5' WHERE id = '77'")
        .await;
    let error = db
        .error("SELECT crm.record_as_of('hubspot.contacts', '77', now())")
        .await;
    assert_eq!(error.code().code(), "55006", "{error:?}");
    db.exec("ROLLBACK").await;
    db.refuses(&[
        (
            "SELECT crm.lineage('hubspot.contact', '77')",
            "42704",
            "hubspot.contacts",
        ),
        (
            "SELECT crm.lineage('hubspot.contacts', '77x')",
            "42704",
            "Did you mean 77?",
        ),
        (
            "SELECT crm.lineage('hubspot.contacts', NULL)",
            "42704",
            "#_id",
        ),
        (
            "SELECT crm.lineage('hubspot.contacts', '#9')",
            "42704",
            "#_id",
        ),
        (
            "SELECT crm.lineage('hubspot.contacts', '77', 'phon')",
            "42703",
            "Did you mean phone?",
        ),
        (
            "SELECT crm.record_as_of('hubspot.contacts', '77', now() + interval '1 minute')",
            "22023",
            "past",
        ),
        (
            "SELECT crm.record_as_of('hubspot.contacts', '77', NULL)",
            "22023",
            "past",
        ),
        (
            "SELECT crm.record_as_of('hubspot.contacts', '77', now() - interval '2 days')",
            "22023",
            "first copy",
        ),
        (
            "SELECT crm.record_as_of('hubspot.contacts', '78', now())",
            "42704",
            "Neither",
        ),
    ])
    .await;
}
