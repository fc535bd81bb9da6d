//! A secret stays in its file and in the worker's memory: no catalog, log, dump or statistics view shows it.

use crm_tests::{Cluster, Db, EmulatorOptions, Options, PATIENCE, Pair, PairOptions, Person, Stop};
use serde_json::{Value, json};

/// Found nowhere but in the credential files.
const TOKEN: &str = "canary-token-7f3a9c51";
const SECRET: &str = "canary-secret-2b8e6d40";

/// What no text may contain: the canaries, also in base64 as of a basic authorization, and tokens the CRMs handed out.
fn forbidden() -> Vec<String> {
    let mut words: Vec<String> = [TOKEN, SECRET].map(str::to_owned).to_vec();
    // The middle of each canary under the three alignments of base64.
    for canary in [TOKEN, SECRET] {
        for skip in 0..3 {
            let part = &canary.as_bytes()[skip..skip + 15];
            words.push(base64(part));
        }
    }
    // Session ids of Salesforce begin with the organisation's id.
    words.push("00Dxx0000000001!".to_owned());
    words.push("Bearer ".to_owned());
    words
}

fn base64(bytes: &[u8]) -> String {
    const SET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    bytes
        .chunks_exact(3)
        .flat_map(|c| {
            let n = u32::from(c[0]) << 16 | u32::from(c[1]) << 8 | u32::from(c[2]);
            [18, 12, 6, 0].map(|shift| char::from(SET[(n >> shift & 63) as usize]))
        })
        .collect()
}

fn clean(place: &str, text: &str) {
    for word in forbidden() {
        if let Some(at) = text.find(&word) {
            let from = text[..at]
                .char_indices()
                .rev()
                .nth(80)
                .map_or(0, |(i, _)| i);
            let end = text[at..]
                .char_indices()
                .nth(120)
                .map_or(text.len(), |(i, _)| at + i);
            panic!("{place} shows a secret ({word}): … {} …", &text[from..end]);
        }
    }
}

async fn start() -> Pair {
    let options = PairOptions {
        cluster: Options::default()
            .setting("log_min_messages", "debug1")
            .setting("log_statement", "all")
            .setting("pg_crm_sync.request_timeout", "2s")
            .setting("pg_crm_sync.guard_window_rows", "0"),
        emulator: EmulatorOptions::default()
            .contacts(20)
            .arg("--hubspot-token", TOKEN)
            .arg("--client-secret", SECRET),
    };
    let pair = Pair::start(options).await;
    credentials(&pair.cluster, TOKEN, SECRET);
    pair
}

fn credentials(cluster: &Cluster, token: &str, secret: &str) {
    let content = json!({"token": token, "hosts": ["127.0.0.1"], "owner": "postgres", "webhook_secret": secret});
    cluster.credentials("hubspot.json", &content);
    let content = json!({"client_id": "emulator-app", "client_secret": secret, "hosts": ["127.0.0.1"], "owner": "postgres"});
    cluster.credentials("salesforce.json", &content);
}

/// Every row of every table and view that a superuser can read, as text.
async fn everything(db: &Db) -> Vec<(String, String)> {
    let names = db
        .table(
            "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind IN ('r', 'v', 'm') AND n.nspname IN ('crm', 'hubspot', 'salesforce', 'pg_catalog') ORDER BY 1",
        )
        .await;
    let mut all = Vec::new();
    for name in names {
        // Statement texts of this very connection hold no secret either.
        let sql = format!("SELECT t::text FROM {} t", name[0]);
        if let Ok(rows) = db.query(&sql, &[]).await {
            let text: String = rows
                .iter()
                .filter_map(|r| r.try_get::<_, Option<String>>(0).ok().flatten())
                .collect::<Vec<_>>()
                .join("\n");
            all.push((name[0].clone(), text));
        }
    }
    all
}

