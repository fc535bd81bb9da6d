//! Policies as a DBA edits them: what is refused and why, who may, what is kept of it.

use crm_tests::catalog::mirrors;
use crm_tests::{Cluster, Db, Options, PATIENCE};

async fn start() -> (Cluster, Db) {
    let cluster = Cluster::start(Options::default()).await;
    let db = cluster.connect("postgres").await;
    db.exec("CREATE EXTENSION pg_crm_sync").await;
    mirrors(&db).await;
    db.exec(
        "SELECT crm.link('hubspot.contacts', 'salesforce.contact'), crm.link('hubspot.companies', 'salesforce.account'), crm.link('hubspot.deals', 'salesforce.opportunity')",
    )
    .await;
    (cluster, db)
}

/// The statement that adds a policy; `more` is `column = value, …`.
fn row(link: &str, field: &str, strategy: &str, more: &[(&str, &str)]) -> String {
    let columns: String = more.iter().map(|(c, _)| format!(", {c}")).collect();
    let values: String = more.iter().map(|(_, v)| format!(", {v}")).collect();
    format!(
        "INSERT INTO crm.conflict_policy (link, field, strategy{columns}) VALUES ('{link}', '{field}', '{strategy}'{values})"
    )
}

/// What no refused statement may change, as one text.
const STATE: &str = "SELECT (SELECT md5(string_agg(row(p.*)::text, '|' ORDER BY p.id)) FROM crm.conflict_policy p) || (SELECT count(*) FROM crm.policy_history) \
                 || (SELECT count(*) FROM crm.field_lock) || (SELECT policy_version FROM crm.installation)";

/// Functions that a policy may not call, and one that it may.
const FUNCTIONS: &str = "CREATE FUNCTION public.numbers(held text, came text, context jsonb) RETURNS integer IMMUTABLE LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION public.wild(held text, came text, context jsonb) RETURNS text VOLATILE LANGUAGE sql AS 'SELECT held';
CREATE FUNCTION public.shut(held text, came text, context jsonb) RETURNS text STABLE LANGUAGE sql AS 'SELECT held';
CREATE ROLE shut_owner; ALTER FUNCTION public.shut OWNER TO shut_owner; REVOKE ALL ON FUNCTION public.shut FROM shut_owner, PUBLIC;
CREATE FUNCTION public.longer(held text, came text, context jsonb) RETURNS text STABLE LANGUAGE sql
    AS 'SELECT CASE WHEN length(came) > length(held) THEN came ELSE held END'";

