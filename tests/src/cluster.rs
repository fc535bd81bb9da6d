//! A PostgreSQL cluster for one test.

mod copy;

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use tokio_postgres::{Config, NoTls};

use crate::db::Db;
use crate::system::{Account, Scratch, ended_within, signal};
use crate::wait::{PATIENCE, attempt};

/// Port number inside the cluster's own socket folder; no TCP port is opened, so clusters never collide.
const PORT: u16 = 5432;

/// How a cluster is made.
#[derive(Clone, Debug)]
pub struct Options {
    preload: bool,
    settings: Vec<(String, String)>,
    env: Vec<(String, String)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            preload: true,
            settings: Vec::new(),
            env: Vec::new(),
        }
    }
}

impl Options {
    /// Leaves the extension out of `shared_preload_libraries`.
    #[must_use]
    pub fn without_preload(mut self) -> Self {
        self.preload = false;
        self
    }

    /// A line of postgresql.conf; the value is quoted here. Later lines win.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// An environment variable of the server.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// The ways to stop a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Clients are thrown out, work is finished (`pg_ctl stop -m fast`).
    Fast,
    /// Everything stops at once and recovers at the next start (`-m immediate`).
    Immediate,
}

/// A throw-away cluster: own data, own socket, stopped and deleted when dropped.
#[derive(Debug)]
pub struct Cluster {
    server: Option<Child>,
    account: Account,
    bin: PathBuf,
    env: Vec<(String, String)>,
    // Last, so that the folder goes after the server.
    scratch: Scratch,
}

impl Cluster {
    /// Makes and starts a cluster; returns once it accepts connections.
    pub async fn start(options: Options) -> Self {
        let account = Account::for_servers();
        let bin = bin_dir();
        let scratch = Scratch::new("pg", &account);
        let mut cluster = Self {
            server: None,
            account,
            bin,
            env: options.env.clone(),
            scratch,
        };
        cluster.init(&options);
        cluster.start_again().await;
        cluster
    }

