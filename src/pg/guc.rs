//! The settings `pg_crm_sync.*`: one static, one registration and one accessor each.
//!
//! Limits and addresses come from the configuration file and are read again on
//! reload. No setting ever holds a secret: credentials are files or environment
//! variables that `secrets_dir` and the server options refer to.

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
use std::ffi::{CStr, CString};
use std::path::PathBuf;
use std::time::Duration;

type Text = GucSetting<Option<CString>>;
type Int = GucSetting<i32>;
type Real = GucSetting<f64>;

/// Hosts of both vendors; a sandbox, proxy or emulator must be named by the DBA.
const DEFAULT_HOSTS: &CStr = c"api.hubapi.com, *.salesforce.com, *.force.com";

static SECRETS_DIR: Text = Text::new(None);
static ALLOWED_HOSTS: Text = Text::new(Some(DEFAULT_HOSTS));
static LISTEN: Text = Text::new(None);
static WEBHOOK_PUBLIC_URL: Text = Text::new(None);
static ACTIVATION_FILE: Text = Text::new(None);
static DATABASES: Text = Text::new(None);
static APPLICATION: Text = Text::new(None);
static REASON: Text = Text::new(None);
static SCORE: Real = Real::new(-1.0);
static MAX_IN_FLIGHT: Int = Int::new(8);
static REQUEST_TIMEOUT: Int = Int::new(30_000);
static LOCK_TIMEOUT: Int = Int::new(200);
static FUNCTION_TIMEOUT: Int = Int::new(1_000);
static MIRROR_TIMEOUT: Int = Int::new(60_000);
static GUARD_SOFT_ROWS: Int = Int::new(10_000);
static GUARD_HARD_ROWS: Int = Int::new(100_000);
static GUARD_HARD_DELETES: Int = Int::new(10_000);
static GUARD_WINDOW: Int = Int::new(60);
static GUARD_WINDOW_ROWS: Int = Int::new(20_000);
static RETENTION: Real = Real::new(90.0 * 24.0 * 60.0);
static RETENTION_MAX: Real = Real::new(0.0);
static BULK_READ_ROWS: Int = Int::new(50_000);
static BULK_WRITE_ROWS: Int = Int::new(2_000);
static CATALOG_INTERVAL: Real = Real::new(30.0 * 60.0);
static CHANGE_SEGMENT_SIZE: Int = Int::new(64 * 1024);

/// Defines every setting and reserves the prefix, so that a typo is an error.
pub(crate) fn register() {
    register_addresses();
    register_names();
    register_worker_limits();
    register_retention();
    register_guard();
    register_guard_window();
    // SAFETY: called from _PG_init with a static string.
    unsafe { pgrx::pg_sys::MarkGUCPrefixReserved(c"pg_crm_sync".as_ptr()) };
}

fn file_text(name: &'static CStr, doc: &'static CStr, at: &'static Text) {
    let flags = GucFlags::SUPERUSER_ONLY;
    GucRegistry::define_string_guc(name, doc, c"", at, GucContext::Sighup, flags);
}

fn session_text(name: &'static CStr, doc: &'static CStr, at: &'static Text, who: GucContext) {
    GucRegistry::define_string_guc(name, doc, c"", at, who, GucFlags::default());
}

fn int(
    name: &'static CStr,
    doc: &'static CStr,
    at: &'static Int,
    range: (i32, i32),
    flags: GucFlags,
) {
    GucRegistry::define_int_guc(
        name,
        doc,
        c"",
        at,
        range.0,
        range.1,
        GucContext::Sighup,
        flags,
    );
}

/// A time where 0 stands for none. Not an integer: the server rounds those to the unit,
/// and a short time would silently become 0.
fn time(
    name: &'static CStr,
    doc: &'static CStr,
    note: &'static CStr,
    at: &'static Real,
    longest: f64,
    flags: GucFlags,
) {
    let context = GucContext::Sighup;
    GucRegistry::define_float_guc(name, doc, note, at, 0.0, longest, context, flags);
}

fn register_addresses() {
    file_text(
        c"pg_crm_sync.secrets_dir",
        c"Directory of the credential files that servers name as file:NAME.",
        &SECRETS_DIR,
    );
    file_text(
        c"pg_crm_sync.allowed_hosts",
        c"Comma-separated hosts that may be called, *.domain for all below it.",
        &ALLOWED_HOSTS,
    );
    file_text(
        c"pg_crm_sync.listen",
        c"host:port on which webhooks are received; empty means no listener.",
        &LISTEN,
    );
    file_text(
        c"pg_crm_sync.webhook_public_url",
        c"The URL the CRM posts webhooks to, as seen from outside the proxy.",
        &WEBHOOK_PUBLIC_URL,
    );
    file_text(
        c"pg_crm_sync.activation_file",
        c"File outside the data directory that ties this cluster to its CRMs.",
        &ACTIVATION_FILE,
    );
    file_text(
        c"pg_crm_sync.databases",
        c"Comma-separated databases to look at; empty means all of them.",
        &DATABASES,
    );
}

