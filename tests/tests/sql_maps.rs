//! Field maps, scopes and duplicates as users set and check them: main path and bad input.

use crm_tests::catalog::{catalog, uncaptured};
use crm_tests::{Cluster, Db, Options, PATIENCE};

/// Both sides of contacts with more fields than the standard maps know.
async fn start() -> (Cluster, Db) {
    let cluster = Cluster::start(Options::default()).await;
    let db = cluster.connect("postgres").await;
    db.exec("CREATE EXTENSION pg_crm_sync; CREATE EXTENSION pg_trgm")
        .await;
    catalog(&db).await;
    db.exec(
        "INSERT INTO crm.remote_field (server, object, field, ordinal, label, description, field_type, remote_type, column_type, max_length, options, restricted, required, is_unique, external_id, read_only, calculated)
         SELECT s, o, f, 90, f, '', 'text', 'text', 'text', CASE WHEN c IS NULL THEN 80 END,
                coalesce((SELECT jsonb_agg(jsonb_build_object('value', v, 'label', v)) FROM unnest(string_to_array(c, ',')) v), '[]'), c IS NOT NULL, f = 'Company__c', false, false, false, false
         FROM (VALUES ('hubspot', 'contacts', 'address', NULL), ('hubspot', 'contacts', 'address2', NULL), ('hubspot', 'contacts', 'stage', 'new,attempted,won,lost'),
                      ('hubspot', 'contacts', 'fullname', NULL), ('hubspot', 'contacts', 'company', NULL), ('salesforce', 'Contact', 'MailingStreet', NULL),
                      ('salesforce', 'Contact', 'Stage__c', 'Open,Closed'), ('salesforce', 'Contact', 'Company__c', NULL)) AS x (s, o, f, c);
         SELECT crm.import('hubspot', ARRAY['contacts'], into_schema => 'hubspot'), crm.import('salesforce', ARRAY['Contact'], into_schema => 'salesforce');
         SELECT crm.link('hubspot.contacts', 'salesforce.contact');
         DELETE FROM crm.field_map WHERE left_field = 'address';
         CREATE FUNCTION public.shout(v text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT pg_catalog.upper(v)';
         CREATE FUNCTION public.calm(v text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT pg_catalog.lower(v)';
         CREATE FUNCTION public.picky(v text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT (1 / (pg_catalog.length(v) - 3))::text';
         CREATE FUNCTION public.careless(v text) RETURNS text LANGUAGE sql AS 'SELECT v';
         CREATE FUNCTION public.digits(v text) RETURNS numeric LANGUAGE sql IMMUTABLE AS 'SELECT v::numeric'",
    )
    .await;
    db.wait_true(
        "the ledger has a partition",
        PATIENCE,
        "SELECT to_regclass('crm.event_0') IS NOT NULL",
    )
    .await;
    (cluster, db)
}

const MAP: &str = "INSERT INTO crm.field_map (link, left_field, right_field";

/// Columns besides link, left_field and right_field; their values; SQLSTATE; words of the answer.
const WRONG_MAPS: &str = r#"
to_right ~ 'company', 'Company__c', 'public.nothing' ~ 42883 ~ schema.name
to_right ~ 'company', 'Company__c', 'public.careless' ~ 42P17 ~ IMMUTABLE
to_right ~ 'company', 'Company__c', 'public.digits' ~ 42804 ~ returns numeric
to_right ~ 'company', 'Company__c', 'pg_catalog.max(text)' ~ 42809 ~ plain function
to_right ~ 'company', 'Company__c', 'domain_of_ulr' ~ 22023 ~ Did you mean domain_of_url
direction ~ 'score', 'Company__c', 'both' ~ 42804 ~ name a function for each direction
value_map ~ 'stage', 'Stage__c', '{"new": "Open", "attempted": "Open"}' ~ 22023 ~ value_map_back = '{"Open": "attempted"}'
value_map, value_map_back ~ 'stage', 'Stage__c', '{"new": "Open", "won": "Closed"}', '{"Open": "won"}' ~ 22023 ~ leads to "Closed"
value_map ~ 'stage', 'Stage__c', '[1]' ~ 22023 ~ object of texts
value_map_back ~ 'stage', 'Stage__c', '{"Open": "new"}' ~ 22023 ~ no value_map
default_right ~ 'stage', 'Stage__c', 'Opne' ~ 22023 ~ Did you mean Open
default_right ~ 'company', 'Company__c', repeat('x', 81) ~ 22023 ~ 80 characters
left_more ~ 'address', 'MailingStreet', '{address2}' ~ 22023 ~ structure = 'lines'
left_more, structure ~ 'address', 'MailingStreet', '{adress2}', 'lines' ~ 42703 ~ Did you mean address2
left_more, structure ~ 'address', 'MailingStreet', '{score}', 'lines' ~ 42804 ~ score (number)
left_more, structure ~ 'address', 'MailingStreet', '{city}', 'lines' ~ 23505 ~ field "city"
left_more, structure ~ 'address', 'MailingStreet', '{address}', 'lines' ~ 23505 ~ field "address"
left_more, structure ~ 'address', 'MailingStreet', '{address2}', 'unit' ~ 22023 ~ as many to as many
match_threshold ~ 'company', 'Company__c', 0.5 ~ 22023 ~ match_order
match_order, match_threshold, match_accept ~ 'company', 'Company__c', 3, 0.5, 0.4 ~ 22023 ~ match_accept above
match_order, to_right ~ 'company', 'Company__c', 3, 'public.shout' ~ 22023 ~ match by another field
unique_key, to_right ~ 'company', 'Company__c', true, 'url_of_domain' ~ 22023 ~ two text fields"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_map_that_cannot_work_is_refused_when_it_is_made() {
    let (_cluster, db) = start().await;
    for line in WRONG_MAPS.trim().lines() {
        let [columns, values, code, words] = line.split(" ~ ").collect::<Vec<_>>()[..] else {
            panic!("four parts: {line}");
        };
        let sql = format!("{MAP}, {columns}) VALUES ('contacts', {values})");
        db.refuses(&[(&sql, code, words)]).await;
    }
    // What works is stored with its full name, whatever was typed.
    db.exec(&format!("{MAP}, to_right, to_left) VALUES ('contacts', 'company', 'company__c', 'public.shout', 'public.calm(text)')")).await;
    let stored =
        "SELECT right_field, to_right, to_left FROM crm.field_map WHERE left_field = 'company'";
    let expected = [["Company__c", "public.shout(text)", "public.calm(text)"]];
    assert_eq!(db.table(stored).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn defaults_scopes_and_rules_that_cannot_work_are_refused() {
    let (_cluster, db) = start().await;
    let default = "INSERT INTO crm.field_default VALUES ('contacts', 'right',";
    let mapped = format!("{default} 'LastName', 'x')");
    let fixed = format!("{default} 'CreatedDate', 'x')");
    let cases = [
        (mapped.as_str(), "22023", "is mapped"),
        (fixed.as_str(), "22023", "read-only"),
        ("UPDATE crm.link SET left_scope = 'cty = 1'", "22023", "cty"),
        (
            "UPDATE crm.link SET left_scope = 'EXISTS (SELECT FROM crm.link)'",
            "22023",
            "without subqueries",
        ),
        (
            "INSERT INTO crm.survivor_rule VALUES ('contacts', 'left', 1, 'prefer', 'nonsense')",
            "22023",
            "nonsense",
        ),
        (
            "SELECT * FROM crm.check_mapping('contact')",
            "42704",
            "Did you mean contacts",
        ),
        (
            "SELECT * FROM crm.duplicates('contact')",
            "42704",
            "Did you mean contacts",
        ),
    ];
    db.refuses(&cases).await;
}

/// The worker runs a map's function as its owner: who names it must be allowed to call it.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_borrows_a_function_that_he_may_not_call() {
    let (cluster, db) = start().await;
    db.exec("REVOKE EXECUTE ON FUNCTION public.shout FROM PUBLIC; CREATE ROLE mapper LOGIN; GRANT crm_admin TO mapper").await;
    let mapper = cluster.connect_as("mapper", "postgres").await;
    let insert =
        format!("{MAP}, to_right) VALUES ('contacts', 'company', 'Company__c', 'public.shout')");
    mapper
        .refuses(&[
            (insert.as_str(), "42501", "GRANT EXECUTE"),
            (
                "UPDATE crm.link SET left_scope = 'city = ''x'''",
                "42501",
                "owner",
            ),
        ])
        .await;
    // It would run as its owner: to be allowed to call it oneself is not enough.
    db.exec("GRANT EXECUTE ON FUNCTION public.shout TO mapper")
        .await;
    mapper
        .refuses(&[(insert.as_str(), "42501", "let its owner")])
        .await;
    db.exec("ALTER FUNCTION public.shout OWNER TO mapper").await;
    mapper.exec(&insert).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn check_mapping_counts_what_would_be_lost_before_anything_is_sent() {
    let (_cluster, db) = start().await;
    db.exec(&format!(
        "{MAP}, value_map, value_map_back) VALUES ('contacts', 'stage', 'Stage__c', '{{\"new\": \"Open\", \"attempted\": \"Open\", \"won\": \"Closd\"}}', '{{\"Open\": \"new\"}}');
         {MAP}, to_right, to_left) VALUES ('contacts', 'company', 'Company__c', 'public.picky', 'public.calm');
         {MAP}, left_more, structure) VALUES ('contacts', 'address', 'MailingStreet', '{{address2}}', 'lines')"
    ))
    .await;
    uncaptured(
        &db,
        "INSERT INTO hubspot.contacts (id, email, lastname, stage, company, address, address2) VALUES
            ('1', 'a@x', 'A', 'new', 'four', '1 High St', 'Flat 2'), ('2', 'b@x', 'B', 'attempted', 'abc', NULL, 'Flat 2'), ('3', 'c@x', repeat('c', 81), 'lost', NULL, NULL, NULL), ('4', 'd@x', 'D', 'won', 'abc', NULL, NULL);
         INSERT INTO salesforce.contact (id, email, mailingstreet, stage__c) VALUES ('s1', 'a@x', E'1 High St\\nFlat 2\\nRear', 'Open'), ('s2', 'b@x', 'x', 'Elsewhere');
         UPDATE hubspot.contacts SET _deleted_at = now() WHERE false",
    )
    .await;
    let told = db
        .table("SELECT problem, coalesce(mirror, ''), field, coalesce(count::text, ''), coalesce(examples[1], '') FROM crm.check_mapping('contacts') ORDER BY 3, 1, 2")
        .await;
    let has = |problem: &str, field: &str, count: &str, example: &str| {
        assert!(
            told.iter().any(|r| r[0] == problem
                && r[2] == field
                && r[3] == count
                && r[4].contains(example)),
            "{problem} {field} {count} {example}: {told:#?}"
        );
    };
    has("lossy", "stage", "1", "attempted -> Open -> new");
    has("no counterpart", "stage", "1", "lost: no counterpart");
    has("not a choice", "stage", "1", "won -> Closd");
    has("no counterpart", "Stage__c", "1", "Elsewhere");
    has(
        "no counterpart",
        "company",
        "2",
        "abc: division by zero (22012)",
    );
    has("required", "company", "1", "(empty)");
    has("too long", "lastname", "1", "ccc");
    has("lossy", "address, address2", "1", "Flat 2");
    has("lossy", "MailingStreet", "1", "Flat 2, Rear");
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM crm.write").await,
        0,
        "nothing is sent"
    );
    let preview = db
        .table("SELECT what, field FROM crm.preview('contacts') WHERE what = 'not a choice'")
        .await;
    assert_eq!(preview.len(), 1, "preview tells it too: {preview:?}");
    // Row scope narrows what is looked at.
    db.exec("UPDATE crm.link SET left_scope = 'stage <> ''lost'''")
        .await;
    let lost = "SELECT count(*) FROM crm.check_mapping('contacts') WHERE field = 'stage' AND problem = 'no counterpart'";
    assert_eq!(db.one::<i64>(lost).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_without_key_or_with_two_targets_says_so() {
    let (_cluster, db) = start().await;
    db.exec("UPDATE crm.field_map SET match_order = NULL WHERE link = 'contacts'; UPDATE crm.mirror_column SET required = true WHERE field = 'Company__c'").await;
    let told = db.table("SELECT problem, field, advice FROM crm.check_mapping('contacts') WHERE count IS NULL ORDER BY 1").await;
    let text = format!("{told:?}");
    assert!(
        text.contains("no key")
            && text.contains("Company__c")
            && text.contains("crm.field_default"),
        "{text}"
    );
    db.exec(
        "INSERT INTO crm.field_default VALUES ('contacts', 'right', 'Company__c', '(private)')",
    )
    .await;
    let left: i64 = db
        .one("SELECT count(*) FROM crm.check_mapping('contacts') WHERE field = 'Company__c'")
        .await;
    assert_eq!(left, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_outside_a_scope_are_not_announced_as_records_to_be_made() {
    let (_cluster, db) = start().await;
    uncaptured(
        &db,
        "INSERT INTO hubspot.contacts (id, email, stage) SELECT 'h' || n, 'p' || n || '@x', CASE WHEN n < 4 THEN 'won' END FROM generate_series(1, 10) n;
         INSERT INTO salesforce.contact (id, email) VALUES ('s1', 'p1@x'), ('s9', 'p9@x')",
    )
    .await;
    db.exec("UPDATE crm.link SET left_scope = 'stage = ''won''' WHERE name = 'contacts'")
        .await;
    let told = db
        .table("SELECT what, field, count FROM crm.preview('contacts') WHERE what LIKE 'only%' OR what IN ('matches', 'out of scope') ORDER BY 1")
        .await;
    let expected = [
        ["matches", "email", "1"],
        ["only hubspot.contacts", "∅", "2"],
        ["only salesforce.contact", "∅", "1"],
        ["out of scope", "hubspot.contacts", "7"],
    ];
    assert_eq!(told, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn which_duplicate_survives_is_a_row_and_is_known_before_going_live() {
    let (_cluster, db) = start().await;
    uncaptured(
        &db,
        "INSERT INTO hubspot.contacts (id, email) SELECT 'h' || n, 'p' || n || '@x' FROM generate_series(1, 4) n;
         INSERT INTO salesforce.contact (id, email, phone, lastname, _remote_modified_at) VALUES
            ('s1', 'p1@x', '1', 'a', '2026-01-01'), ('s2', 'p1@x', NULL, NULL, '2026-02-01'),
            ('s3', 'p2@x', '1', NULL, '2026-01-01'), ('s4', 'p2@x', '1', NULL, '2026-01-01'),
            ('s5', 'p3@x', NULL, NULL, '2026-01-01');
         UPDATE crm.backfill SET state = 'done', error = NULL",
    )
    .await;
    let told = "SELECT mirror, field, match_key, array_to_string(records, ','), (SELECT id FROM salesforce.contact WHERE _id = survivor), decided_by FROM crm.duplicates('contacts')";
    let nobody = db.table(told).await;
    assert_eq!(nobody.len(), 2);
    assert!(nobody.iter().all(|r| r[5] == "∅"), "{nobody:?}");
    db.exec("INSERT INTO crm.survivor_rule VALUES ('contacts', 'right', 1, 'most_complete'), ('contacts', 'right', 2, 'newest')").await;
    let told = db.table(told).await;
    assert_eq!(
        told[0][..],
        [
            "salesforce.contact",
            "Email",
            "p1@x",
            "s1,s2",
            "s1",
            "most_complete"
        ]
    );
    assert_eq!(told[1][3], "s3,s4", "{told:?}");
    db.exec("SELECT crm.go_live('contacts')").await;
    let tied = db.table("SELECT h.id, s.id FROM hubspot.contacts h JOIN crm.xref a ON a.row_id = h._id AND a.mirror = 1 JOIN crm.xref b ON b.entity = a.entity AND b.mirror = 2 JOIN salesforce.contact s ON s._id = b.row_id ORDER BY 1").await;
    assert_eq!(tied, [["h1", "s1"], ["h3", "s5"]]);
    let asked = db
        .table("SELECT candidates ->> 'key' FROM crm.review_item")
        .await;
    assert_eq!(asked, [["p2@x"]], "what the rules do not tell is asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn likeness_only_ties_what_is_certain_and_asks_about_the_rest() {
    let (_cluster, db) = start().await;
    db.exec("UPDATE crm.field_map SET match_order = 2, match_threshold = 0.4, match_accept = 0.8 WHERE left_field = 'lastname'").await;
    uncaptured(
        &db,
        "INSERT INTO hubspot.contacts (id, email, lastname) VALUES ('h1', 'a@x', 'Exactly'), ('h2', NULL, 'Featherstonehaugh'), ('h3', NULL, 'Robertson'), ('h4', NULL, 'Zacharias');
         INSERT INTO salesforce.contact (id, email, lastname) VALUES ('s1', 'a@x', 'Other'), ('s2', NULL, 'Featherstonehaugh '), ('s3', NULL, 'Robertsen'), ('s4', NULL, 'Robertsons'), ('s5', NULL, 'Unlike');
         UPDATE crm.backfill SET state = 'done', error = NULL; SELECT crm.go_live('contacts')",
    )
    .await;
    let tied = db.table("SELECT h.id, s.id FROM hubspot.contacts h JOIN crm.xref a ON a.row_id = h._id AND a.mirror = 1 JOIN crm.xref b ON b.entity = a.entity AND b.mirror = 2 JOIN salesforce.contact s ON s._id = b.row_id ORDER BY 1").await;
    assert_eq!(tied, [["h1", "s1"], ["h2", "s2"]]);
    let asked = db.table("SELECT r.reason, h.id, jsonb_array_length(r.candidates -> 'right')::text FROM crm.review_item r JOIN hubspot.contacts h ON h._id = r.row_id").await;
    assert_eq!(asked, [["match by likeness", "h3", "2"]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_clause_of_a_scope_is_told_by_itself() {
    let (_cluster, db) = start().await;
    db.exec("UPDATE crm.link SET left_scope = 'city IN (''Bath'', ''York'') AND (phone IS NOT NULL OR score > 3) AND lastname <> '' AND '''").await;
    uncaptured(
        &db,
        "INSERT INTO hubspot.contacts (id, city, score, lastname) VALUES ('1', 'Bath', 2, 'A')",
    )
    .await;
    let told = db.table("SELECT clause, holds::text FROM crm._scope_clauses('contacts', 'hubspot.contacts', (SELECT _id FROM hubspot.contacts))").await;
    let holds: Vec<&str> = told.iter().map(|r| r[1].as_str()).collect();
    assert_eq!(holds, ["true", "false", "true"], "{told:?}");
    assert!(
        told[1][0].contains("phone") && told[1][0].contains("OR"),
        "{told:?}"
    );
    assert!(
        db.table("SELECT * FROM crm._scope_clauses('contacts', 'salesforce.contact', 1)")
            .await
            .is_empty()
    );
}
