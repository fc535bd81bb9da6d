//! The fence: may this very cluster write to the CRMs?
//!
//! A copy of a data directory carries the whole configuration, credentials by
//! reference included. What it cannot carry is the activation file, which lies
//! outside the data directory and names what a copy changes: the place of the
//! data directory, its inode, the timeline, the database. The database keeps the
//! token that the file must repeat.
//!
//! One file serves all databases of a cluster, and clones that were pointed at
//! the same file by a copied configuration each find only their own entry.

use super::{guc, report};
use pgrx::pg_sys;
use pgrx::prelude::*;
use serde_json::{Map, Value, json};
use std::ffi::CStr;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Longest activation file that is read: thousands of databases.
const MAX_FILE: u64 = 1 << 20;

/// Whether this cluster may write to the CRMs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fence {
    /// Activated here and unchanged since.
    Active,
    /// Nobody activated this installation yet.
    Never,
    /// Activated, but not here: a copy, a restore, a promoted standby. Why.
    Inert(String),
}

/// What a copy cannot keep.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Identity {
    system: u64,
    timeline: u32,
    database: u32,
    data_dir: String,
    device: u64,
    inode: u64,
}

impl Identity {
    fn of_this_database() -> Result<Self, String> {
        // SAFETY: plain globals and reads of shared memory on the main thread.
        let (system, recovering, database, dir) = unsafe {
            (
                pg_sys::GetSystemIdentifier(),
                pg_sys::RecoveryInProgress(),
                pg_sys::MyDatabaseId,
                CStr::from_ptr(pg_sys::DataDir),
            )
        };
        if recovering {
            return Err("the cluster is a standby or in recovery".to_owned());
        }
        // SAFETY: not in recovery, so the insertion timeline is set.
        let timeline = unsafe { pg_sys::GetWALInsertionTimeLine() };
        let path = fs::canonicalize(dir.to_string_lossy().as_ref())
            .map_err(|error| format!("the data directory cannot be read: {error}"))?;
        let meta = fs::metadata(&path)
            .map_err(|error| format!("the data directory cannot be read: {error}"))?;
        Ok(Self {
            system,
            timeline,
            database: database.to_u32(),
            data_dir: path.to_string_lossy().into_owned(),
            device: meta.dev(),
            inode: meta.ino(),
        })
    }

    /// Entries of one file are told apart by place, not by content.
    fn key(&self) -> String {
        format!("{}:{}", self.data_dir, self.database)
    }

    fn entry(&self, token: &str) -> Value {
        json!({
            "token": token, "system": self.system.to_string(), "timeline": self.timeline,
            "device": self.device, "inode": self.inode,
        })
    }

    /// The first difference between an entry and here, in a DBA's words.
    fn difference(&self, entry: &Value, token: &str) -> Option<String> {
        let number = |name: &str| entry.get(name).and_then(Value::as_u64);
        if entry.get("token").and_then(Value::as_str) != Some(token) {
            return Some("another installation was activated in this place".to_owned());
        }
        if entry.get("system").and_then(Value::as_str) != Some(self.system.to_string().as_str()) {
            return Some("another cluster was activated in this place".to_owned());
        }
        if number("timeline") != Some(u64::from(self.timeline)) {
            return Some(format!(
                "the cluster was promoted or restored: its timeline is {}, activated was {}",
                self.timeline,
                number("timeline").unwrap_or(0)
            ));
        }
        if number("device") != Some(self.device) || number("inode") != Some(self.inode) {
            return Some("the data directory was copied or restored to this place".to_owned());
        }
        None
    }
}

/// The activation file in force: the setting, or a file beside the data directory.
fn activation_file(identity: &Identity) -> PathBuf {
    guc::activation_file().unwrap_or_else(|| {
        let data = Path::new(&identity.data_dir);
        let name = data
            .file_name()
            .map_or_else(|| "data".to_owned(), |n| n.to_string_lossy().into_owned());
        data.with_file_name(format!("pg_crm_sync.{name}.activation"))
    })
}

