//! Tickets and cases, tasks and tasks: linked with their standard maps and nothing else.

use crm_tests::{EmulatorOptions, PATIENCE, Pair, PairOptions};

/// Both objects imported, linked and live.
async fn linked(hubspot: &str, salesforce: &str) -> Pair {
    let pair = Pair::start(PairOptions {
        emulator: EmulatorOptions::default().contacts(30),
        ..PairOptions::default()
    })
    .await;
    pair.import("hubspot", &[hubspot]).await;
    pair.import("salesforce", &[salesforce]).await;
    pair.backfilled().await;
    let (left, right) = (
        format!("hubspot.{hubspot}"),
        format!("salesforce.{}", salesforce.to_lowercase()),
    );
    pair.db
        .exec(&format!(
            "SELECT crm.link('{left}', '{right}', name => 'work'); SELECT crm.go_live('work')"
        ))
        .await;
    pair.worker_has_read().await;
    pair
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
