//! Every way to write that PostgreSQL has reaches the CRMs, and what was rolled back does not.

use crm_tests::{Options, PATIENCE, Pair, PairOptions, Person};

async fn pair() -> (Pair, Vec<Person>) {
    let cluster = Options::default().setting("max_prepared_transactions", "5");
    let options = PairOptions {
        cluster,
        ..PairOptions::default()
    };
    let (pair, people) = Pair::linked(15, options).await;
    pair.agree().await;
    pair.emulator.reset_counts();
    (pair, people)
}

#[tokio::test(flavor = "multi_thread")]
async fn prepared_transactions_are_sent_at_commit_and_rolled_back_ones_never() {
    let (pair, people) = pair().await;
    let (kept, lost) = (&people[0], &people[1]);
    for (who, name, value) in [(kept, "kept", "Prepared"), (lost, "lost", "Rolled back")] {
        let update = Pair::update(who, "jobtitle", value);
        pair.db
            .exec(&format!("BEGIN; {update}; PREPARE TRANSACTION '{name}'"))
            .await;
    }
    // Another change goes through the whole engine meanwhile.
    pair.sql(&people[2], "jobtitle", "Meanwhile").await;
    pair.reaches_both(&people[2], "jobtitle", "Meanwhile").await;
    assert_ne!(
        pair.shows("hubspot", kept, "jobtitle").as_deref(),
        Some("Prepared")
    );
    pair.db.exec("ROLLBACK PREPARED 'lost'").await;
    pair.db.exec("COMMIT PREPARED 'kept'").await;
    pair.reaches_both(kept, "jobtitle", "Prepared").await;
    pair.agree().await;
    for crm in ["hubspot", "salesforce"] {
        assert_ne!(
            pair.shows(crm, lost, "jobtitle").as_deref(),
            Some("Rolled back")
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_savepoint_or_transaction_took_back_is_never_sent() {
    let (pair, people) = pair().await;
    let [a, b, c] = [0, 1, 2].map(|i| &people[i]);
    let sql = [
        "BEGIN".to_owned(),
        Pair::update(a, "jobtitle", "First"),
        "SAVEPOINT s".to_owned(),
        Pair::update(a, "jobtitle", "Taken back"),
        Pair::update(b, "jobtitle", "Taken back"),
        "ROLLBACK TO s".to_owned(),
        Pair::update(c, "jobtitle", "After"),
        "COMMIT".to_owned(),
        "BEGIN".to_owned(),
        Pair::update(b, "jobtitle", "Taken back"),
        "ROLLBACK".to_owned(),
    ];
    pair.db.exec(&sql.join("; ")).await;
    pair.reaches_both(a, "jobtitle", "First").await;
    pair.reaches_both(c, "jobtitle", "After").await;
    pair.agree().await;
    assert_eq!(
        (pair.writes("hubspot"), pair.writes("salesforce")),
        (1, 1),
        "one batch each"
    );
    let logged: i64 = pair
        .db
        .one("SELECT count(*) FROM crm.event WHERE 'Taken back' = ANY (new_values) OR 'Taken back' = ANY (old_values)")
        .await;
    assert_eq!(logged, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn copy_merge_and_upsert_reach_both_crms_with_their_old_values() {
    let (pair, people) = pair().await;
    let [a, b] = [0, 1].map(|i| &people[i]);
    let old: String = pair
        .db
        .one(&format!(
            "SELECT coalesce(jobtitle, '') FROM hubspot.contacts WHERE id = '{}'",
            a.hubspot
        ))
        .await;
    pair.db
        .exec(&format!(
            "MERGE INTO hubspot.contacts t USING (VALUES ('{}', 'Merged')) AS s (id, title) ON t.id = s.id
             WHEN MATCHED THEN UPDATE SET jobtitle = s.title WHEN NOT MATCHED THEN DO NOTHING;
             CREATE UNIQUE INDEX by_email ON hubspot.contacts (email);
             INSERT INTO hubspot.contacts (email, lastname) VALUES ('{}', 'Upserted'), ('new.by.upsert@example.net', 'New')
             ON CONFLICT (email) DO UPDATE SET lastname = excluded.lastname",
            a.hubspot, b.email
        ))
        .await;
    let copy = pair.cluster.socket_dir().join("new.csv");
    std::fs::write(
        &copy,
        "by.copy.1@example.net,Copied\nby.copy.2@example.net,Copied\n",
    )
    .expect("write a file");
    pair.db
        .exec(&format!(
            "COPY hubspot.contacts (email, lastname) FROM '{}' CSV",
            copy.display()
        ))
        .await;
    pair.reaches_both(a, "jobtitle", "Merged").await;
    pair.reaches_both(b, "lastname", "Upserted").await;
    let made = "SELECT count(*) = 3 FROM hubspot.contacts h JOIN salesforce.contact s ON s.email = h.email WHERE h.id IS NOT NULL AND s.id IS NOT NULL
                AND h.email IN ('new.by.upsert@example.net', 'by.copy.1@example.net', 'by.copy.2@example.net')";
    pair.db
        .wait_true("what was inserted is created in both CRMs", PATIENCE, made)
        .await;
    pair.agree().await;
    let event = pair
        .db
        .table(&format!("SELECT coalesce(old_values[1], ''), new_values[1] FROM crm.event WHERE source = 'sql' AND record_id = '{}' AND fields = '{{jobtitle}}'", a.hubspot))
        .await;
    assert_eq!(event, [[old.as_str(), "Merged"]]);
}
