//! Maps that do more than copy, scopes and likeness, end to end.

use crm_tests::{PATIENCE, Pair, PairOptions, Person};
use serde_json::json;

/// Twenty people known to both sides, under a map of our own.
async fn mapped(sql: &str) -> (Pair, Vec<Person>) {
    let (pair, people) = Pair::linked(20, PairOptions::default()).await;
    pair.db.exec(sql).await;
    pair.worker_has_read().await;
    (pair, people)
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_several_share_go_over_and_come_back_as_the_chosen_one() {
    let words = r#"UPDATE crm.field_map SET value_map = '{"Head": "Chief", "Boss": "Chief", "Clerk": "Desk"}', value_map_back = '{"Chief": "Boss"}'
        WHERE left_field = 'jobtitle'"#;
    let (pair, people) = mapped(words).await;
    let (a, b) = (&people[0], &people[1]);
    let title = async |crm: &str, who: &Person, value: &str| {
        let what = format!("{crm} shows {value}");
        let shows = async || {
            let shown = pair.shows(crm, who, "jobtitle");
            (shown.as_deref() == Some(value)).then_some(())
        };
        pair.cluster.wait_until(&what, PATIENCE, shows).await;
    };
    pair.edit("hubspot", a, "jobtitle", "Head");
    title("salesforce", a, "Chief").await;
    pair.edit("salesforce", b, "jobtitle", "Chief");
    title("hubspot", b, "Boss").await;
    pair.edit("salesforce", a, "jobtitle", "Desk");
    title("hubspot", a, "Clerk").await;
    // What is not listed stays where it is, and the reason is told.
    pair.edit("hubspot", b, "jobtitle", "Jester");
    let told = "SELECT count(*) > 0 FROM crm.conflict WHERE held LIKE '%Jester%'";
    pair.db
        .wait_true("the reason is told", PATIENCE, told)
        .await;
    title("salesforce", b, "Chief").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_maps_both_ways_and_one_that_fails_or_hangs_holds_only_its_value() {
    let functions = "
        CREATE FUNCTION public.shout(v text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $f$
        BEGIN
            IF v = 'bad' THEN RAISE EXCEPTION 'no such title'; END IF;
            IF v = 'slow' THEN PERFORM pg_sleep(600); END IF;
            RETURN upper(v);
        END $f$;
        CREATE FUNCTION public.calm(v text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT pg_catalog.lower(v)';
        UPDATE crm.field_map SET to_right = 'public.shout', to_left = 'public.calm' WHERE left_field = 'jobtitle'";
    let (pair, people) = mapped(functions).await;
    pair.edit("hubspot", &people[0], "jobtitle", "poet");
    pair.edit("salesforce", &people[1], "jobtitle", "CRITIC");
    pair.edit("hubspot", &people[2], "jobtitle", "bad");
    pair.edit("hubspot", &people[3], "jobtitle", "slow");
    let arrived = async || {
        let there = pair.shows("salesforce", &people[0], "jobtitle").as_deref() == Some("POET");
        let here = pair.shows("hubspot", &people[1], "jobtitle").as_deref() == Some("critic");
        (there && here).then_some(())
    };
    pair.cluster
        .wait_until("both images arrive", PATIENCE, arrived)
        .await;
    for reason in ["%no such title%", "%statement timeout%"] {
        let told = format!("SELECT count(*) > 0 FROM crm.conflict WHERE held LIKE '{reason}'");
        pair.db.wait_true(reason, PATIENCE, &told).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_in_a_schema_that_only_their_owner_may_use_map_and_decide() {
    let functions = "
        CREATE SCHEMA rules;
        CREATE FUNCTION rules.shout(v text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT pg_catalog.upper(v)';
        CREATE FUNCTION rules.calm(v text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT pg_catalog.lower(v)';
        CREATE FUNCTION rules.both(held text, came text, context jsonb) RETURNS text STABLE LANGUAGE sql AS $$ SELECT held || '+' || came $$;
        UPDATE crm.field_map SET to_right = 'rules.shout', to_left = 'rules.calm' WHERE left_field = 'jobtitle';
        INSERT INTO crm.conflict_policy (link, field, strategy, function) VALUES ('contacts', 'city', 'function', 'rules.both')";
    let (pair, people) = mapped(functions).await;
    let shows = async |who: &Person, field: &str, value: &str| {
        let there = async || {
            let shown = pair.shows("salesforce", who, field);
            (shown.as_deref() == Some(value)).then_some(())
        };
        let what = format!("salesforce shows {value}");
        pair.cluster.wait_until(&what, PATIENCE, there).await;
    };
    pair.edit("hubspot", &people[0], "jobtitle", "poet");
    shows(&people[0], "jobtitle", "POET").await;
    let title = |value: &str| {
        format!(
            "SELECT decided_by FROM crm.explain($$UPDATE hubspot.contacts SET jobtitle = '{value}' WHERE id = '{}'$$) WHERE what = 'change'",
            people[0].hubspot
        )
    };
    assert_eq!(pair.db.one::<String>(&title("critic")).await, "one_side");
    pair.db
        .exec(&format!(
            "BEGIN; UPDATE hubspot.contacts SET city = 'Hull' WHERE id = '{}'; UPDATE salesforce.contact SET mailingcity = 'York' WHERE id = '{}'; COMMIT",
            people[1].hubspot, people[1].salesforce
        ))
        .await;
    let decided = "SELECT count(*) > 0 FROM crm.conflict WHERE field = 'city' AND held IS NULL AND strategy = 'function'";
    pair.db
        .wait_true("the function decides", PATIENCE, decided)
        .await;
    assert_eq!(
        pair.db
            .table("SELECT error FROM crm.dead_letter")
            .await
            .len(),
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_in_two_columns_is_one_with_a_field_of_full_names() {
    let names = "DELETE FROM crm.field_map WHERE left_field IN ('firstname', 'lastname', 'jobtitle');
        INSERT INTO crm.field_map (link, left_field, right_field, right_more, structure) VALUES ('contacts', 'jobtitle', 'FirstName', '{LastName}', 'words')";
    let (pair, people) = mapped(names).await;
    let (a, b) = (&people[0], &people[1]);
    pair.edit("hubspot", a, "jobtitle", "Ada King Lovelace");
    let fields = json!({"FirstName": "Mary", "LastName": "Somerville"});
    pair.emulator
        .edit("salesforce", "Contact", &b.salesforce, fields);
    let name = |who: &Person, field: &str| {
        pair.emulator
            .field("salesforce", "Contact", &who.salesforce, field)
            .unwrap_or_default()
    };
    let split = async || {
        let there = (name(a, "FirstName"), name(a, "LastName"));
        let here = pair.shows("hubspot", b, "jobtitle");
        let done = there == ("Ada King".to_owned(), "Lovelace".to_owned())
            && here.as_deref() == Some("Mary Somerville");
        done.then_some(())
    };
    pair.cluster
        .wait_until("names are split and joined", PATIENCE, split)
        .await;
    // One half by SQL: the other half stays.
    pair.db
        .exec(&format!(
            "UPDATE salesforce.contact SET lastname = 'Greig' WHERE id = '{}'",
            b.salesforce
        ))
        .await;
    let joined = async || {
        let here = pair.shows("hubspot", b, "jobtitle");
        (here.as_deref() == Some("Mary Greig")).then_some(())
    };
    pair.cluster
        .wait_until("one half reaches the whole", PATIENCE, joined)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_leaves_the_scope_stops_travelling_and_what_enters_is_made() {
    let scope =
        "UPDATE crm.link SET left_scope = 'city IS DISTINCT FROM ''Limbo''', on_leave = 'unlink'";
    let (pair, people) = mapped(scope).await;
    let who = &people[0];
    pair.sql(who, "city", "Limbo").await;
    let untied = format!(
        "SELECT NOT EXISTS (SELECT FROM crm.xref a JOIN crm.xref b ON b.entity = a.entity AND b.mirror <> a.mirror
         JOIN hubspot.contacts h ON h._id = a.row_id WHERE a.mirror = (SELECT left_mirror FROM crm.link) AND h.id = '{}')",
        who.hubspot
    );
    pair.db
        .wait_true("the pair is untied", PATIENCE, &untied)
        .await;
    pair.sql(who, "jobtitle", "Ghost").await;
    pair.quiet().await;
    assert_ne!(
        pair.shows("salesforce", who, "city").as_deref(),
        Some("Limbo")
    );
    assert_ne!(
        pair.shows("salesforce", who, "jobtitle").as_deref(),
        Some("Ghost")
    );
    let before = pair.live("salesforce", "Contact");
    pair.db
        .exec("INSERT INTO hubspot.contacts (email, lastname, city) VALUES ('limbo@example.net', 'Limbo', 'Limbo')")
        .await;
    pair.quiet().await;
    assert_eq!(
        pair.live("salesforce", "Contact"),
        before,
        "out of scope: not made"
    );
    pair.db
        .exec("UPDATE hubspot.contacts SET city = 'Bath' WHERE email = 'limbo@example.net'")
        .await;
    let made = "SELECT count(*) = 1 FROM salesforce.contact WHERE email = 'limbo@example.net' AND id IS NOT NULL";
    pair.db
        .wait_true("entering makes it there", PATIENCE, made)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_record_that_is_only_alike_is_asked_about_and_not_made() {
    let likeness = "CREATE EXTENSION pg_trgm;
        UPDATE crm.field_map SET match_order = 2, match_threshold = 0.5 WHERE left_field = 'lastname'";
    let (pair, _) = mapped(likeness).await;
    let there = json!({"LastName": "Featherstonehaugh", "FirstName": "A"});
    pair.emulator.create("salesforce", "Contact", there);
    let made = "SELECT count(*) = 1 FROM hubspot.contacts WHERE lastname = 'Featherstonehaugh' AND id IS NOT NULL";
    pair.db
        .wait_true("the first is on both sides", PATIENCE, made)
        .await;
    pair.db.exec("DELETE FROM crm.xref x USING salesforce.contact s WHERE s._id = x.row_id AND s.lastname = 'Featherstonehaugh'").await;
    let before = pair.live("salesforce", "Contact");
    let here = json!({"email": "f@example.net", "firstname": "B", "lastname": "Fetherstonehaugh"});
    pair.emulator.create("hubspot", "contacts", here);
    let asked = "SELECT count(*) > 0 FROM crm.review_item WHERE reason = 'match by likeness'";
    pair.db
        .wait_true("it is asked about", PATIENCE, asked)
        .await;
    pair.quiet().await;
    assert_eq!(
        pair.live("salesforce", "Contact"),
        before,
        "none is made meanwhile"
    );
}

/// HubSpot's two columns and Salesforce's one text of a person's address.
fn address(pair: &Pair, who: &Person) -> [String; 3] {
    let hubspot = |field: &str| {
        let value = pair
            .emulator
            .field("hubspot", "contacts", &who.hubspot, field);
        value.unwrap_or_default()
    };
    let street = pair
        .emulator
        .field("salesforce", "Contact", &who.salesforce, "MailingStreet");
    [
        hubspot("address"),
        hubspot("fax"),
        street.unwrap_or_default(),
    ]
}

async fn becomes(pair: &Pair, who: &Person, expected: [&str; 3]) {
    let what = format!("the address is {expected:?}");
    let arrived = async || (address(pair, who) == expected).then_some(());
    pair.cluster.wait_until(&what, PATIENCE, arrived).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_two_columns_is_one_with_a_street_of_lines_whichever_part_changes() {
    let lines = "UPDATE crm.field_map SET left_more = '{fax}', structure = 'lines' WHERE left_field = 'address'";
    let (pair, people) = mapped(lines).await;
    let who = &people[0];
    let street = json!({"MailingStreet": "1 High St\nFlat 2"});
    pair.emulator
        .edit("salesforce", "Contact", &who.salesforce, street);
    becomes(&pair, who, ["1 High St", "Flat 2", "1 High St\nFlat 2"]).await;
    // One part in HubSpot, the other by SQL, then the whole by SQL.
    let part = json!({"fax": "Flat 3"});
    pair.emulator
        .edit("hubspot", "contacts", &who.hubspot, part);
    becomes(&pair, who, ["1 High St", "Flat 3", "1 High St\nFlat 3"]).await;
    pair.sql(who, "address", "2 High St").await;
    becomes(&pair, who, ["2 High St", "Flat 3", "2 High St\nFlat 3"]).await;
    let whole = format!(
        "UPDATE salesforce.contact SET mailingstreet = E'3 Low Rd\\nRear\\nTop' WHERE id = '{}'",
        who.salesforce
    );
    pair.db.exec(&whole).await;
    becomes(&pair, who, ["3 Low Rd", "Rear, Top", "3 Low Rd\nRear\nTop"]).await;
    pair.quiet().await;
    // What HubSpot cannot hold as three lines stays three lines where it was written.
    becomes(&pair, who, ["3 Low Rd", "Rear, Top", "3 Low Rd\nRear\nTop"]).await;
    let none = json!({"fax": ""});
    pair.emulator
        .edit("hubspot", "contacts", &who.hubspot, none);
    becomes(&pair, who, ["3 Low Rd", "", "3 Low Rd"]).await;
    let blank = json!({"MailingStreet": null});
    pair.emulator
        .edit("salesforce", "Contact", &who.salesforce, blank);
    becomes(&pair, who, ["", "", ""]).await;
}

/// Half of one edit and half of another would be an address where nobody lives.
#[tokio::test(flavor = "multi_thread")]
async fn two_parts_of_an_address_that_change_on_both_sides_at_once_end_as_one_whole_address() {
    let lines = "UPDATE crm.field_map SET left_more = '{fax}', structure = 'lines' WHERE left_field = 'address'";
    let (pair, people) = mapped(lines).await;
    let people = &people[..4];
    for who in people {
        let street = json!({"MailingStreet": "1 High St\nFlat 2"});
        pair.emulator
            .edit("salesforce", "Contact", &who.salesforce, street);
    }
    for who in people {
        becomes(&pair, who, ["1 High St", "Flat 2", "1 High St\nFlat 2"]).await;
    }
    pair.quiet().await;
    pair.hubspot_takes_nothing();
    for who in people {
        let street = json!({"MailingStreet": "5 New Rd\nFlat 2"});
        pair.emulator
            .edit("salesforce", "Contact", &who.salesforce, street);
    }
    let queued = "SELECT count(*) >= 4 FROM crm.write WHERE vals ->> 'address' = '5 New Rd'";
    pair.db
        .wait_true("the streets are on their way", PATIENCE, queued)
        .await;
    for who in people {
        let part = json!({"fax": "Annex"});
        pair.emulator
            .edit("hubspot", "contacts", &who.hubspot, part);
    }
    let decided = "SELECT count(DISTINCT entity) = 4 FROM crm.conflict WHERE field = 'address' AND both_changed";
    pair.db
        .wait_true("each is one conflict", PATIENCE, decided)
        .await;
    pair.emulator.clear_faults();
    for who in people {
        let whole = [
            ["5 New Rd", "Flat 2", "5 New Rd\nFlat 2"],
            ["1 High St", "Annex", "1 High St\nAnnex"],
        ];
        let met = async || {
            let now = address(&pair, who);
            whole.iter().any(|w| now == *w).then_some(())
        };
        pair.cluster
            .wait_until("one whole address stands", PATIENCE, met)
            .await;
    }
    pair.quiet().await;
}
