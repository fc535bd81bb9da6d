//! The emulated CRMs as a child process.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::http;
use crate::system::{ended_within, signal};

/// Options of the emulator that tests vary; everything else by [`EmulatorOptions::arg`].
#[derive(Clone, Debug, Default)]
pub struct EmulatorOptions {
    args: Vec<String>,
}

impl EmulatorOptions {
    /// Number of contacts on each side.
    #[must_use]
    pub fn contacts(self, n: u64) -> Self {
        self.arg("--contacts", &n.to_string())
    }

    /// Any option of `crm-emulator --help` with its value.
    #[must_use]
    pub fn arg(mut self, name: &str, value: &str) -> Self {
        self.args.extend([name.to_owned(), value.to_owned()]);
        self
    }
}

/// Both CRMs in one process on free ports; stopped when dropped.
#[derive(Debug)]
pub struct Emulator {
    child: Child,
    /// `http://127.0.0.1:N`: HubSpot, Salesforce and the admin routes.
    pub http: String,
    /// `127.0.0.1:N`: Pub/Sub API without TLS.
    pub pubsub_plain: String,
    /// The whole line that the emulator printed: also `https`, `pubsub` and `ca`.
    pub ready: Value,
}

impl Emulator {
    /// Starts the emulator and waits for its addresses.
    #[must_use]
    pub fn start(options: &EmulatorOptions) -> Self {
        let binary = binary();
        let mut command = Command::new(&binary);
        for name in [
            "--listen",
            "--tls-listen",
            "--pubsub-listen",
            "--pubsub-plain",
        ] {
            command.args([name, "127.0.0.1:0"]);
        }
        let mut child = command
            .args(&options.args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot run {}: {e}", binary.display()));
        let stdout = child.stdout.take().expect("stdout is piped");
        let (sender, receiver) = mpsc::channel();
        // The thread also drains what comes later, so that the emulator never blocks on a full pipe.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let Ok(line) = receiver.recv_timeout(Duration::from_secs(30)) else {
            let _ = child.kill();
            let _ = child.wait();
            panic!("the emulator did not say that it listens; its own words are above");
        };
        let ready: Value = serde_json::from_str(&line)
            .unwrap_or_else(|e| panic!("the emulator's first line is no JSON ({e}): {line}"));
        let text = |name: &str| ready[name].as_str().unwrap_or_default().to_owned();
        Self {
            http: text("http"),
            pubsub_plain: text("pubsub_plain"),
            child,
            ready,
        }
    }

    /// An admin call that must succeed; see the emulator's documentation for the routes.
    pub fn admin(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let (status, answer) = http::call(&self.http, method, path, body);
        assert!(
            (200..300).contains(&status),
            "{method} {path} {body:?} answered {status}: {answer}"
        );
        answer
    }

    /// Changes fields as a person in the CRM's user interface would; answers the record.
    pub fn edit(&self, crm: &str, object: &str, id: &str, fields: Value) -> Value {
        let body = json!({"object": object, "id": id, "fields": fields});
        self.admin("POST", &format!("/_admin/{crm}/edit"), Some(&body))
    }

    /// Creates a record as a person would; answers it.
    pub fn create(&self, crm: &str, object: &str, fields: Value) -> Value {
        let body = json!({"object": object, "fields": fields});
        self.admin("POST", &format!("/_admin/{crm}/create"), Some(&body))
    }

    /// The same where somebody may have made the record a moment before, which the CRM
    /// refuses; whether it was made.
    pub fn create_unless_there(&self, crm: &str, object: &str, fields: &Value) -> bool {
        let body = json!({"object": object, "fields": fields});
        let path = format!("/_admin/{crm}/create");
        let (status, answer) = http::call(&self.http, "POST", &path, Some(&body));
        let there = status == 400 && answer.to_string().contains("already exists");
        assert!(there || (200..300).contains(&status), "{path} {answer}");
        !there
    }

    /// Deletes a record as a person would.
    pub fn delete(&self, crm: &str, object: &str, id: &str) -> Value {
        let body = json!({"object": object, "id": id});
        self.admin("POST", &format!("/_admin/{crm}/delete"), Some(&body))
    }

    /// The record as the CRM stores it.
    #[must_use]
    pub fn record(&self, crm: &str, object: &str, id: &str) -> Value {
        self.admin("GET", &format!("/_admin/{crm}/record/{object}/{id}"), None)
    }

    /// One field of a record as text, wherever the CRM keeps it; `None` when absent or null.
    #[must_use]
    pub fn field(&self, crm: &str, object: &str, id: &str, field: &str) -> Option<String> {
        let record = self.record(crm, object, id);
        let value = ["properties", "fields"]
            .iter()
            .map(|part| &record[part][field])
            .chain([&record[field]])
            .find(|v| !v.is_null())?;
        Some(
            value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned),
        )
    }

    /// `{"count", "hash"}` of all live records over `fields`.
    #[must_use]
    pub fn digest(&self, crm: &str, object: &str, fields: &[&str]) -> Value {
        let path = format!("/_admin/{crm}/digest/{object}?fields={}", fields.join(","));
        self.admin("GET", &path, None)
    }

    /// Adds fault rules: one object or a list of them.
    pub fn fault(&self, rules: Value) -> Value {
        self.admin("POST", "/_admin/faults", Some(&rules))
    }

    /// Removes all fault rules.
    pub fn clear_faults(&self) {
        self.admin("DELETE", "/_admin/faults", None);
    }

    /// Requests served, by route.
    #[must_use]
    pub fn counts(&self) -> Value {
        self.admin("GET", "/_admin/counts", None)
    }

    /// Requests of some kind that were served: `hits` is shown a row of the counts,
    /// with `crm`, `method`, `route` and `status`.
    #[must_use]
    pub fn served(&self, hits: impl Fn(&Value) -> bool) -> u64 {
        let counts = self.counts();
        let rows = counts["counts"].as_array().expect("a list of counts");
        let of = rows.iter().filter(|row| hits(row));
        of.map(|row| row["count"].as_u64().expect("a count")).sum()
    }

    /// Starts counting from zero.
    pub fn reset_counts(&self) {
        self.admin("POST", "/_admin/counts/reset", Some(&json!({})));
    }

    /// Where HubSpot's change events go.
    pub fn webhooks(&self, url: &str) -> Value {
        self.admin("POST", "/_admin/webhooks", Some(&json!({ "url": url })))
    }

    /// Process id, to pause (`STOP`) or kill it.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal (`STOP`, `CONT`, `KILL`).
    pub fn signal(&self, name: &str) {
        assert!(signal(self.child.id(), name), "the emulator is gone");
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = signal(self.child.id(), "CONT");
        let _ = signal(self.child.id(), "TERM");
        if !ended_within(&mut self.child, Duration::from_secs(3)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// `CRM_EMULATOR`, else `crm-emulator` in the folder of the build that this test belongs to.
fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("CRM_EMULATOR") {
        return PathBuf::from(path);
    }
    let test = std::env::current_exe().expect("know our own path");
    let found = test
        .ancestors()
        .skip(1)
        .take(3)
        .map(|dir| dir.join("crm-emulator"))
        .find(|p| p.is_file());
    found.unwrap_or_else(|| {
        panic!(
            "no crm-emulator beside {}: run `cargo build -p crm-emulator` or set CRM_EMULATOR",
            test.display()
        )
    })
}
