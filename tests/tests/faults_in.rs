//! Streams that misbehave, and events that the database cannot take.

use crm_tests::{Options, PATIENCE, Pair, PairOptions, Person};
use serde_json::{Value, json};

async fn pair() -> (Pair, Vec<Person>) {
    let options = PairOptions {
        cluster: Options::default().setting("pg_crm_sync.request_timeout", "2s"),
        ..PairOptions::default()
    };
    let (pair, people) = Pair::linked(30, options).await;
    pair.db
        .exec("UPDATE crm.mirror SET poll_interval = '1 second'")
        .await;
    (pair, people)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_replay_position_loses_no_change() {
    let (pair, people) = pair().await;
    pair.edit("salesforce", &people[0], "jobtitle", "Before");
    pair.reaches_both(&people[0], "jobtitle", "Before").await;
    pair.db
        .exec("SELECT crm.pause('mirror', 'salesforce.contact')")
        .await;
    for who in &people[..5] {
        pair.edit("salesforce", who, "jobtitle", "While away");
    }
    let new = json!({"Email": "away@example.net", "FirstName": "A", "LastName": "Way"});
    pair.emulator.create("salesforce", "Contact", new);
    pair.emulator
        .delete("salesforce", "Contact", &people[6].salesforce);
    pair.emulator.admin(
        "POST",
        "/_admin/salesforce/expire-replay-ids",
        Some(&json!({})),
    );
    pair.db
        .exec("SELECT crm.resume('mirror', 'salesforce.contact')")
        .await;
    for who in &people[..5] {
        pair.reaches_both(who, "jobtitle", "While away").await;
    }
    let there = "SELECT count(*) = 1 FROM hubspot.contacts WHERE email = 'away@example.net' AND id IS NOT NULL";
    pair.db
        .wait_true("the new record goes across", PATIENCE, there)
        .await;
    pair.agree().await;
    pair.edit("salesforce", &people[0], "jobtitle", "After");
    pair.reaches_both(&people[0], "jobtitle", "After").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_that_fail_after_an_event_are_repeated() {
    let (pair, people) = pair().await;
    let actions: [Value; 4] = [
        json!({"reject": {"status": 503, "headers": {"Retry-After": "1"}}}),
        json!("close"),
        json!({"garbage": "html"}),
        json!({"garbage": "truncated"}),
    ];
    for action in &actions {
        for (crm, method) in [
            ("hubspot", "POST"),
            ("hubspot", "GET"),
            ("salesforce", "GET"),
        ] {
            let path = if crm == "hubspot" {
                "/crm/"
            } else {
                "/services/data/"
            };
            let rule = json!({"crm": crm, "method": method, "path_prefix": path, "remaining": 2, "action": action});
            pair.emulator.fault(rule);
        }
    }
    let body =
        json!({"object": "contacts", "winner": people[0].hubspot, "loser": people[1].hubspot});
    pair.emulator
        .admin("POST", "/_admin/hubspot/merge", Some(&body));
    let body =
        json!({"object": "Contact", "changeType": "GAP_UPDATE", "ids": [people[2].salesforce]});
    pair.emulator.fault(json!({"stream": "cdc", "lose": 1}));
    pair.edit("salesforce", &people[2], "jobtitle", "In the gap");
    pair.emulator
        .admin("POST", "/_admin/salesforce/gap", Some(&body));
    let new = json!({"email": "born@example.net", "firstname": "B", "lastname": "Orn"});
    pair.emulator.create("hubspot", "contacts", new);
    pair.reaches_both(&people[2], "jobtitle", "In the gap")
        .await;
    let there = "SELECT count(*) = 1 FROM salesforce.contact WHERE email = 'born@example.net' AND id IS NOT NULL";
    pair.db
        .wait_true("the new record goes across", PATIENCE, there)
        .await;
    pair.emulator.clear_faults();
    pair.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poison_event_is_parked_and_the_stream_goes_on() {
    let (pair, people) = pair().await;
    pair.db
        .exec(
            "ALTER TABLE salesforce.contact ADD CONSTRAINT taste CHECK (title <> 'poison');
             CREATE FUNCTION taste() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN IF new.jobtitle = 'poison' THEN RAISE 'against taste' USING ERRCODE = 'P0815'; END IF; RETURN new; END $$;
             CREATE TRIGGER taste BEFORE UPDATE ON hubspot.contacts FOR EACH ROW EXECUTE FUNCTION taste()",
        )
        .await;
    for (crm, from) in [("hubspot", 0), ("salesforce", 10)] {
        for (n, who) in people[from..from + 10].iter().enumerate() {
            let value = if n == 4 { "poison" } else { "food" };
            pair.edit(crm, who, "jobtitle", value);
        }
        for (n, who) in people[from..from + 10].iter().enumerate() {
            if n != 4 {
                pair.reaches_both(who, "jobtitle", "food").await;
            }
        }
    }
    let parked = "SELECT count(DISTINCT record_id) = 2 FROM crm.dead_letter WHERE direction = 'in' AND error LIKE '%taste%' AND advice <> ''";
    pair.db.wait_true("both are parked", PATIENCE, parked).await;
    let codes = "SELECT DISTINCT code FROM crm.dead_letter WHERE direction = 'in' ORDER BY 1";
    let codes = pair.db.table(codes).await.concat();
    assert_eq!(codes, ["P0815"], "users' own codes are told too");
    // Polls see the same records: they too must go on past them.
    pair.emulator
        .fault(json!({"stream": "webhook", "lose": 1000}));
    pair.edit("hubspot", &people[0], "city", "Polled past it");
    pair.reaches_both(&people[0], "city", "Polled past it")
        .await;
    pair.emulator.clear_faults();

    pair.db
        .exec(
            "ALTER TABLE salesforce.contact DROP CONSTRAINT taste; DROP TRIGGER taste ON hubspot.contacts;
             SELECT crm.dead_letter_retry(direction => 'in')",
        )
        .await;
    for who in [&people[4], &people[14]] {
        pair.reaches_both(who, "jobtitle", "poison").await;
    }
    pair.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crm_that_is_away_for_a_while_gets_everything_when_it_is_back() {
    let (pair, people) = pair().await;
    pair.emulator.signal("STOP");
    for (n, who) in people[..10].iter().enumerate() {
        pair.sql(who, "city", &format!("Away {n}")).await;
    }
    pair.db
        .exec("INSERT INTO hubspot.contacts (email, firstname, lastname) VALUES ('away@example.net', 'A', 'Way')")
        .await;
    let tried = "SELECT count(*) > 0 FROM crm.write WHERE attempts > 0 AND error IS NOT NULL";
    pair.db
        .wait_true("a call has failed", PATIENCE, tried)
        .await;
    pair.emulator.signal("CONT");
    for (n, who) in people[..10].iter().enumerate() {
        pair.reaches_both(who, "city", &format!("Away {n}")).await;
    }
    let made = "SELECT count(*) = 1 FROM hubspot.contacts h JOIN salesforce.contact s USING (email)
                WHERE email = 'away@example.net' AND h.id IS NOT NULL AND s.id IS NOT NULL";
    pair.db
        .wait_true("the new one exists once", PATIENCE, made)
        .await;
    pair.agree().await;
}
