//! `crm_admin` administers the synchronisation and is no superuser: it gains no rights over tables and roles by it.

use crm_tests::catalog::mirrors;
use crm_tests::{Cluster, Db, Options};

/// The mirrors belong to the superuser; eve is an admin with a schema, a function and a table of her own.
const EVE: &str = "
    CREATE ROLE eve LOGIN; GRANT crm_admin TO eve; CREATE SCHEMA eve AUTHORIZATION eve;
    GRANT CREATE ON DATABASE postgres TO eve;
    CREATE TABLE public.secrets (_id bigint PRIMARY KEY, id text UNIQUE, email text, _sync_source text, _sync_state text, _sync_error text,
        _remote_modified_at timestamptz, _deleted_at timestamptz);
    SET ROLE eve;
    CREATE TABLE eve.log (who name);
    CREATE FUNCTION eve.spy(v text) RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS $$
        BEGIN INSERT INTO eve.log VALUES (current_user); RETURN true; END $$;
    CREATE OPERATOR eve.=== (leftarg = text, rightarg = text, function = pg_catalog.texteq);
    CREATE DOMAIN eve.spied AS text CHECK (eve.spy(value));
    RESET ROLE;
    SELECT crm.link('hubspot.contacts', 'salesforce.contact')";

async fn start() -> (Cluster, Db, Db) {
    let cluster = Cluster::start(Options::default()).await;
    let db = cluster.connect("postgres").await;
    db.exec("CREATE EXTENSION pg_crm_sync").await;
    mirrors(&db).await;
    db.exec(EVE).await;
    let eve = cluster.connect_as("eve", "postgres").await;
    (cluster, db, eve)
}

const STATE: &str = "SELECT md5(string_agg(t, '|' ORDER BY t)) FROM (SELECT row(m.*)::text AS t FROM crm.mirror m
    UNION ALL SELECT row(l.*)::text FROM crm.link l UNION ALL SELECT row(f.*)::text FROM crm.remote_field f) x";

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_does_not_make_the_worker_act_on_tables_of_others() {
    let (_cluster, _db, eve) = start().await;
    for pretend in ["on", "off"] {
        // As a dump does, whose rows are taken as they are.
        eve.exec(&format!("SET check_function_bodies = {pretend}"))
            .await;
        eve.refuses_unchanged(
            STATE,
            &[
                ("UPDATE crm.mirror SET table_name = 'secrets', schema_name = 'public' WHERE id = 1", "42501", "not yours"),
                ("UPDATE crm.mirror SET row_filter = 'true' WHERE id = 1", "42501", "owner"),
                ("INSERT INTO crm.mirror (server, object, schema_name, table_name) VALUES ('hubspot', 'x', 'public', 'secrets')", "42501", "not yours"),
                ("INSERT INTO crm.mirror (server, object, schema_name, table_name) VALUES ('hubspot', 'x', 'public', 'to_come')", "42501", "not yours"),
                ("UPDATE crm.link SET left_scope = 'true'", "42501", "owner"),
                ("INSERT INTO crm.survivor_rule VALUES ('contacts', 'left', 1, 'prefer', 'true')", "42501", "owner"),
            ],
        )
        .await;
    }
    for denied in [
        "UPDATE crm.remote_field SET column_type = 'text; ALTER ROLE eve SUPERUSER'",
        "SELECT crm._as_engine('public.secrets'::regclass, 'DELETE FROM public.secrets', '{}')",
    ] {
        assert_eq!(eve.error(denied).await.code().code(), "42501", "{denied}");
    }
}

/// The engine and functions of others evaluate conditions with rights that their author lacks.
#[tokio::test(flavor = "multi_thread")]
async fn a_condition_runs_nothing_that_a_user_wrote_and_nothing_with_effects() {
    let (_cluster, db, eve) = start().await;
    // Her own table, so that only the text of the condition stands in the way.
    db.exec("DELETE FROM crm.link; ALTER TABLE hubspot.contacts OWNER TO eve; GRANT USAGE, CREATE ON SCHEMA hubspot TO eve; SELECT crm.link('hubspot.contacts', 'salesforce.contact')").await;
    let conditions = [
        ("eve.spy(email)", "function eve.spy(text)"),
        ("email OPERATOR(eve.===) ''a''", "operator eve.==="),
        ("email::eve.spied IS NOT NULL", "type eve.spied"),
        ("pg_sleep(1) IS NULL", "IMMUTABLE"),
        ("pg_read_file(''PG_VERSION'') IS NULL", "IMMUTABLE"),
        ("true) OR (SELECT true", "not usable"),
        ("true; DROP TABLE eve.log", "not usable"),
    ];
    for (condition, words) in conditions {
        for statement in [
            format!("UPDATE crm.link SET left_scope = '{condition}'"),
            format!(
                "UPDATE crm.mirror SET row_filter = '{condition}' WHERE table_name = 'contacts'"
            ),
            format!(
                "INSERT INTO crm.survivor_rule VALUES ('contacts', 'left', 1, 'prefer', '{condition}')"
            ),
        ] {
            eve.refuses_unchanged(STATE, &[(&statement, "22023", words)])
                .await;
        }
    }
    eve.exec("UPDATE crm.link SET left_scope = 'lower(email) LIKE ''%@example.com'' AND score > 3 AND createdate >= ''2024-01-01 UTC'''")
        .await;
    eve.exec("UPDATE crm.mirror SET row_filter = 'city = ''Bath''' WHERE table_name = 'contacts'")
        .await;
    let told: String = db
        .one("SELECT row_filter FROM crm.mirror WHERE table_name = 'contacts' AND schema_name = 'hubspot'")
        .await;
    assert_eq!(told, "(city = 'Bath'::text)");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM eve.log").await, 0);
    // The scope was checked against another mirror.
    let other = "UPDATE crm.link SET left_mirror = (SELECT id FROM crm.mirror WHERE table_name = 'companies')";
    eve.refuses_unchanged(STATE, &[(other, "42501", "owner")])
        .await;
}

/// Whoever may create a table could else have the values of all contacts written into it.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_with_a_capture_trigger_of_its_own_does_not_become_the_mirror() {
    let (_cluster, db, eve) = start().await;
    let before: Option<String> = db.one(STATE).await;
    eve.exec("CREATE TABLE eve.copy (_id bigint); CREATE TABLE eve.other (_id bigint)")
        .await;
    eve.exec("CREATE FUNCTION eve.nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
        .await;
    eve.exec("CREATE TRIGGER zz_crm_capture AFTER INSERT ON eve.copy FOR EACH ROW EXECUTE FUNCTION eve.nothing('1')")
        .await;
    eve.exec("CREATE TRIGGER zz_crm_capture AFTER INSERT ON eve.other FOR EACH ROW EXECUTE FUNCTION crm._capture('1')")
        .await;
    eve.exec("ALTER TABLE eve.copy ADD COLUMN x text; ALTER TABLE eve.other ADD COLUMN x text; ALTER TABLE eve.copy RENAME TO renamed")
        .await;
    assert_eq!(db.one::<Option<String>>(STATE).await, before);
    db.exec("ALTER TABLE hubspot.contacts RENAME TO people; ALTER SCHEMA hubspot RENAME TO hub")
        .await;
    let name: String = db
        .one("SELECT schema_name || '.' || table_name FROM crm.mirror WHERE id = 1")
        .await;
    assert_eq!(name, "hub.people");
}
