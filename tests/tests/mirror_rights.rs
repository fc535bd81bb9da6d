//! What users attach to a mirror runs with the rights of its owner, never with the worker's, and its errors stop one
//! event, not the stream.

use crm_tests::{Options, PATIENCE, Pair, PairOptions, Person};
use serde_json::json;

async fn pair() -> (Pair, Vec<Person>) {
    let (pair, people) = Pair::linked(12, PairOptions::default()).await;
    pair.agree().await;
    (pair, people)
}

/// An edit of somebody's HubSpot record arrives in the mirror.
async fn arrives(pair: &Pair, who: &Person, value: &str) {
    pair.edit("hubspot", who, "jobtitle", value);
    let sql = format!(
        "SELECT jobtitle = '{value}' FROM hubspot.contacts WHERE id = '{}'",
        who.hubspot
    );
    pair.db
        .wait_true(&format!("the mirror shows {value}"), PATIENCE, &sql)
        .await;
}

/// The row of the dead letters about somebody's record, once it is there.
async fn dead_letter(pair: &Pair, who: &Person) -> Vec<String> {
    let of = format!("direction = 'in' AND record_id = '{}'", who.hubspot);
    pair.db
        .wait_true(
            "the event is parked",
            PATIENCE,
            &format!("SELECT count(*) > 0 FROM crm.dead_letter WHERE {of}"),
        )
        .await;
    let sql = format!("SELECT code, error, advice FROM crm.dead_letter WHERE {of} LIMIT 1");
    pair.db.table(&sql).await.remove(0)
}

/// Hands the HubSpot mirror to a role without any rights besides.
const OWNED: &str = "
    CREATE ROLE app_owner NOLOGIN; GRANT USAGE, CREATE ON SCHEMA hubspot TO app_owner;
    ALTER TABLE hubspot.contacts OWNER TO app_owner;
    CREATE TABLE hubspot.seen (what text, who name, session name, super boolean);
    ALTER TABLE hubspot.seen OWNER TO app_owner;
    CREATE FUNCTION hubspot.note() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO hubspot.seen SELECT TG_NAME, current_user, session_user, (SELECT rolsuper FROM pg_roles WHERE rolname = session_user);
        RETURN NEW;
    END $$;
    CREATE FUNCTION hubspot.checked(title text) RETURNS boolean LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO hubspot.seen VALUES ('check', current_user, session_user, (SELECT rolsuper FROM pg_roles WHERE rolname = session_user));
        RETURN true;
    END $$;
    SET ROLE app_owner;
    CREATE TRIGGER before_row BEFORE UPDATE ON hubspot.contacts FOR EACH ROW EXECUTE FUNCTION hubspot.note();
    CREATE TRIGGER after_row AFTER UPDATE ON hubspot.contacts FOR EACH ROW EXECUTE FUNCTION hubspot.note();
    CREATE CONSTRAINT TRIGGER deferred AFTER UPDATE ON hubspot.contacts DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION hubspot.note();
    ALTER TABLE hubspot.contacts ADD CONSTRAINT ok CHECK (hubspot.checked(jobtitle));
    RESET ROLE;
    TRUNCATE hubspot.seen";

