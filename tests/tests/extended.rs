//! Mirrors that users have extended by indexes, constraints, columns and triggers:
//! what events change in them is as if an UPDATE had done it.

use crm_tests::{PATIENCE, Pair, PairOptions, Person};
use serde_json::json;

/// Gives the first people a title and a town in HubSpot, and waits for both mirrors.
async fn moved(pair: &Pair, people: &[Person], title: &str) {
    for (n, who) in people.iter().enumerate() {
        let fields = json!({"jobtitle": title, "city": format!("Town {n} of {title}")});
        pair.emulator
            .edit("hubspot", "contacts", &who.hubspot, fields);
    }
    for who in people {
        pair.reaches_both(who, "jobtitle", title).await;
    }
    pair.agree().await;
}

async fn count(pair: &Pair, sql: &str) -> i64 {
    pair.db.one(&format!("SELECT count(*) FROM {sql}")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_events_change_are_found_by_users_indexes() {
    let (pair, people) = Pair::linked(12, PairOptions::default()).await;
    let few = &people[..8];
    moved(&pair, few, "Before").await;
    pair.db
        .exec(
            "CREATE INDEX by_title ON hubspot.contacts (lower(jobtitle));
             CREATE INDEX by_town ON hubspot.contacts (city) WHERE jobtitle = 'After';
             CREATE INDEX by_stamp ON hubspot.contacts USING brin (_remote_modified_at);
             CREATE UNIQUE INDEX one_town ON salesforce.contact (title, mailingcity)",
        )
        .await;
    moved(&pair, few, "After").await;
    pair.db
        .exec("SET enable_seqscan = off; SET enable_bitmapscan = off")
        .await;
    for (title, there) in [("after", 8), ("before", 0)] {
        let found = format!("hubspot.contacts WHERE lower(jobtitle) = '{title}'");
        assert_eq!(count(&pair, &found).await, there, "{title}");
    }
    for n in 0..8 {
        let town = format!("'Town {n} of After'");
        let found = format!("hubspot.contacts WHERE city = {town} AND jobtitle = 'After'");
        assert_eq!(count(&pair, &found).await, 1, "{town} by the partial index");
        let found = format!("salesforce.contact WHERE title = 'After' AND mailingcity = {town}");
        assert_eq!(count(&pair, &found).await, 1, "{town} by the unique index");
    }
    pair.db
        .exec("SET enable_indexscan = off; SET enable_bitmapscan = on")
        .await;
    let found = "hubspot.contacts WHERE _remote_modified_at > now() - interval '1 hour' AND jobtitle = 'After'";
    assert_eq!(count(&pair, found).await, 8, "by the summary of its pages");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unique_index_of_users_parks_the_event_that_breaks_it_and_takes_the_others() {
    let (pair, people) = Pair::linked(12, PairOptions::default()).await;
    moved(&pair, &people[..6], "Before").await;
    pair.db
        .exec("CREATE UNIQUE INDEX one_town ON hubspot.contacts (city) WHERE jobtitle IN ('Before', 'After')")
        .await;
    let taken = json!({"city": "Town 1 of Before"});
    pair.emulator
        .edit("hubspot", "contacts", &people[0].hubspot, taken);
    for who in &people[2..6] {
        pair.edit("hubspot", who, "jobtitle", "After");
    }
    for who in &people[2..6] {
        pair.reaches_both(who, "jobtitle", "After").await;
    }
    let parked = "SELECT count(*) > 0 FROM crm.dead_letter WHERE direction = 'in' AND error LIKE '%one_town%'";
    pair.db.wait_true("it is parked", PATIENCE, parked).await;
    pair.db
        .exec("DROP INDEX hubspot.one_town; SELECT crm.dead_letter_retry(direction => 'in')")
        .await;
    pair.reaches_both(&people[0], "city", "Town 1 of Before")
        .await;
    pair.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn generated_columns_and_triggers_of_users_see_what_events_change() {
    let (pair, people) = Pair::linked(12, PairOptions::default()).await;
    let few = &people[..6];
    let generated = "ALTER TABLE hubspot.contacts ADD COLUMN shout text GENERATED ALWAYS AS (upper(jobtitle)) STORED";
    pair.db.exec(generated).await;
    moved(&pair, few, "Heard").await;
    let loud = "hubspot.contacts WHERE jobtitle = 'Heard' AND shout = 'HEARD'";
    assert_eq!(count(&pair, loud).await, 6);
    pair.db
        .exec(
            "ALTER TABLE hubspot.contacts DROP COLUMN shout;
             CREATE TABLE public.noted (title text);
             CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS
             $$BEGIN INSERT INTO public.noted SELECT DISTINCT jobtitle FROM news; RETURN NULL; END$$;
             CREATE TRIGGER note AFTER UPDATE ON hubspot.contacts REFERENCING NEW TABLE AS news
             FOR EACH STATEMENT EXECUTE FUNCTION public.note()",
        )
        .await;
    moved(&pair, few, "Noted").await;
    assert!(count(&pair, "public.noted WHERE title = 'Noted'").await > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn values_of_all_types_arrive_as_they_are() {
    let (pair, people) = Pair::linked(6, PairOptions::default()).await;
    for (n, who) in people.iter().enumerate() {
        let fields = match n % 2 {
            0 => {
                json!({"Birthdate": "1969-07-20", "DoNotCall": true, "Description": "O'Hara \\ 100 %"})
            }
            _ => json!({"Birthdate": null, "HasOptedOutOfEmail": true, "Description": null}),
        };
        pair.emulator
            .edit("salesforce", "Contact", &who.salesforce, fields);
        let there = match n % 2 {
            0 => {
                "birthdate = '1969-07-20' AND donotcall AND description = E'O''Hara \\\\ 100 %' AND _sync_source = 'salesforce'"
            }
            _ => "birthdate IS NULL AND hasoptedoutofemail AND description IS NULL",
        };
        let sql = format!(
            "SELECT EXISTS (SELECT FROM salesforce.contact WHERE id = '{}' AND {there})",
            who.salesforce
        );
        pair.db
            .wait_true("the values are there", PATIENCE, &sql)
            .await;
    }
    pair.agree().await;
}