    fn init(&self, options: &Options) {
        let mut initdb = self.account.command(&self.bin.join("initdb"));
        let output = initdb
            .arg("-D")
            .arg(self.data())
            .args([
                "-U",
                "postgres",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--locale=C.UTF-8",
                "-N",
            ])
            .output()
            .unwrap_or_else(|e| panic!("cannot run {}: {e}", self.bin.join("initdb").display()));
        assert!(
            output.status.success(),
            "initdb failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let secrets = self.secrets_dir();
        fs::create_dir(&secrets).expect("make the folder of credentials");
        fs::set_permissions(&secrets, fs::Permissions::from_mode(0o700)).expect("protect it");
        self.account.give(&secrets);

        let own = |path: PathBuf| path.display().to_string();
        let mut settings: Vec<(String, String)> = [
            ("listen_addresses", ""),
            ("port", "5432"),
            ("fsync", "off"),
            ("max_worker_processes", "16"),
            ("max_connections", "60"),
            ("shared_buffers", "64MB"),
            ("wal_level", "logical"),
            ("log_line_prefix", "%m [%p] %b %a: "),
            ("log_autovacuum_min_duration", "-1"),
            ("log_checkpoints", "off"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
        settings.push((
            "unix_socket_directories".into(),
            own(self.scratch.path().into()),
        ));
        if options.preload {
            settings.push(("shared_preload_libraries".into(), "pg_crm_sync".into()));
            settings.push(("pg_crm_sync.secrets_dir".into(), own(secrets)));
            settings.push((
                "pg_crm_sync.allowed_hosts".into(),
                "127.0.0.1, localhost".into(),
            ));
            let token = own(self.scratch.path().join("activation"));
            settings.push(("pg_crm_sync.activation_file".into(), token));
        }
        settings.extend(options.settings.iter().cloned());
        self.append_settings(&settings);
    }

    fn append_settings(&self, settings: &[(String, String)]) {
        let path = self.data().join("postgresql.auto.conf");
        let mut text = fs::read_to_string(&path).unwrap_or_default();
        for (name, value) in settings {
            text.push_str(&format!("{name} = '{}'\n", value.replace('\'', "''")));
        }
        fs::write(&path, text).expect("write settings");
    }

    /// Starts a stopped cluster (also after [`Self::stop`] with [`Stop::Immediate`]).
    pub async fn start_again(&mut self) {
        assert!(self.server.is_none(), "the cluster runs already");
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("open the server log");
        let child = self
            .account
            .command(&self.bin.join("postgres"))
            .arg("-D")
            .arg(self.data())
            .envs(self.env.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("share the server log"))
            .stderr(log)
            .spawn()
            .expect("start postgres");
        self.server = Some(child);
        let server = &mut self.server;
        let config = config(self.scratch.path(), "postgres");
        let up = attempt(PATIENCE, &mut async || {
            let ended = server
                .as_mut()
                .is_none_or(|c| !matches!(c.try_wait(), Ok(None)));
            if ended {
                return Some(false);
            }
            open(&config).await.ok().map(|_| true)
        })
        .await;
        assert!(
            up == Some(true),
            "the cluster did not start:\n{}",
            self.log_tail(40)
        );
    }

    /// Stops the cluster; panics when that takes longer than `patience`.
    pub fn stop_within(&mut self, how: Stop, patience: Duration) {
        let mut server = self.server.take().expect("the cluster runs");
        let name = match how {
            Stop::Fast => "INT",
            Stop::Immediate => "QUIT",
        };
        assert!(signal(server.id(), name), "the postmaster is gone already");
        if !ended_within(&mut server, patience) {
            self.server = Some(server);
            panic!(
                "the cluster still runs {patience:?} after a {how:?} stop:\n{}",
                self.log_tail(40)
            );
        }
    }

    /// Stops the cluster.
    pub fn stop(&mut self, how: Stop) {
        self.stop_within(how, PATIENCE);
    }

    /// Stops and starts.
    pub async fn restart(&mut self, how: Stop) {
        self.stop(how);
        self.start_again().await;
    }

    /// Adds a setting; takes effect at the next reload or restart.
    pub fn set(&self, name: &str, value: &str) {
        self.append_settings(&[(name.to_owned(), value.to_owned())]);
    }

    /// Makes the server read its settings again.
    pub fn reload(&self) {
        assert!(signal(self.postmaster(), "HUP"), "the postmaster is gone");
    }

    /// Kills one process of the cluster with SIGKILL; PostgreSQL restarts all others then.
    pub fn kill9(&self, pid: i32) {
        assert!(signal(pid.unsigned_abs(), "KILL"), "no process {pid}");
    }

    /// Sends a signal (`TERM`, `STOP`, `CONT`, …) to one process of the cluster.
    pub fn signal(&self, pid: i32, name: &str) {
        assert!(signal(pid.unsigned_abs(), name), "no process {pid}");
    }

    /// Process id of the postmaster.
    #[must_use]
    pub fn postmaster(&self) -> u32 {
        self.server.as_ref().expect("the cluster runs").id()
    }

    /// A connection as superuser `postgres`; waits while the cluster recovers.
    pub async fn connect(&self, database: &str) -> Db {
        self.connect_as("postgres", database).await
    }

    /// A connection as `user`; waits while the cluster recovers from a crash.
    pub async fn connect_as(&self, user: &str, database: &str) -> Db {
        let mut config = config(self.scratch.path(), database);
        config.user(user);
        let mut last = String::new();
        let client = attempt(PATIENCE, &mut async || match open(&config).await {
            Ok(client) => Some(Some(client)),
            Err(e) => {
                last = e.to_string();
                // An answer that waiting will not change.
                let final_answer = e
                    .code()
                    .is_some_and(|c| c.code() != "57P03" && !c.code().starts_with("53"));
                final_answer.then_some(None)
            }
        })
        .await
        .flatten();
        let Some(client) = client else {
            panic!(
                "cannot connect to {database} as {user}: {last}\n{}",
                self.log_tail(30)
            );
        };
        Db::new(client)
    }

    /// A new database with the extension, and a connection to it.
    pub async fn database(&self, name: &str) -> Db {
        let db = self.bare_database(name).await;
        db.exec("CREATE EXTENSION pg_crm_sync").await;
        db
    }

    /// A new database without the extension.
    pub async fn bare_database(&self, name: &str) -> Db {
        self.connect("postgres")
            .await
            .exec(&format!("CREATE DATABASE \"{name}\""))
            .await;
        self.connect(name).await
    }

    /// [`crate::wait_until`] whose failure shows the end of the server log.
    pub async fn wait_until<T>(
        &self,
        what: &str,
        patience: Duration,
        mut probe: impl AsyncFnMut() -> Option<T>,
    ) -> T {
        match attempt(patience, &mut probe).await {
            Some(value) => value,
            None => panic!(
                "waited {patience:?} in vain until {what}; log:\n{}",
                self.log_tail(40)
            ),
        }
    }

    /// Waits until the session worker of `db`'s database runs; answers its process id.
    pub async fn session_worker(&self, db: &Db) -> i32 {
        let sql = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() \
                   AND backend_type LIKE 'pg_crm_sync%' ORDER BY backend_start DESC LIMIT 1";
        self.wait_until("a session worker runs", PATIENCE, async || {
            db.query_opt(sql, &[])
                .await
                .ok()
                .flatten()
                .map(|row| row.get(0))
        })
        .await
    }

    /// Kills the session worker of `db`'s database after `pause` and waits until PostgreSQL has thrown out `db` too,
    /// as it does with everybody when a process dies like this.
    pub async fn crash_session_worker(&self, db: &Db, pause: Duration) {
        let pid = self.session_worker(db).await;
        tokio::time::sleep(pause).await;
        self.kill9(pid);
        self.wait_until("the crash is noticed", PATIENCE, async || {
            db.is_closed().then_some(())
        })
        .await;
    }

    /// Writes a credential file that only the server may read; servers name it `file:NAME`.
    pub fn credentials(&self, name: &str, content: &serde_json::Value) {
        self.secret_file(name, content.to_string().as_bytes());
    }

    /// Writes any file into the folder of credentials with the permissions they need.
    pub fn secret_file(&self, name: &str, content: &[u8]) {
        let path = self.secrets_dir().join(name);
        fs::write(&path, content).expect("write a credential file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("protect it");
        self.account.give(&path);
    }

    /// `pg_crm_sync.secrets_dir` of this cluster.
    #[must_use]
    pub fn secrets_dir(&self) -> PathBuf {
        self.scratch.path().join("secrets")
    }

    /// The data directory.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.scratch.path().join("data")
    }

    /// The folder that holds the socket: `host` for psql, pg_dump and drivers, with port 5432.
    #[must_use]
    pub fn socket_dir(&self) -> &Path {
        self.scratch.path()
    }

    /// A client program of the same installation (`psql`, `pg_dump`, …) aimed at this cluster as superuser.
    #[must_use]
    pub fn program(&self, name: &str) -> std::process::Command {
        let mut command = self.account.command(&self.bin.join(name));
        command
            .env("PGHOST", self.scratch.path())
            .env("PGPORT", PORT.to_string())
            .env("PGUSER", "postgres");
        command
    }

    /// The account the server runs under.
    #[must_use]
    pub fn account(&self) -> &Account {
        &self.account
    }

    fn log_path(&self) -> PathBuf {
        self.scratch.path().join("log")
    }

    /// The whole server log.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(self.log_path())
            .map(|b| String::from_utf8_lossy(&b).into_owned())
            .unwrap_or_default()
    }

    /// The last lines of the server log, at most 64 kB.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        let mut bytes = Vec::new();
        if let Ok(mut file) = fs::File::open(self.log_path()) {
            let length = file.metadata().map_or(0, |m| m.len());
            let _ = file.seek(SeekFrom::Start(length.saturating_sub(65_536)));
            let _ = file.read_to_end(&mut bytes);
        }
        let text = String::from_utf8_lossy(&bytes);
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let Some(mut server) = self.server.take() else {
            return;
        };
        if std::thread::panicking() {
            eprintln!("end of the server log:\n{}", self.log_tail(60));
        }
        let _ = signal(server.id(), "QUIT");
        if !ended_within(&mut server, Duration::from_secs(10)) {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

/// Folder of the server binaries under test.
fn bin_dir() -> PathBuf {
    let dir = std::env::var_os("CRM_TEST_PG_BIN").map_or_else(
        || PathBuf::from("/usr/lib/postgresql/15/bin"),
        PathBuf::from,
    );
    assert!(
        dir.join("postgres").exists(),
        "no PostgreSQL server in {}: set CRM_TEST_PG_BIN to the folder of its binaries",
        dir.display()
    );
    // A relative path would be meaningless after the change of folder in `Account::command`.
    fs::canonicalize(&dir).expect("resolve CRM_TEST_PG_BIN")
}

fn config(socket_dir: &Path, database: &str) -> Config {
    let mut config = Config::new();
    config
        .host_path(socket_dir)
        .port(PORT)
        .user("postgres")
        .dbname(database)
        .connect_timeout(Duration::from_secs(10));
    config
}

async fn open(config: &Config) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let (client, connection) = config.connect(NoTls).await?;
    // Ends when the client is dropped or the server goes away; the client's next call reports that.
    tokio::spawn(connection);
    Ok(client)
}
