//! Servers, import, roles and fence as users call them: main path and bad input.

use crm_tests::catalog::{catalog, mirrors};
use crm_tests::{Cluster, Db, Options};

async fn start() -> (Cluster, Db) {
    let cluster = Cluster::start(Options::default()).await;
    let db = cluster.connect("postgres").await;
    db.exec("CREATE EXTENSION pg_crm_sync").await;
    (cluster, db)
}

/// What no refused statement may change, as one text.
const STATE: &str = "SELECT md5(string_agg(t::text, '|' ORDER BY t::text)) FROM (
        SELECT row(m.*)::text AS t FROM crm.mirror m UNION ALL SELECT row(c.*)::text FROM crm.mirror_column c UNION ALL SELECT row(l.*)::text FROM crm.link l
        UNION ALL SELECT row(f.*)::text FROM crm.field_map f UNION ALL SELECT row(p.*)::text FROM crm.conflict_policy p
        UNION ALL SELECT nspname FROM pg_namespace UNION ALL SELECT relname FROM pg_class WHERE relkind = 'r' AND relpersistence = 'p' AND relnamespace <> 'crm'::regnamespace
        UNION ALL SELECT srvname FROM pg_foreign_server) x";

/// Options, SQLSTATE, words of the error.
#[rustfmt::skip]
const WRONG_OPTIONS: [(&str, &str, &str); 15] = [
    ("credential 'file:a'", "HV00D", "Did you mean credentials"),
    ("credentials 'file:../etc/passwd'", "HV024", "impossible file"),
    ("credentials 'file:a..b'", "HV024", "impossible file"),
    ("credentials 'env:HOME'", "HV024", "PG_CRM_SYNC_"),
    ("base_url 'htp://x'", "HV024", "https://host"),
    ("base_url 'http://example.com'", "HV024", "loopback only"),
    ("base_url 'http://127.0.0.1.evil.com'", "HV024", "loopback only"),
    ("base_url 'https://u:p@example.com'", "HV024", "without user"),
    ("login_url 'https://example.com:99999'", "HV024", "port 99999"),
    ("pubsub_endpoint 'example.com'", "HV024", "host:port"),
    ("pubsub_endpoint 'http://example.com:7443'", "HV024", "loopback only"),
    ("api_version 'latest'", "HV024", "62.0"),
    ("ca_file 'ca.pem'", "HV024", "absolute path"),
    ("calls_per_window '0'", "HV024", "whole number"),
    ("allowed_hosts 'a b'", "HV024", "commas"),
];

