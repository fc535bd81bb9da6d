//! TLS with a certificate authority made at start, and the accept loops of the ports that need more than `axum::serve`.

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// A client that does not finish its handshake in this time is dropped.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Wait after an accept failed (out of descriptors), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A server certificate for `localhost` and `127.0.0.1`, and its key.
pub(crate) struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
}

impl Identity {
    /// Makes a CA and a server certificate; writes the CA (PEM) to `ca_file`.
    pub(crate) fn new(ca_file: Option<&str>) -> Result<Self, String> {
        let (chain, key, ca) =
            certificates().map_err(|error| format!("cannot make a certificate: {error}"))?;
        if let Some(path) = ca_file {
            std::fs::write(path, ca)
                .map_err(|error| format!("cannot write --write-ca {path}: {error}"))?;
        }
        Ok(Self { chain, key })
    }

    /// A TLS acceptor that offers `protocols` by ALPN.
    pub(crate) fn acceptor(&self, protocols: &[&[u8]]) -> Result<TlsAcceptor, String> {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone()));
        let mut config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(self.chain.clone(), key)
            .map_err(|error| format!("cannot use the server certificate: {error}"))?;
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

type Made = (Vec<CertificateDer<'static>>, Vec<u8>, String);

fn certificates() -> Result<Made, rcgen::Error> {
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::new(Vec::new())?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name
        .push(DnType::CommonName, "crm-emulator CA");
    ca.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    let ca_cert = ca.self_signed(&ca_key)?;
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate()?;
    let mut server = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])?;
    server
        .distinguished_name
        .push(DnType::CommonName, "crm-emulator");
    server.use_authority_key_identifier_extension = true;
    server.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    server.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let cert = server.signed_by(&key, &issuer)?;
    Ok((
        vec![cert.der().clone(), ca_cert.der().clone()],
        key.serialize_der(),
        ca_cert.pem(),
    ))
}

/// Serves a router over HTTP/1.1, with TLS when there is an acceptor.
pub(crate) async fn serve(listener: TcpListener, acceptor: Option<TlsAcceptor>, app: Router) {
    loop {
        let Some(stream) = accept(&listener).await else {
            continue;
        };
        let (acceptor, app) = (acceptor.clone(), app.clone());
        tokio::spawn(async move {
            match secured(acceptor, stream).await {
                Some(Stream::Tls(stream)) => http1(*stream, app).await,
                Some(Stream::Plain(stream)) => http1(stream, app).await,
                None => {}
            }
        });
    }
}

async fn http1<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(stream: S, app: Router) {
    let service = TowerToHyperService::new(app);
    // A broken connection is the client's business.
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// A service for HTTP/2 connections (gRPC).
pub(crate) trait H2Service: Clone + Send + Sync + 'static {
    /// Answers one request.
    fn call(
        &self,
        request: http::Request<hyper::body::Incoming>,
    ) -> impl Future<Output = http::Response<tonic::body::Body>> + Send;
}

/// Serves a gRPC service over HTTP/2, with TLS when there is an acceptor.
pub(crate) async fn serve_h2<S: H2Service>(
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
    service: S,
) {
    loop {
        let Some(stream) = accept(&listener).await else {
            continue;
        };
        let (acceptor, service) = (acceptor.clone(), service.clone());
        tokio::spawn(async move {
            match secured(acceptor, stream).await {
                Some(Stream::Tls(stream)) => http2(*stream, service).await,
                Some(Stream::Plain(stream)) => http2(stream, service).await,
                None => {}
            }
        });
    }
}

async fn http2<T, S>(stream: T, service: S)
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: H2Service,
{
    let answer = hyper::service::service_fn(move |request| {
        let service = service.clone();
        async move { Ok::<_, Infallible>(service.call(request).await) }
    });
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(Duration::from_secs(60)));
    let _ = builder.serve_connection(TokioIo::new(stream), answer).await;
}

enum Stream {
    Tls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
    Plain(TcpStream),
}

async fn accept(listener: &TcpListener) -> Option<TcpStream> {
    match listener.accept().await {
        Ok((stream, _)) => {
            // Without it small answers wait for the peer's delayed acknowledgement.
            let _ = stream.set_nodelay(true);
            Some(stream)
        }
        Err(_) => {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

async fn secured(acceptor: Option<TlsAcceptor>, stream: TcpStream) -> Option<Stream> {
    let Some(acceptor) = acceptor else {
        return Some(Stream::Plain(stream));
    };
    let secured = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream))
        .await
        .ok()?
        .ok()?;
    Some(Stream::Tls(Box::new(secured)))
}
