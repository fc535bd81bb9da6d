//! Reading a CRM's catalog, and checking a server: state machines that are fed
//! answers and name the next requests. They send nothing themselves.

use crate::connectors::{Account, Connector, ServerConfig};
use crate::http::{HttpRequest, HttpResponse};
use crate::model::{ErrorClass, RemoteError, RemoteField, RemoteObject};
use sha2::{Digest, Sha256};
use std::collections::{HashMap, VecDeque};

/// Objects whose fields one refresh describes, at most: one call each.
const MAX_OBJECTS: usize = 200;
/// Requests of one refresh or check that are out at the same time.
const MAX_OPEN: usize = 4;

/// Whose fields a refresh describes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Objects that are mirrored or were described before.
    pub objects: Vec<String>,
    /// What `crm.import` asked for: see [`object_hash`].
    pub hashes: Vec<String>,
    /// Describe these objects alone, without asking which there are.
    pub known: bool,
    /// When an object was described as it is known, in the CRM's words: where the
    /// CRM can, it tells only what is newer.
    pub since: HashMap<String, String>,
}

impl Wanted {
    fn has(&self, object: &RemoteObject) -> bool {
        let asked = |name: &str| self.hashes.contains(&object_hash(name));
        self.objects.contains(&object.name)
            || (!self.hashes.is_empty()
                && (asked(&object.name)
                    || asked(&object.type_id)
                    || asked(&object.name.replace('/', "_"))))
    }
}

/// The name or type id of an object in a request of kind `fields:`: 16 digits of the
/// SHA-256 of its lower-case form, since the list of requests has little room.
pub fn object_hash(object: &str) -> String {
    let digest = Sha256::digest(object.to_lowercase().as_bytes());
    digest.iter().take(8).map(|b| format!("{b:02x}")).collect()
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Objects(usize),
    Fields(String),
}

/// One reading of a server's catalog.
pub struct CatalogRefresh {
    connector: &'static dyn Connector,
    config: ServerConfig,
    wanted: Wanted,
    parts: Vec<Part>,
    waiting: VecDeque<HttpRequest>,
    open: usize,
    lists_left: usize,
    /// What the CRM offers, once every list is there.
    pub objects: Vec<RemoteObject>,
    /// The fields of those objects that were wanted and could be read.
    pub fields: Vec<(String, Vec<RemoteField>)>,
    /// Objects and when they were described as they are now, in the CRM's words.
    pub described: Vec<(String, String)>,
    /// Objects whose description is still the one of [`Wanted::since`].
    pub unchanged: Vec<String>,
    /// The first thing that went wrong. Fields of other objects may be there.
    pub error: Option<RemoteError>,
}

impl CatalogRefresh {
    /// Begins; the requests have the indices 0, 1, … in the order in which this
    /// and [`Self::answer`] return them.
    pub fn start(
        connector: &'static dyn Connector,
        config: ServerConfig,
        wanted: Wanted,
    ) -> (Self, Vec<HttpRequest>) {
        let requests = match wanted.known {
            true => Vec::new(),
            false => connector.objects_requests(&config),
        };
        let mut refresh = Self {
            connector,
            config,
            wanted,
            parts: (0..requests.len()).map(Part::Objects).collect(),
            lists_left: requests.len(),
            waiting: requests.into(),
            open: 0,
            objects: Vec::new(),
            fields: Vec::new(),
            described: Vec::new(),
            unchanged: Vec::new(),
            error: None,
        };
        if refresh.wanted.known {
            let objects = std::mem::take(&mut refresh.wanted.objects);
            refresh.describe(objects.into_iter().take(MAX_OBJECTS).collect());
        }
        let first = refresh.next();
        (refresh, first)
    }

    fn next(&mut self) -> Vec<HttpRequest> {
        let free = MAX_OPEN.saturating_sub(self.open).min(self.waiting.len());
        self.open += free;
        self.waiting.drain(..free).collect()
    }

    /// Takes the answer to the request with this index; more requests.
    pub fn answer(
        &mut self,
        index: usize,
        result: Result<HttpResponse, RemoteError>,
    ) -> Vec<HttpRequest> {
        self.open = self.open.saturating_sub(1);
        match self.parts.get(index).cloned() {
            Some(Part::Objects(list)) => self.listed(list, result),
            Some(Part::Fields(object)) => self.described(object, result),
            None => {}
        }
        self.next()
    }