#[tokio::test(flavor = "multi_thread")]
async fn triggers_and_checks_of_a_mirror_run_with_its_owners_rights() {
    let (pair, people) = pair().await;
    pair.db.exec(OWNED).await;
    arrives(&pair, &people[0], "Seen by triggers").await;
    let seen = pair
        .db
        .table("SELECT DISTINCT what, who, session, super FROM hubspot.seen ORDER BY 1")
        .await;
    let by_owner = |what: &str| [what, "app_owner", "crm_worker", "f"].map(str::to_owned);
    let expected = ["after_row", "before_row", "check", "deferred"].map(by_owner);
    assert_eq!(seen, expected);
    let dead: i64 = pair.db.one("SELECT count(*) FROM crm.dead_letter").await;
    assert_eq!(dead, 0);
    pair.reaches_both(&people[0], "jobtitle", "Seen by triggers")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_that_reaches_for_other_rights_is_a_dead_letter() {
    let (pair, people) = pair().await;
    pair.db.exec(OWNED).await;
    for (who, attempt) in people.iter().zip([
        "ALTER ROLE app_owner SUPERUSER",
        "RESET SESSION AUTHORIZATION",
        "SET SESSION AUTHORIZATION postgres",
        "SET ROLE crm_worker",
        "UPDATE crm.installation SET activation = 'mine'",
    ]) {
        pair.db
            .exec(&format!(
                "CREATE OR REPLACE FUNCTION hubspot.note() RETURNS trigger LANGUAGE plpgsql AS $f$
                 BEGIN IF NEW.jobtitle = 'Attack' THEN {attempt}; END IF; RETURN NEW; END $f$"
            ))
            .await;
        pair.edit("hubspot", who, "jobtitle", "Attack");
        let letter = dead_letter(&pair, who).await;
        assert_eq!(letter[0], "42501", "{attempt}: {letter:?}");
    }
    let rights =
        "SELECT bool_or(rolsuper) FROM pg_roles WHERE rolname IN ('app_owner', 'crm_worker')";
    assert!(!pair.db.one::<bool>(rights).await);
    arrives(&pair, people.last().expect("people"), "Harmless").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_constraint_or_trigger_refuses_is_parked_and_the_stream_goes_on() {
    let (pair, people) = pair().await;
    pair.db
        .exec(
            "ALTER TABLE hubspot.contacts ADD CONSTRAINT sober CHECK (jobtitle <> 'Refused by check') NOT VALID;
             CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN RAISE EXCEPTION 'not this one'; END $$;
             CREATE TRIGGER refuse BEFORE UPDATE ON hubspot.contacts FOR EACH ROW
             WHEN (NEW.jobtitle = 'Refused by trigger') EXECUTE FUNCTION public.refuse()",
        )
        .await;
    pair.edit("hubspot", &people[0], "jobtitle", "Refused by check");
    pair.edit("hubspot", &people[1], "jobtitle", "Refused by trigger");
    for (who, title) in people[2..].iter().zip(["A", "B", "C", "D"]) {
        pair.edit("hubspot", who, "jobtitle", title);
    }
    for (who, title) in people[2..].iter().zip(["A", "B", "C", "D"]) {
        pair.reaches_both(who, "jobtitle", title).await;
    }
    let letter = dead_letter(&pair, &people[0]).await;
    assert_eq!(letter[0], "23514");
    assert!(letter[1].contains("sober"), "{letter:?}");
    assert!(letter[2].len() > 20, "advice: {letter:?}");
    let letter = dead_letter(&pair, &people[1]).await;
    assert_eq!((&*letter[0], &*letter[1]), ("P0001", "not this one"));

    pair.db
        .exec(
            "ALTER TABLE hubspot.contacts DROP CONSTRAINT sober; DROP TRIGGER refuse ON hubspot.contacts;
             SELECT crm.dead_letter_retry(direction => 'in')",
        )
        .await;
    pair.reaches_both(&people[0], "jobtitle", "Refused by check")
        .await;
    pair.reaches_both(&people[1], "jobtitle", "Refused by trigger")
        .await;
    pair.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_trigger_writes_to_another_mirror_is_a_users_change() {
    let (pair, people) = pair().await;
    // Department belongs to no link: only capture can bring it to Salesforce.
    pair.db
        .exec(
            "CREATE FUNCTION public.follow() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN UPDATE salesforce.contact SET department = 'Dept of ' || NEW.jobtitle WHERE email = NEW.email; RETURN NULL; END $$;
             CREATE TRIGGER follow AFTER UPDATE OF jobtitle ON hubspot.contacts FOR EACH ROW
             WHEN (OLD.jobtitle IS DISTINCT FROM NEW.jobtitle) EXECUTE FUNCTION public.follow()",
        )
        .await;
    let who = &people[0];
    pair.edit("hubspot", who, "jobtitle", "Clerk");
    pair.reaches(
        "salesforce",
        "Contact",
        &who.salesforce,
        "Department",
        "Dept of Clerk",
    )
    .await;
    pair.reaches_both(who, "jobtitle", "Clerk").await;
    let origin: String = pair
        .db
        .one("SELECT DISTINCT origin FROM crm.event WHERE source = 'sql' AND 'Department' = ANY (fields)")
        .await;
    assert_eq!(origin, "local");
    let actor: String = pair
        .db
        .one("SELECT DISTINCT actor FROM crm.event WHERE source = 'sql' AND 'Department' = ANY (fields)")
        .await;
    assert!(actor.starts_with("crm_worker"), "{actor}");
    pair.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn row_security_of_a_mirror_hides_rows_from_users_and_none_from_the_worker() {
    let (pair, people) = pair().await;
    pair.db.exec(OWNED).await;
    pair.db
        .exec(
            "ALTER TABLE hubspot.contacts ENABLE ROW LEVEL SECURITY;
             CREATE ROLE clerk LOGIN; GRANT USAGE ON SCHEMA hubspot TO clerk; GRANT ALL ON hubspot.contacts TO clerk;
             CREATE POLICY leeds ON hubspot.contacts TO clerk USING (city = 'Clerkenwell');
             GRANT INSERT ON hubspot.seen TO clerk",
        )
        .await;
    arrives(&pair, &people[0], "Unseen by the clerk").await;
    let clerk = pair.cluster.connect_as("clerk", "app").await;
    let sees = "SELECT count(*) FROM hubspot.contacts";
    assert_eq!(clerk.one::<i64>(sees).await, 0);
    pair.edit("hubspot", &people[0], "city", "Clerkenwell");
    clerk
        .wait_true(
            "the clerk sees who moved to Clerkenwell",
            PATIENCE,
            "SELECT count(*) = 1 FROM hubspot.contacts",
        )
        .await;
    // The clerk's own change goes out, and a person whom the policy hides is still matched, not created again.
    clerk
        .exec("UPDATE hubspot.contacts SET phone = '+44 113 1'")
        .await;
    pair.reaches_both(&people[0], "phone", "+44 113 1").await;
    let before = pair.live("hubspot", "contacts");
    let alone = "SELECT h.email FROM hubspot.contacts h WHERE h.id IS NOT NULL AND NOT EXISTS (SELECT FROM salesforce.contact s WHERE lower(s.email) = lower(h.email)) LIMIT 1";
    let email: String = pair.db.one(alone).await;
    let fields = json!({"Email": email, "LastName": "Known"});
    pair.emulator.create("salesforce", "Contact", fields);
    let tied = format!(
        "SELECT count(*) = 2 FROM crm.xref a JOIN crm.xref b ON b.entity = a.entity JOIN hubspot.contacts h ON h._id = a.row_id
         WHERE a.mirror = (SELECT id FROM crm.mirror WHERE server = 'hubspot') AND h.email = '{email}'"
    );
    pair.db
        .wait_true("the hidden person is matched", PATIENCE, &tied)
        .await;
    pair.quiet().await;
    assert_eq!(pair.live("hubspot", "contacts"), before, "no duplicate");
}

/// The answer to a create is recorded by an UPDATE of the row, and a table may refuse that too.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_a_table_refuses_holds_nothing_else_up() {
    let (pair, people) = pair().await;
    let before = pair.live("hubspot", "contacts");
    pair.db
        .exec(
            "CREATE FUNCTION public.sealed() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN RAISE EXCEPTION 'the row is sealed'; END $$;
             CREATE TRIGGER sealed BEFORE UPDATE ON hubspot.contacts FOR EACH ROW
             WHEN (OLD.email LIKE 'sealed%') EXECUTE FUNCTION public.sealed();
             INSERT INTO hubspot.contacts (email, lastname) SELECT p || '@example.net', 'New' FROM unnest('{sealed1,open,sealed2}'::text[]) p",
        )
        .await;
    let told = "SELECT count(*) = 2 FROM crm.outbox WHERE kind = 'create' AND state = 'unknown' AND error LIKE '%the row is sealed%'";
    pair.db
        .wait_true("the outbox says what refuses the answers", PATIENCE, told)
        .await;
    let open = "SELECT id IS NOT NULL FROM hubspot.contacts WHERE email = 'open@example.net'";
    pair.db
        .wait_true("what was created with them is recorded", PATIENCE, open)
        .await;
    arrives(&pair, &people[0], "Not held up").await;
    pair.sql(&people[1], "jobtitle", "Nor this").await;
    pair.reaches_both(&people[1], "jobtitle", "Nor this").await;

    pair.db
        .exec("DROP TRIGGER sealed ON hubspot.contacts")
        .await;
    let made =
        "SELECT count(*) = 3 FROM hubspot.contacts WHERE lastname = 'New' AND id IS NOT NULL";
    pair.db
        .wait_true("the rows have their records", PATIENCE, made)
        .await;
    assert_eq!(
        pair.live("hubspot", "contacts"),
        before + 3,
        "none is made twice"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_that_never_ends_is_cancelled_and_its_change_a_dead_letter() {
    let cluster = Options::default().setting("pg_crm_sync.mirror_timeout", "3s");
    let options = PairOptions {
        cluster,
        ..PairOptions::default()
    };
    let (pair, people) = Pair::linked(12, options).await;
    pair.agree().await;
    pair.db
        .exec(
            "CREATE FUNCTION public.endless() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN PERFORM pg_sleep(3600); RETURN NEW; END $$;
             CREATE TRIGGER endless BEFORE UPDATE ON hubspot.contacts FOR EACH ROW
             WHEN (NEW.jobtitle = 'Endless') EXECUTE FUNCTION public.endless()",
        )
        .await;
    pair.edit("hubspot", &people[0], "jobtitle", "Endless");
    let letter = dead_letter(&pair, &people[0]).await;
    assert_eq!(letter[0], "57014", "{letter:?}");
    arrives(&pair, &people[1], "Goes on").await;
}
