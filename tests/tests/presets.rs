//! Objects linked with what crm.link sets for them and nothing else: tickets and cases, activities, products, leads.

use crm_tests::{EmulatorOptions, PATIENCE, Pair, PairOptions};
use serde_json::json;

/// Both objects imported, linked and live.
async fn linked(hubspot: &str, salesforce: &str) -> Pair {
    all_linked(&[hubspot], salesforce).await
}

/// Objects of HubSpot, each linked with the same one of Salesforce.
async fn all_linked(hubspot: &[&str], salesforce: &str) -> Pair {
    let pair = imported(hubspot, salesforce).await;
    go_live(&pair, hubspot, salesforce).await;
    pair
}

async fn imported(hubspot: &[&str], salesforce: &str) -> Pair {
    let pair = Pair::start(PairOptions {
        emulator: EmulatorOptions::default().contacts(30),
        ..PairOptions::default()
    })
    .await;
    pair.import("hubspot", hubspot).await;
    pair.import("salesforce", &[salesforce]).await;
    pair.backfilled().await;
    pair
}

async fn go_live(pair: &Pair, hubspot: &[&str], salesforce: &str) {
    let right = format!("salesforce.{}", salesforce.to_lowercase());
    for left in hubspot {
        pair.db
            .exec(&format!(
                "SELECT crm.link('hubspot.{left}', '{right}'); SELECT crm.go_live('{left}')"
            ))
            .await;
    }
    pair.worker_has_read().await;
}

async fn count(pair: &Pair, sql: &str) -> i64 {
    pair.db.one(&format!("SELECT count(*) FROM {sql}")).await
}

