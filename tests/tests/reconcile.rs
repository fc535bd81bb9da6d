//! Reconciliation: what streams lose, what is damaged here and what is missing in a CRM is found, counted and repaired,
//! while changes flow and without believing in mass removals.

use crm_tests::{PATIENCE, Pair, PairOptions, Person};
use serde_json::json;

/// A pair whose polls find nothing during a test: what events lose only a reconciliation finds.
async fn pair(contacts: u64) -> (Pair, Vec<Person>) {
    let mut options = PairOptions::default();
    options.emulator = options.emulator.contacts(contacts);
    let pair = Pair::start(options).await;
    for (server, object) in [("hubspot", "contacts"), ("salesforce", "Contact")] {
        let sql = format!(
            "SELECT crm.import('{server}', ARRAY['{object}'], into_schema => '{server}', poll_interval => '12 hours')"
        );
        pair.db.exec(&sql).await;
    }
    pair.backfilled().await;
    pair.db
        .exec(
            "SELECT crm.link('hubspot.contacts', 'salesforce.contact'); SELECT crm.go_live('contacts');
             UPDATE crm.mirror SET reconcile_patience = '0'",
        )
        .await;
    pair.worker_has_read().await;
    let people = pair.people().await;
    // Both streams are up and known, and the first polls are over.
    pair.edit("hubspot", &people[0], "city", "By webhook");
    pair.reaches_both(&people[0], "city", "By webhook").await;
    pair.edit("salesforce", &people[0], "city", "By event");
    pair.reaches_both(&people[0], "city", "By event").await;
    let polled = "SELECT count(*) = 2 FROM crm.stream WHERE kind = 'poll'";
    pair.db
        .wait_true("both were polled", PATIENCE, polled)
        .await;
    calm(&pair).await;
    (pair, people)
}

/// Waits until nothing is on its way.
async fn calm(pair: &Pair) {
    let sql = "SELECT NOT EXISTS (SELECT FROM crm.change_0) AND NOT EXISTS (SELECT FROM crm.change_1)
               AND NOT EXISTS (SELECT FROM crm.write WHERE state IN ('queued', 'in_flight', 'unknown'))
               AND NOT EXISTS (SELECT FROM crm.deferred)";
    pair.db
        .wait_true("everything is settled", PATIENCE, sql)
        .await;
}

fn lose_all(pair: &Pair) {
    pair.emulator
        .fault(json!({"stream": "webhook", "lose": 100_000}));
    pair.emulator
        .fault(json!({"stream": "cdc", "lose": 100_000}));
}

/// Asks for a run and waits for this state; its number.
async fn run(pair: &Pair, mirror: &str, depth: &str, state: &str) -> i64 {
    let run: i64 = pair
        .db
        .one(&format!("SELECT crm.reconcile('{mirror}', '{depth}')"))
        .await;
    becomes(pair, run, state).await;
    run
}

async fn becomes(pair: &Pair, run: i64, state: &str) {
    let sql = format!("SELECT state = '{state}' FROM crm.reconcile_progress WHERE id = {run}");
    pair.db
        .wait_true(&format!("run {run} is {state}"), PATIENCE, &sql)
        .await;
}

/// Columns of a run as text.
async fn told(pair: &Pair, run: i64, columns: &str) -> String {
    let sql =
        format!("SELECT concat_ws(' ', {columns}) FROM crm.reconcile_progress WHERE id = {run}");
    pair.db.one(&sql).await
}

const MISSED: &str = "missed_creates, missed_updates, missed_deletes, damaged";

