//! Scopes of a link: what a row's leaving means for its counterpart, whoever made it leave and by whichever side's
//! condition; and what a new condition means for the rows that there are.

use crm_tests::{EmulatorOptions, Options, PATIENCE, Pair, PairOptions, Person};

/// Twenty people on each side; who lives in Limbo takes no part.
async fn limbo(on_leave: &str) -> (Pair, Vec<Person>) {
    let (pair, people) = Pair::linked(20, PairOptions::default()).await;
    pair.db
        .exec(&format!(
            "UPDATE crm.link SET left_scope = 'city IS DISTINCT FROM ''Limbo''', right_scope = 'mailingcity IS DISTINCT FROM ''Limbo''', on_leave = '{on_leave}'"
        ))
        .await;
    swept(&pair).await;
    (pair, people)
}

/// Waits until no change of scope is under way.
async fn swept(pair: &Pair) {
    pair.worker_has_read().await;
    let done = "SELECT NOT EXISTS (SELECT FROM crm.scope_sweep)";
    pair.db.wait_true("the sweep is over", PATIENCE, done).await;
}

/// Moves four people to Limbo: in each CRM, and by SQL on each mirror.
async fn leave(pair: &Pair, people: &[Person]) {
    pair.edit("hubspot", &people[0], "city", "Limbo");
    pair.edit("salesforce", &people[1], "city", "Limbo");
    pair.sql(&people[2], "city", "Limbo").await;
    let sql = format!(
        "UPDATE salesforce.contact SET mailingcity = 'Limbo' WHERE id = '{}'",
        people[3].salesforce
    );
    pair.db.exec(&sql).await;
    let here = format!(
        "SELECT (SELECT count(*) = 2 FROM hubspot.contacts WHERE city = 'Limbo' AND id IN ('{}', '{}'))
            AND (SELECT count(*) = 2 FROM salesforce.contact WHERE mailingcity = 'Limbo' AND id IN ('{}', '{}'))",
        people[0].hubspot, people[2].hubspot, people[1].salesforce, people[3].salesforce
    );
    pair.db.wait_true("all have left", PATIENCE, &here).await;
    pair.quiet().await;
}

/// The CRM in which each of the four left, and the other one.
const LEFT: [(&str, &str); 4] = [
    ("hubspot", "salesforce"),
    ("salesforce", "hubspot"),
    ("hubspot", "salesforce"),
    ("salesforce", "hubspot"),
];

fn gone(pair: &Pair, crm: &str, who: &Person) -> bool {
    match crm {
        "hubspot" => pair.gone(crm, "contacts", &who.hubspot),
        _ => pair.gone(crm, "Contact", &who.salesforce),
    }
}

async fn tied(pair: &Pair, who: &Person) -> bool {
    pair.states(who).await[2] == "t"
}

