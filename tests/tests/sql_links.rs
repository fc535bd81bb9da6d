//! Links, policy, matching, delivery and webhooks as users call them: main path and bad input.

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
        "SELECT to_regclass('crm.event_0') IS NOT NULL",
    )
    .await;
    (cluster, db)
}

/// What no refused statement may change, as one text.
const STATE: &str = "SELECT md5(string_agg(t, '|' ORDER BY t)) FROM (
        SELECT row(l.*)::text AS t FROM crm.link l UNION ALL SELECT row(f.*)::text FROM crm.field_map f UNION ALL SELECT row(p.*)::text FROM crm.conflict_policy p
        UNION ALL SELECT row(h.*)::text FROM crm.policy_history h UNION ALL SELECT row(w.*)::text FROM crm.write w UNION ALL SELECT row(q.*)::text FROM crm.webhook_queue q) x";

const PEOPLE: &str = "
    INSERT INTO hubspot.contacts (id, email, phone, city) SELECT 'h' || n, 'P' || n || '@Example.com', '1', 'X' FROM generate_series(1, 20) n;
    INSERT INTO salesforce.contact (id, email, phone, mailingcity) SELECT 's' || n, ' p' || n || '@example.com', CASE n WHEN 5 THEN '2' ELSE '1' END, 'X' FROM generate_series(3, 25) n;
    INSERT INTO salesforce.contact (id, email) VALUES ('twin', 'p12@example.com');
    INSERT INTO hubspot.contacts (id, email, lastname) VALUES ('long', 'long@example.com', repeat('x', 81))";

#[tokio::test(flavor = "multi_thread")]
async fn a_link_starts_from_the_standard_maps_that_both_sides_can_hold() {
    let (_cluster, db) = start().await;
    let maps = async |link: &str| -> String {
        db.one(&format!(
            "SELECT string_agg(concat_ws('=', left_field, right_field, nullif(to_right, 'identity'), match_order), ' ' ORDER BY id) FROM crm.field_map WHERE link = '{link}'"
        ))
        .await
    };
    db.exec("SELECT crm.link('hubspot.contacts', 'salesforce.contact'), crm.link('salesforce.account', 'hubspot.companies', name => 'firms'), crm.link('hubspot.deals', 'salesforce.opportunity')")
        .await;
    assert_eq!(
        maps("contacts").await,
        "email=Email=1 firstname=FirstName lastname=LastName phone=Phone city=MailingCity"
    );
    assert_eq!(
        maps("firms").await,
        "Website=domain=domain_of_url=1 Name=name Phone=phone NumberOfEmployees=numberofemployees"
    );
    assert_eq!(
        maps("deals").await,
        "dealname=Name=1 amount=Amount closedate=CloseDate=date_of dealstage=StageName"
    );
    let policy = db
        .table(
            "SELECT link, field, strategy FROM crm.conflict_policy WHERE link <> '*' ORDER BY link",
        )
        .await;
    assert_eq!(policy[0], ["contacts", "*", "last_write_wins"]);
    db.refuses_unchanged(STATE, &[
            ("SELECT crm.link('hubspot.contact', 'salesforce.contact')", "42704", "Did you mean hubspot.contacts"),
            ("SELECT crm.link('hubspot.contacts', 'hubspot.contacts')", "22023", "itself"),
            ("SELECT crm.link('salesforce.contact', 'hubspot.contacts')", "42710", "\"contacts\""),
            ("SELECT crm.link('hubspot.contacts', 'salesforce.account', name => 'firms')", "42710", "unique"),
            ("SELECT crm.link('hubspot.contacts', 'salesforce.account', name => '')", "22023", "1 to 63"),
            ("SELECT crm.unlink('contact')", "42704", "Did you mean contacts"),
            ("SELECT crm.mirror_drop('hubspot.contacts')", "2BP01", "crm.unlink"),
            ("DROP TABLE hubspot.contacts", "2BP01", "crm.unlink"),
            ("INSERT INTO crm.field_map (link, left_field, right_field) VALUES ('contact', 'score', 'Phone')", "42704", "Did you mean contacts"),
            ("INSERT INTO crm.field_map (link, left_field, right_field) VALUES ('contacts', 'scor', 'Phone')", "42703", "Did you mean score"),
            ("INSERT INTO crm.field_map (link, left_field, right_field) VALUES ('contacts', 'score', 'CreatedDate')", "42804", "one type"),
            ("INSERT INTO crm.field_map (link, left_field, right_field) VALUES ('contacts', 'createdate', 'CreatedDate')", "22023", "read-only"),
            ("UPDATE crm.field_map SET to_left = 'upper' WHERE left_field = 'phone'", "22023", "identity"),
            ("UPDATE crm.field_map SET to_right = 'identity' WHERE left_field = 'closedate'", "42804", "date_of"),
            ("UPDATE crm.field_map SET value_map = '{\"a\": \"x\", \"b\": \"x\"}' WHERE left_field = 'dealstage'", "22023", "one-to-one"),
        ],
    )
    .await;
    db.exec("SELECT crm.unlink('firms'); SELECT crm.mirror_drop('hubspot.companies')")
        .await;
}