    fn listed(&mut self, list: usize, result: Result<HttpResponse, RemoteError>) {
        self.lists_left = self.lists_left.saturating_sub(1);
        let objects = match result {
            Ok(response) => self.connector.objects(list, &response),
            // A list of custom objects may be refused to an account that has
            // the standard ones: the connector knows.
            Err(error) => {
                let refusal = HttpResponse {
                    status: error.status,
                    headers: Vec::new(),
                    body: Vec::new(),
                };
                match self.connector.objects(list, &refusal) {
                    Ok(objects) if !objects.is_empty() => Ok(objects),
                    _ => Err(error),
                }
            }
        };
        match objects {
            Ok(objects) => self.objects.extend(objects),
            Err(error) => self.fail(error),
        }
        if self.lists_left == 0 && self.error.is_none() {
            let asked: Vec<String> = self
                .objects
                .iter()
                .filter(|object| self.wanted.has(object))
                .map(|object| object.name.clone())
                .take(MAX_OBJECTS)
                .collect();
            self.describe(asked);
        }
    }

    fn describe(&mut self, objects: Vec<String>) {
        for object in objects {
            let since = self.wanted.since.get(&object).map(String::as_str);
            let request = self.connector.fields_request(&self.config, &object, since);
            self.waiting.push_back(request);
            self.parts.push(Part::Fields(object));
        }
    }

    fn described(&mut self, object: String, result: Result<HttpResponse, RemoteError>) {
        let stamp = result.as_ref().ok().and_then(|r| r.header("last-modified"));
        let stamp = stamp.map(str::to_owned);
        match result.and_then(|response| self.connector.fields(&object, &response)) {
            Ok(fields) => {
                self.described
                    .extend(stamp.map(|stamp| (object.clone(), stamp)));
                self.fields.push((object, fields));
            }
            Err(error) if error.status == 304 => self.unchanged.push(object),
            Err(mut error) => {
                error.message = format!("fields of {object}: {}", error.message);
                self.fail(error);
            }
        }
    }

    fn fail(&mut self, error: RemoteError) {
        self.error.get_or_insert(error);
    }

    /// A request could not be handed over: it counts as failed.
    pub fn refused(&mut self, index: usize) -> Vec<HttpRequest> {
        self.answer(index, Err(busy()))
    }

    /// Nothing is out and nothing waits.
    pub fn done(&self) -> bool {
        self.open == 0 && self.waiting.is_empty()
    }
}

fn busy() -> RemoteError {
    RemoteError {
        class: ErrorClass::Retry,
        status: 0,
        code: "busy".to_owned(),
        message: "too many calls wait for the network".to_owned(),
        fields: Vec::new(),
        advice: "Try again in a moment.",
        retry_after_ms: None,
        maybe_applied: false,
    }
}

/// One row of `crm.server_check`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckRow {
    /// What was looked at.
    pub item: String,
    /// Whether it is right; `None` where nobody can say.
    pub ok: Option<bool>,
    /// What was found.
    pub detail: String,
    /// What to do.
    pub advice: Option<String>,
}

