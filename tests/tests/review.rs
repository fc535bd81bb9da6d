//! Questions for a steward: what stands in them, and what an answer does on every side.

use crm_tests::{PATIENCE, Pair, PairOptions, Person};
use serde_json::Value;

/// Linked people under the policy `review` for `city`, and a steward `ann`.
async fn asked(n: u64) -> (Pair, Vec<Person>) {
    let (pair, people) = Pair::linked(n, PairOptions::default()).await;
    pair.review_cities().await;
    pair.db
        .exec("CREATE ROLE ann LOGIN IN ROLE crm_steward")
        .await;
    (pair, people)
}

/// Salesforce and HubSpot each get a city of their own while HubSpot takes no writes.
async fn disagree(pair: &Pair, people: &[Person]) {
    pair.hubspot_takes_nothing();
    for who in people {
        pair.edit(
            "salesforce",
            who,
            "city",
            &format!("Forcebury {}", who.hubspot),
        );
    }
    for who in people {
        let sql = format!(
            "SELECT count(*) > 0 FROM crm.write w JOIN hubspot.contacts h ON h._id = w.row_id
             WHERE h.id = '{}' AND w.vals ->> 'city' LIKE 'Forcebury%' AND w.state = 'queued'",
            who.hubspot
        );
        pair.db
            .wait_true("Salesforce's city waits for HubSpot", PATIENCE, &sql)
            .await;
    }
    for who in people {
        pair.edit("hubspot", who, "city", &format!("Hubville {}", who.hubspot));
    }
    let n = people.len();
    let sql = format!("SELECT count(*) = {n} FROM crm.review WHERE field = 'city'");
    pair.db
        .wait_true("there is a question for each", PATIENCE, &sql)
        .await;
    // An attempt under way would land when HubSpot takes writes again.
    let gone = "SELECT NOT EXISTS (SELECT FROM crm.write WHERE vals ? 'city' AND vals ->> 'city' LIKE 'Forcebury%')";
    pair.db
        .wait_true("nothing goes to HubSpot any more", PATIENCE, gone)
        .await;
    pair.emulator.clear_faults();
}

async fn candidates(pair: &Pair, who: &Person) -> Vec<(String, String)> {
    let sql = format!(
        "SELECT candidates FROM crm.review r JOIN hubspot.contacts h ON h._id = r.row_id
         WHERE h.id = '{}' AND r.field = 'city' AND r.mirror = 'hubspot.contacts'",
        who.hubspot
    );
    let list: Value = serde_json::from_str(&pair.db.table(&sql).await[0][0]).expect("a list");
    let mut all: Vec<(String, String)> = list
        .as_array()
        .expect("candidates")
        .iter()
        .map(|c| {
            assert!(c["at"].is_string(), "no time: {c}");
            let text = |key: &str| c[key].as_str().unwrap_or_default().to_owned();
            (text("origin"), text("value"))
        })
        .collect();
    all.sort();
    all
}

fn own(who: &Person) -> [(String, String); 2] {
    [
        ("hubspot".to_owned(), format!("Hubville {}", who.hubspot)),
        (
            "salesforce".to_owned(),
            format!("Forcebury {}", who.hubspot),
        ),
    ]
}

