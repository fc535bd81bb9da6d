//! Credentials by reference: `file:NAME` below the secrets directory, or
//! `env:PG_CRM_SYNC_NAME`.
//!
//! What is read stays in the worker's memory; only a refresh token that the CRM
//! replaced goes back into its file (`crm_io`). Problems are told in words that
//! never quote the content: they end up in tables and in the server log.

use crm_core::credential::{Loaded, parse, parse_webhook_secret};
use crm_core::secret::Secret;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Longest credential file.
const MAX_BYTES: u64 = 64 << 10;
/// Longest file of certificates: some times a system's whole bundle.
const MAX_CA_BYTES: u64 = 1 << 20;

/// Reads a credential; on failure what is wrong and what to do, in a sentence each.
pub(crate) fn load_credential(reference: &str, dir: Option<&Path>) -> Result<Loaded, String> {
    parse(reference, &read(reference, dir)?)
}

/// Reads the secret of webhooks: the field of that name, or the whole text.
pub(crate) fn load_webhook_secret(reference: &str, dir: Option<&Path>) -> Result<Secret, String> {
    parse_webhook_secret(reference, &read(reference, dir)?)
}

/// The file behind a reference that was just read, links resolved; `None` for a variable.
pub(crate) fn credential_file(reference: &str, dir: Option<&Path>) -> Option<PathBuf> {
    let name = reference.strip_prefix("file:")?;
    dir?.join(name).canonicalize().ok()
}

fn read(reference: &str, dir: Option<&Path>) -> Result<String, String> {
    if let Some(name) = reference.strip_prefix("env:") {
        return match std::env::var(name) {
            _ if !name.starts_with("PG_CRM_SYNC_") => Err(format!(
                "{reference} is refused: names of variables begin with PG_CRM_SYNC_."
            )),
            Ok(value) => Ok(value),
            Err(_) => Err(format!(
                "{reference} is not set for the server. Set it in the service's environment and restart PostgreSQL."
            )),
        };
    }
    let Some(name) = reference.strip_prefix("file:") else {
        return Err("The credential is not a reference. Write file:NAME or env:NAME.".to_owned());
    };
    let Some(dir) = dir else {
        return Err(
            "pg_crm_sync.secrets_dir is not set. Set it to the directory of the credential files."
                .to_owned(),
        );
    };
    if name.is_empty() || name.contains('/') || name.contains("..") {
        return Err(format!(
            "{reference} is refused: a file name has no slash and no \"..\"."
        ));
    }
    read_file(name, dir)
}

/// Reads the certificates of a server's option `ca_file`.
pub(crate) fn load_ca_file(path: &str) -> Result<Vec<u8>, String> {
    let told = |problem: String| format!("ca_file {path} {problem}.");
    let (file, _) = open_file(Path::new(path), MAX_CA_BYTES).map_err(told)?;
    let mut pem = Vec::new();
    let read = file.take(MAX_CA_BYTES).read_to_end(&mut pem);
    read.map_err(|error| told(format!("cannot be read: {error}")))?;
    Ok(pem)
}

/// Opens a file of bounded size; a pipe or a device, which might never end or
/// never begin, is not even opened.
fn open_file(path: &Path, max_bytes: u64) -> Result<(File, Metadata), String> {
    let failed = |error: std::io::Error| format!("cannot be read: {error}");
    let meta = path.metadata().map_err(failed)?;
    if !meta.is_file() || meta.len() > max_bytes {
        return Err(format!("is not a file of at most {max_bytes} bytes"));
    }
    Ok((File::open(path).map_err(failed)?, meta))
}

fn read_file(name: &str, dir: &Path) -> Result<String, String> {
    let shown = dir.join(name);
    let failed = |error: std::io::Error| format!("{} cannot be read: {error}.", shown.display());
    let real = shown.canonicalize().map_err(failed)?;
    let home = dir.canonicalize().map_err(failed)?;
    if !real.starts_with(&home) {
        return Err(format!(
            "{} leads out of pg_crm_sync.secrets_dir.",
            shown.display()
        ));
    }
    let (file, meta) =
        open_file(&real, MAX_BYTES).map_err(|problem| format!("{} {problem}.", shown.display()))?;
    let me = crate::pg::account();
    if meta.permissions().mode() & 0o007 != 0 || (meta.uid() != me && meta.uid() != 0) {
        return Err(format!(
            "{} can be used by others. Make it the server's own: chown, then chmod 600.",
            shown.display()
        ));
    }
    let mut text = String::new();
    file.take(MAX_BYTES)
        .read_to_string(&mut text)
        .map_err(failed)?;
    Ok(text)
}
