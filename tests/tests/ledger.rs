//! The ledger of a whole pair: complete, readable backwards, replayable, and whole after a dump.

use crm_tests::{Db, PATIENCE, Pair, PairOptions, Person};
use serde_json::Value;

async fn pair() -> (Pair, Vec<Person>) {
    Pair::linked(20, PairOptions::default()).await
}

async fn lineage(db: &Db, who: &Person, columns: &str, filter: &str) -> Vec<Vec<String>> {
    db.table(&format!(
        "SELECT {columns} FROM crm.lineage('hubspot.contacts', '{}', 'jobtitle') WHERE {filter} ORDER BY seq",
        who.hubspot
    ))
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_value_has_a_line_that_says_who_set_it_with_what_and_why() {
    let (pair, people) = pair().await;
    let who = &people[0];
    pair.edit("hubspot", who, "jobtitle", "Clerk");
    pair.reaches_both(who, "jobtitle", "Clerk").await;
    pair.agree().await;
    pair.db
        .exec(&format!(
            "SET application_name = 'billing'; BEGIN; SET LOCAL pg_crm_sync.reason = 'ticket 7'; {}; COMMIT; RESET application_name",
            Pair::update(who, "jobtitle", "Head clerk")
        ))
        .await;
    pair.reaches_both(who, "jobtitle", "Head clerk").await;
    pair.agree().await;
    pair.db
        .exec(&format!(
            "UPDATE hubspot.contacts SET jobtitle = NULL WHERE id = '{}'",
            who.hubspot
        ))
        .await;
    pair.agree().await;
    values(&pair, who).await;
    // Each event of a stream names the stream and itself, and is known as taken.
    let bare: i64 = pair.db
        .one("SELECT count(*) FROM crm.event e WHERE e.source IN ('webhook', 'pubsub') AND NOT EXISTS
              (SELECT FROM crm.event_seen s, crm.stream t WHERE s.identity = e.identity AND t.id = e.stream AND t.kind = e.source)")
        .await;
    assert_eq!(bare, 0);
    pair.db
        .wait_true(
            "echoes are told from changes",
            PATIENCE,
            "SELECT count(*) >= 4 FROM crm.event WHERE source IN ('webhook', 'pubsub') AND decision @> '[{\"step\": \"echo\"}]'",
        )
        .await;
}

/// What the lineage of a job title says after an edit in HubSpot and two in SQL.
async fn values(pair: &Pair, who: &Person) {
    let told = lineage(&pair.db, who, r#""table", source, old_value IS NOT NULL, new_value, origin, actor, application, reason, stands"#, "outcome = 'applied'").await;
    let actor = &told[0][5];
    assert!(actor.starts_with("userId:"), "{told:?}");
    assert_eq!(
        told,
        [
            [
                "hubspot.contacts",
                "webhook",
                "t",
                "Clerk",
                "hubspot",
                actor,
                "CRM_UI",
                "∅",
                "f"
            ],
            [
                "hubspot.contacts",
                "sql",
                "t",
                "Head clerk",
                "local",
                "postgres",
                "billing",
                "ticket 7",
                "f"
            ],
            [
                "hubspot.contacts",
                "sql",
                "t",
                "∅",
                "local",
                "postgres",
                &told[2][6],
                "∅",
                "t"
            ],
        ]
    );
    let sent = lineage(
        &pair.db,
        who,
        r#""table", new_value, origin"#,
        "outcome = 'sent'",
    )
    .await;
    assert!(
        sent.contains(&vec![
            "salesforce.contact".into(),
            "Clerk".into(),
            "hubspot".into()
        ]),
        "{sent:?}"
    );
    assert_eq!(
        sent.len(),
        5,
        "one write per change and other side: {sent:?}"
    );
}

/// A generator of numbers; printed, so that a failure can be had again.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok());
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let seed = seed.unwrap_or_else(|| now.expect("a clock").as_nanos() as u64) | 1;
        println!("SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

/// Without what the CRM itself writes when our values land, some time after all agree.
const SHOWN: &str = "to_jsonb(t) - '{_sync_source,_sync_state,_sync_error,_remote_modified_at,lastmodifieddate,lastmodifiedbyid}'::text[]";

/// The rows of both mirrors as they are, with the time.
async fn snapshot(db: &Db) -> (String, Vec<(String, String, Value)>) {
    let mut rows = Vec::new();
    for mirror in ["hubspot.contacts", "salesforce.contact"] {
        let sql = format!(
            "SELECT coalesce(t.id, '#' || t._id), ({SHOWN})::text FROM {mirror} t ORDER BY t._id"
        );
        for row in db.table(&sql).await {
            let value = serde_json::from_str(&row[1]).expect("a row as JSON");
            rows.push((mirror.to_owned(), row[0].clone(), value));
        }
    }
    (db.one("SELECT clock_timestamp()::text").await, rows)
}

/// Compares every row of a snapshot with what the ledger makes of its time.
async fn compare(pair: &Pair, (at, rows): &(String, Vec<(String, String, Value)>)) {
    for (mirror, id, was) in rows {
        let sql = format!(
            "SELECT coalesce((crm.record_as_of('{mirror}', '{id}', '{at}') - '{{lastmodifieddate,lastmodifiedbyid}}'::text[])::text, 'null')"
        );
        let told: String = pair.db.one(&sql).await;
        let told: Value = serde_json::from_str(&told).expect("a record as JSON");
        let differs: Vec<_> = was
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(k, v)| told[k.as_str()] != **v)
            .collect();
        assert_eq!(told, *was, "{mirror} {id} as of {at}: it was {differs:?}");
    }
}

/// Makes a person, takes a snapshot, and deletes two others: one in HubSpot, one by SQL.
async fn come_and_go(pair: &Pair, people: &[Person]) -> (String, Vec<(String, String, Value)>) {
    pair.db
        .exec("INSERT INTO hubspot.contacts (email, lastname, phone) VALUES ('late@example.com', 'Late', '1')")
        .await;
    pair.db
        .wait_true(
            "the new person has both ids",
            PATIENCE,
            "SELECT (SELECT id FROM hubspot.contacts WHERE email = 'late@example.com') IS NOT NULL AND (SELECT id FROM salesforce.contact WHERE email = 'late@example.com') IS NOT NULL",
        )
        .await;
    // What the CRMs fill in themselves comes after the answer, with the next poll.
    pair.db
        .exec("UPDATE crm.mirror SET poll_interval = '1 second'")
        .await;
    let filled = "SELECT (SELECT createdate FROM hubspot.contacts WHERE email = 'late@example.com') IS NOT NULL
        AND (SELECT createddate FROM salesforce.contact WHERE email = 'late@example.com') IS NOT NULL";
    pair.db
        .wait_true("the new person is complete", PATIENCE, filled)
        .await;
    pair.agree().await;
    let between = snapshot(&pair.db).await;
    pair.emulator
        .delete("hubspot", "contacts", &people[7].hubspot);
    pair.db
        .wait_true(
            "the deletion is seen",
            PATIENCE,
            &format!(
                "SELECT _deleted_at IS NOT NULL FROM hubspot.contacts WHERE id = '{}'",
                people[7].hubspot
            ),
        )
        .await;
    pair.db
        .exec(&format!(
            "DELETE FROM hubspot.contacts WHERE id = '{}'",
            people[8].hubspot
        ))
        .await;
    pair.quiet().await;
    between
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_began_before_what_it_found_was_there_is_undone_first() {
    let (pair, people) = pair().await;
    let who = &people[0];
    pair.agree().await;
    let was: Option<String> = pair.shows("salesforce", who, "phone");
    let before: String = pair.db.one("SELECT clock_timestamp()::text").await;
    let slow = pair.cluster.connect("app").await;
    let sql = format!(
        "UPDATE salesforce.contact SET phone = 'slow' WHERE id = '{}' AND pg_sleep(1) IS NOT NULL",
        who.salesforce
    );
    let running = tokio::spawn(async move { slow.exec(&sql).await });
    let begun = "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    pair.db
        .wait_true("the statement has begun", PATIENCE, begun)
        .await;
    pair.edit("hubspot", who, "phone", "found");
    running.await.expect("the statement");
    pair.agree().await;
    let told = format!(
        "SELECT crm.record_as_of('salesforce.contact', '{}', '{before}') ->> 'phone'",
        who.salesforce
    );
    let told: Option<String> = pair.db.one(&told).await;
    assert_eq!(told, was);
}

#[tokio::test(flavor = "multi_thread")]
async fn any_record_can_be_seen_as_it_was_at_any_time() {
    let (pair, people) = pair().await;
    pair.agree().await;
    let mut dice = Dice::new();
    let mut snapshots = vec![snapshot(&pair.db).await];
    for round in 0..4 {
        for n in 0..12 {
            let who = &people[dice.below(6)];
            let field = ["jobtitle", "phone", "city"][dice.below(3)];
            let value = format!("{round}.{n}");
            match dice.below(4) {
                0 => pair.edit("hubspot", who, field, &value),
                1 => pair.edit("salesforce", who, field, &value),
                2 => pair.sql(who, field, &value).await,
                _ => {
                    let sql = format!(
                        "UPDATE salesforce.contact SET {} = NULL WHERE id = '{}'",
                        ["title", "phone", "mailingcity"][dice.below(3)],
                        who.salesforce
                    );
                    pair.db.exec(&sql).await;
                }
            }
        }
        pair.agree().await;
        snapshots.push(snapshot(&pair.db).await);
    }
    snapshots.push(come_and_go(&pair, &people).await);
    for snapshot in &snapshots {
        compare(&pair, snapshot).await;
    }
    let unborn: Option<String> = pair
        .db
        .one(&format!(
            "SELECT crm.record_as_of('salesforce.contact', (SELECT id FROM salesforce.contact WHERE email = 'late@example.com'), '{}')::text",
            snapshots[0].0
        ))
        .await;
    assert_eq!(unborn, None, "nobody was there before the row was made");
    // What a link carried over is known when it is gone, too.
    pair.db.exec("SELECT crm.unlink('contacts')").await;
    compare(&pair, &snapshots[1]).await;
}

/// Replays what the webhooks of HubSpot brought, and waits.
async fn replay(pair: &Pair) -> Vec<String> {
    let run: i64 = pair
        .db
        .one("SELECT crm.replay('hubspot webhook', from_seq => 0)")
        .await;
    let done = format!("SELECT state = 'done' FROM crm.replay_progress WHERE id = {run}");
    pair.db
        .wait_true("the replay is through", PATIENCE, &done)
        .await;
    pair.quiet().await;
    pair.db
        .table(&format!("SELECT events, changed, unchanged, put_off, failed, percent FROM crm.replay_progress WHERE id = {run}"))
        .await
        .remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_brings_back_what_was_lost_and_changes_nothing_that_stands() {
    let (pair, people) = pair().await;
    for (n, who) in people[..5].iter().enumerate() {
        pair.edit("hubspot", who, "jobtitle", &format!("First {n}"));
        pair.reaches_both(who, "jobtitle", &format!("First {n}"))
            .await;
    }
    for (n, who) in people[..3].iter().enumerate() {
        pair.edit("hubspot", who, "jobtitle", &format!("Second {n}"));
        pair.reaches_both(who, "jobtitle", &format!("Second {n}"))
            .await;
    }
    // Overtaken by Salesforce and by SQL.
    pair.edit("salesforce", &people[3], "jobtitle", "Third");
    pair.reaches_both(&people[3], "jobtitle", "Third").await;
    pair.sql(&people[4], "jobtitle", "Fourth").await;
    pair.reaches_both(&people[4], "jobtitle", "Fourth").await;
    pair.agree().await;
    pair.emulator.reset_counts();
    let first = replay(&pair).await;
    assert_eq!(
        first[1..],
        ["0", first[0].as_str(), "0", "0", "100.0"].map(str::to_owned),
        "{first:?}"
    );
    assert!(first[0].parse::<i64>().expect("a number") >= 8, "{first:?}");
    let lines = "SELECT count(*) FROM crm.event WHERE source = 'replay'";
    assert_eq!(pair.db.one::<i64>(lines).await, 0);
    pair.agree().await;
    assert_eq!(pair.writes("hubspot") + pair.writes("salesforce"), 0);

    // A row that lost its value without anybody's knowing gets the last one, not the first.
    pair.db
        .exec(&format!(
            "SET session_replication_role = replica; UPDATE hubspot.contacts SET jobtitle = 'Damaged' WHERE id IN ('{}', '{}'); RESET session_replication_role",
            people[0].hubspot, people[4].hubspot
        ))
        .await;
    let second = replay(&pair).await;
    let title = |who: &Person| {
        format!(
            "SELECT jobtitle FROM hubspot.contacts WHERE id = '{}'",
            who.hubspot
        )
    };
    assert_eq!(pair.db.one::<String>(&title(&people[0])).await, "Second 0");
    assert_eq!(second[1], "1", "by its last event: {second:?}");
    assert_eq!(
        pair.db.one::<String>(&title(&people[4])).await,
        "Damaged",
        "what SQL wrote over HubSpot's value is not HubSpot's to bring back"
    );
    assert_eq!(pair.db.one::<i64>(lines).await, 1);
    let third = replay(&pair).await;
    assert_eq!(third[1], "0", "run again it changes nothing: {third:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_decides_by_the_policy_of_today_what_yesterdays_had_rejected() {
    let (pair, people) = pair().await;
    let who = &people[0];
    pair.db
        .exec("INSERT INTO crm.conflict_policy (link, field, strategy, winner) VALUES ('contacts', 'jobtitle', 'owner', 'salesforce')")
        .await;
    pair.worker_has_read().await;
    pair.edit("salesforce", who, "jobtitle", "Owned");
    pair.reaches_both(who, "jobtitle", "Owned").await;
    pair.agree().await;
    pair.edit("hubspot", who, "jobtitle", "Usurped");
    let lost = format!(
        "SELECT count(*) = 1 FROM crm.lineage('hubspot.contacts', '{}', 'jobtitle') WHERE new_value = 'Usurped' AND outcome = 'lost'
         AND strategy = 'owner' AND lost @> '[{{\"origin\": \"hubspot\", \"value\": \"Usurped\"}}]'",
        who.hubspot
    );
    pair.db
        .wait_true("the loss is in the ledger", PATIENCE, &lost)
        .await;
    pair.reaches_both(who, "jobtitle", "Owned").await;
    pair.agree().await;
    pair.db
        .exec("UPDATE crm.conflict_policy SET winner = 'hubspot' WHERE field = 'jobtitle'")
        .await;
    pair.worker_has_read().await;
    pair.agree().await;
    assert_eq!(
        pair.shows("hubspot", who, "jobtitle").as_deref(),
        Some("Owned"),
        "a policy alone changes no value"
    );
    let told = replay(&pair).await;
    assert_eq!(told[1], "1", "{told:?}");
    pair.reaches_both(who, "jobtitle", "Usurped").await;
    pair.agree().await;
    let told = replay(&pair).await;
    assert_eq!(told[1], "0", "{told:?}");
}

const WHOLE: &str = "SELECT md5(string_agg(t, '|' ORDER BY t)) FROM (
    SELECT 'e' || row(e.*)::text AS t FROM crm.event e UNION ALL SELECT 'x' || row(x.*)::text FROM crm.xref x
    UNION ALL SELECT 's' || row(s.*)::text FROM crm.event_seen s UNION ALL SELECT 'o' || row(o.*)::text FROM crm.consumer_offset o
    UNION ALL SELECT 'r' || row(r.*)::text FROM crm.replay_run r UNION ALL SELECT 'l' || row(l.*)::text FROM crm.link l
    UNION ALL SELECT 'h' || row(h.*)::text FROM hubspot.contacts h UNION ALL SELECT 'c' || row(c.*)::text FROM salesforce.contact c
    UNION ALL SELECT 'q' || last_value FROM crm.event_seq) u";

/// Dumps the database into a file; the digest of what is in it.
async fn dump(pair: &Pair, file: &std::path::Path) -> String {
    // An echo that comes late would make the dump another than what is compared.
    let mut wanted: String = pair.db.one(WHOLE).await;
    for _ in 0..20 {
        let dumped = pair
            .cluster
            .program("pg_dump")
            .args(["-Fc", "-d", "app", "-f"])
            .arg(file)
            .output();
        let dumped = dumped.expect("start pg_dump");
        assert!(
            dumped.status.success(),
            "{}",
            String::from_utf8_lossy(&dumped.stderr)
        );
        let now: String = pair.db.one(WHOLE).await;
        if std::mem::replace(&mut wanted, now.clone()) == now {
            break;
        }
    }
    wanted
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_with_mirrors_links_and_events_restores_in_one_transaction() {
    let (pair, people) = pair().await;
    for who in &people[..5] {
        pair.edit("hubspot", who, "jobtitle", "Before");
        pair.reaches_both(who, "jobtitle", "Before").await;
    }
    pair.agree().await;
    pair.db
        .exec("SELECT crm.consumer_create('billing', from_seq => 0); SELECT crm.consumer_commit('billing', 2)")
        .await;
    replay(&pair).await;
    let at: String = pair.db.one("SELECT now()::text").await;
    pair.sql(&people[0], "jobtitle", "After").await;
    pair.reaches_both(&people[0], "jobtitle", "After").await;
    pair.agree().await;
    pair.db
        .exec("SELECT crm.pause('server', 'hubspot'), crm.pause('server', 'salesforce')")
        .await;
    let file = pair.cluster.socket_dir().join("app.dump");
    let wanted = dump(&pair, &file).await;
    pair.cluster
        .connect("postgres")
        .await
        .exec("CREATE DATABASE copy")
        .await;
    let restored = pair
        .cluster
        .program("pg_restore")
        .args(["-1", "-d", "copy"])
        .arg(&file)
        .output();
    let restored = restored.expect("start pg_restore");
    let told = String::from_utf8_lossy(&restored.stderr);
    assert!(restored.status.success() && told.is_empty(), "{told}");
    let copy = pair.cluster.connect("copy").await;
    assert_eq!(copy.one::<String>(WHOLE).await, wanted);
    // The ledger is not only there, it works.
    let was = format!(
        "SELECT crm.record_as_of('hubspot.contacts', '{}', '{at}') ->> 'jobtitle'",
        people[0].hubspot
    );
    assert_eq!(copy.one::<String>(&was).await, "Before");
    assert_eq!(
        lineage(&copy, &people[0], "new_value", "stands").await,
        [["After"]]
    );
    let next: i64 = copy
        .one("SELECT min(seq) FROM crm.consumer_read('billing')")
        .await;
    assert!(next > 2);
    copy.exec("SELECT crm._event_partition_ensure(), crm._event_retain()")
        .await;
    let parts = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'crm.event'::regclass";
    assert_eq!(
        copy.one::<i64>(parts).await,
        pair.db.one::<i64>(parts).await
    );
}