/// The entries of a file; an absent file has none.
fn read_entries(path: &Path) -> Result<Map<String, Value>, String> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Map::new()),
        Err(error) => return Err(format!("{} cannot be read: {error}", path.display())),
    };
    let meta = file
        .metadata()
        .map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    // SAFETY: geteuid cannot fail and touches no memory.
    let (mode, me) = (meta.permissions().mode(), unsafe { libc::geteuid() });
    if meta.uid() != me || mode & 0o022 != 0 {
        return Err(format!(
            "{} can be written by other users than the server's",
            path.display()
        ));
    }
    let mut text = String::new();
    file.take(MAX_FILE)
        .read_to_string(&mut text)
        .map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    serde_json::from_str(&text).map_err(|_| format!("{} is damaged", path.display()))
}

/// Token of this installation, `None` before the first activation.
fn token() -> Result<Option<String>, pgrx::spi::SpiError> {
    Spi::connect(|client| {
        let rows = client.select("SELECT activation FROM crm.installation", Some(1), &[])?;
        match rows.into_iter().next() {
            Some(row) => row.get::<String>(1),
            None => Ok(None),
        }
    })
}

/// Reads where this database stands. Main thread, inside a transaction.
pub(crate) fn fence_state() -> Fence {
    let token = match token() {
        Ok(Some(token)) => token,
        Ok(None) => return Fence::Never,
        Err(error) => return Fence::Inert(format!("crm.installation cannot be read: {error}")),
    };
    let compared = Identity::of_this_database().and_then(|identity| {
        let path = activation_file(&identity);
        let entries = read_entries(&path)?;
        Ok(match entries.get(&identity.key()) {
            Some(entry) => identity.difference(entry, &token),
            None => Some(format!(
                "it was activated elsewhere: {} has no entry for this data directory and database",
                path.display()
            )),
        })
    });
    match compared {
        Ok(None) => Fence::Active,
        Ok(Some(reason)) | Err(reason) => Fence::Inert(reason),
    }
}

/// Writes the entry of this database, durably and in one step, under a lock.
fn write_entry(token: &str) -> Result<(), String> {
    let identity = Identity::of_this_database()?;
    let path = activation_file(&identity);
    let failed = |what: &str, error: &std::io::Error| format!("{what} {}: {error}", path.display());
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path.with_extension("lock"))
        .map_err(|error| failed("cannot lock", &error))?;
    // SAFETY: a descriptor that lives to the end of this function. It is not
    // waited for: the holder needs milliseconds, and a user can call again.
    if unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
        return Err(failed("cannot lock", &std::io::Error::last_os_error()));
    }
    let mut entries = read_entries(&path)?;
    entries.insert(identity.key(), identity.entry(token));
    let next = path.with_extension("new");
    let _ = fs::remove_file(&next);
    let mut file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&next)
        .map_err(|error| failed("cannot write", &error))?;
    file.write_all(Value::Object(entries).to_string().as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&next, &path))
        .and_then(|()| {
            path.parent()
                .map_or(Ok(()), |dir| File::open(dir)?.sync_all())
        })
        .map_err(|error| failed("cannot write", &error))
}

/// State and reason for `crm.fence_status()`.
#[pg_extern(name = "_fence", stable, parallel_unsafe)]
fn fence() -> TableIterator<'static, (name!(state, String), name!(reason, Option<String>))> {
    let (state, reason) = match fence_state() {
        Fence::Active => ("active", None),
        Fence::Never => ("never", None),
        Fence::Inert(reason) => ("inert", Some(reason)),
    };
    TableIterator::once((state.to_owned(), reason))
}

/// Writes the activation file; `crm.activate()` checks who may.
#[pg_extern(name = "_fence_write", volatile, strict, parallel_unsafe)]
fn fence_write(token: &str) {
    if let Err(problem) = write_entry(token) {
        report::refuse(
            PgSqlErrorCode::ERRCODE_IO_ERROR,
            format!("this cluster cannot be activated: {problem}"),
            None,
            "Set pg_crm_sync.activation_file to a file outside the data directory whose directory only the server's user can write, reload, and call crm.activate() again.",
        );
    }
}
