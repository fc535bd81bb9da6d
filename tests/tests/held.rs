//! What waits for a person's word does not stand in the way of what happens meanwhile, and leaves no trace when refused.

use crm_tests::{EmulatorOptions, Options, PATIENCE, Pair, PairOptions, Person};
use serde_json::json;

/// Holds above 5 rows; the later of two changes wins, told apart by more than `skew`.
async fn guarded(skew: &str) -> (Pair, Vec<Person>) {
    let cluster = Options::default().setting("pg_crm_sync.guard_soft_rows", "5");
    let options = PairOptions {
        cluster,
        ..PairOptions::default()
    };
    let (pair, people) = Pair::linked(20, options).await;
    pair.db
        .exec(&format!("UPDATE crm.conflict_policy SET skew = '{skew}'"))
        .await;
    pair.worker_has_read().await;
    pair.agree().await;
    (pair, people)
}

/// Gives eight people a new title in one transaction, and waits until it is held; answers the transaction.
async fn hold(pair: &Pair, people: &[Person]) -> i64 {
    let ids: Vec<String> = people.iter().map(|p| format!("'{}'", p.hubspot)).collect();
    pair.db
        .exec(&format!(
            "UPDATE hubspot.contacts SET jobtitle = 'Mass ' || id WHERE id IN ({})",
            ids.join(", ")
        ))
        .await;
    let sql = format!(
        "SELECT count(DISTINCT tx) = 1 AND sum(writes) >= {} FROM crm.held",
        people.len()
    );
    pair.db
        .wait_true("the guard holds the writes", PATIENCE, &sql)
        .await;
    pair.quiet().await;
    pair.db.one("SELECT tx FROM crm.held").await
}

