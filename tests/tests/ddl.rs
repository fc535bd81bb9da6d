//! A DBA changes the tables themselves: columns come, go and change names, mirrors and the extension are dropped, while
//! both CRMs go on changing.

use crm_tests::{PATIENCE, Pair, PairOptions, Person};

async fn pair() -> (Pair, Vec<Person>) {
    let (pair, people) = Pair::linked(12, PairOptions::default()).await;
    pair.agree().await;
    (pair, people)
}

/// Waits until a column of somebody's HubSpot mirror row shows a value.
async fn shows(pair: &Pair, who: &Person, column: &str, value: &str) {
    let sql = format!(
        "SELECT {column} = '{value}' FROM hubspot.contacts WHERE id = '{}'",
        who.hubspot
    );
    pair.db
        .wait_true(&format!("{column} shows {value}"), PATIENCE, &sql)
        .await;
}

#[tokio::test]
async fn a_renamed_column_of_a_live_mirror_stays_in_step_both_ways() {
    let (pair, people) = pair().await;
    pair.db
        .exec("ALTER TABLE hubspot.contacts RENAME COLUMN jobtitle TO job_title")
        .await;
    pair.edit("salesforce", &people[0], "jobtitle", "Renamed inbound");
    shows(&pair, &people[0], "job_title", "Renamed inbound").await;
    pair.sql(&people[1], "job_title", "Renamed outbound").await;
    pair.reaches_both(&people[1], "jobtitle", "Renamed outbound")
        .await;
}

#[tokio::test]
async fn a_renamed_mirror_and_schema_stay_in_step_both_ways() {
    let (pair, people) = pair().await;
    pair.db
        .exec(
            "ALTER TABLE hubspot.contacts RENAME TO people; ALTER SCHEMA hubspot RENAME TO portal",
        )
        .await;
    pair.edit("salesforce", &people[0], "jobtitle", "Moved inbound");
    let sql = format!(
        "SELECT jobtitle = 'Moved inbound' FROM portal.people WHERE id = '{}'",
        people[0].hubspot
    );
    pair.db
        .wait_true("the renamed mirror follows", PATIENCE, &sql)
        .await;
    pair.db
        .exec(&format!(
            "UPDATE portal.people SET jobtitle = 'Moved outbound' WHERE id = '{}'",
            people[1].hubspot
        ))
        .await;
    pair.reaches_both(&people[1], "jobtitle", "Moved outbound")
        .await;
}

#[tokio::test]
async fn a_column_of_the_users_own_is_neither_sent_nor_in_the_way() {
    let (pair, people) = pair().await;
    pair.db
        .exec("ALTER TABLE hubspot.contacts ADD COLUMN note text DEFAULT 'none', ADD COLUMN scored_at timestamptz DEFAULT clock_timestamp()")
        .await;
    pair.emulator.reset_counts();
    pair.db
        .exec("UPDATE hubspot.contacts SET note = 'ours alone'")
        .await;
    // What follows in the queue proves that the notes were taken up and sent nowhere.
    pair.sql(&people[0], "jobtitle", "After the notes").await;
    pair.reaches_both(&people[0], "jobtitle", "After the notes")
        .await;
    pair.quiet().await;
    assert_eq!(
        (pair.writes("hubspot"), pair.writes("salesforce")),
        (1, 1),
        "only the job title goes out"
    );
    pair.edit("hubspot", &people[1], "jobtitle", "Beside the notes");
    shows(&pair, &people[1], "jobtitle", "Beside the notes").await;
    shows(&pair, &people[1], "note", "ours alone").await;
}

#[tokio::test]
async fn a_dropped_column_is_let_go_and_the_other_fields_go_on() {
    let (pair, people) = pair().await;
    pair.db
        .exec("ALTER TABLE hubspot.contacts DROP COLUMN city")
        .await;
    pair.edit("hubspot", &people[0], "city", "Nowhere");
    pair.edit("salesforce", &people[0], "jobtitle", "Still here");
    shows(&pair, &people[0], "jobtitle", "Still here").await;
    pair.sql(&people[1], "jobtitle", "Also here").await;
    pair.reaches_both(&people[1], "jobtitle", "Also here").await;
    let dead: i64 = pair.db.one("SELECT count(*) FROM crm.dead_letter").await;
    assert_eq!(dead, 0, "an edit of a field without column is no failure");
    // It comes back with its values when it is asked for.
    pair.db
        .exec("SELECT crm.import('hubspot', ARRAY['contacts'], into_schema => 'hubspot', columns => '[\"city\"]')")
        .await;
    shows(&pair, &people[0], "city", "Nowhere").await;
}

