//! A client for the emulator's admin routes: one request per connection, HTTP/1.0, so that no body is chunked.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

/// Longest time one admin call may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Calls `method base+path` with an optional JSON body; answers status and JSON (`Null` when the body is no JSON).
pub(crate) fn call(base: &str, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
    let host = base
        .strip_prefix("http://")
        .expect("the admin address is plain http");
    exchange(host, method, path, body)
        .unwrap_or_else(|e| panic!("{method} {base}{path} failed: {e}"))
}

fn exchange(
    host: &str,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> std::io::Result<(u16, Value)> {
    let body = body.map(Value::to_string).unwrap_or_default();
    let mut stream = TcpStream::connect(host)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply)?;

    let bad = |what: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, what.to_owned());
    let head = reply
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .ok_or_else(|| bad("no headers"))?;
    let status = std::str::from_utf8(&reply[..head])
        .ok()
        .and_then(|text| text.split(' ').nth(1)?.parse().ok())
        .ok_or_else(|| bad("no status"))?;
    Ok((
        status,
        serde_json::from_slice(&reply[head + 4..]).unwrap_or(Value::Null),
    ))
}