fn program(cluster: &Cluster, name: &str, args: &[&str]) -> String {
    let output = cluster
        .program(name)
        .args(args)
        .output()
        .unwrap_or_else(|e| panic!("cannot run {name}: {e}"));
    assert!(
        output.status.success(),
        "{name}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Trouble talks most: refusals, garbage and expired tokens, checks, wrong credentials.
async fn trouble(pair: &Pair, who: &Person) {
    for (crm, prefix) in [("hubspot", "/crm/"), ("salesforce", "/services/")] {
        for action in [
            json!({"reject": {"status": 401}}),
            json!({"garbage": "html"}),
            json!("close"),
        ] {
            let rule = json!({"crm": crm, "path_prefix": prefix, "action": action});
            pair.emulator.fault(rule);
        }
        let path = format!("/_admin/{crm}/expire-tokens");
        pair.emulator.admin("POST", &path, Some(&json!({})));
    }
    pair.sql(who, "city", "Sent again").await;
    pair.reaches_both(who, "city", "Sent again").await;
    for server in ["hubspot", "salesforce"] {
        pair.db
            .exec(&format!("SELECT * FROM crm.server_check('{server}')"))
            .await;
    }
    credentials(
        &pair.cluster,
        &format!("{TOKEN}-revoked"),
        &format!("{SECRET}-revoked"),
    );
    pair.cluster.reload();
    pair.emulator
        .admin("POST", "/_admin/salesforce/expire-tokens", Some(&json!({})));
    pair.sql(who, "city", "Refused").await;
    // A write that was sent before the worker read the new credentials is accepted: write until one is refused.
    let noted = format!(
        "WITH w AS (UPDATE hubspot.contacts SET city = 'Refused ' || clock_timestamp() WHERE id = '{}' RETURNING 1)
         SELECT EXISTS (SELECT FROM crm.server_state WHERE last_error IS NOT NULL) FROM w",
        who.hubspot
    );
    pair.db
        .wait_true("a refusal is noted", PATIENCE, &noted)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_appear_in_no_catalog_log_dump_or_statistics_view() {
    let pair = start().await;
    pair.import("hubspot", &["contacts"]).await;
    pair.import("salesforce", &["Contact"]).await;
    pair.backfilled().await;
    pair.db
        .exec("SELECT crm.link('hubspot.contacts', 'salesforce.contact')")
        .await;
    pair.db.exec("SELECT crm.go_live('contacts')").await;
    let people = pair.people().await;
    let who = &people[0];
    pair.edit("hubspot", who, "jobtitle", "Seen");
    pair.reaches_both(who, "jobtitle", "Seen").await;
    pair.sql(who, "city", "Sent").await;
    pair.reaches_both(who, "city", "Sent").await;
    trouble(&pair, who).await;

    let all = everything(&pair.db).await;
    assert!(all.len() > 60, "only {} tables read", all.len());
    let activity = all
        .iter()
        .any(|(name, text)| name.contains("pg_stat_activity") && text.contains("pg_crm_sync"));
    assert!(activity, "pg_stat_activity was not read");
    for (name, text) in &all {
        clean(name, text);
    }
    let log = pair.cluster.log();
    assert!(log.contains("DEBUG"), "the log is not at debug1");
    clean("the server log", &log);
    clean(
        "pg_dump",
        &program(&pair.cluster, "pg_dump", &["-d", "app"]),
    );
    clean(
        "pg_dumpall",
        &program(&pair.cluster, "pg_dumpall", &["--globals-only"]),
    );
    // The control: what this test looks for would be found.
    let file = std::fs::read_to_string(pair.cluster.secrets_dir().join("hubspot.json"));
    assert!(file.expect("read the credential").contains(TOKEN));
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_replaced_while_changes_are_taken_count_from_the_reload() {
    let pair = start().await;
    pair.import("hubspot", &["contacts"]).await;
    pair.backfilled().await;
    pair.db
        .exec("UPDATE crm.mirror SET mode = 'live'; SELECT crm.activate()")
        .await;
    // Signals are looked at amid a turn, too, and a turn with changes takes longest.
    let busy = pair.cluster.connect("app").await;
    let load = tokio::spawn(async move {
        loop {
            busy.exec(
                "UPDATE hubspot.contacts SET city = 'Busy ' || clock_timestamp() WHERE id = '1'",
            )
            .await;
        }
    });
    let served = |status: u64| {
        let of = |row: &Value| row["crm"] == "hubspot" && row["status"] == status;
        pair.emulator.served(of)
    };
    for round in 0..10 {
        for (token, status) in [(format!("{TOKEN}-revoked"), 401), (TOKEN.to_owned(), 200)] {
            credentials(&pair.cluster, &token, SECRET);
            pair.cluster.reload();
            let (before, what) = (served(status), format!("a {status} in round {round}"));
            let more = async || (served(status) > before).then_some(());
            crm_tests::wait_until(&what, PATIENCE, more).await;
        }
    }
    load.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_token_that_the_crm_replaced_still_works_after_a_restart() {
    let mut pair = Pair::start(PairOptions {
        emulator: EmulatorOptions::default().contacts(5),
        ..PairOptions::default()
    })
    .await;
    let content = json!({"client_id": "emulator-app", "client_secret": "emulator-secret", "refresh_token": "emulator-refresh",
                         "hosts": ["127.0.0.1"], "owner": "postgres"});
    pair.cluster.credentials("salesforce.json", &content);
    let rotate = json!({"rotate_refresh_token": true});
    pair.emulator
        .admin("POST", "/_admin/salesforce/settings", Some(&rotate));
    pair.import("salesforce", &["Contact"]).await;
    pair.backfilled().await;
    let file = pair.cluster.secrets_dir().join("salesforce.json");
    let kept = std::fs::read_to_string(&file).expect("the credential file");
    assert!(!kept.contains("emulator-refresh"), "the old token is void");
    assert!(kept.contains("\"owner\""), "all else stands");

    pair.cluster.restart(Stop::Fast).await;
    pair.db = pair.cluster.connect("app").await;
    pair.emulator
        .admin("POST", "/_admin/salesforce/expire-tokens", Some(&json!({})));
    let id: String = pair
        .db
        .one("SELECT id FROM salesforce.contact ORDER BY _id LIMIT 1")
        .await;
    let title = json!({"Title": "After the restart"});
    pair.emulator.edit("salesforce", "Contact", &id, title);
    let sql =
        format!("SELECT title = 'After the restart' FROM salesforce.contact WHERE id = '{id}'");
    pair.db
        .wait_true("the stream goes on with the new token", PATIENCE, &sql)
        .await;
}

/// Whoever may create a server names the file: reading `/dev/zero` would never end, opening a pipe never begin.
#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_read_from_files_of_bounded_size_only() {
    let pair = start().await;
    let pipe = pair.cluster.socket_dir().join("pipe");
    let made = std::process::Command::new("mkfifo")
        .arg("-m666")
        .arg(&pipe)
        .status();
    assert!(made.expect("run mkfifo").success());
    let pipe = pipe.to_string_lossy().into_owned();
    pair.db
        .exec("ALTER SERVER hubspot OPTIONS (ADD ca_file '/dev/zero')")
        .await;
    for path in ["/dev/zero", &pipe, "/"] {
        pair.db
            .exec(&format!(
                "ALTER SERVER hubspot OPTIONS (SET ca_file '{path}')"
            ))
            .await;
        let told: String = pair
            .db
            .one("SELECT detail FROM crm.server_check('hubspot') WHERE item = 'credentials' AND NOT ok")
            .await;
        assert!(told.contains("is not a file of at most"), "{path}: {told}");
    }
}