impl CheckRow {
    /// A row; `advice` only where there is something to do.
    pub fn new(
        item: &str,
        ok: Option<bool>,
        detail: impl Into<String>,
        advice: Option<&str>,
    ) -> Self {
        Self {
            item: item.to_owned(),
            ok,
            detail: detail.into(),
            advice: advice.map(str::to_owned),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum CheckPart {
    Probe,
    Objects(usize),
    Count(String),
}

/// One check of a server whose credential could be read.
pub struct ServerCheck {
    connector: &'static dyn Connector,
    config: ServerConfig,
    mirrored: Vec<String>,
    parts: Vec<CheckPart>,
    waiting: VecDeque<HttpRequest>,
    open: usize,
    /// Findings so far, in order.
    pub rows: Vec<CheckRow>,
    /// Account id, where the CRM told.
    pub tenant: Option<String>,
    /// What else the CRM told of the account.
    pub account: Option<Account>,
}

impl ServerCheck {
    /// Begins, with the rows that needed no call; indices as in [`CatalogRefresh::start`].
    pub fn start(
        connector: &'static dyn Connector,
        config: ServerConfig,
        mirrored: Vec<String>,
        rows: Vec<CheckRow>,
    ) -> (Self, Vec<HttpRequest>) {
        let probe = connector.probe(&config);
        let check = Self {
            connector,
            config,
            mirrored,
            parts: vec![CheckPart::Probe],
            waiting: VecDeque::new(),
            open: 1,
            rows,
            tenant: None,
            account: None,
        };
        (check, vec![probe])
    }

    /// Takes the answer to the request with this index; more requests.
    pub fn answer(
        &mut self,
        index: usize,
        result: Result<HttpResponse, RemoteError>,
    ) -> Vec<HttpRequest> {
        self.open = self.open.saturating_sub(1);
        match self.parts.get(index).cloned() {
            Some(CheckPart::Probe) => self.probed(result),
            Some(CheckPart::Objects(list)) => self.listed(list, result),
            Some(CheckPart::Count(object)) => self.counted(&object, result),
            None => {}
        }
        let free = MAX_OPEN.saturating_sub(self.open).min(self.waiting.len());
        self.open += free;
        self.waiting.drain(..free).collect()
    }

    fn probed(&mut self, result: Result<HttpResponse, RemoteError>) {
        let connector = self.connector;
        let read = |response| Ok((connector.probed(&response)?, connector.account(&response)));
        let found = match result.and_then(read) {
            Ok((found, account)) => {
                self.account = Some(account);
                found
            }
            Err(error) => return self.probe_failed(&error),
        };
        let url = self.connector.base_url(&self.config, None);
        self.rows.push(CheckRow::new(
            "connection",
            Some(true),
            if url.starts_with("http://") {
                "answers over plain http on this machine"
            } else {
                "answers over TLS with a trusted certificate"
            },
            None,
        ));
        self.rows.push(CheckRow::new(
            "credentials",
            Some(true),
            "accepted by the CRM",
            None,
        ));
        for (what, value) in found {
            if what.ends_with(" id") {
                self.tenant.get_or_insert_with(|| value.clone());
            }
            self.rows
                .push(CheckRow::new(&what, Some(true), value, None));
        }
        let lists = self.connector.objects_requests(&self.config);
        self.parts.extend((0..lists.len()).map(CheckPart::Objects));
        self.waiting.extend(lists);
        for object in self.mirrored.iter().take(MAX_OBJECTS) {
            self.parts.push(CheckPart::Count(object.clone()));
            self.waiting
                .push_back(self.connector.count_request(&self.config, object));
        }
    }

    /// The way to the CRM ends at one of four gates; the ones before are open.
    fn probe_failed(&mut self, error: &RemoteError) {
        let code = error.code.as_str();
        let gate = match (code, error.class, error.status) {
            ("host_not_allowed" | "bad_url" | "redirect", ..) => "host",
            ("tls", ..) => "tls",
            (_, _, 0) => "connection",
            (_, ErrorClass::FixPermission, _) => "scopes",
            (_, ErrorClass::Reauth | ErrorClass::Stop, _) | (_, _, 400 | 401) => "credentials",
            (_, ErrorClass::Wait, _) => "limits",
            _ => "connection",
        };
        self.rows.push(CheckRow::new(
            gate,
            Some(false),
            error.to_string(),
            Some(error.advice),
        ));
    }

    fn listed(&mut self, list: usize, result: Result<HttpResponse, RemoteError>) {
        let row = match result.and_then(|response| self.connector.objects(list, &response)) {
            Ok(objects) => CheckRow::new(
                "catalog",
                Some(true),
                format!("{} objects offered", objects.len()),
                None,
            ),
            Err(error) => CheckRow::new(
                "catalog",
                Some(false),
                error.to_string(),
                Some(error.advice),
            ),
        };
        self.rows.push(row);
    }

    fn counted(&mut self, object: &str, result: Result<HttpResponse, RemoteError>) {
        let item = format!("read {object}");
        let row = match result.and_then(|response| self.connector.count(&response)) {
            Ok(records) => CheckRow::new(
                &item,
                Some(true),
                format!("{records} records visible"),
                None,
            ),
            Err(error) => CheckRow::new(&item, Some(false), error.to_string(), Some(error.advice)),
        };
        self.rows.push(row);
    }

    /// A request could not be handed over: it counts as failed.
    pub fn refused(&mut self, index: usize) -> Vec<HttpRequest> {
        self.answer(index, Err(busy()))
    }

    /// Nothing is out and nothing waits.
    pub fn done(&self) -> bool {
        self.open == 0 && self.waiting.is_empty()
    }
}

#[cfg(test)]
#[path = "connectors/catalog_tests.rs"]
mod tests;
