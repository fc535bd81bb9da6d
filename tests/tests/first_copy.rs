//! The ways by which rows of a first copy come into a table: straight, or past what users have put there.

use crm_tests::{EmulatorOptions, Pair, PairOptions};

const CONTACTS: &str = "SELECT crm.import('hubspot', ARRAY['contacts'], into_schema => 'hubspot')";

/// All columns but the local key, which each copy gives anew.
const COLUMNS: &str = "SELECT string_agg(quote_ident(attname), ', ' ORDER BY attname) FROM pg_attribute
    WHERE attrelid = 'hubspot.contacts'::regclass AND attnum > 0 AND NOT attisdropped AND attname <> '_id'";

async fn count(pair: &Pair, sql: &str) -> i64 {
    pair.db.one(&format!("SELECT count(*) FROM {sql}")).await
}

/// Copies everybody anew into a table to which `extra` was done before the first row came.
async fn copied_anew(pair: &Pair, extra: &str) {
    pair.db
        .exec("SELECT crm.mirror_drop('hubspot.contacts')")
        .await;
    pair.db
        .exec(&format!("BEGIN; {CONTACTS}; {extra}; COMMIT"))
        .await;
    pair.backfilled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_copy_is_the_same_past_triggers_checks_and_indexes_of_users() {
    let pair = Pair::start(PairOptions {
        emulator: EmulatorOptions::default().contacts(700),
        ..PairOptions::default()
    })
    .await;
    pair.import("hubspot", &["contacts"]).await;
    pair.backfilled().await;
    let columns: String = pair.db.one(COLUMNS).await;
    pair.db
        .exec(&format!(
            "CREATE TABLE first AS SELECT {columns} FROM hubspot.contacts"
        ))
        .await;
    let all = count(&pair, "first WHERE email IS NOT NULL").await;
    assert!(all >= 700, "{all} people");
    let indexes = "ALTER TABLE hubspot.contacts ADD CHECK (email <> 'nobody');
                   CREATE INDEX by_email ON hubspot.contacts (lower(email));
                   CREATE INDEX by_town ON hubspot.contacts (city) WHERE email IS NOT NULL";
    let trigger = "CREATE TABLE seen (id text, email text);
                   CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
                   $$BEGIN INSERT INTO public.seen VALUES (NEW.id, NEW.email); RETURN NULL; END$$;
                   CREATE TRIGGER note AFTER INSERT ON hubspot.contacts FOR EACH ROW EXECUTE FUNCTION note()";
    let default = "ALTER TABLE hubspot.contacts ADD COLUMN mine text DEFAULT 'as always'";
    for extra in [indexes, trigger, default] {
        copied_anew(&pair, extra).await;
        let differ = format!(
            "((SELECT {columns} FROM hubspot.contacts EXCEPT SELECT * FROM first)
              UNION ALL (SELECT * FROM first EXCEPT SELECT {columns} FROM hubspot.contacts)) d"
        );
        assert_eq!(count(&pair, &differ).await, 0, "after {extra}");
        let own = "hubspot.contacts c GROUP BY _id HAVING count(*) > 1 OR _id IS NULL";
        assert_eq!(
            pair.db.table(&format!("SELECT _id FROM {own}")).await.len(),
            0
        );
    }
    // The last copy had the default, the one before the trigger, the first the indexes.
    assert_eq!(
        count(
            &pair,
            "hubspot.contacts WHERE mine = 'as always' AND email IS NOT NULL"
        )
        .await,
        all
    );
    assert_eq!(count(&pair, "seen WHERE email IS NOT NULL").await, all);
    copied_anew(&pair, indexes).await;
    pair.db
        .exec("SET enable_seqscan = off; SET enable_bitmapscan = off")
        .await;
    let found = "first f JOIN LATERAL (SELECT FROM hubspot.contacts c WHERE lower(c.email) = lower(f.email)) c ON true";
    assert!(
        count(&pair, found).await >= all,
        "the index knows everybody"
    );
    let found = "first f WHERE EXISTS (SELECT FROM hubspot.contacts c WHERE c.city = f.city AND c.email IS NOT NULL)";
    let towns = count(&pair, "first WHERE city IS NOT NULL AND email IS NOT NULL").await;
    assert!(count(&pair, found).await >= towns, "the partial index too");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_that_refuses_a_record_parks_it_and_lets_the_others_in() {
    let pair = Pair::start(PairOptions {
        emulator: EmulatorOptions::default().contacts(300),
        ..PairOptions::default()
    })
    .await;
    pair.import("hubspot", &["contacts"]).await;
    pair.backfilled().await;
    let before = count(&pair, "hubspot.contacts").await;
    let one: String = pair
        .db
        .one("SELECT email FROM hubspot.contacts WHERE email IS NOT NULL ORDER BY _id LIMIT 1")
        .await;
    let check =
        format!("ALTER TABLE hubspot.contacts ADD CONSTRAINT not_them CHECK (email <> '{one}')");
    copied_anew(&pair, &check).await;
    let refused = "crm.dead_letter WHERE direction = 'in' AND error LIKE '%not_them%'";
    assert_eq!(count(&pair, refused).await, 1);
    assert_eq!(count(&pair, "hubspot.contacts").await, before - 1);
}
