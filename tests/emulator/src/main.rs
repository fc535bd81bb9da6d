//! `crm-emulator`: HubSpot and Salesforce in memory, on loopback.
//!
//! One process serves both CRMs over one store of invented people. It shares no code with the
//! connectors of the extension, so that a misreading of an API has to be made twice to go unseen.
//!
//! Layout: [`cli`] options; [`people`] the deterministic base data; [`clock`], [`fault`],
//! [`request_log`] and [`gate`] what both CRMs have in common; [`admin`] what a person would do in
//! the CRM's own user interface; [`hubspot`] and [`salesforce`] the two CRMs.

mod admin;
mod cli;
mod clock;
mod fault;
mod gate;
mod hubspot;
mod people;
mod request_log;
mod salesforce;
mod shared;
mod tls;

use std::{process::ExitCode, sync::Arc};

use serde_json::json;
use shared::Shared;
use tokio::net::TcpListener;

fn main() -> ExitCode {
    let options = match cli::parse(std::env::args().skip(1)) {
        Ok(cli::Command::Run(options)) => *options,
        Ok(cli::Command::Help) => {
            println!("{}", cli::help());
            return ExitCode::SUCCESS;
        }
        Ok(cli::Command::Version) => {
            println!("crm-emulator {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Err(message) => {
            eprintln!("crm-emulator: {message}\nTry `crm-emulator --help`.");
            return ExitCode::from(2);
        }
    };
    // Fails only when a provider is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("crm-emulator: cannot start threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("crm-emulator: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Binds every listener, announces the addresses, and serves until told to stop.
async fn run(options: cli::Options) -> Result<(), String> {
    let shared = Shared::new(options);
    let hubspot = hubspot::State::start(Arc::clone(&shared))?;
    let salesforce = salesforce::State::start(Arc::clone(&shared))?;
    let app = axum::Router::new()
        .merge(hubspot::router(Arc::clone(&hubspot)))
        .merge(salesforce::router(Arc::clone(&salesforce)))
        .fallback(gate::not_found)
        .layer(axum::middleware::from_fn_with_state(
            Arc::clone(&shared),
            gate::pass,
        ))
        .merge(admin::router(admin::Admin {
            shared: Arc::clone(&shared),
            hubspot: hubspot.clone(),
            salesforce: salesforce.clone(),
        }))
        .merge(hubspot::admin(hubspot))
        .merge(salesforce::admin(Arc::clone(&salesforce)));

    let listener = bind(&shared.options.listen).await?;
    let http = listener.local_addr().map_err(|e| e.to_string())?;
    let extra = salesforce::listen(salesforce, app.clone()).await?;
    if let Some(https) = extra.https {
        shared.set_https_port(https.port());
    }
    announce(&shared, http, &extra)?;

    let server = axum::serve(listener, app);
    tokio::select! {
        result = server => result.map_err(|e| format!("HTTP listener failed: {e}")),
        () = shared.stopped() => Ok(()),
        () = interrupted() => Ok(()),
    }
}

/// Binds `address` (`host:port`, port 0 for any free one).
pub(crate) async fn bind(address: &str) -> Result<TcpListener, String> {
    TcpListener::bind(address)
        .await
        .map_err(|e| format!("cannot listen on {address}: {e}; choose another port, or 0 for any"))
}

/// Prints the actual addresses as one JSON line, and to `--ready-file`.
fn announce(
    shared: &Shared,
    http: std::net::SocketAddr,
    extra: &salesforce::Listening,
) -> Result<(), String> {
    let line = json!({
        "http": format!("http://{http}"),
        "https": extra.https.map(|a| format!("https://{a}")),
        "pubsub": extra.pubsub.map(|a| a.to_string()),
        "pubsub_plain": extra.pubsub_plain.map(|a| a.to_string()),
        "ca": extra.ca,
    })
    .to_string();
    println!("{line}");
    if let Some(path) = &shared.options.ready_file {
        // Written aside and renamed, so that a waiting reader never sees half a line.
        let aside = format!("{path}.part");
        std::fs::write(&aside, &line)
            .and_then(|()| std::fs::rename(&aside, path))
            .map_err(|e| format!("cannot write --ready-file {path}: {e}"))?;
    }
    Ok(())
}

/// Completes on SIGINT or SIGTERM.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut int), Ok(mut term)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) else {
        return std::future::pending().await;
    };
    tokio::select! { _ = int.recv() => {}, _ = term.recv() => {} }
}
