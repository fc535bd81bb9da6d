//! `ALTER EXTENSION … UPDATE` from every released version ends where a fresh installation begins, and keeps what users have.

use std::collections::BTreeSet;
use std::path::Path;

use crm_tests::{Cluster, Db, Options};

/// Everything that makes up the extension, one line per object and property.
const OBJECTS: &str = r"
WITH rel AS (
    SELECT c.oid, c.relname, c.relkind, c.relacl, c.relowner FROM pg_class c WHERE c.relnamespace = 'crm'::regnamespace AND NOT c.relispartition
), acl AS (
    SELECT 'grant ' || r.relname AS what, r.relacl AS acl FROM rel r WHERE relkind IN ('r', 'p', 'v', 'S')
    UNION ALL SELECT 'grant ' || p.oid::regprocedure, p.proacl FROM pg_proc p WHERE p.pronamespace = 'crm'::regnamespace
    UNION ALL SELECT 'grant ' || r.relname || '.' || a.attname, a.attacl FROM rel r JOIN pg_attribute a ON a.attrelid = r.oid WHERE a.attnum > 0 AND NOT a.attisdropped
)
SELECT 'function ' || p.oid::regprocedure || ' ' || pg_get_functiondef(p.oid) FROM pg_proc p WHERE p.pronamespace = 'crm'::regnamespace
UNION ALL SELECT 'view ' || relname || ' ' || pg_get_viewdef(oid) FROM rel WHERE relkind = 'v'
UNION ALL SELECT concat_ws(' ', 'relation', relkind, relname) FROM rel WHERE relkind <> 'i' AND relkind <> 'I'
UNION ALL SELECT concat_ws(' ', 'column', r.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, pg_get_expr(d.adbin, d.adrelid))
          FROM rel r JOIN pg_attribute a ON a.attrelid = r.oid LEFT JOIN pg_attrdef d ON d.adrelid = r.oid AND d.adnum = a.attnum
          WHERE r.relkind IN ('r', 'p', 'v') AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL SELECT concat_ws(' ', 'constraint', r.relname, k.conname, pg_get_constraintdef(k.oid)) FROM rel r JOIN pg_constraint k ON k.conrelid = r.oid WHERE k.contype <> 'n'
UNION ALL SELECT 'index ' || pg_get_indexdef(oid) FROM rel WHERE relkind IN ('i', 'I')
          AND oid NOT IN (SELECT x.indexrelid FROM pg_index x JOIN pg_class t ON t.oid = x.indrelid WHERE t.relispartition)
UNION ALL SELECT concat_ws(' ', 'trigger', r.relname, pg_get_triggerdef(t.oid)) FROM rel r JOIN pg_trigger t ON t.tgrelid = r.oid WHERE NOT t.tgisinternal
UNION ALL SELECT concat_ws(' ', 'event trigger', e.evtname, e.evtevent, e.evttags, e.evtfoid::regprocedure) FROM pg_event_trigger e
UNION ALL SELECT concat_ws(' ', 'comment', pg_describe_object(d.classoid, d.objoid, d.objsubid), d.description) FROM pg_description d
          WHERE (d.classoid = 'pg_class'::regclass AND d.objoid IN (SELECT oid FROM rel))
             OR (d.classoid = 'pg_proc'::regclass AND d.objoid IN (SELECT oid FROM pg_proc p WHERE p.pronamespace = 'crm'::regnamespace))
UNION ALL SELECT 'dumped ' || r.relname FROM pg_extension e, unnest(e.extconfig) c JOIN rel r ON r.oid = c WHERE e.extname = 'pg_crm_sync'
UNION ALL SELECT 'member ' || pg_describe_object(d.classid, d.objid, d.objsubid) FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
          WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND e.extname = 'pg_crm_sync'
UNION ALL SELECT concat_ws(' ', what, g.grantee::regrole, g.privilege_type) FROM acl, aclexplode(acl.acl) g
ORDER BY 1";

async fn objects(db: &Db) -> BTreeSet<String> {
    db.table(OBJECTS)
        .await
        .into_iter()
        .map(|mut row| row.remove(0))
        .collect()
}

/// Puts the install scripts of released versions beside the present one; their numbers.
async fn released(db: &Db) -> Vec<String> {
    let share: String = db
        .one("SELECT setting FROM pg_config WHERE name = 'SHAREDIR'")
        .await;
    let folder = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("run by cargo"))
        .join("../sql/released");
    let mut versions = Vec::new();
    for entry in std::fs::read_dir(&folder).expect("released versions") {
        let path = entry.expect("a file").path();
        let name = path
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let version = name
            .strip_prefix("pg_crm_sync--")
            .and_then(|n| n.strip_suffix(".sql"))
            .expect("pg_crm_sync--VERSION.sql");
        versions.push(version.to_owned());
        std::fs::copy(&path, Path::new(&share).join("extension").join(&name))
            .expect("copy the script");
    }
    assert!(!versions.is_empty());
    versions
}

