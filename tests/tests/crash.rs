//! Whatever dies, whenever: afterwards all sides agree, and nothing is there twice.

use std::time::{Duration, Instant};

use crm_tests::{Cluster, Db, Options, PATIENCE, Pair, PairOptions, Person, Stop};
use serde_json::json;

/// Small and well mixed; the seed is printed, so that a run can be repeated.
struct Random(u64);

impl Random {
    fn new(name: &str) -> Self {
        let seed = std::env::var("CRM_TEST_SEED")
            .ok()
            .and_then(|s| s.parse().ok())
            .unwrap_or_else(|| {
                let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
                now.map_or(1, |d| d.as_micros() as u64)
            });
        eprintln!("{name}: CRM_TEST_SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n
    }
}

/// A connection that is opened again when the cluster went down under it.
struct Sturdy<'a> {
    cluster: &'a Cluster,
    db: Db,
}

impl<'a> Sturdy<'a> {
    async fn new(cluster: &'a Cluster) -> Self {
        let db = cluster.connect("app").await;
        Self { cluster, db }
    }

    /// Runs `sql` until it is committed; it may run twice when its answer is lost.
    async fn exec(&mut self, sql: &str) {
        let end = Instant::now() + PATIENCE;
        while let Err(e) = self.db.batch_execute(sql).await {
            assert!(Instant::now() < end, "{e} in: {sql}");
            if let Some(db) = e
                .as_db_error()
                .filter(|d| !d.code().code().starts_with("57"))
            {
                panic!("{db:?} in: {sql}");
            }
            self.db = self.cluster.connect("app").await;
        }
    }
}

fn pair_options() -> PairOptions {
    let mut options = PairOptions {
        cluster: Options::default().setting("pg_crm_sync.request_timeout", "2s"),
        ..PairOptions::default()
    };
    options.emulator = options.emulator.arg("--rate-limits", "off");
    options
}

/// Edits of a CRM's users: everybody in turn, `rounds` times.
fn users(pair: &Pair, crm: &'static str, people: &[Person], rounds: usize, field: &str) {
    for round in 0..rounds {
        for who in people {
            pair.edit(crm, who, field, &format!("{crm} {round}"));
        }
    }
}

async fn assert_nothing_doubled(db: &Db) {
    for table in ["hubspot.contacts", "salesforce.contact"] {
        let sql = format!(
            "SELECT count(*) FROM (SELECT email FROM {table} WHERE _deleted_at IS NULL AND email IS NOT NULL GROUP BY email HAVING count(*) > 1) d"
        );
        assert_eq!(db.one::<i64>(&sql).await, 0, "doubled people in {table}");
    }
}

/// People made by SQL, a statement each, between updates of everybody in as many parts.
const NEW: u64 = 60;

async fn sql_user(cluster: &Cluster) {
    let mut sql = Sturdy::new(cluster).await;
    for n in 0..NEW {
        let insert = format!(
            "INSERT INTO hubspot.contacts (email, firstname, lastname) SELECT 'crash.{n}@example.net', 'Crash', 'No {n}'
             WHERE NOT EXISTS (SELECT FROM hubspot.contacts WHERE email = 'crash.{n}@example.net')"
        );
        sql.exec(&insert).await;
        let update = format!(
            "UPDATE hubspot.contacts SET zip = 'Z {n}', jobtitle = CASE WHEN _id % 7 = 0 THEN 'SQL {n}' ELSE jobtitle END WHERE _id % {NEW} = {n}"
        );
        sql.exec(&update).await;
    }
}

async fn killer(cluster: &Cluster, mut random: Random) {
    for n in 0..10 {
        let db = cluster.connect("app").await;
        let pause = random.below(600);
        eprintln!("kill {n} after {pause} ms");
        let pause = Duration::from_millis(pause);
        cluster.crash_session_worker(&db, pause).await;
    }
}

