//! What the constraints of the tables that users write refuse: each with what to do instead.

use crm_tests::catalog::mirrors;
use crm_tests::{Cluster, Db, Options};

async fn start() -> (Cluster, Db) {
    let cluster = Cluster::start(Options::default()).await;
    let db = cluster.connect("postgres").await;
    db.exec("CREATE EXTENSION pg_crm_sync").await;
    mirrors(&db).await;
    db.exec("SELECT crm.link('hubspot.contacts', 'salesforce.contact')")
        .await;
    (cluster, db)
}

/// What no refused statement may change, as one text.
const STATE: &str = "SELECT concat((SELECT md5(string_agg(row(p.*)::text, '|' ORDER BY p.id)) FROM crm.conflict_policy p), \
     (SELECT md5(string_agg(row(f.*)::text, '|' ORDER BY f.id)) FROM crm.field_map f), (SELECT md5(string_agg(row(m.*)::text, '|' ORDER BY m.id)) FROM crm.mirror m), \
     (SELECT md5(string_agg(row(k.*)::text, '|')) FROM crm.link k), (SELECT count(*) FROM crm.field_default), (SELECT count(*) FROM crm.survivor_rule), \
     (SELECT count(*) FROM crm.api_budget), (SELECT count(*) FROM crm.off_peak), (SELECT count(*) FROM crm.policy_history))";

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_a_constraint_refuses_is_told_what_it_may_hold() {
    let (_cluster, db) = start().await;
    let policy = |values: &str| {
        format!(
            "INSERT INTO crm.conflict_policy (link, field, strategy, min_score, skew) VALUES ('contacts', {values})"
        )
    };
    let set = |table: &str, what: &str| format!("UPDATE crm.{table} SET {what}");
    #[rustfmt::skip]
    let cases: Vec<(String, &str, &str)> = vec![
        (policy("'phone', 'review', 1.5, DEFAULT"), "23514", "min_score of crm"),
        (policy("'phone', 'review', 'NaN', DEFAULT"), "23514", "min_score <= 1"),
        (policy("'phone', 'review', 1, '-1 s'"), "23514", "00:00:02"),
        (policy("'phone', 'review', 1, DEFAULT), ('contacts', 'city', 'review', -1, DEFAULT"), "23514", "cannot be '-1'"),
        (policy("'phone', NULL, 1, DEFAULT"), "23502", "column strategy of crm.conflict_policy must have a value"),
        (policy("NULL, 'review', 1, DEFAULT"), "23502", "default, '*'"),
        ("INSERT INTO crm.field_lock (link, field) VALUES ('contacts', 'phone')".to_owned(), "23502", "origin"),
        (set("field_map", "direction = 'to_rigth'"), "23514", "Did you mean to_right"),
        (set("field_map", "structure = 'word'"), "23514", "Did you mean words"),
        (set("field_map", "match_threshold = 2"), "23514", "match_threshold <= 1"),
        (set("field_map", "match_accept = 0"), "23514", "match_accept > 0"),
        (set("link", "mode = 'lives'"), "23514", "Did you mean live"),
        (set("link", "on_left_delete = 'softdelete'"), "23514", "Did you mean soft_delete"),
        (set("link", "on_delete_conflict = ''"), "23514", "review, delete, keep"),
        (set("link", "on_leave = 'gone'"), "23514", "the default, 'keep'"),
        (set("link", "latency = 'fast'"), "23514", "interactive, relaxed, off_peak"),
        (set("link", "right_mirror = left_mirror"), "23514", "crm.link("),
        (set("mirror", "reconcile_depth = 'value'"), "23514", "Did you mean values"),
        (set("mirror", "on_schema_change = 'paused'"), "23514", "Did you mean pause"),
        (set("mirror", "missing_share = 2"), "23514", "missing_share <= 1"),
        (set("mirror", "missing_limit = -1"), "23514", "missing_limit >= 0"),
        (set("mirror", "reconcile_patience = '2 days'"), "23514", "the default, '00:01:00'"),
        (set("mirror", "api_share = 0"), "23514", "or null"),
        (set("mirror", "poll_interval = '0'"), "23514", "1 second"),
        ("INSERT INTO crm.field_default VALUES ('contacts', 'lft', 'city', 'Oslo')".to_owned(), "23514", "Did you mean left"),
        ("INSERT INTO crm.survivor_rule (link, side, ordinal, rule) VALUES ('contacts', 'left', 1, 'latest')".to_owned(), "23514", "most_complete"),
        ("INSERT INTO crm.survivor_rule (link, side, ordinal, rule) VALUES ('contacts', 'left', 1, 'prefer')".to_owned(), "23514", "condition in column prefer"),
        ("INSERT INTO crm.api_budget (server, share) VALUES ('hubspot', 0)".to_owned(), "23514", "share > 0"),
        ("INSERT INTO crm.api_budget (server, pause_at) VALUES ('hubspot', 0.5)".to_owned(), "23514", "or reserve higher"),
        ("INSERT INTO crm.api_budget (server, calls_per_window) VALUES ('hubspot', 0)".to_owned(), "23514", "calls_per_window > 0"),
        ("INSERT INTO crm.off_peak VALUES ('hubspot', '22:00', '06:00', '{0}')".to_owned(), "23514", "1 (Monday)"),
        ("INSERT INTO crm.off_peak VALUES ('hubspot', '22:00', '22:00')".to_owned(), "23514", "whole day"),
        ("INSERT INTO crm.reference_map (link, field, parent) VALUES ('contacts', 'AccountId', 'contacts')".to_owned(), "23514", "crm.link_references"),
        ("UPDATE crm.stamp_quality SET exactness = NULL".to_owned(), "23502", "edit: the time of the edit"),
        ("INSERT INTO crm.consumer_offset (name, committed) VALUES (' x', 0)".to_owned(), "23514", "crm.consumer_create"),
    ];
    db.refuses_unchanged(STATE, &cases).await;
    let error = db.error(&set("link", "mode = 'lives'")).await;
    assert_eq!(error.constraint(), Some("link_mode_check"), "{error:?}");
    assert_eq!(error.table(), Some("link"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_copied_are_told_too_and_the_constraints_stay() {
    let (cluster, db) = start().await;
    let file = cluster.data().join("rows");
    let file = file.display();
    db.exec(&format!(
        "COPY (VALUES ('contacts', 'left', '_odd', 'Oslo'), ('contacts', 'rigth', '_odd', 'Rome')) TO '{file}'"
    ))
    .await;
    let copy = format!("COPY crm.field_default FROM '{file}'");
    db.refuses_unchanged(STATE, &[(&copy, "23514", "Did you mean right")])
        .await;
    // Without the trigger, as a restore may run, the constraint is still there.
    let error = db
        .error("ALTER TABLE crm.link DISABLE TRIGGER allowed; UPDATE crm.link SET mode = 'lives'")
        .await;
    assert_eq!(error.code().code(), "23514", "{error:?}");
}

/// A constraint that is added to such a table is explained without a thought, or this says so.
#[tokio::test(flavor = "multi_thread")]
async fn every_constraint_of_a_table_that_users_write_is_explained() {
    let (_cluster, db) = start().await;
    let bare = db
        .table(
            "SELECT c.relname, k.conname FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
             WHERE c.relnamespace = 'crm'::regnamespace AND k.contype = 'c' AND c.relname NOT IN ('write', 'installation')
               AND EXISTS (SELECT FROM unnest(ARRAY['crm_admin', 'crm_operator', 'crm_steward', 'crm_reader']) r
                           WHERE has_any_column_privilege(r, c.oid, 'INSERT, UPDATE'))
               AND EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum = ANY (k.conkey)
                           AND NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgname = 'allowed'
                                           AND pg_get_triggerdef(t.oid) ~ ('new\\.' || a.attname || '\\M')))",
        )
        .await;
    assert!(bare.is_empty(), "{bare:?}");
}

/// `true) OR (true` was taken for what the parentheses around it made of it.
#[tokio::test(flavor = "multi_thread")]
async fn sql_text_must_be_one_expression_before_anything_is_put_around_it() {
    let (_cluster, db) = start().await;
    db.exec("CREATE FUNCTION public.upper_map(v text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT upper(v)'")
        .await;
    let texts = [
        "true) OR (true",
        "true); DROP TABLE hubspot.contacts; SELECT (true",
        "true;",
        "true) --",
        "true --",
        "true /*",
        "true, true",
        "true AS t",
        "true WHERE true",
        "true ORDER BY 1",
        "",
    ];
    let mut cases = Vec::new();
    for text in texts {
        let text = text.replace('\'', "''");
        for sql in [
            format!("UPDATE crm.link SET left_scope = '{text}'"),
            format!("UPDATE crm.link SET right_scope = '{text}'"),
            format!("UPDATE crm.mirror SET row_filter = '{text}' WHERE object = 'contacts'"),
            format!(
                "SELECT crm.import('hubspot', ARRAY['contacts'], into_schema => 'hubspot', row_filter => to_jsonb('{text}'::text))"
            ),
            format!(
                "INSERT INTO crm.survivor_rule (link, side, ordinal, rule, prefer) VALUES ('contacts', 'left', 1, 'prefer', '{text}')"
            ),
            format!("SELECT crm.dead_letter_retry_where('{text}')"),
        ] {
            cases.push((sql, "22023", "condition"));
        }
    }
    for named in [
        "public.upper_map) || (v",
        "public.upper_map(text) || v",
        "public.upper_map(text",
        "public.upper_map x",
        "a.b.c",
        "public.",
    ] {
        for direction in ["left", "right"] {
            let sql = format!(
                "UPDATE crm.field_map SET to_{direction} = '{named}' WHERE left_field = 'phone'"
            );
            cases.push((sql, "42602", "public.my_map"));
        }
    }
    db.refuses_unchanged(STATE, &cases).await;
    db.exec(
        "UPDATE crm.link SET left_scope = $$(city = 'Oslo') OR (city = ')')$$, right_scope = $$mailingcity LIKE '%;%' AND phone <> '--'$$;
         UPDATE crm.field_map SET to_right = 'public.upper_map( text )', direction = 'to_right' WHERE left_field = 'phone'",
    )
    .await;
    let stored = db.table("SELECT left_scope, right_scope, to_right FROM crm.link, crm.field_map WHERE left_field = 'phone'").await;
    assert_eq!(
        stored,
        [[
            "((city = 'Oslo'::text) OR (city = ')'::text))",
            "((mailingcity ~~ '%;%'::text) AND (phone <> '--'::text))",
            "public.upper_map(text)"
        ]]
    );
}

/// PostgreSQL named a trigger that the user had never made, and no way out.
#[tokio::test(flavor = "multi_thread")]
async fn the_type_of_a_column_that_a_reference_map_looks_at_changes_once_the_map_is_gone() {
    let (_cluster, db) = start().await;
    db.exec(
        "SELECT crm.link('hubspot.companies', 'salesforce.account');
         INSERT INTO crm.reference_map (link, field, parent, own_field) VALUES ('contacts', 'Phone', 'companies', 'phone')",
    )
    .await;
    // What a superuser's search path may hold must not run as him.
    db.exec(
        "CREATE FUNCTION public.format(text, name, name) RETURNS text LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''ran''; END';
         CREATE FUNCTION public.like_name(name, name) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''ran''; END';
         CREATE OPERATOR public.~ (leftarg = name, rightarg = name, function = public.like_name)",
    )
    .await;
    let map: i32 = db.one("SELECT id FROM crm.reference_map").await;
    let way_out = format!("DELETE FROM crm.reference_map WHERE id = {map}");
    let retype = |table: &str| format!("ALTER TABLE {table} ALTER COLUMN phone TYPE varchar(90)");
    let (ours, theirs) = (retype("hubspot.contacts"), retype("salesforce.contact"));
    let among = "ALTER TABLE salesforce.contact ADD COLUMN note text, ALTER phone TYPE varchar(90)";
    db.refuses_unchanged(
        STATE,
        &[
            (ours.as_str(), "0A000", &way_out),
            (&theirs, "0A000", &way_out),
            (among, "0A000", "crm_reference_"),
        ],
    )
    .await;
    db.exec("ALTER TABLE hubspot.contacts ALTER COLUMN city TYPE varchar(90); ALTER TABLE IF EXISTS nowhere ALTER COLUMN phone TYPE varchar(90)")
        .await;
    db.exec(&format!("BEGIN; {way_out}; {ours}; {theirs}; INSERT INTO crm.reference_map (link, field, parent, own_field) VALUES ('contacts', 'Phone', 'companies', 'phone'); COMMIT"))
        .await;
    db.refuses(&[(ours.as_str(), "0A000", "crm.link_references")])
        .await;
}