/// Field, strategy, winner, SQLSTATE, words of the error.
#[rustfmt::skip]
const WRONG_POLICIES: [(&str, &str, &str, &str, &str); 7] = [
    ("phon", "owner", "'salesforce'", "42703", "Did you mean phone"),
    ("MailingCity", "owner", "'salesforce'", "42703", "called city"),
    ("phone", "last_writer", "NULL", "22023", "Did you mean last_write_wins"),
    ("phone", "owner", "NULL", "22023", "needs a winner"),
    ("phone", "owner", "'salesforce,hubspot'", "22023", "one winner"),
    ("phone", "owner", "'salesfroce'", "22023", "Did you mean salesforce"),
    ("phone", "priority", "' , '", "22023", "needs a winner"),
];

/// The statement that adds a policy of link `contacts`.
fn row(field: &str, strategy: &str, winner: &str) -> String {
    format!(
        "INSERT INTO crm.conflict_policy (link, field, strategy, winner) VALUES ('contacts', '{field}', '{strategy}', {winner})"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_decides_nothing_is_refused_and_every_change_is_kept() {
    let (_cluster, db) = start().await;
    db.exec("SELECT crm.link('hubspot.contacts', 'salesforce.contact')")
        .await;
    let cases: Vec<(String, &str, &str)> = WRONG_POLICIES
        .map(|(f, s, w, code, words)| (row(f, s, w), code, words))
        .to_vec();
    let mut cases: Vec<(&str, &str, &str)> =
        cases.iter().map(|(s, c, w)| (s.as_str(), *c, *w)).collect();
    cases.push((
        "INSERT INTO crm.conflict_policy (link, strategy) VALUES ('contact', 'review')",
        "42704",
        "Did you mean contacts",
    ));
    db.refuses_unchanged(STATE, &cases).await;

    let version = "SELECT policy_version FROM crm.installation";
    let before: i64 = db.one(version).await;
    db.exec(&row("Phone", "owner", "'salesforce'")).await;
    db.exec("UPDATE crm.conflict_policy SET winner = 'local' WHERE field = 'phone'; DELETE FROM crm.conflict_policy WHERE field = 'phone'").await;
    assert_eq!(db.one::<i64>(version).await, before + 3);
    let history = db
        .table("SELECT before ->> 'winner', after ->> 'winner', changed_by FROM crm.policy_history ORDER BY id DESC LIMIT 3")
        .await;
    assert_eq!(
        history,
        [
            ["local", "∅", "postgres"],
            ["salesforce", "local", "postgres"],
            ["∅", "salesforce", "postgres"]
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn two_links_of_a_group_cannot_name_two_owners_of_a_field() {
    let (_cluster, db) = start().await;
    db.exec("SELECT crm.link('hubspot.contacts', 'salesforce.contact')")
        .await;
    db.exec("CREATE SERVER portal2 TYPE 'hubspot' FOREIGN DATA WRAPPER pg_crm_sync OPTIONS (credentials 'file:none.json');
             INSERT INTO crm.remote_object SELECT 'portal2', object, type_id, label, label_plural, custom, createable, updateable, deletable, streamable FROM crm.remote_object WHERE server = 'hubspot';
             INSERT INTO crm.remote_field SELECT (jsonb_populate_record(f, '{\"server\": \"portal2\"}')).* FROM crm.remote_field f WHERE server = 'hubspot';
             SELECT crm.import('portal2', ARRAY['contacts'], into_schema => 'portal2'); SELECT crm.link('portal2.contacts', 'salesforce.contact', name => 'second')")
        .await;
    db.exec(&row("phone", "owner", "'salesforce'")).await;
    db.refuses_unchanged(STATE, &[("INSERT INTO crm.conflict_policy (link, field, strategy, winner) VALUES ('second', 'phone', 'owner', 'portal2')", "23505", "link \"contacts\"")],
    )
    .await;
    db.exec("INSERT INTO crm.conflict_policy (link, field, strategy, winner) VALUES ('second', 'phone', 'owner', 'salesforce')").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn preview_tells_and_go_live_ties_only_what_is_clear() {
    let (_cluster, db) = start().await;
    uncaptured(&db, PEOPLE).await;
    db.exec("SELECT crm.link('hubspot.contacts', 'salesforce.contact')")
        .await;
    db.refuses_unchanged(
        STATE,
        &[
            (
                "SELECT crm.go_live('contacts')",
                "55000",
                "hubspot.contacts (backfill waiting)",
            ),
            (
                "SELECT crm.go_live('contact')",
                "42704",
                "Did you mean contacts",
            ),
            (
                "SELECT crm.go_live('hubspot.contact')",
                "42704",
                "Did you mean hubspot.contacts",
            ),
            ("SELECT crm.preview('nope')", "42704", "Links are: contacts"),
        ],
    )
    .await;
    db.exec("UPDATE crm.backfill SET state = 'done', error = NULL")
        .await;
    let told = db
        .table("SELECT what, coalesce(field, ''), count FROM crm.preview('contacts') WHERE what <> 'rows' AND what <> 'would send'")
        .await;
    let expected = [
        ["matches", "email", "17"],
        ["only hubspot.contacts", "", "3"],
        ["only salesforce.contact", "", "5"],
        ["ambiguous", "", "1"],
        ["duplicates", "salesforce.contact.Email", "2"],
        ["differs", "email", "17"],
        ["differs", "phone", "1"],
        ["too long", "hubspot.contacts.lastname", "1"],
    ];
    assert_eq!(told, expected);
    db.exec("SELECT crm.go_live('contacts')").await;
    let facts = db
        .table("SELECT (SELECT count(*) FROM crm.xref), (SELECT count(DISTINCT entity) FROM crm.xref), (SELECT candidates ->> 'key' FROM crm.review), (SELECT state FROM crm.fence_status()), (SELECT mode FROM crm.link)")
        .await;
    assert_eq!(facts, [["34", "17", "p12@example.com", "active", "live"]]);
    db.exec("SELECT crm.go_live('contacts')").await;
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM crm.xref").await,
        34,
        "matching again ties nothing twice"
    );
    db.exec("SELECT crm.unlink('contacts')").await;
    assert_eq!(
        db.one::<i64>("SELECT (SELECT count(*) FROM crm.xref) + (SELECT count(*) FROM crm.review)")
            .await,
        0
    );
}

/// Three held writes of transaction 77: an update, a create and a delete.
const HELD: &str = "
    INSERT INTO hubspot.contacts (id, email, phone, tags) VALUES ('1', 'a@b.c', 'new', '{a,b}'), ('2', 'd@e.f', 'later', NULL), (NULL, 'made@b.c', NULL, NULL);
    INSERT INTO crm.change_tx (tx, at, rows, held, \"session_user\", application_name) VALUES (77, now(), 4, true, 'u', 'a');
    INSERT INTO crm.write (mirror, row_id, kind, record_id, vals, old_vals, origin, state, txs)
    SELECT m.id, t._id, CASE WHEN t.id IS NULL THEN 'create' ELSE 'update' END, t.id,
           CASE WHEN t.id IS NULL THEN '{\"email\": \"made@b.c\"}' ELSE '{\"phone\": \"new\", \"tags\": \"a;b\"}' END::jsonb,
           CASE WHEN t.id IS NULL THEN '{}' ELSE '{\"phone\": \"old\", \"tags\": \"a\"}' END::jsonb, 'local', 'held', '{77}'
    FROM crm.mirror m, hubspot.contacts t WHERE m.object = 'contacts';
    INSERT INTO crm.write (mirror, row_id, kind, record_id, origin, state, txs) SELECT id, 900, 'delete', '9', 'local', 'held', '{77}' FROM crm.mirror WHERE object = 'contacts';
    INSERT INTO crm.event (seq, mirror, row_id, kind, origin, source, occurred_at, received_at, fields, old_values)
    SELECT 1, id, 900, 'delete', 'local', 'sql', now(), now(), '{email,birthday,tags}', '{gone@b.c,2020-02-29,x;y}' FROM crm.mirror WHERE object = 'contacts'";

#[tokio::test(flavor = "multi_thread")]
async fn reject_puts_old_values_back_where_nothing_changed_since() {
    let (_cluster, db) = start().await;
    db.exec("SELECT crm.pause('server', 'hubspot')").await;
    uncaptured(&db, HELD).await;
    assert_eq!(
        db.table("SELECT tx, writes, deletes FROM crm.held").await,
        [["77", "4", "1"]]
    );
    db.refuses_unchanged(
        STATE,
        &[
            ("SELECT crm.approve(78)", "42704", "Held are: 77"),
            ("SELECT crm.reject(NULL)", "42704", "Held are: 77"),
        ],
    )
    .await;
    db.exec("SELECT crm.reject(77)").await;
    let rows = db
        .table("SELECT id, email, phone, tags, birthday FROM hubspot.contacts ORDER BY email")
        .await;
    assert_eq!(
        rows,
        [
            ["1", "a@b.c", "old", "{a}", "∅"],
            ["2", "d@e.f", "later", "∅", "∅"],
            ["9", "gone@b.c", "∅", "{x,y}", "2020-02-29"],
        ]
    );
    assert_eq!(
        db.one::<i64>("SELECT (SELECT count(*) FROM crm.write) + (SELECT count(*) FROM crm.change_0) + (SELECT count(*) FROM crm.change_1)").await,
        0,
        "restoring is not captured"
    );
}

/// Two dead letters of one cause (`out`), one of another (`in`); nothing is changed by looking or by a wrong number.
async fn one_cause_is_counted_before_it_is_released(db: &Db) {
    db.refuses_unchanged(
        STATE,
        &[
            (
                "SELECT crm.dead_letter_retry_where('no_such_column = 1')",
                "22023",
                "crm.dead_letter_cause",
            ),
            (
                "SELECT crm.dead_letter_retry_where(' ')",
                "22023",
                "crm.dead_letter_retry()",
            ),
            (
                "SELECT crm.dead_letter_retry_where('id = 1) OR (1/0 = 1')",
                "22023",
                "crm.dead_letter_cause",
            ),
            (
                "SELECT crm.dead_letter_retry_where($$direction = 'out'$$, 3)",
                "55000",
                "crm.dead_letter",
            ),
        ],
    )
    .await;
    let count = "SELECT crm.dead_letter_retry_where($$error ~ 'EMAIL'$$)";
    assert_eq!(db.one::<i64>(count).await, 2);
    assert_eq!(
        db.table("SELECT direction, letters, advice FROM crm.dead_letter_cause ORDER BY 1")
            .await,
        [["in", "1", "look"], ["out", "2", "Correct the address."]]
    );
    db.exec("BEGIN").await;
    let release: String = db
        .one("SELECT retry FROM crm.dead_letter_cause WHERE direction = 'out'")
        .await;
    db.exec(&release).await;
    assert_eq!(
        db.table("SELECT direction FROM crm.dead_letter").await,
        [["in"]]
    );
    db.exec("ROLLBACK").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn approve_releases_and_dead_letters_are_tried_again_or_given_up() {
    let (_cluster, db) = start().await;
    db.exec("SELECT crm.pause('server', 'hubspot'); UPDATE crm.mirror SET mode = 'live'")
        .await;
    uncaptured(&db, HELD).await;
    db.exec("SELECT crm.approve(77)").await;
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM crm.write WHERE state = 'queued'")
            .await,
        4
    );
    db.exec("UPDATE crm.write SET state = 'dead', error = 'INVALID_EMAIL', advice = 'Correct the address.' WHERE kind = 'update';
             INSERT INTO crm.poison (mirror, source, record_id, error, advice) SELECT id, 'webhook', '5', 'bad', 'look' FROM crm.mirror WHERE object = 'contacts'")
        .await;
    assert_eq!(
        db.table("SELECT direction, count(*) FROM crm.dead_letter GROUP BY 1 ORDER BY 1")
            .await,
        [["in", "1"], ["out", "2"]]
    );
    db.refuses_unchanged(
        STATE,
        &[
            (
                "SELECT crm.dead_letter_retry(ARRAY[0])",
                "42704",
                "crm.dead_letter",
            ),
            (
                "SELECT crm.dead_letter_retry(direction => 'up')",
                "22023",
                "out",
            ),
            (
                "SELECT crm.dead_letter_discard(ARRAY[NULL::bigint])",
                "42704",
                "crm.dead_letter",
            ),
        ],
    )
    .await;
    one_cause_is_counted_before_it_is_released(&db).await;
    assert_eq!(db.one::<i64>("SELECT crm.dead_letter_retry(ARRAY[(SELECT min(id) FROM crm.dead_letter WHERE direction = 'out')])").await, 1);
    assert_eq!(db.one::<i64>("SELECT crm.dead_letter_discard()").await, 1);
    assert_eq!(
        db.one::<i64>("SELECT crm.dead_letter_retry(direction => 'in')")
            .await,
        1
    );
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM crm.dead_letter").await,
        0
    );
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM crm.write WHERE state = 'queued'")
            .await,
        3
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn wait_synced_says_why_it_does_not_return() {
    let (cluster, db) = start().await;
    assert_eq!(
        db.one::<String>("SELECT crm.wait_synced()").await,
        "nothing to wait for"
    );
    db.refuses_unchanged(STATE, &[
            ("INSERT INTO hubspot.contacts (email) VALUES ('x@y.z'); SELECT crm.wait_synced('1 s')", "25001", "COMMIT first"),
            ("SELECT crm.wait_synced('-1 s')", "22023", "0 to 1 hour"),
            ("SELECT crm.wait_synced(NULL)", "22023", "0 to 1 hour"),
        ],
    )
    .await;
    let db = cluster.connect("postgres").await;
    db.exec("INSERT INTO hubspot.contacts (email) VALUES ('x@y.z')")
        .await;
    let error = db.error("SELECT crm.wait_synced('3 s')").await;
    let hint = error.hint().unwrap_or_default();
    assert!(
        hint.contains("crm.go_live") || hint.contains("crm.outbox"),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_are_bounded_in_size_and_number() {
    let (_cluster, db) = start().await;
    db.exec("SELECT crm.pause('server', 'hubspot')").await;
    let call = |server: &str, method: &str, headers: &str, body: &str| {
        format!("SELECT crm.webhook({server}, {method}, '/hook?x=1', {headers}, {body})")
    };
    db.refuses_unchanged(
        STATE,
        &[
            (
                &call("'hubspit'", "'POST'", "'{}'", "'[]'"),
                "PT404",
                "CREATE SERVER",
            ),
            (
                &call("NULL", "'POST'", "'{}'", "'[]'"),
                "PT404",
                "CREATE SERVER",
            ),
            (
                &call("'hubspot'", "'post it'", "'{}'", "'[]'"),
                "PT400",
                "upper case",
            ),
            (
                &call("'hubspot'", "'POST'", "'[1]'", "'[]'"),
                "PT400",
                "JSON object",
            ),
            (
                &call("'hubspot'", "'POST'", "'{}'", "NULL::bytea"),
                "PT400",
                "a body",
            ),
            (
                &call("'hubspot'", "'POST'", "'{}'", "repeat('x', 1048577)"),
                "PT413",
                "1 MB",
            ),
        ],
    )
    .await;
    assert_eq!(
        db.one::<i32>(&call("'hubspot'", "'POST'", "'{}'", "'\\xff'::bytea"))
            .await,
        202
    );
    // The worker takes them away meanwhile: the bound is on what waits in one transaction.
    let full = db
        .error("BEGIN; INSERT INTO crm.webhook_queue (server, method, uri, headers, body) SELECT 'hubspot', 'POST', '/', '{}', '' FROM generate_series(1, 10000); SELECT crm.webhook('hubspot', 'POST', '/', '{}', '[]')")
        .await;
    assert_eq!(full.code().code(), "PT429", "{full:?}");
    let db = _cluster.connect("postgres").await;
    db.wait_true(
        "the worker is there",
        PATIENCE,
        "SELECT crm._worker_alive()",
    )
    .await;
}