/// The id of the record that has this value, once there is exactly one.
async fn id_of(pair: &Pair, table: &str, column: &str, value: &str) -> String {
    let one =
        format!("SELECT min(id) FROM {table} WHERE {column} = '{value}' HAVING count(id) = 1");
    let there = format!("SELECT EXISTS ({one})");
    let what = format!("{table} has one record with {column} = {value}");
    pair.db.wait_true(&what, PATIENCE, &there).await;
    pair.db.one(&one).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_and_its_case_follow_each_other_through_their_stages() {
    let pair = linked("tickets", "Case").await;
    pair.db
        .exec(
            "INSERT INTO hubspot.tickets (subject, content, hs_pipeline, hs_pipeline_stage, hs_ticket_priority)
             VALUES ('It does not start', 'Not at all', '0', '1', 'HIGH')",
        )
        .await;
    let ticket = id_of(&pair, "hubspot.tickets", "subject", "It does not start").await;
    let case = id_of(&pair, "salesforce.case", "subject", "It does not start").await;
    for (field, value) in [
        ("Status", "New"),
        ("Priority", "High"),
        ("Description", "Not at all"),
    ] {
        pair.reaches("salesforce", "Case", &case, field, value)
            .await;
    }
    pair.emulator.edit(
        "salesforce",
        "Case",
        &case,
        serde_json::json!({"Status": "Escalated"}),
    );
    pair.reaches("hubspot", "tickets", &ticket, "hs_pipeline_stage", "3")
        .await;
    pair.emulator.edit(
        "hubspot",
        "tickets",
        &ticket,
        serde_json::json!({"hs_pipeline_stage": "4"}),
    );
    pair.reaches("salesforce", "Case", &case, "Status", "Closed")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_one_task_in_both_crms_until_it_is_done() {
    let pair = linked("tasks", "Task").await;
    pair.db
        .exec(
            "INSERT INTO salesforce.task (subject, status, priority, activitydate)
             VALUES ('Call the printer', 'Not Started', 'Normal', '2027-01-31')",
        )
        .await;
    let there = id_of(&pair, "salesforce.task", "subject", "Call the printer").await;
    let here = id_of(
        &pair,
        "hubspot.tasks",
        "hs_task_subject",
        "Call the printer",
    )
    .await;
    for (field, value) in [
        ("hs_task_status", "NOT_STARTED"),
        ("hs_task_priority", "MEDIUM"),
    ] {
        pair.reaches("hubspot", "tasks", &here, field, value).await;
    }
    let due =
        format!("SELECT hs_timestamp = '2027-01-31 00:00Z' FROM hubspot.tasks WHERE id = '{here}'");
    pair.db
        .wait_true("it is due on that day", PATIENCE, &due)
        .await;
    // Another time of the same day is the same day.
    pair.emulator.edit(
        "hubspot",
        "tasks",
        &here,
        serde_json::json!({"hs_timestamp": "2027-01-31T15:00:00Z", "hs_task_status": "COMPLETED"}),
    );
    pair.reaches("salesforce", "Task", &there, "Status", "Completed")
        .await;
    pair.reaches("salesforce", "Task", &there, "ActivityDate", "2027-01-31")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_meeting_and_its_event_begin_and_end_together() {
    let pair = linked("meetings", "Event").await;
    pair.db
        .exec(
            "INSERT INTO salesforce.event (subject, startdatetime, enddatetime, location)
             VALUES ('Yearly review', '2027-01-31 09:00Z', '2027-01-31 10:30Z', 'Room 9')",
        )
        .await;
    let event = id_of(&pair, "salesforce.event", "subject", "Yearly review").await;
    let meeting = id_of(
        &pair,
        "hubspot.meetings",
        "hs_meeting_title",
        "Yearly review",
    )
    .await;
    let times = format!(
        "SELECT hs_timestamp = '2027-01-31 09:00Z' AND hs_meeting_start_time = hs_timestamp
            AND hs_meeting_end_time = '2027-01-31 10:30Z' FROM hubspot.meetings WHERE id = '{meeting}'"
    );
    pair.db
        .wait_true("it is the same time there", PATIENCE, &times)
        .await;
    let later = json!({"hs_meeting_start_time": "2027-02-01T09:00:00Z", "hs_meeting_end_time": "2027-02-01T10:00:00Z"});
    pair.emulator.edit("hubspot", "meetings", &meeting, later);
    pair.reaches("salesforce", "Event", &event, "ActivityDate", "2027-02-01")
        .await;
    pair.reaches("salesforce", "Event", &event, "DurationInMinutes", "60")
        .await;
    // HubSpot's own time of the activity follows what Salesforce makes of the start.
    let follows = format!(
        "SELECT hs_timestamp = '2027-02-01 09:00Z' FROM hubspot.meetings WHERE id = '{meeting}'"
    );
    pair.db
        .wait_true("the activity is where the meeting is", PATIENCE, &follows)
        .await;
}

/// Four objects of HubSpot are one of Salesforce: each must find its own kind there, with words of its own.
#[tokio::test(flavor = "multi_thread")]
async fn calls_and_tasks_share_an_object_and_are_not_taken_for_each_other() {
    let pair = all_linked(&["tasks", "calls"], "Task").await;
    let told = pair
        .db
        .table("SELECT problem FROM crm.check_mapping('calls') WHERE problem = 'two targets'")
        .await;
    assert!(told.is_empty(), "the scopes exclude each other: {told:?}");
    pair.db
        .exec(
            "INSERT INTO hubspot.calls (hs_call_title, hs_timestamp, hs_call_status, hs_call_direction)
             VALUES ('Rang the mill', '2027-01-31 12:00Z', 'NO_ANSWER', 'OUTBOUND');
             INSERT INTO hubspot.tasks (hs_task_subject, hs_timestamp, hs_task_status)
             VALUES ('Ring again', '2027-02-01 12:00Z', 'NOT_STARTED');
             INSERT INTO salesforce.task (subject, status, tasksubtype, activitydate)
             VALUES ('The mill rang', 'In Progress', 'Call', '2027-02-02')",
        )
        .await;
    let call = id_of(&pair, "hubspot.calls", "hs_call_title", "Rang the mill").await;
    let task = id_of(&pair, "hubspot.tasks", "hs_task_subject", "Ring again").await;
    let answered = id_of(&pair, "hubspot.calls", "hs_call_title", "The mill rang").await;
    let called = id_of(&pair, "salesforce.task", "subject", "Rang the mill").await;
    let todo = id_of(&pair, "salesforce.task", "subject", "Ring again").await;
    for (id, field, value) in [
        (&called, "TaskSubtype", "Call"),
        (&called, "Status", "Completed"),
        (&called, "CallType", "Outbound"),
        (&todo, "TaskSubtype", "Task"),
        (&todo, "Status", "Not Started"),
    ] {
        pair.reaches("salesforce", "Task", id, field, value).await;
    }
    pair.reaches(
        "hubspot",
        "calls",
        &answered,
        "hs_call_status",
        "IN_PROGRESS",
    )
    .await;
    pair.emulator
        .edit("salesforce", "Task", &todo, json!({"Status": "Completed"}));
    pair.emulator.edit(
        "salesforce",
        "Task",
        &called,
        json!({"Subject": "Rang the old mill"}),
    );
    pair.reaches("hubspot", "tasks", &task, "hs_task_status", "COMPLETED")
        .await;
    pair.reaches(
        "hubspot",
        "calls",
        &call,
        "hs_call_title",
        "Rang the old mill",
    )
    .await;
    nothing_is_mixed_up(&pair, &call).await;
}

async fn nothing_is_mixed_up(pair: &Pair, call: &str) {
    pair.quiet().await;
    // Completed is what NO_ANSWER is called there: it says nothing new.
    let kept = pair
        .emulator
        .field("hubspot", "calls", call, "hs_call_status");
    assert_eq!(kept.as_deref(), Some("NO_ANSWER"));
    let mixed = "hubspot.tasks WHERE hs_task_subject IN ('Rang the mill', 'Rang the old mill', 'The mill rang')";
    assert_eq!(count(pair, mixed).await, 0);
    let mixed = "hubspot.calls WHERE hs_call_title = 'Ring again'";
    assert_eq!(count(pair, mixed).await, 0);
    let lossy = pair
        .db
        .table("SELECT array_to_string(examples, ', ') FROM crm.check_mapping('calls') WHERE problem = 'lossy' AND field = 'hs_call_status'")
        .await;
    assert!(
        lossy[0][0].contains("NO_ANSWER -> Completed -> COMPLETED"),
        "{lossy:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn notes_and_emails_become_tasks_that_say_nothing_back() {
    let pair = all_linked(&["notes", "emails", "tasks"], "Task").await;
    pair.db
        .exec(
            "INSERT INTO hubspot.notes (hs_note_body, hs_timestamp) VALUES ('Likes blue', '2027-01-31 12:00Z');
             INSERT INTO hubspot.emails (hs_email_subject, hs_email_text, hs_email_direction, hs_timestamp)
             VALUES ('The offer', 'As promised.', 'EMAIL', '2027-01-31 12:00Z')",
        )
        .await;
    let noted = id_of(&pair, "salesforce.task", "description", "Likes blue").await;
    let sent = id_of(&pair, "salesforce.task", "subject", "The offer").await;
    for (id, field, value) in [
        (&noted, "Subject", "Note"),
        (&noted, "Type", "Note"),
        (&noted, "Status", "Completed"),
        (&noted, "ActivityDate", "2027-01-31"),
        (&sent, "TaskSubtype", "Email"),
        (&sent, "Description", "As promised."),
    ] {
        pair.reaches("salesforce", "Task", id, field, value).await;
    }
    let note = id_of(&pair, "hubspot.notes", "hs_note_body", "Likes blue").await;
    pair.emulator.edit(
        "salesforce",
        "Task",
        &noted,
        json!({"Description": "Likes green"}),
    );
    let arrived =
        format!("SELECT description = 'Likes green' FROM salesforce.task WHERE id = '{noted}'");
    pair.db
        .wait_true("the edit arrived", PATIENCE, &arrived)
        .await;
    pair.emulator.edit(
        "hubspot",
        "notes",
        &note,
        json!({"hs_note_body": "Likes red"}),
    );
    pair.reaches("salesforce", "Task", &noted, "Description", "Likes red")
        .await;
    pair.quiet().await;
    let body = pair
        .emulator
        .field("hubspot", "notes", &note, "hs_note_body");
    assert_eq!(body.as_deref(), Some("Likes red"));
    let tasks = "hubspot.tasks WHERE hs_task_subject IN ('Note', 'The offer')";
    assert_eq!(
        count(&pair, tasks).await,
        0,
        "what came from HubSpot does not go back as tasks"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn products_are_one_by_their_number_and_new_ones_can_be_sold() {
    let pair = linked("products", "Product2").await;
    let tied = "crm.xref a JOIN crm.xref b ON b.entity = a.entity AND b.mirror > a.mirror
        JOIN hubspot.products p ON p._id = a.row_id JOIN salesforce.product2 q ON q._id = b.row_id
        WHERE p.hs_sku = q.productcode";
    assert_eq!(count(&pair, tied).await, 3, "all three there are");
    let product = id_of(&pair, "hubspot.products", "hs_sku", "S-000002").await;
    let theirs = id_of(&pair, "salesforce.product2", "productcode", "S-000002").await;
    pair.emulator
        .edit("salesforce", "Product2", &theirs, json!({"Name": "Cog"}));
    pair.reaches("hubspot", "products", &product, "name", "Cog")
        .await;
    pair.emulator.create(
        "hubspot",
        "products",
        json!({"name": "Wheel", "hs_sku": "W-1", "price": "7"}),
    );
    let new = id_of(&pair, "salesforce.product2", "productcode", "W-1").await;
    pair.reaches("salesforce", "Product2", &new, "IsActive", "true")
        .await;
}

/// A HubSpot lead has no person's name and a Salesforce Lead needs one: they are tied where they are, and none is made.
#[tokio::test(flavor = "multi_thread")]
async fn leads_are_tied_by_name_and_none_is_made() {
    let pair = imported(&["leads"], "Lead").await;
    let (lead, name): (String, String) = {
        let sql = "SELECT id, name FROM salesforce.lead ORDER BY id LIMIT 1";
        let row = pair.db.query_one(sql, &[]).await.expect("a lead");
        (row.get(0), row.get(1))
    };
    let made = pair
        .emulator
        .create("hubspot", "leads", json!({"hs_lead_name": name}));
    let ours = made["id"].as_str().expect("an id").to_owned();
    id_of(&pair, "hubspot.leads", "hs_lead_name", &name).await;
    go_live(&pair, &["leads"], "Lead").await;
    pair.emulator
        .edit("salesforce", "Lead", &lead, json!({"Rating": "Warm"}));
    pair.reaches("hubspot", "leads", &ours, "hs_lead_label", "WARM")
        .await;
    pair.emulator
        .edit("hubspot", "leads", &ours, json!({"hs_lead_label": "HOT"}));
    pair.reaches("salesforce", "Lead", &lead, "Rating", "Hot")
        .await;
    pair.emulator
        .create("hubspot", "leads", json!({"hs_lead_name": "Nobody there"}));
    id_of(&pair, "hubspot.leads", "hs_lead_name", "Nobody there").await;
    pair.quiet().await;
    assert_eq!(count(&pair, "salesforce.lead").await, 3);
    assert_eq!(count(&pair, "crm.write WHERE kind = 'create'").await, 0);
}