#[tokio::test(flavor = "multi_thread")]
async fn create_server_names_what_is_wrong_with_an_option() {
    let (_cluster, db) = start().await;
    let server = |options: &str| {
        format!(
            "CREATE SERVER s TYPE 'hubspot' FOREIGN DATA WRAPPER pg_crm_sync OPTIONS ({options})"
        )
    };
    let cases: Vec<(String, &str, &str)> = WRONG_OPTIONS
        .map(|(options, code, words)| (server(options), code, words))
        .to_vec();
    let cases: Vec<(&str, &str, &str)> =
        cases.iter().map(|(s, c, w)| (s.as_str(), *c, *w)).collect();
    db.refuses_unchanged(STATE, &cases).await;
    db.exec(&server("credentials 'file:hubspot.json', base_url 'http://[::1]:8080/x', api_version '2026-03', calls_per_window '100'"))
        .await;
    db.refuses_unchanged(
        STATE,
        &[
            (
                "CREATE USER MAPPING FOR CURRENT_USER SERVER s",
                "0A000",
                "not used",
            ),
            (
                "CREATE FOREIGN TABLE ft (a int) SERVER s",
                "0A000",
                "crm.import",
            ),
            (
                "ALTER SERVER s OPTIONS (SET base_url 'x')",
                "HV024",
                "not a URL",
            ),
            (
                "ALTER FOREIGN DATA WRAPPER pg_crm_sync OPTIONS (ADD a 'b')",
                "HV00D",
                "CREATE SERVER",
            ),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_typed_as_an_option_is_refused_and_not_logged() {
    let (cluster, db) = start().await;
    for option in ["credentials", "webhook_secret", "token", "password"] {
        let error = db
            .error(&format!(
                "CREATE SERVER s TYPE 'hubspot' FOREIGN DATA WRAPPER pg_crm_sync OPTIONS ({option} 'pat-CANARY-12345')"
            ))
            .await;
        assert!(!format!("{error:?}").contains("CANARY"), "{error:?}");
    }
    let log = cluster.log();
    assert!(log.contains("must be a reference"), "the refusal is logged");
    assert!(!log.contains("CANARY"), "the secret is in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_mirrors_is_not_dropped_and_a_renamed_one_is_followed() {
    let (_cluster, db) = start().await;
    mirrors(&db).await;
    db.refuses_unchanged(
        STATE,
        &[
            ("DROP SERVER hubspot", "2BP01", "hubspot.contacts"),
            ("DROP SERVER hubspot CASCADE", "2BP01", "crm.mirror_drop"),
        ],
    )
    .await;
    db.exec("ALTER SERVER hubspot RENAME TO portal").await;
    let named: i64 = db
        .one("SELECT count(*) FROM crm.mirror WHERE server = 'portal'")
        .await;
    assert_eq!(named, 3);
    db.exec("ALTER TABLE hubspot.contacts RENAME TO people; ALTER SCHEMA hubspot RENAME TO hs; ALTER TABLE hs.people RENAME COLUMN phone TO tel; ALTER TABLE hs.people DROP COLUMN city")
        .await;
    let held: String = db
        .one("SELECT string_agg(column_name || '=' || field, ',' ORDER BY column_name) FROM crm.mirror_column WHERE mirror = (SELECT id FROM crm.mirror WHERE schema_name = 'hs' AND table_name = 'people') AND field IN ('phone', 'city')")
        .await;
    assert_eq!(held, "tel=phone");
    db.exec("SELECT crm.mirror_drop(name) FROM crm.status WHERE kind = 'mirror' AND detail LIKE 'portal.%'; DROP SERVER portal")
        .await;
    assert_eq!(
        db.one::<i64>(
            "SELECT count(*) FROM crm.remote_object WHERE server IN ('portal', 'hubspot')"
        )
        .await,
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn import_makes_typed_tables_and_importing_again_is_harmless() {
    let (_cluster, db) = start().await;
    catalog(&db).await;
    db.exec("SELECT crm.import('hubspot', ARRAY['contacts'], into_schema => 'hs', columns => '[\"email\", \"Score\"]', row_filter => '\"score > 5 or email is null\"')")
        .await;
    let columns = "SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' ORDER BY attnum) FROM pg_attribute
                   WHERE attrelid = 'hs.contacts'::regclass AND attnum > 0 AND NOT attisdropped AND attname !~ '^_(sync|remote|deleted)'";
    assert_eq!(
        db.one::<String>(columns).await,
        "_id bigint, id text, email text, score numeric"
    );
    assert_eq!(
        db.one::<String>("SELECT row_filter FROM crm.mirror").await,
        "((score > (5)::numeric) OR (email IS NULL))"
    );
    db.exec("UPDATE crm.backfill SET state = 'done'").await;
    let again = db
        .table("SELECT * FROM crm.import('hubspot', ARRAY['contacts'], into_schema => 'hs')")
        .await;
    assert_eq!(again, [["contacts", "hs.contacts", "2", "backfill done"]]);
    db.exec("SELECT crm.import('hubspot', ARRAY['contacts'], into_schema => 'hs', columns => '{\"contacts\": [\"tags\", \"birthday\", \"createdate\", \"xmin\", \"Dup\", \"dup\", \"_odd\", \"subscribed\"]}')")
        .await;
    assert_eq!(
        db.one::<String>(columns).await,
        "_id bigint, id text, email text, score numeric, tags text[], subscribed boolean, birthday date, createdate timestamp with time zone, \
         xmin_ text, dup text, dup_2 text, _odd_ text"
    );
    let states = db
        .table("SELECT b.state, f.state, cardinality(f.fields) FROM crm.backfill b JOIN crm.column_fill f USING (mirror)")
        .await;
    assert_eq!(
        states,
        [["done", "waiting", "8"]],
        "new columns alone are copied"
    );
    let facts: String = db
        .one("SELECT obj_description('hs.contacts'::regclass) || '; ' || col_description('hs.contacts'::regclass, 8) || '; ' || unique_field FROM crm.mirror")
        .await;
    assert!(
        facts.contains("server hubspot") && facts.ends_with("pg_crm_sync_id"),
        "{facts}"
    );
    let readonly = db
        .error("INSERT INTO hs.contacts (createdate) VALUES (now())")
        .await;
    assert!(readonly.message().contains("createdate"), "{readonly:?}");
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM pg_index WHERE indrelid = 'hs.contacts'::regclass")
            .await,
        2,
        "primary key and id only"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn import_refuses_what_cannot_be_meant() {
    let (cluster, db) = start().await;
    mirrors(&db).await;
    db.exec("CREATE SERVER other TYPE 'zoho' FOREIGN DATA WRAPPER pg_crm_sync; CREATE SERVER far TYPE 'hubspot' FOREIGN DATA WRAPPER pg_crm_sync OPTIONS (base_url 'https://example.com')")
        .await;
    let import = |arguments: &str| format!("SELECT crm.import({arguments}, wait => '300 ms')");
    let cases: Vec<(String, &str, &str)> = [
        ("'hubspott', ARRAY['contacts'], into_schema => 'x'", "42704", "Did you mean hubspot"),
        ("'other', ARRAY['contacts'], into_schema => 'x'", "42809", "'zoho'"),
        ("'far', ARRAY['contacts'], into_schema => 'x'", "42501", "pg_crm_sync.allowed_hosts"),
        ("'hubspot', '{}', into_schema => 'x'", "22023", "no objects"),
        ("'hubspot', ARRAY['contacts', NULL], into_schema => 'x'", "22023", "no objects"),
        ("'hubspot', ARRAY['contacts'], into_schema => 'pg_x'", "22023", "pg_x"),
        ("'hubspot', ARRAY['contacts'], into_schema => 'crm'", "22023", "schema"),
        ("'hubspot', ARRAY['contacts'], into_schema => 'elsewhere'", "42710", "hubspot.contacts"),
        ("'hubspot', ARRAY['contacts'], into_schema => 'hubspot', columns => '[\"emial\"]'", "42703", "Did you mean email"),
        ("'hubspot', ARRAY['contacts'], into_schema => 'hubspot', columns => '{\"contact\": [\"email\"]}'", "22023", "Did you mean contacts"),
        ("'hubspot', ARRAY['contacts'], into_schema => 'hubspot', columns => '\"email\"'", "22023", "list of names"),
        ("'hubspot', ARRAY['contacts'], into_schema => 'hubspot', poll_interval => '10 ms'", "22023", "1 second"),
        ("'hubspot', ARRAY['contacts'], into_schema => 'hubspot', row_filter => '\"nosuch = 1\"'", "22023", "nosuch"),
        ("'hubspot', ARRAY['contacts'], into_schema => 'hubspot', row_filter => '\"email in (select 1::text)\"'", "22023", "subquer"),
        ("'hubspot', ARRAY['contacts'], into_schema => 'hubspot', row_filter => '[1]'", "22023", "JSON array"),
    ]
    .map(|(arguments, code, words)| (import(arguments), code, words))
    .to_vec();
    let cases: Vec<(&str, &str, &str)> =
        cases.iter().map(|(s, c, w)| (s.as_str(), *c, *w)).collect();
    db.refuses_unchanged(STATE, &cases).await;
    db.exec("CREATE SCHEMA taken; CREATE TABLE taken.contacts (a int); SELECT crm.mirror_drop('hubspot.contacts')")
        .await;
    db.refuses_unchanged(
        STATE,
        &[
            (
                "SELECT crm.import('hubspot', ARRAY['contacts'], into_schema => 'taken')",
                "42P07",
                "not a mirror",
            ),
            (
                "SELECT crm.mirror_drop('hubspot.contacts')",
                "42704",
                "Mirrors are",
            ),
            (
                "SELECT crm.mirror_drop('hubspot.company')",
                "42704",
                "Did you mean hubspot.companies",
            ),
        ],
    )
    .await;
    let blind = db
        .error("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT crm.server_check('hubspot')")
        .await;
    assert!(
        blind.hint().unwrap_or_default().contains("READ COMMITTED"),
        "{blind:?}"
    );
    // A bare table with the data stays when asked for.
    let db = cluster.connect("postgres").await;
    db.exec("SELECT crm.mirror_drop('hubspot.deals', drop_table => false); INSERT INTO hubspot.deals (id) VALUES ('free')")
        .await;
}

async fn a_reader_sees_and_does_not_touch(cluster: &Cluster) {
    let viewer = cluster.connect_as("viewer", "postgres").await;
    for view in [
        "status",
        "outbox",
        "conflict",
        "dead_letter",
        "progress",
        "review",
        "held",
        "event",
    ] {
        viewer.exec(&format!("SELECT * FROM crm.{view}")).await;
    }
    viewer
        .exec("SELECT crm.wait_synced('1 s'), crm.sync_state('hubspot.contacts', 1)")
        .await;
    for denied in [
        "SELECT crm.pause('server', 'hubspot')",
        "SELECT activation FROM crm.installation",
        "SELECT * FROM crm.webhook_queue",
        "SELECT crm.activate()",
        "SELECT crm._as_engine('hubspot.contacts'::regclass, 'SELECT 1', '[]')",
        "SELECT crm._fence_write('x')",
        "DELETE FROM crm.mirror",
    ] {
        assert_eq!(
            viewer.error(denied).await.code().code(),
            "42501",
            "{denied}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_see_and_do_what_their_name_says() {
    let (cluster, db) = start().await;
    mirrors(&db).await;
    db.exec("CREATE ROLE boss LOGIN IN ROLE crm_admin; CREATE ROLE viewer LOGIN IN ROLE crm_reader; CREATE ROLE nobody LOGIN; CREATE ROLE ops LOGIN IN ROLE crm_operator;
             GRANT CREATE ON DATABASE postgres TO boss; GRANT USAGE ON SCHEMA hubspot TO viewer; GRANT SELECT ON hubspot.contacts TO viewer; GRANT USAGE ON FOREIGN SERVER hubspot TO boss; SELECT crm.mirror_drop('hubspot.deals')")
        .await;
    let nobody = cluster.connect_as("nobody", "postgres").await;
    assert_eq!(
        nobody.error("SELECT * FROM crm.status").await.code().code(),
        "42501"
    );
    nobody
        .exec("CREATE TEMP TABLE t (a int); DROP TABLE t")
        .await;

    a_reader_sees_and_does_not_touch(&cluster).await;
    let ops = cluster.connect_as("ops", "postgres").await;
    ops.exec("SELECT crm.pause('mirror', 'hubspot.contacts'), crm.resume('mirror', 'hubspot.contacts'), crm.dead_letter_retry()").await;
    assert_eq!(
        ops.error("SELECT crm.go_live('hubspot.contacts')")
            .await
            .code()
            .code(),
        "42501"
    );

    let boss = cluster.connect_as("boss", "postgres").await;
    boss.exec("SELECT crm.import('hubspot', ARRAY['deals'], into_schema => 'mine'); SELECT crm.link('hubspot.contacts', 'salesforce.contact');
               INSERT INTO crm.conflict_policy (link, field, strategy, winner) VALUES ('contacts', 'phone', 'owner', 'salesforce'); SELECT crm.unlink('contacts')")
        .await;
    assert_eq!(
        db.one::<String>("SELECT tableowner::text FROM pg_tables WHERE schemaname = 'mine'")
            .await,
        "boss"
    );
    let denied = boss
        .error("SELECT crm.import('salesforce', ARRAY['Contact'], into_schema => 'salesforce')")
        .await;
    assert!(
        denied
            .hint()
            .unwrap_or_default()
            .contains("GRANT USAGE ON FOREIGN SERVER"),
        "{denied:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_of_our_name_made_by_others_gets_no_rights_unless_adopted() {
    let cluster = Cluster::start(Options::default()).await;
    let db = cluster.connect("postgres").await;
    db.exec("CREATE ROLE crm_admin").await;
    let error = db.error("CREATE EXTENSION pg_crm_sync").await;
    assert!(
        error.hint().unwrap_or_default().contains("crm.adopt_roles"),
        "{error:?}"
    );
    db.exec("SET crm.adopt_roles = 'crm_admin'; CREATE EXTENSION pg_crm_sync")
        .await;
    cluster.database("second").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_function_is_open_to_everyone_or_follows_the_callers_search_path() {
    let (_cluster, db) = start().await;
    let open = db
        .table(
            "SELECT p.oid::regprocedure FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
             WHERE p.pronamespace = 'crm'::regnamespace AND (has_function_privilege('public', p.oid, 'EXECUTE')
                OR (l.lanname IN ('sql', 'plpgsql') AND NOT coalesce(p.proconfig::text LIKE '%search_path=pg_catalog, pg_temp%', false)))",
        )
        .await;
    assert!(open.is_empty(), "{open:?}");
    // The bodies of an extension's functions are not checked when it is created.
    db.exec(
        "DO $$ DECLARE d text; BEGIN FOR d IN SELECT pg_get_functiondef(p.oid) FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
             WHERE p.pronamespace = 'crm'::regnamespace AND l.lanname IN ('sql', 'plpgsql') LOOP EXECUTE d; END LOOP; END $$",
    )
    .await;
}
