//! Values that do not go their way because a person said so: each is named in the ledger, with who said it and why.

use crm_tests::{Options, PATIENCE, Pair, PairOptions, Person};

/// Holds above 5 rows.
async fn guarded() -> (Pair, Vec<Person>) {
    let cluster = Options::default().setting("pg_crm_sync.guard_soft_rows", "5");
    let options = PairOptions {
        cluster,
        ..PairOptions::default()
    };
    let (pair, people) = Pair::linked(20, options).await;
    pair.agree().await;
    (pair, people)
}

/// Runs a statement over these people's rows and waits until what follows is held; the transaction.
async fn hold(pair: &Pair, statement: &str, people: &[Person]) -> i64 {
    let ids: Vec<String> = people.iter().map(|p| format!("'{}'", p.hubspot)).collect();
    pair.db
        .exec(&format!("{statement} WHERE id IN ({})", ids.join(", ")))
        .await;
    let sql = format!(
        "SELECT count(DISTINCT tx) = 1 AND sum(writes) >= {} FROM crm.held",
        people.len()
    );
    pair.db
        .wait_true("the guard holds the writes", PATIENCE, &sql)
        .await;
    pair.quiet().await;
    pair.db.one("SELECT tx FROM crm.held").await
}

/// Rejects a transaction as `ann`, with her reason.
async fn reject(pair: &Pair, tx: i64) {
    pair.db
        .exec(&format!(
            "SET SESSION AUTHORIZATION ann; BEGIN; SET LOCAL application_name = 'desk'; SET LOCAL pg_crm_sync.reason = 'wrong file';
             SELECT crm.reject({tx}); COMMIT; RESET SESSION AUTHORIZATION"
        ))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejection_stands_in_the_ledger_with_who_why_and_what_was_lost() {
    let (pair, people) = guarded().await;
    let db = &pair.db;
    db.exec("CREATE ROLE ann LOGIN IN ROLE crm_operator").await;
    let (who, many) = (&people[0], &people[..8]);
    let before = pair.shows("hubspot", who, "jobtitle");
    let tx = hold(
        &pair,
        "UPDATE hubspot.contacts SET jobtitle = 'Mass ' || id",
        many,
    )
    .await;
    let while_held: String = db.one("SELECT clock_timestamp()::text").await;
    reject(&pair, tx).await;
    let mass = format!("Mass {}", who.hubspot);
    let told = format!(
        "SELECT count(*) = 1 FROM crm.lineage('hubspot.contacts', '{0}', 'jobtitle')
         WHERE \"table\" = 'hubspot.contacts' AND outcome = 'rejected' AND actor = 'ann' AND application = 'desk' AND reason = 'wrong file'
           AND old_value = '{mass}' AND new_value IS NOT DISTINCT FROM {1} AND lost = '[{{\"origin\": \"local\", \"value\": \"{mass}\"}}]'",
        who.hubspot,
        before.as_ref().map_or("NULL".to_owned(), |b| format!("'{b}'")),
    );
    db.wait_true("the rejection is in the ledger", PATIENCE, &told)
        .await;
    let stands = format!(
        "SELECT string_agg(outcome, ',') FROM crm.lineage('hubspot.contacts', '{}', 'jobtitle') WHERE stands",
        who.hubspot
    );
    assert_eq!(db.one::<String>(&stands).await, "rejected");
    let lines = "SELECT count(DISTINCT row_id) FROM crm.event e JOIN crm.mirror m ON m.id = e.mirror AND m.server = 'hubspot' WHERE e.source = 'reject' AND e.kind = 'update'";
    assert_eq!(db.one::<i64>(lines).await, 8, "one line per row");
    let lost: i64 = db
        .one("SELECT count(*) FROM crm.conflict WHERE field = 'jobtitle' AND mirror = 'hubspot.contacts' AND lost::text LIKE '%Mass %' AND winner = 'local'")
        .await;
    assert_eq!(lost, 8, "and each names what was lost");
    let past = format!(
        "SELECT crm.record_as_of('hubspot.contacts', '{}', '{while_held}') ->> 'jobtitle'",
        who.hubspot
    );
    assert_eq!(db.one::<String>(&past).await, mass);
    let left: i64 = db.one("SELECT count(*) FROM crm.given_up").await;
    assert_eq!(left, 0);
    pair.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rejected_deletes_and_inserts_are_told_by_the_past_of_their_rows() {
    let (pair, people) = guarded().await;
    let db = &pair.db;
    db.exec("CREATE ROLE ann LOGIN IN ROLE crm_operator").await;
    let who = &people[0];
    let row: i64 = db
        .one(&format!(
            "SELECT _id FROM hubspot.contacts WHERE id = '{}'",
            who.hubspot
        ))
        .await;
    let tx = hold(&pair, "DELETE FROM hubspot.contacts", &people[..6]).await;
    let gone: String = db.one("SELECT clock_timestamp()::text").await;
    reject(&pair, tx).await;
    let told = "SELECT count(*) = 6 FROM crm.event WHERE source = 'reject' AND kind = 'create' AND actor = 'ann' AND decision -> 0 ->> 'step' = 'rejected'";
    db.wait_true("the rows are back, and it is told", PATIENCE, told)
        .await;
    let as_of = |at: &str| {
        format!(
            "SELECT coalesce(crm.record_as_of('hubspot.contacts', '#{row}', {at}) ->> 'email', 'none')"
        )
    };
    assert_eq!(
        db.one::<String>(&as_of(&format!("'{gone}'"))).await,
        "none",
        "deleted then"
    );
    assert_eq!(
        db.one::<String>(&as_of("clock_timestamp()")).await,
        who.email,
        "back now"
    );

    db.exec("INSERT INTO hubspot.contacts (email) SELECT 'new' || n || '@example.com' FROM generate_series(1, 6) n")
        .await;
    db.wait_true(
        "the creates are held",
        PATIENCE,
        "SELECT coalesce(sum(writes), 0) >= 6 FROM crm.held",
    )
    .await;
    pair.quiet().await;
    let tx: i64 = db.one("SELECT tx FROM crm.held").await;
    reject(&pair, tx).await;
    let told = "SELECT count(*) = 6 AND bool_and(decision::text LIKE '%new_@example.com%') FROM crm.event WHERE source = 'reject' AND kind = 'delete' AND actor = 'ann'";
    db.wait_true("the rows are gone, and it is told", PATIENCE, told)
        .await;
    let rows: i64 = db
        .one("SELECT count(*) FROM hubspot.contacts WHERE email LIKE 'new_@example.com'")
        .await;
    assert_eq!(rows, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn discarded_dead_letters_and_writes_of_a_link_that_goes_are_named_in_the_ledger() {
    let (pair, people) = Pair::linked(20, PairOptions::default()).await;
    pair.agree().await;
    let db = &pair.db;
    let row: i64 = db
        .one(&format!(
            "SELECT _id FROM hubspot.contacts WHERE id = '{}'",
            people[0].hubspot
        ))
        .await;
    db.exec(&format!(
        "INSERT INTO crm.write (mirror, row_id, kind, record_id, vals, origin, state, error)
             SELECT id, {row}, 'update', '{0}', '{{\"city\": \"Nowhere\"}}', 'salesforce', 'dead', 'no such city' FROM crm.mirror WHERE server = 'hubspot';
         INSERT INTO crm.poison (mirror, server, source, record_id, change, error, advice)
             SELECT id, 'hubspot', 'webhook', '{0}', '{{\"record_id\": \"{0}\", \"fields\": [[\"city\", \"Poison\"], [\"zip\", null]]}}', 'cannot be read', 'none' FROM crm.mirror WHERE server = 'hubspot';
         BEGIN; SET LOCAL pg_crm_sync.reason = 'known'; SELECT crm.dead_letter_discard(), crm.dead_letter_discard(direction => 'in'); COMMIT",
        people[0].hubspot
    ))
    .await;
    for (field, value, origin) in [
        ("city", "\"Nowhere\"", "salesforce"),
        ("city", "\"Poison\"", "hubspot"),
        ("zip", "null", "hubspot"),
    ] {
        let told = format!(
            "SELECT count(*) = 1 FROM crm.event e, jsonb_array_elements(e.decision) d
             WHERE e.kind = 'discard' AND e.actor = 'postgres' AND e.reason = 'known' AND e.record_id = '{}' AND d ->> 'step' = 'discarded'
               AND d ->> 'field' = '{field}' AND d -> 'losers' = '[{{\"origin\": \"{origin}\", \"value\": {value}}}]'",
            people[0].hubspot
        );
        db.wait_true(&format!("{value} is named"), PATIENCE, &told)
            .await;
    }
    // What is lost without having been in the row does not change its past.
    let past = format!(
        "SELECT crm.record_as_of('hubspot.contacts', '{}', clock_timestamp() - interval '1 us') ? '_unknown'",
        people[0].hubspot
    );
    assert!(!db.one::<bool>(&past).await);

    pair.hubspot_takes_nothing();
    pair.edit("salesforce", &people[1], "city", "Unsent");
    let waits = "SELECT count(*) = 1 FROM crm.write WHERE vals ->> 'city' = 'Unsent' AND state = 'queued' AND attempts > 0";
    db.wait_true("the edit waits for HubSpot", PATIENCE, waits)
        .await;
    // Between two attempts: one under way is finished.
    let unlinked = "DO $$ BEGIN
        FOR i IN 1 .. 600 LOOP
            EXIT WHEN EXISTS (SELECT FROM crm.write WHERE vals ->> 'city' = 'Unsent' AND state = 'queued' FOR UPDATE);
            PERFORM pg_sleep(0.05);
        END LOOP;
        PERFORM crm.unlink('contacts');
    END $$";
    db.exec(unlinked).await;
    let told = "SELECT count(*) = 1 FROM crm.conflict c WHERE c.field = 'city' AND c.lost = '[{\"value\": \"Unsent\", \"origin\": \"salesforce\"}]'";
    db.wait_true("what was not sent is named", PATIENCE, told)
        .await;
    pair.emulator.clear_faults();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_delete_rule_overrides_is_named_in_the_ledger() {
    let (pair, people) = Pair::linked(20, PairOptions::default()).await;
    pair.agree().await;
    pair.db
        .exec("UPDATE crm.link SET on_delete_conflict = 'delete'")
        .await;
    pair.worker_has_read().await;
    let who = &people[0];
    pair.hubspot_takes_nothing();
    pair.edit("salesforce", who, "city", "Unseen");
    let waits =
        "SELECT count(*) = 1 FROM crm.write WHERE vals ->> 'city' = 'Unseen' AND state = 'queued'";
    pair.db
        .wait_true("the edit waits for HubSpot", PATIENCE, waits)
        .await;
    pair.emulator.delete("hubspot", "contacts", &who.hubspot);
    let told = "SELECT count(*) = 1 FROM crm.conflict WHERE field = 'city' AND winner = 'hubspot' AND lost = '[{\"value\": \"Unseen\", \"origin\": \"salesforce\"}]'";
    pair.db
        .wait_true("the value that went with it is named", PATIENCE, told)
        .await;
    pair.emulator.clear_faults();
}

/// Two records were removed while an edit could not get there; both are to be kept, and a user holds the row of one.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_about_a_row_that_a_user_holds_waits_for_the_user() {
    let (pair, people) = Pair::linked(20, PairOptions::default()).await;
    pair.agree().await;
    let chosen = &people[..2];
    pair.hubspot_takes_nothing();
    for who in chosen {
        pair.edit("salesforce", who, "city", "Unseen");
        let waits = format!(
            "SELECT count(*) > 0 FROM crm.write w JOIN hubspot.contacts h ON h._id = w.row_id
             WHERE h.id = '{}' AND w.vals ->> 'city' = 'Unseen' AND w.state = 'queued'",
            who.hubspot
        );
        pair.db
            .wait_true("the edit waits for HubSpot", PATIENCE, &waits)
            .await;
        pair.emulator.delete("hubspot", "contacts", &who.hubspot);
    }
    let asked =
        "SELECT count(*) = 2 FROM crm.review WHERE kind = 'delete' AND mirror = 'hubspot.contacts'";
    pair.db
        .wait_true("both are asked about", PATIENCE, asked)
        .await;
    pair.emulator.clear_faults();
    pair.quiet().await;
    let user = pair.cluster.connect("app").await;
    let row: i64 = user
        .one(&format!(
            "SELECT _id FROM hubspot.contacts WHERE id = '{}'",
            chosen[0].hubspot
        ))
        .await;
    user.exec(&format!(
        "BEGIN; SELECT FROM hubspot.contacts WHERE _id = {row} FOR UPDATE"
    ))
    .await;
    pair.db
        .exec("UPDATE crm.review SET resolution = 'keep' WHERE kind = 'delete'")
        .await;
    let done = "SELECT count(*) = 1 FROM crm.review_history WHERE kind = 'delete'";
    pair.db
        .wait_true("the free one is kept", PATIENCE, done)
        .await;
    let open: i64 = pair
        .db
        .one(&format!(
            "SELECT count(*) FROM crm.review WHERE kind = 'delete' AND row_id = {row}"
        ))
        .await;
    assert_eq!(open, 1, "the other answer waits for the user");
    user.exec("COMMIT").await;
    let anew = format!(
        "SELECT id <> '{}' AND city = 'Unseen' AND _deleted_at IS NULL FROM hubspot.contacts WHERE _id = {row}",
        chosen[0].hubspot
    );
    pair.db
        .wait_true("the record is made anew", PATIENCE, &anew)
        .await;
}