/// What streams lose in these tests: in HubSpot three updates, a create and a removal; in Salesforce two, one and one.
fn lose_some(pair: &Pair, people: &[Person]) {
    lose_all(pair);
    for who in &people[1..4] {
        pair.edit("hubspot", who, "jobtitle", "Lost in HubSpot");
    }
    for who in &people[4..6] {
        pair.edit("salesforce", who, "jobtitle", "Lost in Salesforce");
    }
    pair.create_person("hubspot", "lost@example.net");
    pair.create_person("salesforce", "lost.too@example.net");
    pair.emulator
        .delete("hubspot", "contacts", &people[7].hubspot);
    pair.emulator
        .delete("salesforce", "Contact", &people[8].salesforce);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_streams_lost_is_counted_per_stream() {
    let (pair, people) = pair(60).await;
    // Of what comes across, the CRMs fill in fields: that would be missed as well.
    pair.db
        .exec("SELECT crm.pause('mirror', 'salesforce.contact')")
        .await;
    lose_some(&pair, &people);
    let estimate: i64 = pair
        .db
        .one("SELECT crm.reconcile_estimate('hubspot.contacts')")
        .await;
    let left = run(&pair, "hubspot.contacts", "stamps", "done").await;
    assert_eq!(told(&pair, left, MISSED).await, "1 3 1 0");
    let cost = told(&pair, left, "estimate, calls, waiting").await;
    assert_eq!(cost, format!("{estimate} 2 0"));
    pair.db
        .exec("SELECT crm.pause('mirror', 'hubspot.contacts'), crm.resume('mirror', 'salesforce.contact')")
        .await;
    let right = run(&pair, "salesforce.contact", "stamps", "done").await;
    let missed = told(&pair, right, "missed_creates, missed_deletes, damaged").await;
    assert_eq!(missed, "1 1 0");
    let sql = "SELECT run, stream, creates, updates, deletes FROM crm.reconcile_missed ORDER BY run, stream";
    let rows = pair.db.table(sql).await;
    let streams: Vec<String> = rows.iter().map(|row| row.join(" ")).collect();
    assert_eq!(streams[0], format!("{left} hubspot poll contacts 1 3 1"));
    assert_eq!(streams[1], format!("{left} hubspot webhook 1 3 1"));
    for (n, stream) in [(2, "poll"), (3, "pubsub")] {
        let expected = format!("{right} salesforce {stream} Contact 1 ");
        assert!(streams[n].starts_with(&expected), "{streams:?}");
    }
    let used = format!(
        "SELECT sum(calls) = (SELECT calls FROM crm.reconcile_run WHERE id = {left})
         FROM crm.api_usage WHERE server = 'hubspot' AND purpose = 'reconcile'"
    );
    pair.db
        .wait_true("the calls are accounted for", PATIENCE, &used)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_streams_lost_is_repaired_and_reaches_the_other_side() {
    let (pair, people) = pair(60).await;
    lose_some(&pair, &people);
    run(&pair, "hubspot.contacts", "stamps", "done").await;
    run(&pair, "salesforce.contact", "stamps", "done").await;
    pair.emulator.clear_faults();
    for who in &people[1..4] {
        pair.reaches_both(who, "jobtitle", "Lost in HubSpot").await;
    }
    for who in &people[4..6] {
        pair.reaches_both(who, "jobtitle", "Lost in Salesforce")
            .await;
    }
    let gone = format!(
        "SELECT (SELECT _deleted_at IS NOT NULL FROM hubspot.contacts WHERE id = '{}')
            AND (SELECT _deleted_at IS NOT NULL FROM salesforce.contact WHERE id = '{}')",
        people[7].hubspot, people[8].salesforce
    );
    pair.db
        .wait_true("both removals are known", PATIENCE, &gone)
        .await;
    let crossed =
        "SELECT count(*) = 2 FROM hubspot.contacts h JOIN salesforce.contact s USING (email)
                   WHERE email LIKE 'lost%@example.net' AND h.id IS NOT NULL AND s.id IS NOT NULL";
    pair.db
        .wait_true("the new ones exist on both sides", PATIENCE, crossed)
        .await;
    let named = "SELECT count(DISTINCT (kind, record_id)) FROM crm.event WHERE source = 'reconcile' AND kind IN ('create', 'update', 'delete')
                 AND mirror = (SELECT id FROM crm.mirror WHERE object = 'contacts')";
    assert_eq!(
        pair.db.one::<i64>(named).await,
        5,
        "the ledger says who brought it"
    );
    calm(&pair).await;
    // What HubSpot filled in of what came across was lost, too.
    run(&pair, "hubspot.contacts", "stamps", "done").await;
    let again = run(&pair, "hubspot.contacts", "stamps", "done").await;
    assert_eq!(told(&pair, again, MISSED).await, "0 0 0 0");
}

fn damage(mirror: &str, column: &str, id: &str) -> String {
    format!("UPDATE {mirror} SET {column} = 'Damaged' WHERE id = '{id}';")
}

#[tokio::test(flavor = "multi_thread")]
async fn values_damaged_here_are_found_by_a_run_that_compares_values() {
    let (pair, people) = pair(30).await;
    // Values that linked records share: one that they never agreed on would be decided anew.
    for who in &people[..4] {
        pair.edit("hubspot", who, "city", "Agreed");
        pair.edit("hubspot", who, "jobtitle", "Agreed");
        pair.reaches_both(who, "city", "Agreed").await;
        pair.reaches_both(who, "jobtitle", "Agreed").await;
    }
    calm(&pair).await;
    let landed = "SELECT NOT EXISTS (SELECT FROM crm.field_state f, jsonb_array_elements(f.state -> 'sides') s, jsonb_array_elements(s -> 'sent') w
                  WHERE w ->> 'confirmed' IS DISTINCT FROM 'true')";
    pair.db
        .wait_true("every write was seen to have landed", PATIENCE, landed)
        .await;
    let left = damage("hubspot.contacts", "city", &people[1].hubspot)
        + &damage("hubspot.contacts", "jobtitle", &people[2].hubspot);
    let right = damage("salesforce.contact", "mailingcity", &people[3].salesforce)
        + &damage("salesforce.contact", "title", &people[0].salesforce);
    pair.db
        .exec(&format!(
            "SET session_replication_role = replica; {left} {right} SET session_replication_role = origin"
        ))
        .await;
    let results = "SELECT count(*) FROM crm.event WHERE source = 'result'";
    let writes: i64 = pair.db.one(results).await;
    for mirror in ["hubspot.contacts", "salesforce.contact"] {
        let by_stamps = run(&pair, mirror, "stamps", "done").await;
        assert_eq!(
            told(&pair, by_stamps, "damaged").await,
            "0",
            "{mirror}: stamps do not tell"
        );
        let by_values = run(&pair, mirror, "values", "done").await;
        assert_eq!(
            told(
                &pair,
                by_values,
                "missed_creates, missed_updates, missed_deletes, damaged"
            )
            .await,
            "0 0 0 2",
            "{mirror}"
        );
        let again = run(&pair, mirror, "values", "done").await;
        assert_eq!(
            told(&pair, again, "found, damaged").await,
            "0 0",
            "{mirror}: repaired"
        );
    }
    let left = "SELECT count(*) FROM hubspot.contacts WHERE 'Damaged' IN (city, jobtitle)";
    let right = "SELECT count(*) FROM salesforce.contact WHERE 'Damaged' IN (mailingcity, title)";
    assert_eq!(
        (
            pair.db.one::<i64>(left).await,
            pair.db.one::<i64>(right).await
        ),
        (0, 0)
    );
    calm(&pair).await;
    assert_eq!(
        pair.db.one::<i64>(results).await,
        writes,
        "no CRM was written to"
    );
    pair.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_flow_during_a_run_are_not_missed_and_nothing_is_overwritten() {
    let (pair, people) = pair(40).await;
    pair.db
        .exec("UPDATE crm.mirror SET reconcile_patience = '8 seconds'")
        .await;
    pair.worker_has_read().await;
    // The lists are made before the changes, and arrive after them.
    let slow = |crm: &str, path: &str| json!({"crm": crm, "method": "GET", "path_prefix": path, "action": {"slow_body": {"bytes_per_s": 2_500}}});
    pair.emulator.fault(slow("hubspot", "/crm/"));
    pair.emulator.fault(slow("salesforce", "/services/data/"));
    let mut runs = Vec::new();
    for mirror in ["hubspot.contacts", "salesforce.contact"] {
        let run: i64 = pair
            .db
            .one(&format!("SELECT crm.reconcile('{mirror}')"))
            .await;
        runs.push(run);
    }
    pair.db
        .wait_true(
            "the lists were asked for",
            PATIENCE,
            "SELECT count(*) = 2 FROM crm.reconcile_run WHERE started_at IS NOT NULL",
        )
        .await;
    for (n, who) in people[1..6].iter().enumerate() {
        pair.edit("hubspot", who, "jobtitle", &format!("Flowing {n}"));
        pair.edit(
            "salesforce",
            &people[n + 8],
            "jobtitle",
            &format!("Flowing {n}"),
        );
        pair.sql(&people[n + 16], "jobtitle", &format!("Flowing {n}"))
            .await;
    }
    pair.create_person("hubspot", "flowing@example.net");
    pair.emulator
        .delete("salesforce", "Contact", &people[7].salesforce);
    for (n, who) in people[1..6].iter().enumerate() {
        let value = format!("Flowing {n}");
        pair.reaches_both(who, "jobtitle", &value).await;
        pair.reaches_both(&people[n + 8], "jobtitle", &value).await;
        pair.reaches_both(&people[n + 16], "jobtitle", &value).await;
    }
    for run in runs {
        becomes(&pair, run, "done").await;
        assert_eq!(told(&pair, run, MISSED).await, "0 0 0 0", "run {run}");
    }
    for (n, who) in people[1..6].iter().enumerate() {
        pair.reaches_both(who, "jobtitle", &format!("Flowing {n}"))
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mass_removal_waits_for_a_person() {
    let (pair, people) = pair(80).await;
    lose_all(&pair);
    for who in &people[10..40] {
        pair.emulator.delete("hubspot", "contacts", &who.hubspot);
    }
    pair.edit("hubspot", &people[1], "jobtitle", "Found all the same");
    let live = "SELECT count(*) FROM hubspot.contacts WHERE _deleted_at IS NULL";
    let before: i64 = pair.db.one(live).await;
    let first = run(&pair, "hubspot.contacts", "stamps", "held").await;
    assert_eq!(
        told(&pair, first, "held, missed_updates, missed_deletes").await,
        "30 1 0"
    );
    assert_eq!(
        pair.db.one::<i64>(live).await,
        before,
        "nothing was removed"
    );
    let question = "SELECT id, array_to_string(answers, ' '), candidates ->> 'missing' FROM crm.review WHERE kind = 'missing'";
    let asked = pair.db.table(question).await.concat();
    assert_eq!(asked[1..], ["delete keep", "30"]);
    let advice = "SELECT count(*) = 1 FROM crm.status WHERE kind = 'reconcile' AND state = 'held' AND advice LIKE '%crm.review%'";
    assert!(pair.db.one::<bool>(advice).await);
    pair.db
        .refuses(&[(
            "SELECT crm.reconcile('hubspot.contacts')",
            "55006",
            "reconcile_cancel",
        )])
        .await;
    pair.db
        .exec(&format!("SELECT crm.review_resolve({}, 'keep')", asked[0]))
        .await;
    becomes(&pair, first, "done").await;
    assert_eq!(pair.db.one::<i64>(live).await, before, "a person said keep");

    let second = run(&pair, "hubspot.contacts", "stamps", "held").await;
    pair.db.exec("SELECT crm.review_resolve((SELECT id FROM crm.review WHERE kind = 'missing'), 'delete')").await;
    becomes(&pair, second, "done").await;
    assert_eq!(told(&pair, second, "missed_deletes, held").await, "30 0");
    assert_eq!(pair.db.one::<i64>(live).await, before - 30);
    let answers = "SELECT string_agg(resolution, ' ' ORDER BY seq) FROM crm.review_history WHERE kind = 'missing'";
    assert_eq!(pair.db.one::<String>(answers).await, "keep delete");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_given_up_takes_its_question_back() {
    let (pair, people) = pair(40).await;
    lose_all(&pair);
    for who in &people[1..25] {
        pair.emulator
            .delete("salesforce", "Contact", &who.salesforce);
    }
    pair.db
        .exec("UPDATE crm.mirror SET missing_limit = 10, missing_share = 1")
        .await;
    let first = run(&pair, "salesforce.contact", "stamps", "held").await;
    pair.db
        .exec(&format!("SELECT crm.reconcile_cancel({first})"))
        .await;
    assert_eq!(
        pair.db.one::<i64>("SELECT count(*) FROM crm.review").await,
        0
    );
    pair.db
        .refuses(&[
            (
                format!("SELECT crm.reconcile_cancel({first})"),
                "42704",
                "cancelled",
            ),
            (
                "SELECT crm.reconcile('salesforce.contact', 'deep')".to_owned(),
                "22023",
                "values",
            ),
            (
                "SELECT crm.reconcile('salesforce.contacts')".to_owned(),
                "42704",
                "contact",
            ),
        ])
        .await;
    pair.db
        .exec("UPDATE crm.mirror SET missing_limit = 1000")
        .await;
    let second = run(&pair, "salesforce.contact", "stamps", "done").await;
    assert_eq!(told(&pair, second, "missed_deletes").await, "24");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduled_run_begins_by_the_clock_of_the_account() {
    let (pair, people) = pair(30).await;
    // Mirrors of yesterday: time zones matter now.
    pair.db
        .exec(
            "UPDATE crm.backfill SET finished_at = now() - interval '2 days';
             UPDATE crm.mirror SET reconcile_at = NULL, created_at = now() - interval '2 days';
             UPDATE crm.mirror SET reconcile_at = '06:00' WHERE object = 'Contact'",
        )
        .await;
    let zone = "SELECT time_zone = 'America/Los_Angeles' FROM crm.server_state WHERE server = 'salesforce'";
    pair.db
        .wait_true("the org has told its time zone", PATIENCE, zone)
        .await;
    lose_all(&pair);
    pair.edit("hubspot", &people[1], "jobtitle", "Found at night");
    pair.db
        .exec(
            "UPDATE crm.mirror SET reconcile_zone = 'Asia/Kathmandu',
                    reconcile_at = (now() AT TIME ZONE 'Asia/Kathmandu' + interval '2 seconds')::time WHERE object = 'contacts'",
        )
        .await;
    let done = "SELECT count(*) > 0 FROM crm.reconcile_progress WHERE mirror = 'hubspot.contacts' AND cause = 'schedule' AND state = 'done'
                AND missed_updates = 1";
    pair.db
        .wait_true("the run has come and gone", PATIENCE, done)
        .await;
    pair.reaches_both(&people[1], "jobtitle", "Found at night")
        .await;
    let again = "SELECT count(*) FROM crm.reconcile_run r JOIN crm.mirror m ON m.id = r.mirror WHERE m.object = 'contacts' AND r.state <> 'done'";
    assert_eq!(pair.db.one::<i64>(again).await, 0, "once a day");
    pair.db
        .refuses(&[(
            "UPDATE crm.mirror SET reconcile_zone = 'Mars/Olympus'",
            "22023",
            "Mars/Olympus",
        )])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_in_the_middle_loses_no_finding() {
    let mut options = PairOptions::default();
    options.emulator = options.emulator.contacts(2_000);
    let mut pair = Pair::start(options).await;
    pair.db
        .exec(
            "SELECT crm.import('hubspot', ARRAY['contacts'], into_schema => 'hubspot', poll_interval => '12 hours')",
        )
        .await;
    pair.backfilled().await;
    pair.db
        .exec("UPDATE crm.mirror SET reconcile_patience = '0'")
        .await;
    pair.emulator
        .fault(json!({"stream": "webhook", "lose": 100_000}));
    let ids = pair
        .db
        .table("SELECT id FROM hubspot.contacts ORDER BY _id LIMIT 300")
        .await
        .concat();
    for id in &ids {
        pair.emulator
            .edit("hubspot", "contacts", id, json!({"jobtitle": "Lost"}));
    }
    // A worker that begins polls at once: that must not find them.
    let contacts = "/crm/objects/2026-03/contacts";
    pair.emulator.fault(json!({
        "crm": "hubspot", "path_prefix": format!("{contacts}/search"), "remaining": 100_000, "action": {"reject": {"status": 503}}
    }));
    // In the middle of the list, and then of the reading.
    pair.emulator.fault(json!({
        "crm": "hubspot", "method": "GET", "path_prefix": contacts, "skip": 8, "action": {"hold": {"ms": 2_000}}
    }));
    pair.emulator.fault(json!({
        "crm": "hubspot", "path_prefix": format!("{contacts}/batch/read"), "skip": 1, "action": {"hold": {"ms": 2_000}}
    }));
    let run: i64 = pair
        .db
        .one("SELECT crm.reconcile('hubspot.contacts')")
        .await;
    for states in ["'listing'", "'reading', 'done'"] {
        let sql = format!("SELECT state IN ({states}) FROM crm.reconcile_run WHERE id = {run}");
        pair.db.wait_true(states, PATIENCE, &sql).await;
        let pause = std::time::Duration::from_millis(200);
        pair.cluster.crash_session_worker(&pair.db, pause).await;
        pair.db = pair.cluster.connect("app").await;
    }
    becomes(&pair, run, "done").await;
    assert_eq!(told(&pair, run, MISSED).await, "0 300 0 0");
    let right: i64 = pair
        .db
        .one("SELECT count(*) FROM hubspot.contacts WHERE jobtitle = 'Lost'")
        .await;
    assert_eq!(right, 300);
}
