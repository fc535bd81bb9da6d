//! "What would happen if …?": told by the code that decides, and nothing happens.

use crm_tests::{Db, Options, PATIENCE, Pair, PairOptions, Person};
use serde_json::json;

async fn linked() -> (Pair, Vec<Person>) {
    let cluster = Options::default()
        .setting("pg_crm_sync.guard_soft_rows", "5")
        .setting("pg_crm_sync.guard_hard_rows", "12");
    let options = PairOptions {
        cluster,
        ..PairOptions::default()
    };
    let (pair, people) = Pair::linked(20, options).await;
    pair.agree().await;
    (pair, people)
}

const COLUMNS: &str = "what, coalesce(server, ''), coalesce(object, ''), coalesce(record, ''), coalesce(field, ''), coalesce(value, ''), \
    coalesce(instead_of, ''), coalesce(winner, ''), coalesce(rule::text, ''), coalesce(decided_by, ''), coalesce(calls::text, ''), verdict";

async fn explain(db: &Db, statement: &str) -> Vec<String> {
    let quoted = statement.replace('\'', "''");
    let rows = db
        .table(&format!("SELECT {COLUMNS} FROM crm.explain('{quoted}')"))
        .await;
    rows.into_iter().map(|r| r.join("|")).collect()
}

/// Everything that an explanation must leave as it was.
async fn everything(db: &Db) -> Vec<Vec<String>> {
    db.table(
        "SELECT md5(string_agg(t, '|' ORDER BY t)) FROM (
            SELECT row(h.*)::text AS t FROM hubspot.contacts h UNION ALL SELECT row(s.*)::text FROM salesforce.contact s
            UNION ALL SELECT row(w.*)::text FROM crm.write w UNION ALL SELECT row(e.*)::text FROM crm.event e
            UNION ALL SELECT row(x.*)::text FROM crm.xref x UNION ALL SELECT row(f.*)::text FROM crm.field_state f
            UNION ALL SELECT row(d.*)::text FROM crm.deferred d UNION ALL SELECT row(r.*)::text FROM crm.review_item r
            UNION ALL SELECT row(p.*)::text FROM crm.conflict_policy p UNION ALL SELECT row(p.*)::text FROM crm.policy_history p
            UNION ALL SELECT row(c.*)::text FROM crm.change_tx c UNION ALL SELECT last_value::text FROM crm.event_seq) x",
    )
    .await
}

/// Keeps echoes of what was done before from moving anything while we look.
async fn still(pair: &Pair) {
    pair.db
        .exec("SELECT crm.pause('server', 'hubspot'), crm.pause('server', 'salesforce')")
        .await;
    pair.worker_has_read().await;
}

async fn go_on(pair: &Pair) {
    pair.db
        .exec("SELECT crm.resume('server', 'hubspot'), crm.resume('server', 'salesforce')")
        .await;
    pair.worker_has_read().await;
}

fn has(lines: &[String], wanted: &str) {
    assert!(
        lines.iter().any(|l| l == wanted),
        "no {wanted}\n  in {lines:#?}"
    );
}