fn function(name: &str) -> String {
    let name = format!("'{name}'");
    row("contacts", "phone", "function", &[("function", &name)])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_that_cannot_decide_is_refused_with_what_it_must_be_like() {
    let (_cluster, db) = start().await;
    db.exec(FUNCTIONS).await;
    #[rustfmt::skip]
    let cases = [
        (function("public.longest"), "42883", "CREATE FUNCTION public.longest(held text"),
        (function("longer"), "42883", "with its schema"),
        (function("public.longer(text)"), "42883", "public.longer(text, text, jsonb)"),
        (function("public.longer) OR (true"), "42602", "names no function"),
        (function("public.longer(text, text, jsonb) --"), "42602", "nothing before or behind"),
        (function("public.longer;"), "42602", "names no function"),
        (function("public.numbers"), "42P13", "integer"),
        (function("public.wild"), "42P17", "ALTER FUNCTION public.wild"),
        (function("public.shut"), "42501", "GRANT EXECUTE ON FUNCTION public.shut"),
    ];
    db.refuses_unchanged(STATE, &cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_cannot_decide_its_field_is_refused_with_what_to_do() {
    let (_cluster, db) = start().await;
    db.exec(FUNCTIONS).await;
    db.exec("UPDATE crm.remote_field SET options = '[[\"a\", \"A\"]]' WHERE object = 'contacts' AND field = 'city'")
        .await;
    let none: &[(&str, &str)] = &[];
    let winner: &[(&str, &str)] = &[("winner", "'salesforce'")];
    #[rustfmt::skip]
    let cases: Vec<(String, &str, &str)> = vec![
        (row("contact", "phone", "review", none), "42704", "Did you mean contacts"),
        (row("contacts", "phon", "review", none), "42703", "Did you mean phone"),
        (row("contacts", "MailingCity", "review", none), "42703", "called city"),
        (row("contacts", "phone", "append_only", none), "22023", "append"),
        (row("contacts", "phone", "owner", none), "22023", "needs a winner"),
        (row("contacts", "phone", "priority", &[("winner", "' , '")]), "22023", "needs a winner"),
        (row("contacts", "phone", "owner", &[("winner", "'salesforce,hubspot'")]), "22023", "one winner"),
        (row("contacts", "phone", "owner", &[("winner", "'salesfroce'")]), "22023", "Did you mean salesforce"),
        (row("contacts", "phone", "owner", &[("winner", "'hubspot,hubspot'")]), "22023", "Write winner = 'hubspot'."),
        (row("contacts", "phone", "priority", &[("winner", "'local, hubspot ,local'")]), "22023", "names \"local\" twice"),
        (row("contacts", "phone", "review", &[("skew", "'5 s'")]), "22023", "WHERE link = 'contacts' AND field = '*'"),
        (row("contacts", "phone", "append", winner), "22023", "has no winner"),
        (row("contacts", "phone", "delta", none), "42804", "append is for text"),
        (row("contacts", "phone", "union", none), "42804", "type text"),
        (row("companies", "numberofemployees", "append", none), "42804", "delta is for numbers"),
        (row("contacts", "city", "append", none), "42804", "choice from a list"),
        (row("companies", "domain", "append", none), "42804", "changes values on the way"),
        ("UPDATE crm.conflict_policy SET strategy = 'delta' WHERE link = 'contacts' AND field = '*'".to_owned(), "42804", "cannot be the default"),
        (row("contacts", "phone", "function", none), "22023", "needs a function"),
        (row("contacts", "phone", "review", &[("function", "'public.longer'")]), "22023", "calls no function"),
        ("INSERT INTO crm.conflict_policy (link, field, strategy) VALUES ('*', 'phone', 'review')".to_owned(), "22023", "Name the link"),
        ("INSERT INTO crm.field_lock (link, field, origin) VALUES ('contacts', 'phon', 'local')".to_owned(), "42703", "Did you mean phone"),
        ("INSERT INTO crm.field_lock (link, field, origin) VALUES ('contacts', '*', 'local')".to_owned(), "22023", "one field"),
        ("INSERT INTO crm.field_lock (link, field, origin) VALUES ('contacts', 'phone', 'hubspt')".to_owned(), "22023", "Did you mean hubspot"),
        ("TRUNCATE crm.conflict_policy".to_owned(), "0A000", "DELETE"),
        ("DELETE FROM crm.conflict_policy WHERE link = 'contacts' AND field = '*'".to_owned(), "23502", "no hidden default"),
        ("DELETE FROM crm.conflict_policy WHERE link = '*'".to_owned(), "23502", "no hidden default"),
        ("UPDATE crm.conflict_policy SET field = 'phone' WHERE link = 'contacts'".to_owned(), "23502", "no hidden default"),
        ("SELECT crm.policy_apply('contact')".to_owned(), "42704", "Did you mean contacts"),
        ("SELECT crm.policy_apply('contacts', 'phon')".to_owned(), "42703", "Did you mean phone"),
        ("SELECT crm.policy_apply('contacts')".to_owned(), "55000", "go_live"),
    ];
    db.refuses_unchanged(STATE, &cases).await;
    for accepted in [
        row("companies", "numberofemployees", "delta", none),
        row("contacts", "lastname", "append", none),
        function("public.longer"),
        row(
            "contacts",
            "email",
            "owner",
            &[("winner", "'local'"), ("min_score", "0.8")],
        ),
    ] {
        db.exec(&accepted).await;
    }
    let stored: String = db
        .one("SELECT function FROM crm.conflict_policy WHERE strategy = 'function'")
        .await;
    assert_eq!(stored, "public.longer");
}

/// Each such UPDATE was a version of its own, an event, and looked at every open question again.
#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_changes_nothing_makes_no_version() {
    let (_cluster, db) = start().await;
    db.exec(
        "INSERT INTO crm.conflict_policy (link, field, strategy, winner, min_score) VALUES ('contacts', 'phone', 'owner', 'salesforce', 0.5);
         INSERT INTO crm.field_lock (link, field, origin) VALUES ('contacts', 'lastname', 'salesforce')",
    )
    .await;
    let noted = "SELECT count(*) = (SELECT count(*) FROM crm.policy_history) FROM crm.event WHERE kind = 'policy' AND source = 'sql'";
    db.wait_true("the worker has noted all of it", PATIENCE, noted)
        .await;
    let state = "SELECT concat((SELECT md5(string_agg(row(p.*)::text, '|' ORDER BY p.id)) FROM crm.conflict_policy p), (SELECT row(f.*)::text FROM crm.field_lock f), \
                 (SELECT md5(string_agg(row(q.*)::text, '|' ORDER BY q.system, q.source)) FROM crm.stamp_quality q), (SELECT count(*) FROM crm.policy_history), \
                 (SELECT policy_version FROM crm.installation), (SELECT count(*) FROM crm.policy_task))";
    let before: String = db.one(state).await;
    for sql in [
        "UPDATE crm.conflict_policy SET strategy = strategy",
        "UPDATE crm.conflict_policy SET winner = ' salesforce,', field = 'PHONE', min_score = 0.50 WHERE field = 'phone'",
        "UPDATE crm.conflict_policy SET changed_by = 'somebody', changed_at = 'epoch'",
        "INSERT INTO crm.conflict_policy (link, field, strategy, winner, min_score) VALUES ('contacts', 'phone', 'owner', 'salesforce', 0.5)
         ON CONFLICT (link, field) DO UPDATE SET strategy = excluded.strategy, winner = excluded.winner, min_score = excluded.min_score",
        "UPDATE crm.field_lock SET origin = origin",
        "UPDATE crm.stamp_quality SET tolerance = tolerance, resolution = resolution * 1",
    ] {
        db.exec(sql).await;
        assert_eq!(db.one::<String>(state).await, before, "{sql}");
    }
    let version = "SELECT policy_version FROM crm.installation";
    let was: i64 = db.one(version).await;
    db.exec("UPDATE crm.conflict_policy SET strategy = CASE field WHEN 'phone' THEN 'fill_blank' ELSE strategy END")
        .await;
    assert_eq!(db.one::<i64>(version).await, was + 1, "one row changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_role_with_crm_admin_administers_policies_and_cannot_borrow_rights() {
    let (cluster, db) = start().await;
    db.exec(
        "CREATE ROLE dba LOGIN; GRANT crm_admin TO dba; GRANT CREATE ON SCHEMA public TO dba;
         CREATE FUNCTION public.root(held text, came text, context jsonb) RETURNS text STABLE LANGUAGE sql AS 'SELECT held';
         CREATE ROLE billing LOGIN; ALTER ROLE billing SET pg_crm_sync.application = 'billing'",
    )
    .await;
    let dba = cluster.connect_as("dba", "postgres").await;
    let version = "SELECT policy_version FROM crm.installation";
    let before: i64 = dba.one(version).await;
    dba.exec(
        "CREATE FUNCTION public.mine(held text, came text, context jsonb) RETURNS text STABLE LANGUAGE sql AS 'SELECT came';
         SET pg_crm_sync.reason = 'ticket 7';
         INSERT INTO crm.conflict_policy (link, field, strategy, winner) VALUES ('contacts', 'phone', 'owner', 'salesforce');
         UPDATE crm.conflict_policy SET winner = 'billing' WHERE link = 'contacts' AND field = 'phone';
         INSERT INTO crm.conflict_policy (link, field, strategy, function) VALUES ('contacts', 'city', 'function', 'public.mine(text, text, jsonb)');
         INSERT INTO crm.field_lock (link, field, origin) VALUES ('contacts', 'Email', 'billing');
         DELETE FROM crm.field_lock WHERE link = 'contacts';
         DELETE FROM crm.conflict_policy WHERE link = 'contacts' AND field = 'phone'",
    )
    .await;
    assert_eq!(dba.one::<i64>(version).await, before + 6);
    let history = dba
        .table("SELECT kind, coalesce(before ->> 'winner', before ->> 'origin', ''), coalesce(after ->> 'winner', after ->> 'origin', after ->> 'function', ''), changed_by, reason
                FROM crm.policy_history WHERE changed_by = 'dba' ORDER BY id")
        .await;
    let expected: [[&str; 5]; 6] = [
        ["policy", "", "salesforce", "dba", "ticket 7"],
        ["policy", "salesforce", "billing", "dba", "ticket 7"],
        ["policy", "", "public.mine", "dba", "ticket 7"],
        ["lock", "", "billing", "dba", "ticket 7"],
        ["lock", "billing", "", "dba", "ticket 7"],
        ["policy", "billing", "", "dba", "ticket 7"],
    ];
    assert_eq!(history, expected);
    let function = |name: &str| {
        format!(
            "UPDATE crm.conflict_policy SET function = '{name}' WHERE link = 'contacts' AND field = 'city'"
        )
    };
    for (sql, code) in [
        (function("public.root"), "42501"),
        ("DELETE FROM crm.policy_history".to_owned(), "42501"),
        (
            "UPDATE crm.policy_history SET changed_by = 'nobody'".to_owned(),
            "42501",
        ),
        ("TRUNCATE crm.field_lock".to_owned(), "42501"),
    ] {
        assert_eq!(dba.error(&sql).await.code().code(), code, "{sql}");
    }
    db.exec("CREATE ROLE reader LOGIN; GRANT crm_reader TO reader")
        .await;
    let reader = cluster.connect_as("reader", "postgres").await;
    let rows: i64 = reader.one("SELECT count(*) FROM crm.conflict_policy").await;
    assert!(rows >= 4);
    for sql in [
        "UPDATE crm.conflict_policy SET strategy = 'review'",
        "INSERT INTO crm.field_lock (link, field, origin) VALUES ('contacts', 'phone', 'local')",
        "SELECT crm.policy_apply('contacts')",
    ] {
        assert_eq!(reader.error(sql).await.code().code(), "42501", "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_follow_their_link_and_the_default_can_be_replaced_in_one_transaction() {
    let (_cluster, db) = start().await;
    db.exec(&row(
        "contacts",
        "phone",
        "owner",
        &[("winner", "'hubspot'")],
    ))
    .await;
    db.exec(
        "INSERT INTO crm.field_lock (link, field, origin) VALUES ('contacts', 'city', 'hubspot')",
    )
    .await;
    db.exec("UPDATE crm.link SET name = 'people' WHERE name = 'contacts'")
        .await;
    let rows = "SELECT string_agg(field, ' ' ORDER BY field) FROM crm.conflict_policy WHERE link = 'people'";
    assert_eq!(db.one::<String>(rows).await, "* phone");
    db.exec("ALTER SERVER hubspot RENAME TO portal").await;
    let named = "SELECT (SELECT winner FROM crm.conflict_policy WHERE field = 'phone') || (SELECT origin FROM crm.field_lock)";
    assert_eq!(db.one::<String>(named).await, "portalportal");
    db.exec(
        "BEGIN; DELETE FROM crm.conflict_policy WHERE link = 'people'; \
         INSERT INTO crm.conflict_policy (link, strategy) VALUES ('people', 'review'); COMMIT",
    )
    .await;
    db.exec("SELECT crm.unlink('people')").await;
    let left: i64 = db
        .one("SELECT (SELECT count(*) FROM crm.conflict_policy WHERE link = 'people') + (SELECT count(*) FROM crm.field_lock)")
        .await;
    assert_eq!(left, 0);
    let kept: i64 = db
        .one("SELECT count(*) FROM crm.policy_history WHERE after IS NULL AND before ->> 'link' = 'people'")
        .await;
    assert_eq!(kept, 4, "two policies, one lock and the new default");
}