fn register_names() {
    session_text(
        c"pg_crm_sync.application",
        c"Name under which this session's changes are recorded as their origin.",
        &APPLICATION,
        GucContext::Suset,
    );
    session_text(
        c"pg_crm_sync.reason",
        c"Why this session changes mirrors; kept with each of its transactions.",
        &REASON,
        GucContext::Userset,
    );
    GucRegistry::define_float_guc(
        c"pg_crm_sync.score",
        c"How sure this transaction is of what it writes, from 0 to 1; -1 says nothing.",
        c"",
        &SCORE,
        -1.0,
        1.0,
        GucContext::Userset,
        GucFlags::default(),
    );
}

fn register_worker_limits() {
    let (ms, none) = (GucFlags::UNIT_MS, GucFlags::default());
    int(
        c"pg_crm_sync.max_in_flight",
        c"Calls that may be open at once to one server.",
        &MAX_IN_FLIGHT,
        (1, 256),
        none,
    );
    int(
        c"pg_crm_sync.function_timeout",
        c"Longest time one call of a function that a field map names may take.",
        &FUNCTION_TIMEOUT,
        (1, 60_000),
        ms,
    );
    int(
        c"pg_crm_sync.mirror_timeout",
        c"Longest time one statement of the worker on a mirror may take, with the triggers that it fires.",
        &MIRROR_TIMEOUT,
        (100, 3_600_000),
        ms,
    );
    int(
        c"pg_crm_sync.request_timeout",
        c"Longest time one call to a CRM may take.",
        &REQUEST_TIMEOUT,
        (100, 600_000),
        ms,
    );
    int(
        c"pg_crm_sync.lock_timeout",
        c"Longest time the worker waits for a lock that a user holds.",
        &LOCK_TIMEOUT,
        (10, 10_000),
        ms,
    );
    int(
        c"pg_crm_sync.bulk_read_rows",
        c"Records of an object from which on its first copy is a bulk job, where the CRM has such; 0 means never.",
        &BULK_READ_ROWS,
        (0, i32::MAX),
        GucFlags::default(),
    );
    int(
        c"pg_crm_sync.bulk_write_rows",
        c"Waiting writes of a mirror from which on they go out as a bulk job, where the CRM has such; 0 means never.",
        &BULK_WRITE_ROWS,
        (0, i32::MAX),
        GucFlags::default(),
    );
    time(
        c"pg_crm_sync.catalog_interval",
        c"How often the fields of mirrored objects are read again, one call per object, at most once a second; 0 for never by itself.",
        c"",
        &CATALOG_INTERVAL,
        7.0 * 24.0 * 3600.0,
        GucFlags::UNIT_S,
    );
    int(
        c"pg_crm_sync.change_segment_size",
        c"Size at which captured changes go to the other segment.",
        &CHANGE_SEGMENT_SIZE,
        (64, 16 * 1024 * 1024),
        GucFlags::UNIT_KB,
    );
}

/// How long the ledger is kept; read in SQL.
fn register_retention() {
    time(
        c"pg_crm_sync.retention",
        c"How long events are kept in crm.event; longer if a consumer has not committed them.",
        c"0 means for ever.",
        &RETENTION,
        f64::from(i32::MAX),
        GucFlags::UNIT_MIN,
    );
    time(
        c"pg_crm_sync.retention_max",
        c"Age at which events are dropped although a consumer has not committed them.",
        c"0 means never.",
        &RETENTION_MAX,
        f64::from(i32::MAX),
        GucFlags::UNIT_MIN,
    );
}

fn register_guard() {
    let rows = |name, doc, at: &'static Int| {
        let flags = GucFlags::default();
        GucRegistry::define_int_guc(
            name,
            doc,
            c"0 means no limit.",
            at,
            0,
            i32::MAX,
            GucContext::Suset,
            flags,
        );
    };
    rows(
        c"pg_crm_sync.guard_soft_rows",
        c"Changed rows of one mirror in a transaction above which its writes are held.",
        &GUARD_SOFT_ROWS,
    );
    rows(
        c"pg_crm_sync.guard_hard_rows",
        c"Changed rows of one mirror in a transaction above which it is refused.",
        &GUARD_HARD_ROWS,
    );
    rows(
        c"pg_crm_sync.guard_hard_deletes",
        c"Deleted rows of one mirror in a transaction above which it is refused.",
        &GUARD_HARD_DELETES,
    );
}

fn register_guard_window() {
    int(
        c"pg_crm_sync.guard_window",
        c"Time in which the transactions of one user and application are counted together.",
        &GUARD_WINDOW,
        (1, 86_400),
        GucFlags::UNIT_S,
    );
    int(
        c"pg_crm_sync.guard_window_rows",
        c"Changed rows of one user and application within guard_window above which further writes are held; 0 means no limit.",
        &GUARD_WINDOW_ROWS,
        (0, i32::MAX),
        GucFlags::default(),
    );
}