#[tokio::test]
async fn a_linked_mirror_is_not_dropped_by_accident_and_an_unlinked_one_is_forgotten() {
    let (pair, people) = pair().await;
    for statement in ["DROP TABLE hubspot.contacts", "DROP SCHEMA hubspot CASCADE"] {
        let error = pair.db.error(statement).await;
        assert_eq!(error.code().code(), "2BP01", "{statement}: {error}");
        assert!(error.hint().is_some_and(|h| h.contains("crm.unlink")));
    }
    pair.sql(&people[0], "jobtitle", "Not dropped").await;
    pair.reaches_both(&people[0], "jobtitle", "Not dropped")
        .await;
    pair.db.exec("SELECT crm.unlink('contacts')").await;
    pair.db.exec("DROP SCHEMA hubspot CASCADE").await;
    let left: i64 = pair
        .db
        .one("SELECT count(*) FROM crm.mirror WHERE schema_name = 'hubspot'")
        .await;
    assert_eq!(left, 0, "nothing is known of the dropped mirror");
    pair.edit("hubspot", &people[0], "jobtitle", "Unheard");
    pair.edit("salesforce", &people[0], "jobtitle", "Heard");
    let sql = format!(
        "SELECT title = 'Heard' FROM salesforce.contact WHERE id = '{}'",
        people[0].salesforce
    );
    pair.db
        .wait_true("the other mirror goes on", PATIENCE, &sql)
        .await;
    pair.import("hubspot", &["contacts"]).await;
    pair.backfilled().await;
    shows(&pair, &people[0], "jobtitle", "Unheard").await;
}

#[tokio::test]
async fn without_the_extension_mirrors_are_ordinary_tables_and_it_can_start_anew() {
    let (pair, people) = pair().await;
    pair.db.exec("DROP EXTENSION pg_crm_sync CASCADE").await;
    let rows: i64 = pair.db.one("SELECT count(*) FROM hubspot.contacts").await;
    assert!(rows > 0, "the data is the user's");
    pair.sql(&people[0], "jobtitle", "Nobody listens").await;
    pair.db
        .exec("CREATE EXTENSION pg_crm_sync; ALTER SCHEMA hubspot RENAME TO before; ALTER SCHEMA salesforce RENAME TO before_too")
        .await;
    pair.db.exec(&crm_tests::servers_sql(&pair.emulator)).await;
    pair.import("hubspot", &["contacts"]).await;
    pair.import("salesforce", &["Contact"]).await;
    pair.backfilled().await;
    let other: i64 = pair
        .db
        .one("SELECT count(*) FROM before.contacts b JOIN hubspot.contacts h USING (id) WHERE b.jobtitle = 'Nobody listens' AND h.jobtitle = b.jobtitle")
        .await;
    assert_eq!(other, 0, "what was written without it went nowhere");
    pair.db
        .exec("SELECT crm.link('hubspot.contacts', 'salesforce.contact')")
        .await;
    pair.db.exec("SELECT crm.go_live('contacts')").await;
    pair.sql(&people[1], "jobtitle", "Anew").await;
    pair.reaches_both(&people[1], "jobtitle", "Anew").await;
}

#[tokio::test]
async fn what_capture_cannot_see_is_named_in_the_status() {
    let (pair, people) = pair().await;
    let status = "SELECT state || ': ' || advice FROM crm.status WHERE kind = 'mirror' AND name = 'hubspot.contacts'";
    pair.db
        .exec("ALTER TABLE hubspot.contacts DISABLE TRIGGER zz_crm_capture")
        .await;
    let told: String = pair.db.one(status).await;
    assert!(told.starts_with("not captured: "), "{told}");
    assert!(told.contains("ENABLE TRIGGER"), "{told}");
    pair.db
        .exec("ALTER TABLE hubspot.contacts ENABLE TRIGGER zz_crm_capture")
        .await;
    // As a logical-replication target or a bulk load writes.
    let unseen = |value: &str| {
        let update = Pair::update(&people[0], "jobtitle", value);
        format!("SET session_replication_role = replica; {update}; RESET session_replication_role")
    };
    pair.db.exec(&unseen("Unseen")).await;
    pair.sql(&people[0], "city", "Seen").await;
    pair.reaches_both(&people[0], "city", "Seen").await;
    let (object, id) = ("contacts", &people[0].hubspot);
    let there = pair.emulator.field("hubspot", object, id, "jobtitle");
    assert_ne!(there.as_deref(), Some("Unseen"));
    // The DBA's choice to have such changes sent.
    pair.db
        .exec("ALTER TABLE hubspot.contacts ENABLE ALWAYS TRIGGER zz_crm_capture")
        .await;
    pair.db.exec(&unseen("Replicated")).await;
    pair.reaches_both(&people[0], "jobtitle", "Replicated")
        .await;
}
