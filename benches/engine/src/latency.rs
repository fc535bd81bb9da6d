//! `latency.*`: from a person's edit in one CRM to the write's arrival at the other.

use crm_tests::Pair;
use serde_json::json;

use crate::figures::{Figure, Figures, median, quantile, round, rounds};
use crate::process::cpu_seconds;
use crate::setup;

/// Contacts on each side.
const CONTACTS: u64 = 20_000;
/// Edits of one round at the slow pace.
const SLOW: u64 = 300;
/// Edits of one round at the fast pace.
const FAST: u64 = 4_000;

/// Milliseconds from edit to arrival, sorted; and shares of one core.
struct Run {
    total: Vec<f64>,
    worker: f64,
    emulator: f64,
}

pub(crate) async fn measure(figures: &mut Figures) {
    let pair = setup::linked(setup::cluster(), setup::unlimited(CONTACTS)).await;
    setup::calm(&pair.db).await;
    let commit = commit_ms(&pair).await;
    let mut slow = Vec::new();
    let mut fast = Vec::new();
    let mut from = 1;
    for round in 0..rounds() {
        for (count, rate, kept) in [(SLOW, 50, &mut slow), (FAST, 1_000, &mut fast)] {
            // A run of records of its own: the first edit of a record costs no more than a later one, but nothing is retold.
            if from + count > CONTACTS {
                from = 1;
            }
            let run = edited(&pair, from, count, rate, round).await;
            from += count;
            eprintln!(
                "{rate}/s round {round}: p50 {} p99 {} ms, worker {:.0} %",
                quantile(&run.total, 0.5),
                quantile(&run.total, 0.99),
                run.worker * 100.0
            );
            if round > 0 {
                kept.push(run);
            }
        }
    }
    for goal in &GOALS {
        let runs = if goal.rate == 50 { &slow } else { &fast };
        figures.add(goal.figure(runs, commit));
    }
}

/// One figure: which share of the edits must arrive within which time.
struct Goal {
    id: &'static str,
    rate: u64,
    share: f64,
    text: &'static str,
    most: f64,
}

const GOALS: [Goal; 3] = [
    Goal {
        id: "latency.p50",
        rate: 50,
        share: 0.5,
        text: "<= 5, aim 2",
        most: 5.0,
    },
    Goal {
        id: "latency.p99",
        rate: 50,
        share: 0.99,
        text: "<= 25, aim 8",
        most: 25.0,
    },
    Goal {
        id: "latency.p99.1000",
        rate: 1_000,
        share: 0.99,
        text: "<= 60",
        most: 60.0,
    },
];

impl Goal {
    fn figure(&self, runs: &[Run], commit: f64) -> Figure {
        let each: Vec<f64> = runs
            .iter()
            .map(|r| quantile(&r.total, self.share))
            .collect();
        let (value, range) = median(&each);
        let percent = |f: fn(&Run) -> f64| {
            let (share, _) = median(&runs.iter().map(f).collect::<Vec<_>>());
            format!("{:.0} % of a core", share * 100.0)
        };
        Figure {
            id: self.id,
            value: json!(round(value)),
            unit: "ms",
            baseline: format!(
                "{} edits/s, Salesforce edit to HubSpot write; one small commit {commit:.1} ms",
                self.rate
            ),
            goal: self.text,
            met: Some(value <= self.most),
            range: Some(range),
            more: json!({
                "commit_ms": round(commit),
                "worker": percent(|r| r.worker),
                "emulator": percent(|r| r.emulator),
            }),
        }
    }
}

/// Milliseconds of one small durable transaction on this machine: the median of a hundred.
async fn commit_ms(pair: &Pair) -> f64 {
    pair.db
        .exec("CREATE TABLE public.tick (n int); INSERT INTO public.tick VALUES (0)")
        .await;
    let mut times = Vec::new();
    for _ in 0..100 {
        let began = std::time::Instant::now();
        pair.db.exec("UPDATE public.tick SET n = n + 1").await;
        times.push(began.elapsed().as_secs_f64() * 1_000.0);
    }
    median(&times).0
}

