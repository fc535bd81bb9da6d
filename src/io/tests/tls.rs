//! Certificates: the right one, and all the wrong ones.
#![allow(clippy::unwrap_used, reason = "a failed test panics")]

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::bus::Bus;
use common::{ask, get, impatient, next_event, spec, started, submit};
use crm_core::model::RemoteError;
use crm_io::{Command, Event, IoThread, Replay, ServerSpec, Settings};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// A certificate authority.
struct Ca {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A server certificate and its key.
struct Made {
    der: rustls::pki_types::CertificateDer<'static>,
    pem: String,
    key: KeyPair,
}

impl Ca {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "a test");
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            pem,
            issuer: Issuer::new(params, key),
        }
    }

    fn certificate(&self, name: &str, expired: bool) -> Made {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_string()]).unwrap();
        if expired {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        }
        let made = params.signed_by(&key, &self.issuer).unwrap();
        Made {
            der: made.der().clone(),
            pem: made.pem(),
            key,
        }
    }
}

/// Serves HTTPS forever with one answer; the thread ends with the process.
fn serve(made: &Made) -> String {
    let key = PrivatePkcs8KeyDer::from(made.key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.der.clone()], PrivateKeyDer::Pkcs8(key))
        .unwrap();
    let config = Arc::new(config);
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", socket.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in socket.incoming().flatten() {
            let connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut tls = rustls::StreamOwned::new(connection, stream);
            let mut seen = [0; 4096];
            if matches!(tls.read(&mut seen), Ok(n) if n > 0) {
                let _ = tls.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecret");
            }
        }
    });
    url
}

fn trusting(url: &str, ca: Option<&str>) -> ServerSpec {
    let mut spec = spec(url);
    spec.allowed_hosts.push("localhost".into());
    spec.ca_pem = ca.map(|pem| pem.as_bytes().to_vec());
    spec
}

fn error(url: &str, ca: Option<&str>) -> RemoteError {
    let io = started(Settings::default(), trusting(url, ca));
    ask(&io, get("/")).unwrap_err()
}

#[test]
fn a_certificate_of_the_named_authority_is_accepted() {
    let ca = Ca::new();
    let url = serve(&ca.certificate("127.0.0.1", false));
    let io = started(Settings::default(), trusting(&url, Some(&ca.pem)));
    assert_eq!(ask(&io, get("/")).unwrap().body, b"secret");
}

#[test]
fn any_other_certificate_is_refused_before_anything_is_sent() {
    let ca = Ca::new();
    let good = serve(&ca.certificate("127.0.0.1", false));
    let cases = [
        ("unknown authority", error(&good, None)),
        ("another authority", error(&good, Some(&Ca::new().pem))),
        (
            "another name",
            error(
                &serve(&ca.certificate("elsewhere.example", false)),
                Some(&ca.pem),
            ),
        ),
        (
            "expired",
            error(&serve(&ca.certificate("127.0.0.1", true)), Some(&ca.pem)),
        ),
    ];
    for (what, e) in cases {
        assert_eq!(e.code, "tls", "{what}: {e:?}");
        assert!(!e.maybe_applied, "{what}");
        assert!(e.message.contains("certificate"), "{what}: {e:?}");
    }
}

#[test]
fn a_handshake_that_hangs_ends_in_time() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", socket.local_addr().unwrap());
    let io = started(impatient(), trusting(&url, None));
    let began = Instant::now();
    let e = ask(&io, get("/")).unwrap_err();
    assert_eq!(e.code, "connect", "{e:?}");
    assert!(!e.maybe_applied);
    assert!(began.elapsed() < Duration::from_secs(3));
}

fn subscribe(io: &IoThread) {
    submit(
        io,
        Command::Subscribe {
            stream: 1,
            server: 1,
            topic: "/data/ChangeEvents".into(),
            replay: Replay::Latest,
        },
    );
}

#[test]
fn the_event_stream_trusts_the_same_authorities() {
    let ca = Ca::new();
    let made = ca.certificate("127.0.0.1", false);
    let identity = Some((made.pem.clone(), made.key.serialize_pem()));
    let bus = Bus::with_tls(identity, |mut s| async move {
        while let Ok(Some(_)) = s.requests.message().await {}
    });
    let mut good = trusting("http://127.0.0.1:1", Some(&ca.pem));
    good.config.pubsub_endpoint = bus.url.trim_start_matches("https://").to_string();
    let mut bad = good.clone();
    bad.ca_pem = Some(Ca::new().pem.into_bytes());
    let io = started(Settings::default(), good);
    subscribe(&io);
    match next_event(&io) {
        Event::StreamUp { stream: 1 } => {}
        other => panic!("{other:?}"),
    }
    let io = started(Settings::default(), bad);
    subscribe(&io);
    match next_event(&io) {
        Event::Note { message, .. } => assert!(message.contains("tls"), "{message}"),
        other => panic!("{other:?}"),
    }
}
