//! Signed webhooks of HubSpot, made before the clock starts and posted as fast as the listener answers.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, Mac};
use serde_json::json;
use sha2::Sha256;

/// Events in one request: as many as HubSpot sends.
pub(crate) const EVENTS: usize = 100;
/// The secret that the emulator's account signs with.
const SECRET: &str = "emulator-secret";

/// A complete HTTP request.
pub(crate) type Request = Vec<u8>;

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("a clock after 1970");
    i64::try_from(since.as_millis()).expect("a clock before the year 292 million")
}

/// Requests that set `property` of each record to `value`, [`EVENTS`] at a time. `first_event` numbers the events.
pub(crate) fn requests(
    address: &str,
    records: &[i64],
    property: &str,
    value: &str,
    first_event: usize,
) -> Vec<Request> {
    let at = now_ms();
    let chunks = records.chunks(EVENTS).enumerate();
    chunks
        .map(|(chunk, ids)| {
            let first = first_event + chunk * EVENTS;
            let events: Vec<_> = ids
                .iter()
                .enumerate()
                .map(|(i, id)| {
                    json!({
                        "eventId": first + i, "subscriptionId": 1_000, "portalId": 62_515, "appId": 54_321,
                        "occurredAt": at, "subscriptionType": "object.propertyChange", "attemptNumber": 0,
                        "objectId": id, "objectTypeId": "0-1", "changeSource": "CRM_UI", "sourceId": "userId:1",
                        "propertyName": property, "propertyValue": value, "isSensitive": false,
                    })
                })
                .collect();
            signed(address, &json!(events).to_string())
        })
        .collect()
}

fn signed(address: &str, body: &str) -> Request {
    let stamp = now_ms().to_string();
    let uri = format!("http://{address}/webhook/hubspot");
    let mut mac =
        Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("HMAC takes keys of any length");
    for part in ["POST", &uri, body, &stamp] {
        mac.update(part.as_bytes());
    }
    let signature = STANDARD.encode(mac.finalize().into_bytes());
    format!(
        "POST /webhook/hubspot HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n\
         X-HubSpot-Signature-v3: {signature}\r\nX-HubSpot-Request-Timestamp: {stamp}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Posts all requests over `connections` at once, each sending its next when the last was answered. Refused
/// deliveries (429, 503) are sent again after a millisecond, as HubSpot would much later; how many, is the answer.
pub(crate) fn post(address: &str, connections: usize, requests: Vec<Request>) -> usize {
    let requests = Arc::new(requests);
    let threads: Vec<_> = (0..connections)
        .map(|place| {
            let (requests, address) = (Arc::clone(&requests), address.to_owned());
            std::thread::spawn(move || {
                let mut connection = Connection::open(&address);
                let mine = requests.iter().skip(place).step_by(connections);
                mine.map(|request| connection.deliver(request))
                    .sum::<usize>()
            })
        })
        .collect();
    let joined = threads
        .into_iter()
        .map(|t| t.join().expect("a delivery failed"));
    joined.sum()
}

struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    fn open(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("connect to the listener");
        let patience = Some(Duration::from_secs(30));
        stream.set_nodelay(true).expect("send at once");
        stream.set_read_timeout(patience).expect("bound the wait");
        Self {
            stream: BufReader::new(stream),
        }
    }

    fn deliver(&mut self, request: &[u8]) -> usize {
        for refused in 0..60_000 {
            match self.status_of(request) {
                200..300 => return refused,
                429 | 503 => std::thread::sleep(Duration::from_millis(1)),
                status => panic!("a webhook was answered with {status}"),
            }
        }
        panic!("a webhook was refused for a minute");
    }

    fn status_of(&mut self, request: &[u8]) -> u16 {
        self.stream
            .get_mut()
            .write_all(request)
            .expect("send a webhook");
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("read the status");
        let status = line.split(' ').nth(1).and_then(|s| s.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no status in `{line}`"));
        let mut length = 0;
        loop {
            line.clear();
            self.stream.read_line(&mut line).expect("read a header");
            let header = line.trim_end().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(n) = header.strip_prefix("content-length:") {
                length = n.trim().parse().expect("a length");
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).expect("read the answer");
        status
    }
}