fn string(setting: &'static Text) -> Option<String> {
    let value = setting.get()?.into_string().ok()?;
    let value = value.trim();
    (!value.is_empty()).then(|| value.to_owned())
}

fn list(setting: &'static Text) -> Vec<String> {
    let value = string(setting).unwrap_or_default();
    value
        .split(',')
        .map(|item| item.trim().to_owned())
        .filter(|item| !item.is_empty())
        .collect()
}

fn millis(setting: &'static Int) -> Duration {
    Duration::from_millis(count(setting))
}

fn count(setting: &'static Int) -> u64 {
    u64::try_from(setting.get()).unwrap_or(0)
}

/// A guard limit in rows; `None` where it is switched off.
fn limit(setting: &'static Int) -> Option<u64> {
    Some(count(setting)).filter(|rows| *rows > 0)
}

/// Directory of the credential files.
pub(crate) fn secrets_dir() -> Option<PathBuf> {
    string(&SECRETS_DIR).map(PathBuf::from)
}

/// Hosts that may be called; `*.domain` stands for every host below the domain.
pub(crate) fn allowed_hosts() -> Vec<String> {
    list(&ALLOWED_HOSTS)
}

/// `host:port` of the webhook listener, `None` for no listener.
pub(crate) fn listen() -> Option<String> {
    string(&LISTEN)
}

/// URL that the CRM signs, as it is seen from outside the proxy.
pub(crate) fn webhook_public_url() -> Option<String> {
    string(&WEBHOOK_PUBLIC_URL)
}

/// File that holds the activation token of this cluster.
pub(crate) fn activation_file() -> Option<PathBuf> {
    string(&ACTIVATION_FILE).map(PathBuf::from)
}

/// Databases the launcher may look at; empty means all.
pub(crate) fn databases() -> Vec<String> {
    list(&DATABASES)
}

/// Application named as origin of this session's changes.
pub(crate) fn application() -> Option<String> {
    string(&APPLICATION)
}

/// Reason the user gave for this session's changes.
pub(crate) fn reason() -> Option<String> {
    string(&REASON)
}

/// How sure the session is of what it writes, from 0 to 1.
#[expect(clippy::cast_possible_truncation, reason = "three digits are kept")]
pub(crate) fn score() -> Option<f32> {
    let score = SCORE.get();
    (score >= 0.0).then_some(score as f32)
}

/// Calls that may be open at once to one server.
pub(crate) fn max_in_flight() -> usize {
    usize::try_from(MAX_IN_FLIGHT.get()).unwrap_or(1)
}

/// Longest time of one call to a CRM.
pub(crate) fn request_timeout() -> Duration {
    millis(&REQUEST_TIMEOUT)
}

/// How often the fields of mirrored objects are read again, at most once a second; none for never.
#[expect(clippy::cast_possible_truncation, reason = "a week is the longest")]
pub(crate) fn catalog_interval_ms() -> Option<i64> {
    let seconds = CATALOG_INTERVAL.get();
    (seconds > 0.0).then(|| (seconds.max(1.0) * 1_000.0) as i64)
}

/// Longest time the worker waits for a user's lock.
pub(crate) fn lock_timeout() -> Duration {
    millis(&LOCK_TIMEOUT)
}

/// Changed rows per mirror and transaction above which writes are held.
pub(crate) fn guard_soft_rows() -> Option<u64> {
    limit(&GUARD_SOFT_ROWS)
}

/// Changed rows per mirror and transaction above which it is refused.
pub(crate) fn guard_hard_rows() -> Option<u64> {
    limit(&GUARD_HARD_ROWS)
}

/// Deleted rows per mirror and transaction above which it is refused.
pub(crate) fn guard_hard_deletes() -> Option<u64> {
    limit(&GUARD_HARD_DELETES)
}

/// Length of the guard's window in milliseconds.
pub(crate) fn guard_window_ms() -> i64 {
    i64::from(GUARD_WINDOW.get()) * 1000
}

/// Changed rows per writer and window above which writes are held.
pub(crate) fn guard_window_rows() -> Option<u64> {
    limit(&GUARD_WINDOW_ROWS)
}

/// Records from which on a first copy is a bulk job.
pub(crate) fn bulk_read_rows() -> Option<u64> {
    limit(&BULK_READ_ROWS)
}

/// Waiting writes from which on they go out as a bulk job.
pub(crate) fn bulk_write_rows() -> Option<u64> {
    limit(&BULK_WRITE_ROWS)
}

/// Bytes above which a segment of `crm.change` is closed.
pub(crate) fn change_segment_bytes() -> u64 {
    count(&CHANGE_SEGMENT_SIZE) * 1024
}

/// Longest call of a function that a field map names.
pub(crate) fn function_timeout() -> Duration {
    millis(&FUNCTION_TIMEOUT)
}

/// Longest time one statement of the worker on a mirror may take.
pub(crate) fn mirror_timeout() -> Duration {
    millis(&MIRROR_TIMEOUT)
}