/// Edits of four of the held people by both CRMs and by SQL; the values that must stand in the end.
async fn edits(pair: &Pair, people: &[Person]) -> Vec<(usize, &'static str, &'static str)> {
    pair.edit("hubspot", &people[0], "phone", "+44 1");
    pair.edit("hubspot", &people[1], "jobtitle", "Countess");
    pair.edit("salesforce", &people[2], "jobtitle", "Actuary");
    pair.sql(&people[3], "jobtitle", "Poet").await;
    vec![
        (0, "phone", "+44 1"),
        (1, "jobtitle", "Countess"),
        (2, "jobtitle", "Actuary"),
        (3, "jobtitle", "Poet"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_get_through_beside_held_writes_and_stay_when_those_are_approved() {
    let (pair, people) = guarded("0").await;
    let many = &people[..8];
    let tx = hold(&pair, many).await;
    let stand = edits(&pair, many).await;
    for (n, field, value) in &stand {
        pair.reaches_both(&many[*n], field, value).await;
    }
    pair.db.exec(&format!("SELECT crm.approve({tx})")).await;
    for who in many[4..].iter().chain(&many[..1]) {
        pair.reaches_both(who, "jobtitle", &format!("Mass {}", who.hubspot))
            .await;
    }
    pair.agree().await;
    for (n, field, value) in &stand {
        pair.reaches_both(&many[*n], field, value).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejection_restores_old_values_only_where_nothing_changed_since() {
    let (pair, people) = guarded("0").await;
    let many = &people[..8];
    let before: Vec<Option<String>> = (many.iter())
        .map(|p| pair.shows("hubspot", p, "jobtitle"))
        .collect();
    let tx = hold(&pair, many).await;
    let stand = edits(&pair, many).await;
    for (n, field, value) in &stand {
        pair.reaches_both(&many[*n], field, value).await;
    }
    pair.db.exec(&format!("SELECT crm.reject({tx})")).await;
    pair.agree().await;
    for (n, field, value) in &stand {
        assert_eq!(
            pair.shows("salesforce", &many[*n], field).as_deref(),
            Some(*value)
        );
    }
    for n in [0, 4, 5, 6, 7] {
        assert_eq!(pair.shows("hubspot", &many[n], "jobtitle"), before[n]);
    }
    // The field is free again: the very value that was refused may be set by itself.
    let value = format!("Mass {}", many[7].hubspot);
    pair.sql(&many[7], "jobtitle", &value).await;
    pair.reaches_both(&many[7], "jobtitle", &value).await;
    pair.agree().await;
}

/// While the SQL value stands, the CRM's newer one lost to it; once it is refused, nothing outranks the CRM's.
#[tokio::test(flavor = "multi_thread")]
async fn an_edit_that_lost_to_a_held_value_stands_when_that_is_rejected() {
    let (pair, people) = guarded("2 s").await;
    pair.db
        .exec("UPDATE crm.conflict_policy SET strategy = 'priority', winner = 'local'")
        .await;
    pair.worker_has_read().await;
    let many = &people[..8];
    let tx = hold(&pair, many).await;
    pair.edit("hubspot", &many[1], "jobtitle", "Countess");
    pair.db
        .wait_true(
            "the edit was decided against the held value",
            PATIENCE,
            "SELECT count(*) > 0 FROM crm.conflict WHERE field = 'jobtitle' AND lost::text LIKE '%Countess%'",
        )
        .await;
    pair.db.exec(&format!("SELECT crm.reject({tx})")).await;
    pair.reaches_both(&many[1], "jobtitle", "Countess").await;
    pair.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_delete_that_would_have_spread_leaves_both_sides_alive() {
    let (pair, people) = guarded("2 s").await;
    pair.db
        .exec("UPDATE crm.link SET on_left_delete = 'propagate', on_right_delete = 'propagate'")
        .await;
    pair.worker_has_read().await;
    let many = &people[..6];
    let ids: Vec<String> = many.iter().map(|p| format!("'{}'", p.hubspot)).collect();
    let delete = format!(
        "DELETE FROM hubspot.contacts WHERE id IN ({})",
        ids.join(", ")
    );
    let marked = "SELECT count(*) FROM salesforce.contact WHERE _deleted_at IS NOT NULL";
    let held = "SELECT coalesce(sum(deletes), 0) = 12 FROM crm.held";
    pair.db.exec(&delete).await;
    pair.db
        .wait_true("both sides' deletes are held", PATIENCE, held)
        .await;
    pair.quiet().await;
    let tx: i64 = pair.db.one("SELECT tx FROM crm.held").await;
    pair.db.exec(&format!("SELECT crm.reject({tx})")).await;
    assert_eq!(pair.db.one::<i64>(marked).await, 0);
    pair.agree().await;
    pair.sql(&many[0], "jobtitle", "Back").await;
    pair.reaches_both(&many[0], "jobtitle", "Back").await;

    // Approved, the same delete reaches both CRMs, and then the rows.
    pair.db.exec(&delete).await;
    pair.db
        .wait_true("both sides' deletes are held", PATIENCE, held)
        .await;
    pair.quiet().await;
    let tx: i64 = pair.db.one("SELECT tx FROM crm.held").await;
    pair.db.exec(&format!("SELECT crm.approve({tx})")).await;
    pair.db
        .wait_true(
            "the rows are marked",
            PATIENCE,
            "SELECT count(*) = 6 FROM salesforce.contact WHERE _deleted_at IS NOT NULL",
        )
        .await;
    pair.quiet().await;
    for who in many {
        assert!(pair.gone("hubspot", "contacts", &who.hubspot));
        assert!(pair.gone("salesforce", "Contact", &who.salesforce));
    }
}

/// An edit of a record that SQL had removed, told before the removal left, brought it back as another row, and its
/// counterpart was made anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_does_not_come_back_while_its_removal_waits() {
    let (pair, people) = guarded("2 s").await;
    pair.db
        .exec("UPDATE crm.link SET on_left_delete = 'propagate', on_right_delete = 'propagate'")
        .await;
    pair.worker_has_read().await;
    let many = &people[..6];
    let ids: Vec<String> = many.iter().map(|p| format!("'{}'", p.hubspot)).collect();
    let ids = ids.join(", ");
    let delete = format!("DELETE FROM hubspot.contacts WHERE id IN ({ids})");
    let shown = format!("SELECT count(*) FROM hubspot.contacts WHERE id IN ({ids})");
    for (approved, value) in [(false, "Unseen"), (true, "Unseen again")] {
        pair.db.exec(&delete).await;
        let held = "SELECT coalesce(sum(deletes), 0) = 12 FROM crm.held";
        pair.db
            .wait_true("both sides' deletes are held", PATIENCE, held)
            .await;
        pair.edit("hubspot", &many[0], "jobtitle", value);
        pair.told("hubspot", value).await;
        pair.quiet().await;
        assert_eq!(pair.db.one::<i64>(&shown).await, 0);
        let lines = format!(
            "SELECT kind, decision -> 0 ->> 'step', actor <> '' FROM crm.event WHERE '{value}' = ANY (new_values)"
        );
        let lines = pair.db.table(&lines).await;
        assert_eq!(lines, [["discard", "tombstone", "t"]]);
        let tx: i64 = pair.db.one("SELECT tx FROM crm.held").await;
        if approved {
            pair.db.exec(&format!("SELECT crm.approve({tx})")).await;
            let gone = || {
                many.iter()
                    .all(|p| pair.gone("hubspot", "contacts", &p.hubspot))
            };
            pair.cluster
                .wait_until("they go", PATIENCE, async || gone().then_some(()))
                .await;
            pair.quiet().await;
        } else {
            pair.db.exec(&format!("SELECT crm.reject({tx})")).await;
            pair.reaches_both(&many[0], "jobtitle", value).await;
            pair.agree().await;
            assert_eq!(pair.db.one::<i64>(&shown).await, 6);
        }
    }
    assert_eq!(pair.live("hubspot", "contacts"), 14);
    assert_eq!(pair.live("salesforce", "Contact"), 14);
    let made = "SELECT DISTINCT source FROM crm.event WHERE kind = 'create'";
    let made = pair.db.table(made).await;
    assert_eq!(made, [["reject"]], "nothing is made anew");
}

/// Nobody compared it with its partner: what had been decided, or written there, meanwhile never reached it.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_a_rejection_puts_back_agrees_with_its_partner() {
    let (pair, people) = guarded("2 s").await;
    let many = &people[..6];
    let update = hold(&pair, many).await;
    let ids: Vec<String> = many.iter().map(|p| format!("'{}'", p.salesforce)).collect();
    let ids = ids.join(", ");
    let delete = format!("DELETE FROM salesforce.contact WHERE id IN ({ids})");
    pair.db.exec(&delete).await;
    let held = "SELECT coalesce(sum(deletes), 0) = 6 FROM crm.held";
    pair.db
        .wait_true("the deletes are held", PATIENCE, held)
        .await;
    pair.edit("hubspot", &many[0], "phone", "+44 7");
    pair.told("hubspot", "+44 7").await;
    pair.quiet().await;
    let delete = "SELECT tx FROM crm.held WHERE deletes > 0";
    let delete: i64 = pair.db.one(delete).await;
    pair.db.exec(&format!("SELECT crm.reject({delete})")).await;
    let back = format!("SELECT count(*) FROM salesforce.contact WHERE id IN ({ids})");
    assert_eq!(pair.db.one::<i64>(&back).await, 6, "at once");
    pair.db.exec(&format!("SELECT crm.approve({update})")).await;
    pair.reaches_both(&many[0], "phone", "+44 7").await;
    pair.agree().await;
    for who in many {
        let title = pair
            .emulator
            .field("salesforce", "Contact", &who.salesforce, "Title");
        assert_eq!(title, Some(format!("Mass {}", who.hubspot)));
    }
}

/// Without a property of ours, and without an address to search by, nobody can find out what a lost answer said.
#[tokio::test(flavor = "multi_thread")]
async fn a_person_says_what_became_of_a_create_whose_answer_was_lost() {
    let emulator = EmulatorOptions::default()
        .contacts(20)
        .arg("--hubspot-sync-properties", "off")
        .arg("--salesforce-external-id", "off");
    let pair = Pair::contacts(PairOptions {
        emulator,
        ..PairOptions::default()
    })
    .await;
    let before = pair.live("hubspot", "contacts");
    for (name, action) in [
        ("Made", json!({"fail_after_write": {}})),
        ("Lost", json!("close")),
    ] {
        pair.emulator.fault(json!({"rules": [
            {"crm": "hubspot", "method": "POST", "path_prefix": "/crm/objects/2026-03/contacts/batch/create", "action": action},
        ]}));
        pair.db
            .exec(&format!(
                "INSERT INTO hubspot.contacts (lastname) VALUES ('{name}')"
            ))
            .await;
        let asked = format!(
            "SELECT count(*) = 1 FROM crm.held WHERE tx IS NULL AND advice LIKE '%{name}%'"
        );
        pair.db.wait_true("it is asked", PATIENCE, &asked).await;
    }
    let (made, lost) = (write_of(&pair, "Made").await, write_of(&pair, "Lost").await);
    wrong_answers(&pair, made).await;
    a_slip_of_the_pen(&pair, made).await;
    let record = record_of_made(&pair);
    pair.db
        .exec(&format!(
            "BEGIN; SET LOCAL pg_crm_sync.reason = 'looked';
             SELECT crm.resolve_create({made}, 'made', '{record}'), crm.resolve_create({lost}, 'not made'); COMMIT"
        ))
        .await;
    pair.db
        .wait_true(
            "both have their records",
            PATIENCE,
            &format!(
                "SELECT count(*) = 2 AND bool_or(id = '{record}' AND lastname = 'Made') FROM hubspot.contacts
                 WHERE lastname IN ('Made', 'Lost') AND id IS NOT NULL AND _deleted_at IS NULL"
            ),
        )
        .await;
    pair.agree().await;
    assert_eq!(pair.live("hubspot", "contacts"), before + 2, "each once");
    let asked: i64 = pair.db.one("SELECT count(*) FROM crm.review").await;
    assert_eq!(asked, 0);
    let told = format!(
        "SELECT count(*) = 2 AND bool_or(resolution = 'made' AND value = '{record}') AND bool_or(resolution = 'retry')
         FROM crm.review_history WHERE kind = 'create' AND resolved_by = 'postgres' AND because = 'looked'"
    );
    pair.db
        .wait_true("who said so, and why, is told", PATIENCE, &told)
        .await;
}

/// Comes back as the same question.
async fn a_slip_of_the_pen(pair: &Pair, made: i64) {
    pair.db
        .exec(&format!(
            "SELECT crm.resolve_create({made}, 'made', '999999999')"
        ))
        .await;
    let asked = "SELECT count(*) = 2 FROM crm.held WHERE tx IS NULL";
    pair.db
        .wait_true("it is asked again", PATIENCE, asked)
        .await;
}

/// Id of HubSpot's contact called Made.
fn record_of_made(pair: &Pair) -> String {
    let answer = pair
        .emulator
        .admin("GET", "/_admin/hubspot/objects/contacts?limit=1000", None);
    let list = ["results", "records", "objects"]
        .iter()
        .find_map(|k| answer[k].as_array())
        .unwrap_or_else(|| panic!("no list in {answer}"));
    let made = list.iter().find(|r| {
        ["properties", "fields"]
            .iter()
            .any(|p| r[p]["lastname"] == "Made")
            || r["lastname"] == "Made"
    });
    made.and_then(|r| r["id"].as_str())
        .unwrap_or_else(|| panic!("no such contact in {answer}"))
        .to_owned()
}

/// The create of a contact by last name.
async fn write_of(pair: &Pair, name: &str) -> i64 {
    let sql = format!(
        "SELECT id FROM crm.outbox WHERE send ->> 'lastname' = '{name}' AND mirror = 'hubspot.contacts'"
    );
    pair.db.one(&sql).await
}

async fn wrong_answers(pair: &Pair, made: i64) {
    let error = pair
        .db
        .error("SELECT crm.resolve_create(0, 'made', '1')")
        .await;
    assert_eq!(error.code().code(), "42704");
    for wrong in ["'perhaps'", "'made'", "'not made', '77'"] {
        let error = pair
            .db
            .error(&format!("SELECT crm.resolve_create({made}, {wrong})"))
            .await;
        assert_eq!(error.code().code(), "22023", "{wrong}");
    }
}