async fn closed(pair: &Pair, n: i64) {
    pair.db
        .wait_true(
            "no question is open",
            PATIENCE,
            "SELECT NOT EXISTS (SELECT FROM crm.review)",
        )
        .await;
    let history: i64 = pair.db.one("SELECT count(*) FROM crm.review_history").await;
    assert_eq!(history, n, "answered questions stay visible");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_question_per_conflict_with_every_candidate_while_other_fields_flow() {
    let (pair, people) = asked(10).await;
    let who = &people[0];
    disagree(&pair, &people[..1]).await;
    assert_eq!(candidates(&pair, who).await, own(who));
    let shown = "SELECT h.city, s.mailingcity FROM crm.review r JOIN hubspot.contacts h ON h._id = r.row_id
                 JOIN crm.xref x ON x.entity = r.entity JOIN crm.mirror m ON m.id = x.mirror AND m.server = 'salesforce' JOIN salesforce.contact s ON s._id = x.row_id
                 WHERE r.rule = (SELECT id FROM crm.conflict_policy WHERE field = 'city')";
    let [hubville, forcebury] = own(who).map(|c| c.1);
    assert_eq!(
        pair.db.table(shown).await,
        [[hubville.clone(), forcebury.clone()]]
    );

    pair.edit("hubspot", who, "jobtitle", "Flows on");
    pair.edit("salesforce", who, "zip", "F1 0WS");
    pair.sql(who, "phone", "+44 20 7946 0001").await;
    pair.reaches_both(who, "jobtitle", "Flows on").await;
    pair.reaches_both(who, "zip", "F1 0WS").await;
    pair.reaches_both(who, "phone", "+44 20 7946 0001").await;
    assert_eq!(pair.shows("hubspot", who, "city"), Some(hubville));
    assert_eq!(pair.shows("salesforce", who, "city"), Some(forcebury));

    pair.edit("salesforce", who, "city", "Forcebury again");
    pair.sql(who, "city", "Sqlton").await;
    let renewed = "SELECT count(*) = 1 AND bool_and(candidates::text LIKE '%Forcebury again%' AND candidates::text LIKE '%Sqlton%'
                   AND candidates::text LIKE '%Hubville%') FROM crm.review";
    pair.db
        .wait_true(
            "new edits are candidates of the same question",
            PATIENCE,
            renewed,
        )
        .await;
    pair.db
        .exec("SELECT crm.review_resolve(id, 'local') FROM crm.review")
        .await;
    pair.reaches_both(who, "city", "Sqlton").await;
    closed(&pair, 1).await;
    pair.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_steward_answers_by_update_or_function_from_either_side_or_otherwise() {
    let (pair, people) = asked(20).await;
    let chosen = &people[..5];
    disagree(&pair, chosen).await;
    let id = |who: &Person| {
        format!(
            "(SELECT r.id FROM crm.review r JOIN hubspot.contacts h ON h._id = r.row_id WHERE h.id = '{}')",
            who.hubspot
        )
    };
    let ids: Vec<i64> = {
        let mut all = Vec::new();
        for who in chosen {
            all.push(pair.db.one(&format!("SELECT {}", id(who))).await);
        }
        all
    };
    pair.db
        .exec(&format!(
            "SET SESSION AUTHORIZATION ann;
             UPDATE crm.review SET resolution = 'hubspot' WHERE id = {};
             SELECT crm.review_resolve({}, 'salesforce');
             UPDATE crm.review SET value = 'Stewardham' WHERE id = {};
             SELECT crm.review_resolve({}, value => 'Functionton');
             UPDATE crm.review SET resolution = 'value' WHERE id = {};
             RESET SESSION AUTHORIZATION",
            ids[0], ids[1], ids[2], ids[3], ids[4]
        ))
        .await;
    let expected = [own(&chosen[0])[0].1.clone(), own(&chosen[1])[1].1.clone()];
    pair.reaches_both(&chosen[0], "city", &expected[0]).await;
    pair.reaches_both(&chosen[1], "city", &expected[1]).await;
    pair.reaches_both(&chosen[2], "city", "Stewardham").await;
    pair.reaches_both(&chosen[3], "city", "Functionton").await;
    closed(&pair, 5).await;
    pair.agree().await;
    for crm in ["hubspot", "salesforce"] {
        assert_eq!(pair.shows(crm, &chosen[4], "city"), None, "blank in {crm}");
    }
    let told = "SELECT resolution, coalesce(value, '∅'), jsonb_array_length(lost), resolved_by = 'ann', reason LIKE 'policy row%',
                rule = (SELECT id FROM crm.conflict_policy WHERE field = 'city'), jsonb_array_length(candidates)
                FROM crm.review_history ORDER BY resolution, value";
    let rows = pair.db.table(told).await;
    let said: Vec<(&str, &str, &str)> = rows.iter().map(|r| (&*r[0], &*r[1], &*r[2])).collect();
    let want = [
        ("hubspot", expected[0].as_str(), "1"),
        ("salesforce", expected[1].as_str(), "1"),
        ("value", "Functionton", "2"),
        ("value", "Stewardham", "2"),
        ("value", "∅", "2"),
    ];
    assert_eq!(said, want);
    assert!(
        rows.iter().all(|r| r[3..] == ["t", "t", "t", "2"]),
        "{rows:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_update_answers_many_questions() {
    let (pair, people) = asked(40).await;
    let chosen = &people[..25];
    disagree(&pair, chosen).await;
    pair.db
        .exec("UPDATE crm.review SET resolution = 'salesforce' WHERE field = 'city'")
        .await;
    for who in chosen {
        pair.reaches_both(who, "city", &own(who)[1].1).await;
    }
    closed(&pair, 25).await;
    pair.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_cannot_be_are_refused_with_what_to_do() {
    let (pair, people) = asked(10).await;
    disagree(&pair, &people[..1]).await;
    let id: i64 = pair.db.one("SELECT id FROM crm.review").await;
    let db = &pair.db;
    db.exec("SET SESSION AUTHORIZATION ann").await;
    for (sql, code, hint) in [
        (
            format!("UPDATE crm.review SET resolution = 'hubspto' WHERE id = {id}"),
            "22023",
            "hubspot",
        ),
        (
            format!("SELECT crm.review_resolve({id}, 'nobody')"),
            "22023",
            "resolution = 'value'",
        ),
        (
            format!("SELECT crm.review_resolve({id})"),
            "22023",
            "review_resolve",
        ),
        (
            format!("SELECT crm.review_resolve({id}, 'hubspot', 'x')"),
            "22023",
            "null",
        ),
        (
            "SELECT crm.review_resolve(0, 'hubspot')".to_owned(),
            "42704",
            "review_history",
        ),
        (
            format!("SELECT crm.review_match({id}, 1, 1)"),
            "42704",
            "match",
        ),
    ] {
        let error = db.error(&sql).await;
        let said = format!(
            "{} {} {}",
            error.message(),
            error.detail().unwrap_or_default(),
            error.hint().unwrap_or_default()
        );
        assert_eq!(error.code().code(), code, "{sql}: {said}");
        assert!(said.contains(hint), "{sql}: {said}");
    }
    db.exec("RESET SESSION AUTHORIZATION").await;
    let open: i64 = db
        .one("SELECT count(*) FROM crm.review WHERE resolution IS NULL")
        .await;
    assert_eq!(open, 1, "no refused answer left a trace");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_stewards_answer_and_nobody_rewrites_the_question() {
    let (pair, people) = asked(10).await;
    disagree(&pair, &people[..1]).await;
    let db = &pair.db;
    db.exec("SET SESSION AUTHORIZATION ann").await;
    for sql in [
        "UPDATE crm.review SET reason = 'x'",
        "UPDATE crm.review_item SET resolution = 'hubspot'",
        "DELETE FROM crm.review_item",
    ] {
        assert_eq!(db.error(sql).await.code().code(), "42501", "{sql}");
    }
    db.exec("RESET SESSION AUTHORIZATION").await;
    assert_eq!(
        db.error("UPDATE crm.review SET reason = 'x'")
            .await
            .code()
            .code(),
        "55000"
    );
    db.exec("CREATE ROLE rob IN ROLE crm_reader; SET ROLE rob")
        .await;
    assert_eq!(
        db.error("UPDATE crm.review SET resolution = 'hubspot'")
            .await
            .code()
            .code(),
        "42501"
    );
    db.exec("RESET ROLE").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_must_be_of_the_fields_type_and_have_a_counterpart() {
    let pair = Pair::start(PairOptions::default()).await;
    pair.import("hubspot", &["deals"]).await;
    pair.import("salesforce", &["Opportunity"]).await;
    pair.backfilled().await;
    let db = &pair.db;
    db.exec("SELECT crm.link('hubspot.deals', 'salesforce.opportunity')")
        .await;
    db.exec("UPDATE crm.field_map SET value_map = value_map - 'contractsent' WHERE left_field = 'dealstage'")
        .await;
    for field in ["amount", "dealstage", "closedate"] {
        db.exec(&format!(
            "INSERT INTO crm.review_item (kind, link, mirror, row_id, entity, field, own_field, reason, candidates)
             SELECT 'field', 'deals', m.id, 1, 1, '{field}', '{field}', 'test', '[]' FROM crm.mirror m WHERE m.object = 'deals'"
        ))
        .await;
    }
    for (field, value, said) in [
        ("amount", "much", "numeric"),
        ("closedate", "the 45th", "timestamp"),
        ("dealstage", "nosuchstage", "not one of"),
        ("dealstage", "contractsent", "value map"),
    ] {
        let sql = format!("UPDATE crm.review SET value = '{value}' WHERE field = '{field}'");
        let error = db.error(&sql).await;
        assert_eq!(error.code().code(), "22023", "{error:?}");
        assert!(
            error.detail().unwrap_or_default().contains(said),
            "{error:?}"
        );
        assert!(error.hint().is_some(), "{error:?}");
    }
    db.exec(
        "BEGIN; SET LOCAL timezone = 'Asia/Tokyo'; SET LOCAL datestyle = 'German';
         UPDATE crm.review SET value = '2026-03-01 09:00' WHERE field = 'closedate';
         UPDATE crm.review SET value = '12.50' WHERE field = 'amount';
         UPDATE crm.review SET value = 'closedwon' WHERE field = 'dealstage';
         CREATE TABLE said AS SELECT field, value FROM crm.review_item; COMMIT",
    )
    .await;
    let said = db
        .table("SELECT value FROM said ORDER BY field")
        .await
        .concat();
    assert_eq!(said, ["12.50", "2026-03-01T00:00:00.000Z", "closedwon"]);
}

/// What was left of the answer stood in the question: value 'Sqlton' to be seen, and blank if it was answered so.
#[tokio::test(flavor = "multi_thread")]
async fn an_edit_in_the_transaction_of_the_answer_asks_again_and_leaves_nothing_of_the_answer() {
    let (pair, people) = asked(10).await;
    let who = &people[0];
    disagree(&pair, &people[..1]).await;
    let edit = Pair::update(who, "city", "Sqlton");
    pair.db
        .exec(&format!(
            "BEGIN; {edit}; UPDATE crm.review SET value = 'Stewardham'; COMMIT"
        ))
        .await;
    let renewed = "SELECT count(*) = 1 AND bool_and(candidates::text LIKE '%Sqlton%' AND resolution IS NULL AND value IS NULL AND resolved_by IS NULL
                   AND resolved_at IS NULL) FROM crm.review";
    pair.db
        .wait_true("the question is put anew", PATIENCE, renewed)
        .await;
    let [hubville, forcebury] = own(who).map(|c| c.1);
    pair.quiet().await;
    assert_eq!(pair.shows("hubspot", who, "city"), Some(hubville));
    assert_eq!(pair.shows("salesforce", who, "city"), Some(forcebury));
    pair.db
        .exec("SELECT crm.review_resolve(id, 'local') FROM crm.review")
        .await;
    pair.reaches_both(who, "city", "Sqlton").await;
    closed(&pair, 1).await;
    pair.agree().await;
}

/// The line of an edit that had lost was marked instead.
#[tokio::test(flavor = "multi_thread")]
async fn the_value_of_an_answer_stands_in_the_lineage() {
    let (pair, people) = asked(10).await;
    let who = &people[0];
    disagree(&pair, &people[..1]).await;
    pair.db
        .exec("SELECT crm.review_resolve(id, value => 'Stewardham') FROM crm.review")
        .await;
    pair.reaches_both(who, "city", "Stewardham").await;
    closed(&pair, 1).await;
    let stands = format!(
        "SELECT new_value, outcome, source FROM crm.lineage('hubspot.contacts', '{}', 'city') WHERE stands",
        who.hubspot
    );
    assert_eq!(
        pair.db.table(&stands).await,
        [["Stewardham", "applied", "review"]]
    );
}

/// The candidate's value, which is kept with the answer, was taken for one that came with it.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_given_once_more_is_the_same_answer() {
    let (pair, people) = asked(10).await;
    let chosen = &people[..2];
    disagree(&pair, chosen).await;
    pair.db
        .exec(&format!(
            "BEGIN;
             UPDATE crm.review SET resolution = 'hubspot' WHERE row_id = (SELECT _id FROM hubspot.contacts WHERE id = '{}');
             UPDATE crm.review SET resolution = 'hubspot' WHERE field = 'city';
             COMMIT",
            chosen[0].hubspot
        ))
        .await;
    for who in chosen {
        pair.reaches_both(who, "city", &own(who)[0].1).await;
    }
    closed(&pair, 2).await;
}

/// They were gone without a line.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_questions_with_their_link_is_told() {
    let (pair, people) = asked(10).await;
    disagree(&pair, &people[..1]).await;
    let db = &pair.db;
    db.exec("BEGIN").await;
    let said: String = db
        .one("SELECT crm.review_resolve(id, 'value') FROM crm.review")
        .await;
    assert!(said.contains("(blank)"), "{said}");
    db.exec("ROLLBACK").await;
    db.exec(
        "BEGIN; SET LOCAL pg_crm_sync.reason = 'no more'; SELECT crm.unlink('contacts'); COMMIT",
    )
    .await;
    let told = "SELECT count(*) = 1 FROM crm.review_history WHERE kind = 'field' AND field = 'city' AND resolution = 'ended'
                AND because LIKE '%contacts%no more' AND jsonb_array_length(candidates) = 2";
    db.wait_true("the end of the question is told", PATIENCE, told)
        .await;
    closed(&pair, 1).await;
}