const WHAT_USERS_HAVE: &str = "
    INSERT INTO crm.installation DEFAULT VALUES;
    CREATE SERVER hs TYPE 'hubspot' FOREIGN DATA WRAPPER pg_crm_sync OPTIONS (credentials 'file:h.json');
    CREATE SERVER sf TYPE 'salesforce' FOREIGN DATA WRAPPER pg_crm_sync OPTIONS (login_url 'https://a.my.salesforce.com', credentials 'file:s.json');
    CREATE TABLE public.contacts (_id bigint PRIMARY KEY, id text, email text); CREATE TABLE public.contact (LIKE public.contacts);
    INSERT INTO crm.mirror (server, object, schema_name, table_name) VALUES ('hs', 'contacts', 'public', 'contacts'), ('sf', 'Contact', 'public', 'contact');
    INSERT INTO crm.mirror_column SELECT id, 'email', CASE server WHEN 'hs' THEN 'email' ELSE 'Email' END, 'text', 80, false, false FROM crm.mirror;
    INSERT INTO crm.link (name, left_mirror, right_mirror, on_delete) SELECT 'people', min(id), max(id), 'propagate' FROM crm.mirror;
    INSERT INTO crm.field_map (link, left_field, right_field, match_order) VALUES ('people', 'email', 'Email', 1);
    INSERT INTO crm.conflict_policy (link, field, strategy, winner) VALUES ('people', '*', 'last_write_wins', NULL), ('people', 'email', 'owner', 'sf');
    INSERT INTO crm.xref (mirror, row_id, entity, record_id) SELECT id, 1, 7, 'r' || id FROM crm.mirror;
    SELECT crm._event_partition_ensure();
    INSERT INTO crm.event (seq, mirror, row_id, kind, origin, source, occurred_at, received_at, fields, new_values, policy_version)
        SELECT 1, min(id), 1, 'update', 'hs', 'webhook', now(), now(), '{email}', '{a@b.c}', 3 FROM crm.mirror;
    INSERT INTO crm.review_item (link, mirror, row_id, reason, candidates) SELECT 'people', min(id), 2, 'two partners', '[]' FROM crm.mirror;
    INSERT INTO crm.review_item (link, entity, field, reason, candidates) VALUES ('people', 7, 'email', 'policy is review', '[]');";

/// The rows that come with the extension: an update that wrote some of them anew used to forget the others.
async fn presets(db: &crm_tests::Db) -> Vec<Vec<String>> {
    db.table("SELECT x::text FROM (SELECT to_jsonb(m) AS x FROM crm.standard_map m UNION ALL SELECT to_jsonb(l) FROM crm.standard_link l) s ORDER BY 1")
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_updated_installation_equals_a_fresh_one_and_loses_nothing() {
    let cluster = Cluster::start(Options::default()).await;
    let first = cluster.database("fresh").await;
    let versions = released(&first).await;
    let fresh = objects(&first).await;
    for version in versions {
        let db = cluster
            .bare_database(&format!("from_{}", version.replace('.', "_")))
            .await;
        db.exec(&format!("CREATE EXTENSION pg_crm_sync VERSION '{version}'"))
            .await;
        db.exec(WHAT_USERS_HAVE).await;
        db.exec("ALTER EXTENSION pg_crm_sync UPDATE").await;
        db.exec("SELECT crm._event_partition_ensure()").await;
        let updated = objects(&db).await;
        let missing: Vec<&String> = fresh.difference(&updated).collect();
        let surplus: Vec<&String> = updated.difference(&fresh).collect();
        assert!(
            missing.is_empty() && surplus.is_empty(),
            "after the update from {version}\nonly fresh: {missing:#?}\nonly updated: {surplus:#?}\n\
             a table changed that sql/upgrade/{version}--*.sql does not change alike"
        );
        assert_eq!(presets(&db).await, presets(&first).await, "{version}");
        let kept: String = db
            .one(
                "SELECT concat_ws(', ', (SELECT count(*) FROM crm.mirror), (SELECT on_left_delete || on_right_delete FROM crm.link),
                    (SELECT string_agg(strategy, ' ' ORDER BY field) FROM crm.conflict_policy), (SELECT count(*) FROM crm.xref),
                    (SELECT new_values[1] FROM crm.event WHERE seq = 1), (SELECT string_agg(kind, ' ' ORDER BY kind) FROM crm.review_item),
                    (SELECT count(*) FROM crm.policy_history WHERE kind = 'policy'))",
            )
            .await;
        assert_eq!(
            kept,
            "2, propagatepropagate, last_write_wins last_write_wins owner, 2, a@b.c, field match, 2"
        );
    }
}