/// What both sides have got, and told of.
async fn settled(pair: &Pair, who: &Person) {
    pair.edit("salesforce", who, "phone", "owned");
    pair.reaches_both(who, "phone", "owned").await;
    pair.sql(who, "city", "Before").await;
    // A paused server takes webhooks, echoes too.
    for (crm, value) in [
        ("hubspot", "owned"),
        ("hubspot", "Before"),
        ("salesforce", "Before"),
    ] {
        pair.told(crm, value).await;
    }
    pair.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_is_told_field_by_field_with_its_writes_and_calls_and_nothing_happens() {
    let (pair, people) = linked().await;
    pair.db
        .exec("INSERT INTO crm.conflict_policy (link, field, strategy, winner) VALUES ('contacts', 'phone', 'owner', 'salesforce')")
        .await;
    pair.worker_has_read().await;
    let rule: i64 = pair
        .db
        .one("SELECT id FROM crm.conflict_policy WHERE field = 'phone'")
        .await;
    let who = &people[0];
    settled(&pair, who).await;
    pair.emulator.reset_counts();
    still(&pair).await;
    let before = everything(&pair.db).await;
    let (h, s) = (&who.hubspot, &who.salesforce);
    let lines = explain(
        &pair.db,
        &format!("UPDATE hubspot.contacts SET phone = 'mine', city = 'After' WHERE id = '{h}'"),
    )
    .await;
    has(
        &lines,
        &format!("change|hubspot|contacts|{h}|phone|owned|owned|salesforce|{rule}|owner||put back"),
    );
    has(
        &lines,
        &format!("change|hubspot|contacts|{h}|city|After|Before|local||one_side||applies"),
    );
    has(
        &lines,
        &format!("write|hubspot|contacts|{h}|city|After|Before|local||update||would be sent"),
    );
    has(
        &lines,
        &format!(
            "write|salesforce|Contact|{s}|MailingCity|After|Before|local||update||would be sent"
        ),
    );
    has(&lines, "calls|hubspot|||||||||1|costs");
    has(&lines, "calls|salesforce|||||||||1|costs");
    has(&lines, "guard|||||||||||passes");
    assert!(
        !lines
            .iter()
            .any(|l| l.starts_with("write") && l.contains("hone")),
        "{lines:#?}"
    );
    let rivals: String = pair
        .db
        .one(&format!("SELECT competing::text FROM crm.explain('UPDATE hubspot.contacts SET phone = ''mine'' WHERE id = ''{h}''') WHERE what = 'change'"))
        .await;
    assert!(
        rivals.contains("\"mine\"") && rivals.contains("\"owned\""),
        "{rivals}"
    );
    assert_eq!(everything(&pair.db).await, before);
    // Nor does anything come of it when the transaction ends, and the real statement does what was told.
    pair.quiet().await;
    assert_eq!(everything(&pair.db).await, before);
    assert_eq!((pair.writes("hubspot"), pair.writes("salesforce")), (0, 0));
    go_on(&pair).await;
    really(&pair, who).await;
}

/// Does what was explained.
async fn really(pair: &Pair, who: &Person) {
    let sql = format!(
        "UPDATE hubspot.contacts SET phone = 'mine', city = 'After' WHERE id = '{}'",
        who.hubspot
    );
    pair.db.exec(&sql).await;
    pair.reaches_both(who, "city", "After").await;
    pair.agree().await;
    let phone = pair.shows("salesforce", who, "phone");
    assert_eq!(phone.as_deref(), Some("owned"));
    assert_eq!((pair.writes("hubspot"), pair.writes("salesforce")), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn inserts_deletes_and_merges_are_told_and_the_guard_has_its_say() {
    let (pair, people) = linked().await;
    still(&pair).await;
    let before = everything(&pair.db).await;
    let made = explain(
        &pair.db,
        "INSERT INTO hubspot.contacts (email, lastname) VALUES ('new@example.net', 'New'), ('newer@example.net', 'Newer')",
    )
    .await;
    assert_eq!(
        made.iter()
            .filter(|l| l.starts_with("change") && l.ends_with("|create||applies"))
            .count(),
        2,
        "{made:#?}"
    );
    let email = |l: &&String| {
        l.starts_with("write|salesforce|Contact|_id ") && l.contains("|Email|new@example.net|")
    };
    assert_eq!(made.iter().filter(email).count(), 1, "{made:#?}");
    has(&made, "calls|hubspot|||||||||1|costs");
    has(&made, "calls|salesforce|||||||||1|costs");

    let who = &people[1];
    let gone = explain(
        &pair.db,
        &format!("DELETE FROM hubspot.contacts WHERE id = '{}'", who.hubspot),
    )
    .await;
    has(
        &gone,
        &format!(
            "write|hubspot|contacts|{}||||local||delete||would be sent",
            who.hubspot
        ),
    );
    let merged = explain(
        &pair.db,
        &format!(
            "MERGE INTO hubspot.contacts c USING (VALUES ('{}')) AS v (id) ON c.id = v.id WHEN MATCHED THEN UPDATE SET jobtitle = 'Merged'",
            who.hubspot
        ),
    )
    .await;
    assert!(
        merged
            .iter()
            .any(|l| l.starts_with("write|salesforce|") && l.contains("|Title|Merged|")),
        "{merged:#?}"
    );
    let nothing = explain(&pair.db, "UPDATE hubspot.contacts SET jobtitle = jobtitle").await;
    assert_eq!(nothing, ["guard|||||||||||passes"]);
    pair.quiet().await;
    assert_eq!(everything(&pair.db).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guard_says_what_it_would_hold_or_refuse_and_too_many_rows_are_an_error() {
    let (pair, _people) = linked().await;
    still(&pair).await;
    let before = everything(&pair.db).await;
    let first = |n: usize| {
        format!(
            "UPDATE hubspot.contacts SET jobtitle = 'Mass' WHERE id IN (SELECT id FROM hubspot.contacts WHERE id IS NOT NULL ORDER BY _id LIMIT {n})"
        )
    };
    let held = explain(&pair.db, &first(8)).await;
    has(&held, "guard|||||||||||held");
    assert!(
        held.iter()
            .filter(|l| l.starts_with("write|"))
            .all(|l| l.ends_with("|held")),
        "{held:#?}"
    );
    assert_eq!(
        explain(&pair.db, &first(13)).await,
        ["guard|||||||||||refused"]
    );
    let quoted = first(8).replace('\'', "''");
    let error = pair
        .db
        .error(&format!(
            "SELECT * FROM crm.explain('{quoted}', max_rows => 7)"
        ))
        .await;
    assert_eq!(error.code().code(), "54000");
    assert!(
        error.hint().is_some_and(|h| h.contains("max_rows")),
        "{error:?}"
    );
    let none = format!("SELECT * FROM crm.explain('{quoted}', max_rows => NULL)");
    let error = pair.db.error(&none).await;
    assert_eq!(error.code().code(), "22023", "{error:?}");
    pair.quiet().await;
    assert_eq!(everything(&pair.db).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_changes_of_mirrors_are_run_and_bad_arguments_have_a_hint() {
    let (pair, people) = linked().await;
    let id = &people[0].hubspot;
    pair.db.exec("CREATE TABLE public.other (a int)").await;
    let set = format!("UPDATE hubspot.contacts SET city = 'X' WHERE id = '{id}'");
    for (statement, code, words) in [
        ("SELECT 1", "0A000", "no INSERT"),
        ("DROP TABLE public.other", "0A000", "no INSERT"),
        ("", "0A000", "exactly one"),
        (&format!("{set}; {set}"), "0A000", "exactly one"),
        ("INSERT INTO public.other VALUES (1)", "0A000", "no mirror"),
        (
            &format!("WITH x AS (INSERT INTO public.other VALUES (1)) {set}"),
            "0A000",
            "WITH",
        ),
        ("UPDATE hubspot.contacts SET cty = 'X'", "42703", "cty"),
        (
            "UPDATE hubspot.contacts SET _sync_error = 'x'",
            "428C9",
            "cannot be written",
        ),
        ("UPDATE hubspot.contacts SET", "42601", "syntax"),
    ] {
        let quoted = statement.replace('\'', "''");
        let error = pair
            .db
            .error(&format!("SELECT * FROM crm.explain('{quoted}')"))
            .await;
        assert_eq!(error.code().code(), code, "{statement}: {error:?}");
        assert!(error.message().contains(words), "{statement}: {error:?}");
    }
    for (call, code) in [
        ("NULL::text", "0A000"),
        ("'SELECT 1', 0", "22023"),
        ("'SELECT 1', 10001", "22023"),
        ("event => 1, write => 1", "22023"),
        ("event => 99", "42704"),
        ("write => 99", "42704"),
    ] {
        let error = pair
            .db
            .error(&format!("SELECT * FROM crm.explain({call})"))
            .await;
        assert_eq!(error.code().code(), code, "{call}: {error:?}");
        assert!(error.hint().is_some(), "{call}: {error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_is_explained_with_the_callers_rights_and_the_engines_cannot_be_had() {
    let (pair, people) = linked().await;
    let set = Pair::update(&people[0], "city", "X");
    pair.db
        .exec("CREATE ROLE looker IN ROLE crm_reader; GRANT USAGE ON SCHEMA hubspot TO looker; SET ROLE looker")
        .await;
    let quoted = set.replace('\'', "''");
    let error = pair
        .db
        .error(&format!("SELECT * FROM crm.explain('{quoted}')"))
        .await;
    assert_eq!(error.code().code(), "42501", "{error:?}");
    pair.db
        .exec("RESET ROLE; GRANT SELECT, UPDATE ON hubspot.contacts TO looker")
        .await;
    // Functions of the caller keep the caller's rights also where the engine's would matter.
    pair.db
        .exec("CREATE SCHEMA looker AUTHORIZATION looker; SET ROLE looker;
               CREATE FUNCTION looker.unnest(bigint[]) RETURNS SETOF bigint LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'as %', current_user; END $$;
               SET search_path = looker, pg_catalog")
        .await;
    let lines = explain(&pair.db, &set).await;
    assert!(
        lines.iter().any(|l| l.starts_with("write|salesforce|")),
        "{lines:#?}"
    );
    pair.db.exec("RESET search_path; RESET ROLE").await;
    let who: String = pair.db.one("SELECT current_user::text").await;
    assert_eq!(who, "postgres");
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_and_events_that_wait_can_be_asked_about() {
    let (pair, people) = linked().await;
    let who = &people[0];
    pair.db
        .exec("SELECT crm.pause('server', 'salesforce')")
        .await;
    pair.worker_has_read().await;
    pair.edit("hubspot", who, "city", "Parked");
    let queued = "SELECT count(*) = 1 FROM crm.write WHERE state = 'queued'";
    pair.db.wait_true("a write waits", PATIENCE, queued).await;
    let id: i64 = pair.db.one("SELECT id FROM crm.write").await;
    let rows = pair
        .db
        .table(&format!("SELECT {COLUMNS} FROM crm.explain(write => {id})"))
        .await;
    let lines: Vec<String> = rows.into_iter().map(|r| r.join("|")).collect();
    assert!(
        lines.iter().any(|l| l.starts_with(&format!(
            "write|salesforce|Contact|{}|MailingCity|Parked|",
            who.salesforce
        ))),
        "{lines:#?}"
    );
    has(&lines, "calls|salesforce|||||||||1|costs");
    pair.db
        .exec("SELECT crm.resume('server', 'salesforce')")
        .await;
    pair.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_waits_for_a_lock_is_explained_to_whoever_holds_it() {
    let (pair, people) = linked().await;
    let who = &people[0];
    let other = pair.cluster.connect("app").await;
    other
        .exec(&format!(
            "BEGIN; UPDATE hubspot.contacts SET zip = 'held' WHERE id = '{}'",
            who.hubspot
        ))
        .await;
    pair.edit("hubspot", who, "jobtitle", "Deferred");
    let waits = "SELECT count(*) = 1 FROM crm.deferred WHERE reason = 'locked'";
    pair.db.wait_true("the event waits", PATIENCE, waits).await;
    let ask =
        format!("SELECT {COLUMNS} FROM crm.explain(event => (SELECT max(id) FROM crm.deferred))");
    let rows = pair.db.table(&ask).await;
    assert!(
        rows.iter().any(|r| r[0] == "change" && r[11] == "waits"),
        "{rows:#?}"
    );
    // Whoever holds the row sees what will be decided.
    let rows = other.table(&ask).await;
    let decided = json!([
        "change",
        "hubspot",
        "contacts",
        who.hubspot,
        "jobtitle",
        "Deferred"
    ]);
    assert!(
        rows.iter()
            .any(|r| json!(r[..6]) == decided && r[11] == "applies"),
        "{rows:#?}"
    );
    assert!(
        rows.iter().any(|r| r[0] == "write"
            && r[1] == "salesforce"
            && r[4] == "Title"
            && r[5] == "Deferred"),
        "{rows:#?}"
    );
    other.exec("ROLLBACK").await;
    pair.reaches_both(who, "jobtitle", "Deferred").await;
    pair.agree().await;
}
