//! The guard in front of the CRMs: a slip of the hand in SQL must not reach thousands of records.

use crm_tests::{Options, PATIENCE, Pair, PairOptions, Person};

/// Holds above 5 rows, refuses above 12, and above 7 deletes.
async fn guarded() -> (Pair, Vec<Person>) {
    let cluster = Options::default()
        .setting("pg_crm_sync.guard_soft_rows", "5")
        .setting("pg_crm_sync.guard_hard_rows", "12")
        .setting("pg_crm_sync.guard_hard_deletes", "7");
    let options = PairOptions {
        cluster,
        ..PairOptions::default()
    };
    let (pair, people) = Pair::linked(20, options).await;
    pair.agree().await;
    pair.emulator.reset_counts();
    (pair, people)
}

/// SQL list of the HubSpot ids of some people.
fn ids(people: &[Person]) -> String {
    let quoted: Vec<String> = people.iter().map(|p| format!("'{}'", p.hubspot)).collect();
    quoted.join(", ")
}

/// Waits until the guard holds writes of one transaction; answers its number.
async fn held(pair: &Pair, writes: i64) -> i64 {
    let sql = format!("SELECT count(DISTINCT tx) = 1 AND sum(writes) >= {writes} FROM crm.held");
    pair.db
        .wait_true("the guard holds the writes", PATIENCE, &sql)
        .await;
    pair.quiet().await;
    pair.db.one("SELECT tx FROM crm.held").await
}