/// 2,000 edits by users of each CRM and 1,000 by SQL, partly of the same people and fields, while `killer` is at work.
fn turmoil(pair: &Pair, people: &[Person], random: Random) {
    let runtime = tokio::runtime::Handle::current();
    let (hubspot, salesforce) = (&people[..500], &people[250..750]);
    std::thread::scope(|scope| {
        scope.spawn(|| users(pair, "hubspot", hubspot, 4, "jobtitle"));
        scope.spawn(|| users(pair, "salesforce", salesforce, 4, "city"));
        scope.spawn(|| runtime.block_on(sql_user(&pair.cluster)));
        scope.spawn(|| runtime.block_on(killer(&pair.cluster, random)));
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_kills_of_the_session_worker_during_5000_mixed_changes_lose_and_double_nothing() {
    let random = Random::new("ten kills");
    let (mut pair, people) = Pair::linked(1000, pair_options()).await;
    pair.db
        .exec("UPDATE crm.mirror SET poll_interval = '5 seconds'")
        .await;
    let live = |pair: &Pair| {
        [("hubspot", "contacts"), ("salesforce", "Contact")].map(|(c, o)| pair.live(c, o))
    };
    let before = live(&pair);
    turmoil(&pair, &people, random);
    pair.db = pair.cluster.connect("app").await;
    pair.agree().await;
    assert_nothing_doubled(&pair.db).await;
    assert_eq!(live(&pair), before.map(|n| n + NEW), "new people");
    for who in people.iter().step_by(97) {
        let zip = pair.shows("hubspot", who, "zip").unwrap_or_default();
        assert!(zip.starts_with("Z "), "{who:?} has zip {zip:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_copy_goes_on_from_where_it_was_when_its_worker_is_killed() {
    let mut options = pair_options();
    options.emulator = options.emulator.contacts(20_000).arg("--latency-ms", "15");
    let mut pair = Pair::start(options).await;
    pair.import("hubspot", &["contacts"]).await;
    let started = "SELECT done >= 3000 FROM crm.backfill";
    pair.db
        .wait_true("some pages are in", PATIENCE, started)
        .await;
    pair.cluster
        .crash_session_worker(&pair.db, Duration::ZERO)
        .await;
    pair.db = pair.cluster.connect("app").await;
    let state = pair
        .db
        .table(
            "SELECT b.done, b.state, (SELECT count(*) FROM hubspot.contacts) FROM crm.backfill b",
        )
        .await
        .remove(0);
    assert_eq!(state[1], "running", "{state:?}");
    assert_eq!(
        state[0], state[2],
        "cursor and rows are one commit: {state:?}"
    );
    let done: u64 = state[0].parse().expect("a number");
    assert!(done < 20_000, "it was over before the kill: {state:?}");
    pair.emulator.reset_counts();
    pair.backfilled().await;
    let pages = pair.calls("hubspot");
    let rest = (20_000 - done).div_ceil(100);
    assert!(
        pages <= rest + 40,
        "{pages} calls for {rest} pages: it began anew after {done} rows"
    );
    let rows: i64 = pair.db.one("SELECT count(*) FROM hubspot.contacts").await;
    assert_eq!(rows, 20_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_immediate_stop_in_the_middle_of_writes_loses_and_doubles_nothing() {
    let (mut pair, people) = Pair::linked(100, pair_options()).await;
    let before = pair.live("salesforce", "Contact");
    for round in 0..3 {
        // HubSpot takes its time; what Salesforce has done it says too slowly. Both last until the stop.
        pair.emulator.fault(json!({"rules": [
            {"crm": "hubspot", "method": "POST", "path_prefix": "/crm/objects/2026-03/contacts/batch/u", "remaining": 100,
             "action": {"hold": {"ms": 20_000}}},
            {"crm": "salesforce", "method": "PATCH", "path_prefix": "/services/data/", "remaining": 100, "action": {"slow_body": {"bytes_per_s": 20}}},
        ]}));
        for (n, who) in people[..60].iter().enumerate() {
            match n % 3 {
                0 => pair.edit("hubspot", who, "jobtitle", &format!("Round {round}")),
                1 => pair.edit("salesforce", who, "jobtitle", &format!("Round {round}")),
                _ => pair.sql(who, "jobtitle", &format!("Round {round}")).await,
            }
        }
        let insert = format!(
            "INSERT INTO hubspot.contacts (email, firstname, lastname) VALUES ('stop.{round}@example.net', 'S', 'Top')"
        );
        pair.db.exec(&insert).await;
        let sent = "SELECT count(*) > 0 FROM crm.write WHERE state = 'in_flight'";
        pair.db
            .wait_true("writes are under way", PATIENCE, sent)
            .await;
        pair.emulator.clear_faults();
        pair.cluster.restart(Stop::Immediate).await;
        pair.db = pair.cluster.connect("app").await;
        pair.agree().await;
        for who in &people[..60] {
            let value = pair.shows("salesforce", who, "jobtitle");
            assert_eq!(value, Some(format!("Round {round}")), "{who:?}");
        }
    }
    assert_nothing_doubled(&pair.db).await;
    assert_eq!(pair.live("salesforce", "Contact"), before + 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fast_stop_is_fast_while_the_crms_hang_and_what_hung_is_settled_afterwards() {
    let (mut pair, people) = Pair::linked(20, PairOptions::default()).await;
    for (crm, prefix) in [("hubspot", "/crm/"), ("salesforce", "/services/")] {
        let rule = json!({"crm": crm, "path_prefix": prefix, "remaining": 100, "action": {"hold": {"ms": 25_000}}});
        pair.emulator.fault(rule);
    }
    for who in &people[..10] {
        pair.sql(who, "city", "Hangover").await;
    }
    pair.db
        .exec("INSERT INTO hubspot.contacts (email, firstname, lastname) VALUES ('hang@example.net', 'H', 'Ang')")
        .await;
    let sent = "SELECT count(*) > 0 FROM crm.write WHERE state = 'in_flight'";
    pair.db
        .wait_true("writes are under way", PATIENCE, sent)
        .await;
    pair.cluster.stop_within(Stop::Fast, Duration::from_secs(5));
    pair.emulator.clear_faults();
    pair.cluster.start_again().await;
    pair.db = pair.cluster.connect("app").await;
    for who in &people[..10] {
        pair.reaches_both(who, "city", "Hangover").await;
    }
    pair.agree().await;
    assert_nothing_doubled(&pair.db).await;
}
