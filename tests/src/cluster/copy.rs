//! Second clusters made from a first one: file-level copies and standbys.

use std::process::Command;

use super::{Cluster, Stop};
use crate::system::Scratch;

impl Cluster {
    /// A copy of the data directory of this stopped cluster, started elsewhere with the same settings:
    /// same credentials, same activation file. Only its socket is its own, and it opens no webhook listener.
    pub async fn copy_stopped(&self) -> Self {
        assert!(self.server.is_none(), "stop the cluster before copying it");
        let scratch = Scratch::new("copy", &self.account);
        let copied = Command::new("/bin/cp")
            .arg("-a")
            .arg(self.data())
            .arg(scratch.path())
            .status()
            .expect("run cp");
        assert!(copied.success(), "cp -a failed");
        self.elsewhere(scratch).await
    }

    /// Moves the data directory aside and puts a copy in its place, as restoring a file-level backup does.
    pub fn restore_from_copy(&mut self) {
        self.stop(Stop::Fast);
        let (data, backup) = (self.data(), self.scratch.path().join("backup"));
        std::fs::rename(&data, &backup).expect("move the data directory aside");
        let copied = Command::new("/bin/cp")
            .arg("-a")
            .args([&backup, &data])
            .status()
            .expect("run cp");
        assert!(copied.success(), "cp -a failed");
    }

    /// A streaming standby of this running cluster, with the same settings as [`Self::copy_stopped`].
    pub async fn standby(&self) -> Self {
        let scratch = Scratch::new("copy", &self.account);
        let output = self
            .program("pg_basebackup")
            .args(["-R", "-X", "stream", "-c", "fast", "-D"])
            .arg(scratch.path().join("data"))
            .output()
            .expect("run pg_basebackup");
        assert!(
            output.status.success(),
            "pg_basebackup failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        self.elsewhere(scratch).await
    }

    /// Starts the data directory in `scratch` with this cluster's settings.
    async fn elsewhere(&self, scratch: Scratch) -> Self {
        let mut other = Self {
            server: None,
            account: self.account.clone(),
            bin: self.bin.clone(),
            env: self.env.clone(),
            scratch,
        };
        let socket_dir = other.scratch.path().display().to_string();
        other.set("unix_socket_directories", &socket_dir);
        other.set("pg_crm_sync.listen", "");
        other.start_again().await;
        other
    }
}