#[tokio::test(flavor = "multi_thread")]
async fn above_the_soft_limit_nothing_is_sent_until_approved() {
    let (pair, people) = guarded().await;
    let many = &people[..8];
    pair.db
        .exec(&format!(
            "UPDATE hubspot.contacts SET jobtitle = 'Mass ' || id WHERE id IN ({})",
            ids(many)
        ))
        .await;
    let tx = held(&pair, 8).await;
    let error = pair.db.error("SELECT crm.wait_synced('20 s')").await;
    assert_eq!(error.code().code(), "55000", "{error:?}");
    // Small changes pass by meanwhile.
    pair.sql(&people[10], "jobtitle", "Small").await;
    pair.reaches_both(&people[10], "jobtitle", "Small").await;
    for crm in ["hubspot", "salesforce"] {
        for who in many {
            let title = pair.shows(crm, who, "jobtitle");
            assert!(
                !title.is_some_and(|t| t.starts_with("Mass")),
                "{crm} got what is held"
            );
        }
    }
    let advice: String = pair.db.one("SELECT advice FROM crm.held").await;
    assert!(
        advice.contains(&format!("crm.approve({tx})")) && advice.contains("crm.reject"),
        "{advice}"
    );
    pair.db.exec(&format!("SELECT crm.approve({tx})")).await;
    for who in many {
        pair.reaches_both(who, "jobtitle", &format!("Mass {}", who.hubspot))
            .await;
    }
    pair.agree().await;
    let left: i64 = pair.db.one("SELECT count(*) FROM crm.held").await;
    assert_eq!(left, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn rejected_changes_are_undone_and_neither_crm_heard_of_them() {
    let (pair, people) = guarded().await;
    let many = &people[..8];
    let titles =
        "SELECT id, coalesce(jobtitle, ''), coalesce(phone, '') FROM hubspot.contacts ORDER BY _id";
    let before = pair.db.table(titles).await;
    pair.db
        .exec(&format!(
            "UPDATE hubspot.contacts SET jobtitle = 'Slip' WHERE id IN ({})",
            ids(many)
        ))
        .await;
    let tx = held(&pair, 8).await;
    pair.db.exec(&format!("SELECT crm.reject({tx})")).await;
    pair.agree().await;
    assert_eq!(pair.db.table(titles).await, before);
    assert_eq!((pair.writes("hubspot"), pair.writes("salesforce")), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn above_the_hard_limit_the_statement_is_refused_and_nothing_leaves() {
    let (pair, people) = guarded().await;
    let (rows, deletes) = (ids(&people[..13]), ids(&people[..8]));
    for (sql, setting) in [
        (
            format!("UPDATE hubspot.contacts SET phone = '0' WHERE id IN ({rows})"),
            "guard_hard_rows",
        ),
        (
            format!("DELETE FROM hubspot.contacts WHERE id IN ({deletes})"),
            "guard_hard_deletes",
        ),
        (
            format!(
                "DO $$ DECLARE r text; BEGIN FOREACH r IN ARRAY ARRAY[{rows}] LOOP UPDATE hubspot.contacts SET phone = '0' WHERE id = r; END LOOP; END $$"
            ),
            "guard_hard_rows",
        ),
    ] {
        let error = pair.db.error(&sql).await;
        assert_eq!(error.code().code(), "54000", "{sql}");
        assert!(
            error.detail().is_some_and(|d| d.contains("rows")),
            "{error:?}"
        );
        assert!(
            error.hint().is_some_and(|h| h.contains(setting)),
            "{error:?}"
        );
    }
    // What passes is all that the CRMs see.
    pair.sql(&people[14], "jobtitle", "Passes").await;
    pair.reaches_both(&people[14], "jobtitle", "Passes").await;
    pair.agree().await;
    assert_eq!((pair.writes("hubspot"), pair.writes("salesforce")), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loop_of_single_rows_and_deletes_are_held_by_the_transactions_count() {
    let (pair, people) = guarded().await;
    let records = pair.live("hubspot", "contacts");
    pair.db
        .exec(&format!(
            "DO $$ DECLARE r text; BEGIN FOREACH r IN ARRAY ARRAY[{}] LOOP DELETE FROM hubspot.contacts WHERE id = r; END LOOP; END $$",
            ids(&people[..6])
        ))
        .await;
    let tx = held(&pair, 6).await;
    assert_eq!(
        pair.live("hubspot", "contacts"),
        records,
        "nothing is deleted"
    );
    let rows = "SELECT count(*) FROM hubspot.contacts WHERE id IS NOT NULL";
    let after: i64 = pair.db.one(rows).await;
    pair.db.exec(&format!("SELECT crm.reject({tx})")).await;
    assert_eq!(
        pair.db.one::<i64>(rows).await,
        after + 6,
        "the rows come back"
    );
    pair.agree().await;
    assert_eq!(pair.writes("hubspot"), 0);
    // They are the same people as before: a change still reaches both records.
    pair.sql(&people[0], "jobtitle", "Back").await;
    pair.reaches_both(&people[0], "jobtitle", "Back").await;
    pair.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loop_of_single_rows_is_held_once_it_goes_over_the_window() {
    let cluster = Options::default().setting("pg_crm_sync.guard_window_rows", "40");
    let options = PairOptions {
        cluster,
        ..PairOptions::default()
    };
    let (pair, people) = Pair::linked(20, options).await;
    pair.agree().await;
    // One row per transaction, none of them near any limit of its own.
    let who = &people[0];
    for i in 0..60 {
        pair.sql(who, "jobtitle", &format!("Loop {i}")).await;
    }
    pair.db
        .wait_true(
            "the guard holds the rest of the loop",
            PATIENCE,
            "SELECT count(*) > 20 - 5 FROM crm.change_tx WHERE held",
        )
        .await;
    for crm in ["hubspot", "salesforce"] {
        let title = pair.shows(crm, who, "jobtitle");
        assert_ne!(title.as_deref(), Some("Loop 59"), "{crm} got what is held");
    }
    // Somebody else is not in its way.
    pair.db.exec("SET application_name = 'portal'").await;
    pair.sql(&people[1], "jobtitle", "Not a loop").await;
    pair.reaches_both(&people[1], "jobtitle", "Not a loop")
        .await;
    // What is approved is what is held by now.
    let drained = "SELECT NOT EXISTS (SELECT FROM crm.change_0 UNION ALL SELECT FROM crm.change_1)";
    pair.db
        .wait_true("the whole loop is drained", PATIENCE, drained)
        .await;
    pair.db.exec("SELECT crm.approve(tx) FROM crm.held").await;
    pair.reaches_both(who, "jobtitle", "Loop 59").await;
    pair.agree().await;
}
