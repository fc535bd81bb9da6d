//! Folders, accounts and processes.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The operating-system account that servers run under.
#[derive(Clone, Debug)]
pub struct Account {
    /// Set only when this process is root and must become somebody else.
    switch_to: Option<(u32, u32)>,
}

impl Account {
    /// The account of this process, or `CRM_TEST_PG_USER` (default `postgres`) when that is root.
    #[must_use]
    pub fn for_servers() -> Self {
        // The owner of /proc/self is the effective user of this process.
        let root =
            fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0);
        if !root {
            return Self { switch_to: None };
        }
        let name = std::env::var("CRM_TEST_PG_USER").unwrap_or_else(|_| "postgres".to_owned());
        let passwd = fs::read_to_string("/etc/passwd").expect("read /etc/passwd");
        let ids = passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next() == Some(&name)).then_some(())?;
            Some((fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?))
        });
        Self {
            switch_to: Some(ids.unwrap_or_else(|| {
                panic!(
                    "no account `{name}` to run PostgreSQL as; name another with CRM_TEST_PG_USER"
                )
            })),
        }
    }

    /// A command that will run under this account.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        if let Some((uid, gid)) = self.switch_to {
            command.uid(uid).gid(gid);
        }
        // Settings of the developer's shell must not reach the servers.
        for name in [
            "PGDATA",
            "PGHOST",
            "PGPORT",
            "PGUSER",
            "PGDATABASE",
            "PGOPTIONS",
            "PGPASSWORD",
        ] {
            command.env_remove(name);
        }
        command.current_dir("/").env("LC_ALL", "C.UTF-8");
        command
    }

    /// Gives `path` to this account.
    pub fn give(&self, path: &Path) {
        if let Some((uid, gid)) = self.switch_to {
            chown(path, Some(uid), Some(gid))
                .unwrap_or_else(|e| panic!("chown {}: {e}", path.display()));
        }
    }
}

/// A folder that is deleted when dropped, unless `CRM_TEST_KEEP` is set or the test is failing: then it moves to the folder
/// `CRM_TEST_KEPT`, if that is set, which holds the last few.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// A new folder below the system's temporary folder, owned by `account`, with a short name: socket paths are limited.
    #[must_use]
    pub fn new(label: &str, account: &Account) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let base = std::env::temp_dir();
        loop {
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = base.join(format!("crm-{label}-{}-{n}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => {
                    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
                        .expect("set permissions of the scratch folder");
                    account.give(&path);
                    return Self { path };
                }
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => panic!("cannot make {}: {e}", path.display()),
            }
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::thread::panicking() || std::env::var_os("CRM_TEST_KEEP").is_some() {
            let kept = match std::env::var_os("CRM_TEST_KEPT") {
                Some(to) => outlive(&self.path, Path::new(&to)),
                None => self.path.clone(),
            };
            eprintln!("kept for inspection: {}", kept.display());
        } else {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Folders of failed tests that outlive the run.
const KEPT: usize = 5;

/// Moves `path` into the folder `to`, from where the oldest go; where it is then.
fn outlive(path: &Path, to: &Path) -> PathBuf {
    let mut there: Vec<_> = fs::read_dir(to)
        .map(|all| all.flatten().map(|e| e.path()).collect())
        .unwrap_or_default();
    there.sort_by_key(|p| fs::metadata(p).and_then(|m| m.modified()).ok());
    for old in &there[..there.len().saturating_sub(KEPT - 1)] {
        let _ = fs::remove_dir_all(old);
    }
    let kept = to.join(path.file_name().unwrap_or_default());
    let _ = fs::remove_dir_all(&kept);
    // Not by `fs::rename`: it may be another file system.
    let moved = Command::new("mv").arg(path).arg(&kept).status();
    match moved {
        Ok(status) if status.success() => kept,
        _ => path.to_owned(),
    }
}

/// Sends `signal` (a name such as `KILL`) to process `pid`; whether there was such a process.
#[must_use]
pub(crate) fn signal(pid: u32, signal: &str) -> bool {
    Command::new("/bin/sh")
        .args(["-c", &format!("kill -{signal} {pid}")])
        .stderr(std::process::Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

/// Waits for `child` to end by itself; `false` when it still runs after `patience`.
#[must_use]
pub(crate) fn ended_within(child: &mut Child, patience: Duration) -> bool {
    let end = Instant::now() + patience;
    loop {
        match child.try_wait() {
            Ok(Some(_)) => return true,
            Ok(None) if Instant::now() >= end => return false,
            Ok(None) => std::thread::sleep(Duration::from_millis(5)),
            Err(e) => panic!("cannot wait for a child process: {e}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The run of all tests deleted what it said it had kept.
    #[test]
    fn folders_of_failed_tests_outlive_the_run_and_the_oldest_go() {
        let account = Account { switch_to: None };
        let (from, to) = (Scratch::new("from", &account), Scratch::new("to", &account));
        let mut kept = Vec::new();
        for n in 0..KEPT + 2 {
            let folder = from.path().join(format!("failed-{n}"));
            fs::create_dir(&folder).expect("make a folder");
            fs::write(folder.join("log"), n.to_string()).expect("write a file");
            kept.push(outlive(&folder, to.path()));
            assert!(!folder.exists(), "it moved");
        }
        let there: Vec<bool> = kept.iter().map(|k| k.exists()).collect();
        assert_eq!(there.iter().filter(|t| **t).count(), KEPT, "{there:?}");
        let last = kept.last().expect("the last one").join("log");
        assert_eq!(
            fs::read_to_string(last).expect("read it"),
            (KEPT + 1).to_string()
        );
    }
}