#[tokio::test(flavor = "multi_thread")]
async fn keep_lets_the_tie_rest_until_the_row_is_back() {
    let (pair, people) = limbo("keep").await;
    leave(&pair, &people).await;
    for (who, (own, other)) in people.iter().zip(LEFT) {
        assert!(tied(&pair, who).await, "the tie stays");
        pair.edit(own, who, "jobtitle", "Ghost");
        pair.edit(other, who, "zip", "GHO ST");
    }
    let seen = "SELECT (SELECT count(*) = 2 FROM hubspot.contacts WHERE jobtitle = 'Ghost') AND (SELECT count(*) = 2 FROM salesforce.contact WHERE title = 'Ghost')
                   AND (SELECT count(*) = 2 FROM hubspot.contacts WHERE zip = 'GHO ST') AND (SELECT count(*) = 2 FROM salesforce.contact WHERE mailingpostalcode = 'GHO ST')";
    pair.db
        .wait_true("the edits are seen", PATIENCE, seen)
        .await;
    pair.quiet().await;
    for (who, (own, other)) in people.iter().zip(LEFT) {
        assert_ne!(pair.shows(other, who, "city").as_deref(), Some("Limbo"));
        assert_ne!(pair.shows(other, who, "jobtitle").as_deref(), Some("Ghost"));
        assert_ne!(pair.shows(own, who, "zip").as_deref(), Some("GHO ST"));
        assert!(!gone(&pair, other, who));
        pair.edit(own, who, "city", "Bath");
    }
    for who in &people[..4] {
        pair.reaches_both(who, "city", "Bath").await;
        pair.edit("hubspot", who, "phone", "+44 1");
        pair.reaches_both(who, "phone", "+44 1").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unlink_ends_the_tie_and_both_live_on_until_they_meet_again() {
    let (pair, people) = limbo("unlink").await;
    leave(&pair, &people).await;
    for (who, (_, other)) in people.iter().zip(LEFT) {
        assert!(!tied(&pair, who).await, "the tie has ended");
        assert_ne!(pair.shows(other, who, "city").as_deref(), Some("Limbo"));
        assert!(!gone(&pair, other, who));
    }
    let before = (
        pair.live("hubspot", "contacts"),
        pair.live("salesforce", "Contact"),
    );
    for (who, (own, _)) in people.iter().zip(LEFT) {
        pair.edit(own, who, "city", "Bath");
    }
    // Back in scope they find each other by the keys of the link.
    for who in &people[..4] {
        pair.become_states(who, ["live", "live", "t"]).await;
        pair.reaches_both(who, "city", "Bath").await;
    }
    pair.quiet().await;
    let after = (
        pair.live("hubspot", "contacts"),
        pair.live("salesforce", "Contact"),
    );
    assert_eq!(before, after, "none is made");
}

#[tokio::test(flavor = "multi_thread")]
async fn delete_removes_the_counterpart_in_its_crm_and_coming_back_makes_it_anew() {
    let (pair, people) = limbo("delete").await;
    let before = (
        pair.live("hubspot", "contacts"),
        pair.live("salesforce", "Contact"),
    );
    leave(&pair, &people).await;
    for (who, (own, other)) in people.iter().zip(LEFT) {
        pair.cluster
            .wait_until("the counterpart is deleted", PATIENCE, async || {
                gone(&pair, other, who).then_some(())
            })
            .await;
        assert!(!gone(&pair, own, who), "the record itself stays");
        assert!(!tied(&pair, who).await);
    }
    pair.quiet().await;
    for (who, (own, _)) in people.iter().zip(LEFT) {
        pair.edit(own, who, "city", "Bath");
    }
    pair.cluster
        .wait_until("both CRMs have as many as before", PATIENCE, async || {
            let now = (
                pair.live("hubspot", "contacts"),
                pair.live("salesforce", "Contact"),
            );
            (now == before).then_some(())
        })
        .await;
}

/// Tied pairs of the link.
async fn ties(pair: &Pair) -> i64 {
    pair.db
        .one("SELECT count(*) FROM crm.xref a JOIN crm.xref b ON b.entity = a.entity AND b.mirror > a.mirror AND b.merged_into IS NULL WHERE a.merged_into IS NULL")
        .await
}

async fn link_says(pair: &Pair, sql: &str) {
    pair.db.exec(&format!("UPDATE crm.link SET {sql}")).await;
    swept(pair).await;
    pair.quiet().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_condition_unties_and_ties_the_rows_that_there_are() {
    let (pair, people) = Pair::linked(20, PairOptions::default()).await;
    let all = ties(&pair).await;
    for side in ["left", "right"] {
        link_says(
            &pair,
            &format!("{side}_scope = '_id % 2 = 0', on_leave = 'unlink'"),
        )
        .await;
        let half = ties(&pair).await;
        assert!(half > 0 && half < all, "{half} of {all} on the {side}");
        link_says(&pair, &format!("{side}_scope = NULL")).await;
        // Those that nobody had on the other side are made now: they entered.
        let again = ties(&pair).await;
        assert!(again >= all, "{again} of {all} on the {side}");
    }
    let who = people.last().expect("somebody");
    pair.edit("hubspot", who, "jobtitle", "Poet");
    pair.reaches_both(who, "jobtitle", "Poet").await;
    let told = pair
        .db
        .table("SELECT fields[1], decision -> 0 ->> 'step', (decision -> 0 ->> 'looked_at')::int >= 20 FROM crm.event WHERE kind = 'policy' AND fields[1] LIKE '%scope' ORDER BY seq")
        .await;
    assert_eq!(told.len(), 4, "{told:?}");
    assert_eq!(told[0], ["contacts.left_scope", "scope", "t"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_condition_lets_ties_rest_and_wakes_them() {
    let (pair, people) = Pair::linked(20, PairOptions::default()).await;
    let who = &people[0];
    let other = &people[1];
    let all = ties(&pair).await;
    link_says(
        &pair,
        &format!(
            "left_scope = 'id IS DISTINCT FROM ''{}''', on_leave = 'keep'",
            who.hubspot
        ),
    )
    .await;
    assert_eq!(ties(&pair).await, all);
    for (crm, field) in [("hubspot", "jobtitle"), ("salesforce", "zip")] {
        pair.edit(crm, who, field, "Resting");
        pair.edit(crm, other, field, "Awake");
        pair.reaches_both(other, field, "Awake").await;
    }
    pair.quiet().await;
    assert_ne!(
        pair.shows("salesforce", who, "jobtitle").as_deref(),
        Some("Resting")
    );
    assert_ne!(
        pair.shows("hubspot", who, "zip").as_deref(),
        Some("Resting")
    );
    let why = pair
        .db
        .table(&format!(
            "SELECT verdict, detail FROM crm.why('hubspot.contacts', '{}') WHERE item = 'scope'",
            who.hubspot
        ))
        .await;
    assert_eq!(why[0][0], "stops");
    assert!(
        why[0][1].contains(&who.hubspot) && why[0][1].contains("its tie rests"),
        "{why:?}"
    );
    link_says(&pair, "left_scope = NULL").await;
    pair.edit("hubspot", who, "city", "Bath");
    pair.reaches_both(who, "city", "Bath").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_condition_deletes_what_leaves_and_makes_what_enters_in_either_direction() {
    let (pair, _) = Pair::linked(20, PairOptions::default()).await;
    for (side, crm, object, own) in [
        ("left", "salesforce", "Contact", "hubspot.contacts"),
        ("right", "hubspot", "contacts", "salesforce.contact"),
    ] {
        let all = pair.live(crm, object);
        let leaving: i64 = pair
            .db
            .one(&format!("SELECT count(*) FROM {own} t JOIN crm.xref a ON a.row_id = t._id AND a.mirror = (SELECT {side}_mirror FROM crm.link)
                 JOIN crm.xref b ON b.entity = a.entity AND b.mirror <> a.mirror WHERE t._id % 3 = 0 AND a.merged_into IS NULL AND b.merged_into IS NULL"))
            .await;
        assert!(leaving > 0);
        link_says(
            &pair,
            &format!("{side}_scope = '_id % 3 <> 0', on_leave = 'delete'"),
        )
        .await;
        let left = all - u64::try_from(leaving).expect("a count");
        pair.cluster
            .wait_until("counterparts are deleted", PATIENCE, async || {
                (pair.live(crm, object) == left).then_some(())
            })
            .await;
        link_says(&pair, &format!("{side}_scope = NULL")).await;
        pair.cluster
            .wait_until("counterparts are made", PATIENCE, async || {
                (pair.live(crm, object) >= all).then_some(())
            })
            .await;
    }
}

/// One word too many in a condition must not empty a CRM.
#[tokio::test(flavor = "multi_thread")]
async fn the_guard_holds_or_refuses_a_condition_that_would_delete_too_much() {
    let options = PairOptions {
        cluster: Options::default()
            .setting("pg_crm_sync.guard_soft_rows", "3")
            .setting("pg_crm_sync.guard_hard_deletes", "10"),
        ..PairOptions::default()
    };
    let (pair, people) = Pair::linked(20, options).await;
    let before = pair.live("salesforce", "Contact");
    let refused = pair
        .db
        .error("UPDATE crm.link SET left_scope = 'false', on_leave = 'delete'")
        .await;
    assert!(refused.message().contains("would delete"), "{refused:?}");
    let scope = |n: usize| {
        let ids: Vec<String> = people[..n]
            .iter()
            .map(|p| format!("'{}'", p.hubspot))
            .collect();
        let list = ids.join(", ");
        format!("left_scope = $q$ id IS NULL OR id NOT IN ({list}) $q$, on_leave = 'delete'")
    };
    let held = "SELECT count(*) = 1 AND bool_and(deletes = 5) FROM crm.held";
    let tx = "SELECT tx FROM crm.held";
    link_says(&pair, &scope(5)).await;
    pair.db
        .wait_true("five deletes are held", PATIENCE, held)
        .await;
    assert_eq!(pair.live("salesforce", "Contact"), before);
    let first: i64 = pair.db.one(tx).await;
    pair.db.exec(&format!("SELECT crm.reject({first})")).await;
    pair.quiet().await;
    assert_eq!(pair.live("salesforce", "Contact"), before, "rejected");

    pair.db.exec("UPDATE crm.link SET on_leave = 'keep'").await;
    link_says(&pair, "left_scope = NULL").await;
    let tied: i64 = ties(&pair).await;
    assert!(tied as usize >= people.len(), "tied again by their keys");
    link_says(&pair, &scope(5)).await;
    pair.db
        .wait_true("five deletes are held", PATIENCE, held)
        .await;
    let second: i64 = pair.db.one(tx).await;
    pair.db.exec(&format!("SELECT crm.approve({second})")).await;
    pair.cluster
        .wait_until("five are deleted", PATIENCE, async || {
            (pair.live("salesforce", "Contact") == before - 5).then_some(())
        })
        .await;
}

/// More than one transaction's worth.
#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_over_many_rows_goes_in_batches_and_survives_a_kill() {
    let options = PairOptions {
        emulator: EmulatorOptions::default().contacts(2_000),
        ..PairOptions::default()
    };
    let pair = Pair::contacts(options).await;
    let all = ties(&pair).await;
    assert!(all > 1_200, "{all} pairs");
    pair.db
        .exec("UPDATE crm.link SET left_scope = 'id IS NULL', on_leave = 'unlink'")
        .await;
    pair.db
        .exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'pg_crm_sync session'")
        .await;
    swept(&pair).await;
    assert_eq!(ties(&pair).await, 0);
    let told: i64 = pair
        .db
        .one("SELECT (decision -> 0 ->> 'left_out')::bigint FROM crm.event WHERE kind = 'policy' AND fields[1] = 'contacts.left_scope'")
        .await;
    assert!(told >= all, "{told} rows left, {all} of them tied");
}

/// One fax number with a blank stopped every new person of both CRMs, and the scope that it broke could not be removed.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_on_which_the_scope_raises_stops_nobody_else_and_the_scope_can_be_removed() {
    let (pair, people) = Pair::linked(20, PairOptions::default()).await;
    let who = &people[0];
    link_says(
        &pair,
        "left_scope = 'fax IS NULL OR fax::integer > 100', on_leave = 'delete'",
    )
    .await;
    pair.sql(who, "fax", "12 34").await;
    pair.sql(who, "zip", "Resting").await;
    let newman = serde_json::json!({"LastName": "Newman", "Email": "newman@x.org"});
    pair.create("salesforce", "Contact", newman);
    pair.db
        .exec("INSERT INTO salesforce.contact (lastname, email) VALUES ('Sqlman', 'sqlman@x.org')")
        .await;
    let travelled = "SELECT (SELECT count(*) = 2 FROM salesforce.contact WHERE lastname IN ('Newman', 'Sqlman') AND id IS NOT NULL)
                        AND (SELECT count(*) = 2 FROM hubspot.contacts WHERE lastname IN ('Newman', 'Sqlman') AND id IS NOT NULL)";
    pair.db
        .wait_true("both are in both CRMs", PATIENCE, travelled)
        .await;
    pair.quiet().await;
    assert_eq!(pair.shows("hubspot", who, "fax").as_deref(), Some("12 34"));
    assert_ne!(
        pair.shows("salesforce", who, "zip").as_deref(),
        Some("Resting")
    );
    assert!(!gone(&pair, "salesforce", who), "an error is no leaving");
    assert!(tied(&pair, who).await);
    let dead: i64 = pair.db.one("SELECT count(*) FROM crm.dead_letter").await;
    assert_eq!(dead, 0);

    let why = format!(
        "SELECT verdict, detail, advice FROM crm.why('hubspot.contacts', '{}') WHERE item = 'scope'",
        who.hubspot
    );
    let told = pair.db.table(&why).await;
    assert_eq!(told[0][0], "stops");
    assert!(
        told[0][1].contains("raises an error: invalid input syntax for type integer: \"12 34\""),
        "{told:?}"
    );
    assert!(told[0][2].contains("left_scope"), "{told:?}");
    let outside: i64 = pair
        .db
        .one("SELECT count FROM crm.preview('contacts') WHERE what = 'out of scope'")
        .await;
    assert_eq!(outside, 1);
    pair.db
        .exec(
            "SELECT * FROM crm.check_mapping('contacts'); SELECT * FROM crm.duplicates('contacts')",
        )
        .await;

    // Another that raises, and none.
    link_says(&pair, "left_scope = 'fax IS NULL OR fax::integer > 200'").await;
    assert!(!gone(&pair, "salesforce", who), "an error is no leaving");
    link_says(&pair, "left_scope = NULL").await;
    assert!(pair.db.table(&why).await.is_empty());
    pair.edit("hubspot", who, "jobtitle", "Poet");
    pair.reaches_both(who, "jobtitle", "Poet").await;
}

/// What a condition guards against is no error; what it does not is told of the clause that raises.
#[tokio::test(flavor = "multi_thread")]
async fn only_a_clause_that_nothing_before_it_guards_is_told_as_an_error() {
    let (pair, people) = Pair::linked(20, PairOptions::default()).await;
    let (guarded, raising) = (&people[0], &people[1]);
    link_says(
        &pair,
        "left_scope = 'city <> ''Limbo'' AND (fax IS NULL OR fax::integer > 100)'",
    )
    .await;
    for (who, city) in [(guarded, "Limbo"), (raising, "Bath")] {
        let sql = format!(
            "UPDATE hubspot.contacts SET city = '{city}', fax = '12 34' WHERE id = '{}'",
            who.hubspot
        );
        pair.db.exec(&sql).await;
    }
    for (who, clause, problem) in [
        (guarded, "city", ""),
        (raising, "fax", "invalid input syntax"),
    ] {
        let told = pair
            .db
            .table(&format!(
                "SELECT c.clause, coalesce(c.problem, '') FROM hubspot.contacts t, crm._scope_clauses('contacts', 'hubspot.contacts', t._id) c
                 WHERE t.id = '{}' AND NOT c.holds",
                who.hubspot
            ))
            .await;
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0][0].contains(clause), "{told:?}");
        assert!(told[0][1].starts_with(problem) && told[0][1].is_empty() == problem.is_empty());
    }
}
