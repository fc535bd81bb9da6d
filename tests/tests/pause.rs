//! `crm.pause` stops traffic both ways and loses nothing; `crm.resume` catches up.

use std::time::Duration;

use crm_tests::{EmulatorOptions, PATIENCE, Pair, PairOptions};
use serde_json::json;

async fn pair() -> Pair {
    let emulator = EmulatorOptions::default().contacts(20);
    Pair::contacts(PairOptions {
        emulator,
        ..PairOptions::default()
    })
    .await
}

/// Writes in SQL and in the other CRM while `kind` `name` is paused: nothing arrives. Resumes: both arrive.
async fn waits_and_catches_up(kind: &str, name: &str) {
    let pair = pair().await;
    let (hubspot, salesforce) = pair.known_to_both().await;
    let title = || {
        pair.emulator
            .field("salesforce", "Contact", &salesforce, "Title")
    };
    let city = || {
        pair.emulator
            .field("salesforce", "Contact", &salesforce, "MailingCity")
    };
    let before = (title(), city());

    pair.db
        .exec(&format!("SELECT crm.pause('{kind}', '{name}')"))
        .await;
    pair.db
        .exec(&format!(
            "UPDATE hubspot.contacts SET jobtitle = 'Patient' WHERE id = '{hubspot}'"
        ))
        .await;
    pair.emulator
        .edit("hubspot", "contacts", &hubspot, json!({"city": "Bath"}));
    // The change log is emptied also while nothing may be sent: the worker had its turn.
    pair.cluster
        .wait_until("the worker took the SQL change", PATIENCE, async || {
            let taken: bool = pair.db.one("SELECT NOT EXISTS (SELECT FROM crm.change_0 UNION ALL SELECT FROM crm.change_1)").await;
            taken.then_some(())
        })
        .await;
    let quiet = tokio::time::Instant::now() + Duration::from_millis(1_500);
    while tokio::time::Instant::now() < quiet {
        assert_eq!((title(), city()), before, "{kind} {name} is paused");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    pair.db
        .exec(&format!("SELECT crm.resume('{kind}', '{name}')"))
        .await;
    pair.cluster
        .wait_until("what waited is sent", PATIENCE, async || {
            (title().as_deref() == Some("Patient") && city().as_deref() == Some("Bath"))
                .then_some(())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_server_gets_nothing_until_it_is_resumed() {
    waits_and_catches_up("server", "salesforce").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_mirror_gets_nothing_until_it_is_resumed() {
    waits_and_catches_up("mirror", "salesforce.contact").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_link_passes_nothing_until_it_is_resumed() {
    waits_and_catches_up("link", "contacts").await;
}

/// From the moment `crm.pause` has run nothing is claimed, also before it commits and whether or not the worker has
/// noticed; a pause that is rolled back leaves nothing behind.
async fn is_a_barrier(kind: &str, name: &str) {
    let pair = pair().await;
    let (hubspot, salesforce) = pair.known_to_both().await;
    let title = || {
        pair.emulator
            .field("salesforce", "Contact", &salesforce, "Title")
    };
    let other = pair.cluster.connect("app").await;
    for (end, value) in [("ROLLBACK", "First"), ("COMMIT", "Second")] {
        let before = title();
        other
            .exec(&format!("BEGIN; SELECT crm.pause('{kind}', '{name}')"))
            .await;
        pair.db
            .exec(&format!(
                "UPDATE hubspot.contacts SET jobtitle = '{value}' WHERE id = '{hubspot}'"
            ))
            .await;
        let waits = format!(
            "SELECT count(*) = 1 FROM crm.write WHERE vals ->> 'Title' = '{value}' AND state = 'queued'"
        );
        pair.db.wait_true("the write waits", PATIENCE, &waits).await;
        let still = async || {
            let quiet = tokio::time::Instant::now() + Duration::from_millis(1_000);
            while tokio::time::Instant::now() < quiet {
                assert!(pair.db.one::<bool>(&waits).await, "{kind} {name}");
                assert_eq!(title(), before, "{kind} {name} is being paused");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        still().await;
        other.exec(end).await;
        if end == "COMMIT" {
            still().await;
            pair.db
                .exec(&format!("SELECT crm.resume('{kind}', '{name}')"))
                .await;
        }
        pair.cluster
            .wait_until("what waited is sent", PATIENCE, async || {
                (title().as_deref() == Some(value)).then_some(())
            })
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_claimed_once_a_server_is_being_paused() {
    is_a_barrier("server", "salesforce").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_claimed_once_a_mirror_is_being_paused() {
    is_a_barrier("mirror", "salesforce.contact").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_claimed_once_a_link_is_being_paused() {
    is_a_barrier("link", "contacts").await;
}
