//! "What of all that is open would another policy decide otherwise?"

use crm_tests::{PATIENCE, Pair, PairOptions};

#[tokio::test(flavor = "multi_thread")]
async fn a_draft_tells_which_unsent_writes_it_would_turn_and_turns_none() {
    let (pair, people) = Pair::linked(20, PairOptions::default()).await;
    pair.agree().await;
    let who = &people[0];
    let had = pair.shows("salesforce", who, "city").unwrap_or_default();
    pair.db
        .exec("SELECT crm.pause('server', 'salesforce')")
        .await;
    pair.worker_has_read().await;
    pair.edit("hubspot", who, "city", "Mine");
    let queued = "SELECT count(*) = 1 FROM crm.write WHERE state = 'queued'";
    pair.db.wait_true("a write waits", PATIENCE, queued).await;
    let state = "SELECT md5(string_agg(t, '|' ORDER BY t)) FROM (SELECT row(w.*)::text AS t FROM crm.write w
        UNION ALL SELECT row(p.*)::text FROM crm.conflict_policy p UNION ALL SELECT row(h.*)::text FROM crm.policy_history h
        UNION ALL SELECT row(t.*)::text FROM crm.policy_task t UNION ALL SELECT row(f.*)::text FROM crm.field_state f) x";
    let before = pair.db.table(state).await;
    let draft =
        r#"[{"link": "contacts", "field": "city", "strategy": "owner", "winner": "salesforce"}]"#;
    let sql = format!(
        "SELECT what, coalesce(server, ''), coalesce(record, ''), coalesce(field, ''), coalesce(value, ''), verdict, coalesce(competing::text, '')
         FROM crm.explain(policy => '{draft}')"
    );
    let rows = pair.db.table(&sql).await;
    let told = |what: &str, server: &str, verdict: &str| {
        rows.iter()
            .find(|r| r[0] == what && r[1] == server && r[5] == verdict)
            .unwrap_or_else(|| panic!("no {what} {server} {verdict} in {rows:#?}"))
    };
    let decided = told("change", "hubspot", "decided again");
    assert_eq!(
        (&decided[2], &decided[3]),
        (&who.hubspot, &"city".to_owned())
    );
    assert!(decided[6].contains("\"Mine\""), "{rows:#?}");
    let withdrawn = told("write", "salesforce", "withdrawn");
    assert_eq!(
        (&withdrawn[3], &withdrawn[4]),
        (&"MailingCity".to_owned(), &"Mine".to_owned())
    );
    assert_eq!(told("write", "hubspot", "would be sent")[4], had);
    assert_eq!(pair.db.table(state).await, before);
    // The default of the link decides nothing that has a row of its own, and a rule that agrees turns nothing.
    let agrees = draft.replace("salesforce", "hubspot");
    let none = pair
        .db
        .table(&format!(
            "SELECT * FROM crm.explain(policy => '{agrees}') WHERE what = 'write'"
        ))
        .await;
    assert_eq!(none.len(), 0, "{none:#?}");
    lock_and_later(&pair).await;
    assert_eq!(pair.db.table(state).await, before);
    let error = pair
        .db
        .error(&format!(
            "SELECT * FROM crm.explain(policy => '{}')",
            draft.replace("city", "cty")
        ))
        .await;
    assert_eq!(error.code().code(), "42703", "{error:?}");
    pair.db
        .exec("INSERT INTO crm.conflict_policy (link, field, strategy, winner) VALUES ('contacts', 'city', 'owner', 'salesforce')")
        .await;
    pair.db
        .exec("SELECT crm.resume('server', 'salesforce')")
        .await;
    pair.reaches("hubspot", "contacts", &who.hubspot, "city", &had)
        .await;
    pair.agree().await;
}

/// While HubSpot's city waits for Salesforce: drafts of a lock, and of what only looks at edits.
async fn lock_and_later(pair: &Pair) {
    // A lock says the same as an owner; what looks at edits only says that it will.
    let lock = r#"{"link": "contacts", "field": "city", "origin": "salesforce"}"#;
    let locked = "SELECT server, coalesce(value, '') FROM crm.explain(policy => $$DRAFT$$) WHERE what = 'write' AND verdict = 'withdrawn'";
    let locked = pair.db.table(&locked.replace("DRAFT", lock)).await;
    assert_eq!(locked, [["salesforce", "Mine"]]);
    let later = "SELECT field, decided_by, verdict FROM crm.explain(policy => '{\"link\": \"contacts\", \"field\": \"zip\", \"strategy\": \"append\"}') WHERE what = 'note'";
    assert_eq!(
        pair.db.table(later).await,
        [["zip", "append", "next edits"]]
    );
}
