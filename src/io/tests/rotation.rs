//! A CRM that replaces the refresh token at every log-in: the old one is void at once.
#![allow(clippy::unwrap_used, reason = "a failed test panics")]

mod common;

use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use common::{FakeServer, Request, answer, ask, call, get, next_event, spec, started, submit};
use crm_core::connectors::Credential;
use crm_core::secret::Secret;
use crm_io::{Command, Event, Level, ServerSpec, Settings};

/// A folder of its own, gone with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("crm-io-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, token: &str) -> PathBuf {
        let file = self.0.join("crm.json");
        let text = format!(
            r#"{{"client_id": "app", "refresh_token": "{token}", "hosts": ["127.0.0.1"]}}"#
        );
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        file
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Accepts one refresh token, and replaces it whenever it is used; access
/// tokens work for one call.
fn rotating(valid: &Arc<Mutex<u32>>) -> FakeServer {
    let valid = Arc::clone(valid);
    FakeServer::start(move |request: &Request, stream: &mut TcpStream| {
        let mut valid = valid.lock().unwrap();
        if request.target() != "/token" {
            let bearer = format!("Bearer a{}", *valid);
            let known = request.header("authorization") == Some(&bearer);
            return answer(stream, if known { 200 } else { 401 }, "", b"{}");
        }
        if request.body != format!("r{}", *valid).as_bytes() {
            return answer(stream, 400, "", b"{}");
        }
        *valid += 1;
        let body = format!(r#"{{"access": "a{0}", "refresh": "r{0}"}}"#, *valid);
        answer(stream, 200, "", body.as_bytes())
    })
}

fn with_refresh(url: &str, token: &str, file: Option<&Path>) -> ServerSpec {
    ServerSpec {
        credential: Credential::RefreshToken {
            client_id: "app".into(),
            client_secret: None,
            refresh_token: Secret::new(token),
        },
        credential_file: file.map(Path::to_owned),
        ..spec(url)
    }
}

fn token_in(file: &Path) -> String {
    let text = std::fs::read_to_string(file).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["hosts"][0], "127.0.0.1", "the rest stays");
    json["refresh_token"].as_str().unwrap().to_owned()
}

#[test]
fn a_replaced_refresh_token_is_in_the_file_before_the_first_call_is_answered() {
    let (folder, valid) = (Folder::new("kept"), Arc::new(Mutex::new(1)));
    let server = rotating(&valid);
    let file = folder.file("r1");
    let io = started(
        Settings::default(),
        with_refresh(&server.url, "r1", Some(&file)),
    );
    ask(&io, get("/x")).unwrap();
    assert_eq!(token_in(&file), "r2");
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(
        std::fs::read_dir(&folder.0).unwrap().count(),
        1,
        "nothing left beside it"
    );

    // A restart begins with what the file holds.
    drop(io);
    let io = started(
        Settings::default(),
        with_refresh(&server.url, "r2", Some(&file)),
    );
    ask(&io, get("/x")).unwrap();
    assert_eq!(token_in(&file), "r3");
}

#[test]
fn reading_the_file_again_does_not_log_in_again() {
    let (folder, valid) = (Folder::new("again"), Arc::new(Mutex::new(1)));
    let server = rotating(&valid);
    let file = folder.file("r1");
    let io = started(
        Settings::default(),
        with_refresh(&server.url, "r1", Some(&file)),
    );
    ask(&io, get("/x")).unwrap();
    submit(
        &io,
        Command::Configure(Box::new(with_refresh(&server.url, "r2", Some(&file)))),
    );
    ask(&io, get("/x")).unwrap();
    let logins = server.targets().iter().filter(|t| *t == "/token").count();
    assert_eq!(logins, 1);
}

#[test]
fn a_token_that_another_database_had_replaced_is_taken_from_the_file() {
    let (folder, valid) = (Folder::new("shared"), Arc::new(Mutex::new(1)));
    let server = rotating(&valid);
    let file = folder.file("r1");
    let settings = Settings::default;
    let one = started(settings(), with_refresh(&server.url, "r1", Some(&file)));
    let other = started(settings(), with_refresh(&server.url, "r1", Some(&file)));
    ask(&one, get("/x")).unwrap();
    ask(&other, get("/x")).unwrap();
    assert_eq!(token_in(&file), "r3");
    // The first one's session has ended meanwhile; its own token is void.
    ask(&one, get("/x")).unwrap();
    assert_eq!(token_in(&file), "r4");
}

#[test]
fn a_token_that_cannot_be_kept_is_used_and_an_operator_is_told() {
    let valid = Arc::new(Mutex::new(1));
    let server = rotating(&valid);
    let io = started(Settings::default(), with_refresh(&server.url, "r1", None));
    submit(&io, call(1, get("/x")));
    match next_event(&io) {
        Event::Note {
            level: Level::Warning,
            message,
        } => assert!(
            message.contains("cannot be kept") && !message.contains("r2"),
            "{message}"
        ),
        other => panic!("not a warning: {other:?}"),
    }
    assert!(matches!(
        next_event(&io),
        Event::Answer { result: Ok(_), .. }
    ));
}
