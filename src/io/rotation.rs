//! A refresh token that the CRM replaces at a log-in: the old one is void from
//! then on, so the new one goes back into the file it came from before it is used.
//! Other databases may share the file: what stands there is newer than what was
//! read from it once.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crm_core::connectors::Credential;
use crm_core::credential::{refresh_token, with_refresh_token};
use crm_core::secret::Secret;

/// The refresh token of a credential that has one.
pub(crate) fn token_of(credential: &Credential) -> Option<&Secret> {
    match credential {
        Credential::RefreshToken { refresh_token, .. } => Some(refresh_token),
        Credential::Token { .. }
        | Credential::ClientCredentials { .. }
        | Credential::Jwt { .. } => None,
    }
}

/// The same credential with another refresh token.
pub(crate) fn replaced(credential: &Credential, token: Secret) -> Credential {
    let mut next = credential.clone();
    if let Credential::RefreshToken { refresh_token, .. } = &mut next {
        *refresh_token = token;
    }
    next
}

/// The refresh token that stands in the file now.
pub(crate) fn read(file: &Path) -> Option<Secret> {
    refresh_token(&std::fs::read_to_string(file).ok()?)
}

/// Puts the token into the file: whole or not at all, readable by nobody else
/// than before, and on disk when this returns.
pub(crate) fn write(file: &Path, token: &Secret) -> io::Result<()> {
    let text = std::fs::read_to_string(file)?;
    let text = with_refresh_token(&text, token)
        .ok_or_else(|| io::Error::other("it holds no refresh_token any more"))?;
    let (Some(dir), Some(name)) = (file.parent(), file.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mode = std::fs::metadata(file)?.permissions().mode() & 0o770;
    let mut beside = name.to_os_string();
    beside.push(format!(".{}.new", std::process::id()));
    let beside = dir.join(beside);
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)
        .and_then(|mut new| {
            new.write_all(text.as_bytes())?;
            new.set_permissions(Permissions::from_mode(mode))?;
            new.sync_all()
        })
        .and_then(|()| std::fs::rename(&beside, file))
        .and_then(|()| File::open(dir)?.sync_all());
    if written.is_err() {
        // It holds a secret: better gone. The first error is the one to tell.
        let _ = std::fs::remove_file(&beside);
    }
    written
}
