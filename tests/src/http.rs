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

/// Sends bytes as they are and reads until the other side closes; answers the status, `None` when there was no
/// answer. For callers that do not keep to the protocol.
#[must_use]
pub fn send_raw(host: &str, bytes: &[u8], patience: Duration) -> Option<u16> {
    let mut stream = TcpStream::connect(host).ok()?;
    stream.set_read_timeout(Some(patience)).ok()?;
    stream.set_write_timeout(Some(patience)).ok()?;
    // A server that refuses early stops reading: what it said before counts.
    let _ = stream.write_all(bytes);
    let mut reply = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(n) = stream.read(&mut chunk) {
        if n == 0 || reply.len() > 65_536 {
            break;
        }
        reply.extend_from_slice(&chunk[..n]);
        if reply.windows(4).any(|w| w == b"\r\n\r\n") {
            break;
        }
    }
    std::str::from_utf8(&reply)
        .ok()?
        .split(' ')
        .nth(1)?
        .parse()
        .ok()
}

/// A POST with headers and a body, as bytes.
#[must_use]
pub fn post(path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut out = format!(
        "POST {path} HTTP/1.1\r\nHost: hook\r\nConnection: close\r\nContent-Length: {}\r\n",
        body.len()
    )
    .into_bytes();
    for (name, value) in headers {
        out.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(body);
    out
}