/// Lets people edit contacts of Salesforce at a pace and looks when HubSpot got each.
///
/// The edit's time is the commit stamp that Salesforce's event carries, the arrival's is HubSpot's own stamp of the
/// record: one clock, in milliseconds. Salesforce stamps records in whole seconds, hence the direction.
async fn edited(pair: &Pair, from: u64, count: u64, rate: u64, round: usize) -> Run {
    let prefix = format!("Round {round} at {rate}");
    let worker = pair.cluster.session_worker(&pair.db).await;
    let emulator = i32::try_from(pair.emulator.pid()).expect("a process id");
    let before: i64 = pair.db.one("SELECT last_value FROM crm.event_seq").await;
    let cpu = (cpu_seconds(worker), cpu_seconds(emulator));
    let body = json!({"crm": "salesforce", "object": "Contact", "from": from, "count": count,
                      "field": "Title", "rate_per_s": rate, "prefix": prefix});
    let answer = tokio::task::block_in_place(|| {
        pair.emulator
            .admin("POST", "/_admin/edit-many", Some(&body))
    });
    let done = format!(
        "SELECT count(*) >= {count} FROM crm.event e JOIN crm.mirror m ON m.id = e.mirror
         WHERE e.seq > {before} AND e.source = 'result' AND m.server = 'hubspot'"
    );
    pair.db
        .wait_true("all edits are in HubSpot", setup::PATIENCE, &done)
        .await;
    let cpu = (cpu_seconds(worker) - cpu.0, cpu_seconds(emulator) - cpu.1);
    setup::calm(&pair.db).await;
    let seconds = answer["seconds"].as_f64().expect("how long the edits took");
    Run {
        total: totals(pair, before, &prefix, count).await,
        worker: cpu.0 / seconds,
        emulator: cpu.1 / seconds,
    }
}

async fn totals(pair: &Pair, before: i64, prefix: &str, count: u64) -> Vec<f64> {
    // Which HubSpot record each edit went to, and when it was made.
    let edits = pair
        .db
        .query(
            "SELECT h.id, (extract(epoch FROM e.occurred_at) * 1000)::bigint
             FROM crm.event e JOIN salesforce.contact s ON s._id = e.row_id JOIN hubspot.contacts h ON h.email = s.email
             WHERE e.seq > $1 AND e.source = 'pubsub' AND e.origin = 'salesforce' AND e.kind = 'update' AND s.title LIKE $2 || ' %'",
            &[&before, &prefix],
        )
        .await
        .expect("read the events");
    assert!(
        edits.len() as u64 * 100 >= count * 99,
        "{} of {count} edits are told in the ledger as they came",
        edits.len()
    );
    let arrived = arrivals(pair);
    let mut total: Vec<f64> = edits
        .iter()
        .map(|row| {
            let (id, edited): (String, i64) = (row.get(0), row.get(1));
            let at = arrived.get(&id).expect("the record was written");
            (at - edited) as f64
        })
        .collect();
    total.sort_by(f64::total_cmp);
    total
}

/// HubSpot's stamp of every record written since the emulator started.
fn arrivals(pair: &Pair) -> std::collections::HashMap<String, i64> {
    let mut found = std::collections::HashMap::new();
    let mut after = String::new();
    loop {
        let path = format!("/_admin/hubspot/objects/contacts?limit=10000{after}");
        let page = tokio::task::block_in_place(|| pair.emulator.admin("GET", &path, None));
        for record in page["records"].as_array().expect("a page of records") {
            let id = record["id"].as_str().expect("an id").to_owned();
            let at = record["updatedAt"].as_str().expect("a stamp");
            found.insert(id, millis(at));
        }
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => return found,
        }
    }
}

/// Milliseconds since 1970 of `2026-05-01T07:25:37.123Z`.
fn millis(stamp: &str) -> i64 {
    let number = |range: std::ops::Range<usize>| -> i64 {
        stamp
            .get(range)
            .and_then(|t| t.parse().ok())
            .unwrap_or_else(|| panic!("not a stamp: {stamp}"))
    };
    let (year, month, day) = (number(0..4), number(5..7), number(8..10));
    // Days since 1970 of a Gregorian date, counting years from March.
    let (y, m) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    let seconds = number(11..13) * 3_600 + number(14..16) * 60 + number(17..19);
    let fraction = if stamp.as_bytes().get(19) == Some(&b'.') {
        number(20..23)
    } else {
        0
    };
    (days * 86_400 + seconds) * 1_000 + fraction
}
