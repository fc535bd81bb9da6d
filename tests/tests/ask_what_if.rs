//! "What if the policy had been another?": the ledger replayed, and nothing changed.

use crm_tests::{PATIENCE, Pair, PairOptions, Person};

/// Columns of the answer that do not depend on the run.
const COLUMNS: &str =
    "link, mirror, record, field, value_now, value_then, coalesce(rule::text, ''), decided_by";

async fn linked() -> (Pair, Vec<Person>) {
    let (pair, people) = Pair::linked(20, PairOptions::default()).await;
    pair.agree().await;
    (pair, people)
}

async fn what_if(pair: &Pair, draft: &str) -> Vec<String> {
    let sql =
        format!("SELECT {COLUMNS} FROM crm.what_if('{draft}') ORDER BY mirror, record, field");
    let rows = pair.db.table(&sql).await;
    rows.into_iter().map(|r| r.join("|")).collect()
}

const OWNER: &str =
    r#"[{"link": "contacts", "field": "city", "strategy": "owner", "winner": "salesforce"}]"#;

#[tokio::test(flavor = "multi_thread")]
async fn edits_that_another_policy_would_have_refused_are_listed_with_both_values() {
    let (pair, people) = linked().await;
    let (a, b, c) = (&people[0], &people[1], &people[2]);
    pair.edit("salesforce", a, "city", "Owned");
    pair.reaches_both(a, "city", "Owned").await;
    pair.agree().await;
    // Against the owner from HubSpot and from SQL; and by the owner itself.
    pair.edit("hubspot", a, "city", "Usurped");
    pair.reaches_both(a, "city", "Usurped").await;
    let had = pair.shows("hubspot", b, "city").unwrap_or_default();
    pair.sql(b, "city", "By SQL").await;
    pair.reaches_both(b, "city", "By SQL").await;
    pair.edit("salesforce", c, "city", "Rightly");
    pair.reaches_both(c, "city", "Rightly").await;
    pair.agree().await;
    let policies = "SELECT row(p.*)::text FROM crm.conflict_policy p UNION ALL SELECT row(h.*)::text FROM crm.policy_history h
        UNION ALL SELECT policy_version::text FROM crm.installation";
    let before = pair.db.table(policies).await;
    let would = what_if(&pair, OWNER).await;
    let mut wanted = Vec::new();
    for (who, now, then) in [(a, "Usurped", "Owned"), (b, "By SQL", had.as_str())] {
        let by = format!("{now}|{then}||owner (draft)");
        wanted.push(format!(
            "contacts|hubspot.contacts|{}|city|{by}",
            who.hubspot
        ));
        wanted.push(format!(
            "contacts|salesforce.contact|{}|MailingCity|{by}",
            who.salesforce
        ));
    }
    wanted.sort();
    let mut sorted = would.clone();
    sorted.sort();
    assert_eq!(sorted, wanted);
    assert_eq!(pair.db.table(policies).await, before);
    // The event that decides is the one that was against the owner.
    let told = format!(
        "SELECT count(*) FROM crm.what_if('{OWNER}') w JOIN crm.event e USING (seq) WHERE e.new_values::text LIKE '%' || w.value_now || '%'"
    );
    assert_eq!(pair.db.one::<i64>(&told).await, 4);
    // Nothing of this happened after now.
    let later = format!("SELECT count(*) FROM crm.what_if('{OWNER}', since => clock_timestamp())");
    assert_eq!(pair.db.one::<i64>(&later).await, 0);
    // A policy that decides conflicts only would have changed nothing.
    let same = OWNER.replace("owner", "priority");
    assert_eq!(what_if(&pair, &same).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_that_was_not_sure_enough_for_the_draft_is_listed_and_the_rest_is_not() {
    let (pair, people) = linked().await;
    let (a, b) = (&people[0], &people[1]);
    let had = pair.shows("hubspot", b, "city").unwrap_or_default();
    for (who, city, score) in [(a, "Sure", 0.9), (b, "Guess", 0.6)] {
        let update = Pair::update(who, "city", city);
        pair.db
            .exec(&format!(
                "BEGIN; SET LOCAL pg_crm_sync.score = {score}; {update}; COMMIT"
            ))
            .await;
        pair.reaches_both(who, "city", city).await;
    }
    pair.agree().await;
    let draft = r#"[{"link": "contacts", "field": "city", "strategy": "last_write_wins", "min_score": 0.8}]"#;
    let by = format!("Guess|{had}||score (draft)");
    let wanted = [
        format!("contacts|hubspot.contacts|{}|city|{by}", b.hubspot),
        format!(
            "contacts|salesforce.contact|{}|MailingCity|{by}",
            b.salesforce
        ),
    ];
    assert_eq!(what_if(&pair, draft).await, wanted);
    let kept =
        "SELECT array_agg(score::text ORDER BY seq)::text FROM crm.event WHERE score IS NOT NULL";
    assert_eq!(pair.db.one::<String>(kept).await, "{0.9,0.6}");
}

/// A Painter in HubSpot and a Poet in Salesforce; who won.
async fn painter_and_poet(pair: &Pair, who: &Person) -> String {
    pair.db.exec("SELECT crm.pause('link', 'contacts')").await;
    pair.worker_has_read().await;
    pair.edit("hubspot", who, "jobtitle", "Painter");
    pair.edit("salesforce", who, "jobtitle", "Poet");
    pair.events_reach("webhook", 1).await;
    pair.db.exec("SELECT crm.resume('link', 'contacts')").await;
    let conflict = "SELECT count(*) > 0 FROM crm.conflict WHERE field = 'jobtitle'";
    pair.db
        .wait_true("the conflict is decided", PATIENCE, conflict)
        .await;
    pair.agree().await;
    pair.shows("hubspot", who, "jobtitle").unwrap_or_default()
}

/// The function asked is that of the draft, which stands in no row.
#[tokio::test(flavor = "multi_thread")]
async fn a_draft_may_name_a_function_or_a_lock() {
    let (pair, people) = linked().await;
    let (who, other) = (&people[0], &people[1]);
    painter_and_poet(&pair, who).await;
    pair.db
        .exec(
            "CREATE FUNCTION public.both(held text, came text, context jsonb) RETURNS text STABLE LANGUAGE sql
             AS $$ SELECT concat_ws(' and ', least(held, came), greatest(held, came), context ->> 'field') $$",
        )
        .await;
    let draft = r#"{"link": "contacts", "field": "jobtitle", "strategy": "function", "function": "public.both"}"#;
    let would = what_if(&pair, draft).await;
    assert_eq!(would.len(), 2, "{would:#?}");
    assert!(
        would
            .iter()
            .all(|l| l.ends_with("|Painter and Poet and jobtitle||function (draft)")),
        "{would:#?}"
    );
    let had = pair.shows("hubspot", other, "city").unwrap_or_default();
    pair.edit("hubspot", other, "city", "Ours");
    pair.reaches_both(other, "city", "Ours").await;
    pair.agree().await;
    let lock = r#"{"link": "contacts", "field": "city", "origin": "salesforce"}"#;
    let would = what_if(&pair, lock).await;
    assert_eq!(would.len(), 2, "{would:#?}");
    assert!(
        would
            .iter()
            .all(|l| l.ends_with(&format!("|Ours|{had}||field_lock"))),
        "{would:#?}"
    );
    let locks: i64 = pair.db.one("SELECT count(*) FROM crm.field_lock").await;
    assert_eq!(locks, 0);
    for (draft, code) in [
        (lock.replace("salesforce", "nobody"), "22023"),
        (lock.replace("\"salesforce\"", "null"), "42704"),
        (lock.replace('}', ", \"winner\": \"local\"}"), "22023"),
    ] {
        let sql = format!("SELECT * FROM crm.what_if('{draft}')");
        assert_eq!(pair.db.error(&sql).await.code().code(), code, "{draft}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_would_have_had_another_winner_or_none() {
    let (pair, people) = linked().await;
    let who = &people[0];
    let won = painter_and_poet(&pair, who).await;
    let (winner, lost) = if won == "Poet" {
        ("hubspot", "Painter")
    } else {
        ("salesforce", "Poet")
    };
    let draft = format!(
        r#"{{"link": "contacts", "field": "jobtitle", "strategy": "priority", "winner": "{winner}"}}"#
    );
    let would = what_if(&pair, &draft).await;
    assert_eq!(would.len(), 2, "{would:#?}");
    assert!(
        would
            .iter()
            .all(|l| l.contains(&format!("|{won}|{lost}||priority (draft)"))),
        "{would:#?}"
    );
    let draft = r#"{"link": "contacts", "field": "jobtitle", "strategy": "review"}"#;
    let would = what_if(&pair, draft).await;
    assert_eq!(would.len(), 1, "{would:#?}");
    assert!(
        would[0].contains(&format!("|{won}|{lost}||review: a person would be asked")),
        "{would:#?}"
    );
}

/// Taken away at the end of a transaction it was refused, in a rehearsal nothing was said.
#[tokio::test(flavor = "multi_thread")]
async fn a_draft_cannot_take_the_default_away_but_may_replace_it() {
    let (pair, _people) = linked().await;
    for draft in [
        r#"{"link": "contacts"}"#,
        r#"{"link": "contacts", "strategy": null}"#,
    ] {
        for call in ["crm.what_if(", "crm.explain(policy => "] {
            let sql = format!("SELECT * FROM {call}'{draft}')");
            let error = pair.db.error(&sql).await;
            assert_eq!(error.code().code(), "23502", "{sql}");
            assert!(error.message().contains("no default policy"), "{error:?}");
        }
    }
    let replaced = r#"[{"link": "contacts"}, {"link": "contacts", "strategy": "review"}]"#;
    pair.db
        .exec(&format!("SELECT * FROM crm.what_if('{replaced}')"))
        .await;
    // The check of real rows is as late as before.
    pair.db
        .exec(&format!(
            "BEGIN; SELECT * FROM crm.what_if('{replaced}');
             CREATE TEMPORARY TABLE was ON COMMIT DROP AS SELECT link, field, strategy FROM crm.conflict_policy WHERE link = 'contacts' AND field = '*';
             DELETE FROM crm.conflict_policy WHERE link = 'contacts' AND field = '*';
             INSERT INTO crm.conflict_policy (link, field, strategy) SELECT link, field, strategy FROM was; COMMIT"
        ))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn drafts_are_checked_like_policies_and_only_an_admin_may_ask() {
    let (pair, _people) = linked().await;
    for (call, code, words) in [
        ("'[]'", "22023", "for example"),
        ("'3'", "22023", "for example"),
        ("NULL", "22023", "for example"),
        (
            r#"'{"link": "contact", "strategy": "review"}'"#,
            "42704",
            "did you mean contacts",
        ),
        (
            r#"'{"link": "contacts", "feild": "phone"}'"#,
            "42703",
            "did you mean field",
        ),
        (r#"'{"strategy": "review"}'"#, "22004", "crm.link"),
        (
            r#"'{"link": "contacts", "field": "phon", "strategy": "review"}'"#,
            "42703",
            "did you mean phone",
        ),
        (
            r#"'{"link": "contacts", "field": "phone", "strategy": "owner"}'"#,
            "22023",
            "for example",
        ),
        (
            r#"'{"link": "contacts", "field": "phone", "strategy": null}'"#,
            "42704",
            "crm.conflict_policy",
        ),
        (
            r#"'{"link": "contacts", "strategy": "review"}', max_rows => 0"#,
            "22023",
            "10000",
        ),
        (
            r#"'{"link": "contacts", "strategy": "review"}', since => NULL"#,
            "22004",
            "interval",
        ),
    ] {
        let error = pair
            .db
            .error(&format!("SELECT * FROM crm.what_if({call})"))
            .await;
        let all =
            format!("{} {}", error.message(), error.hint().unwrap_or_default()).to_lowercase();
        assert_eq!(error.code().code(), code, "{call}: {all}");
        assert!(all.contains(words), "{call}: {all}");
    }
    pair.db
        .exec("CREATE ROLE looker IN ROLE crm_reader; CREATE ROLE boss IN ROLE crm_admin; SET ROLE looker")
        .await;
    let ask = format!("SELECT count(*) FROM crm.what_if('{OWNER}')");
    assert_eq!(pair.db.error(&ask).await.code().code(), "42501");
    pair.db.exec("RESET ROLE; SET ROLE boss").await;
    assert_eq!(pair.db.one::<i64>(&ask).await, 0);
    pair.db.exec("RESET ROLE").await;
}
