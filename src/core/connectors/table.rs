//! Error tables: from status and code to what to do, as data.

use crate::model::{ErrorClass, RemoteError};

/// Longest message kept of a CRM's words, in characters.
const MESSAGE_MAX: usize = 500;
/// Most field names kept of one error.
const FIELDS_MAX: usize = 50;

/// Code of an update that was refused because its record is not as it was last seen.
pub const CHANGED: &str = "changed_meanwhile";

/// One line of a table of errors. The first line that fits decides.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// HTTP status; 0 fits any, 3 to 5 fit those of that hundred.
    pub status: u16,
    /// The CRM's code; empty fits any.
    pub code: &'static str,
    /// What to do.
    pub class: ErrorClass,
    /// Least wait in milliseconds where the CRM names none.
    pub wait_ms: Option<i64>,
    /// A write may have had an effect.
    pub maybe_applied: bool,
    /// What a DBA should do.
    pub advice: &'static str,
}

impl Rule {
    /// A line for a refusal: nothing was written, no wait is asked for.
    pub(crate) const fn new(
        status: u16,
        code: &'static str,
        class: ErrorClass,
        advice: &'static str,
    ) -> Self {
        Self {
            status,
            code,
            class,
            wait_ms: None,
            maybe_applied: false,
            advice,
        }
    }

    /// The same line with a least wait.
    pub(crate) const fn wait(mut self, ms: i64) -> Self {
        self.wait_ms = Some(ms);
        self
    }

    /// The same line for answers after which nobody knows.
    pub(crate) const fn unsure(mut self) -> Self {
        self.maybe_applied = true;
        self
    }
}

/// For a table without a line that fits all.
const UNKNOWN: Rule = Rule::new(
    0,
    "",
    ErrorClass::Retry,
    "Nothing is known of this error; report it with its message.",
)
.unsure();

/// The first line that fits.
pub(crate) fn find(rules: &'static [Rule], status: u16, code: &str) -> Rule {
    *rules
        .iter()
        .find(|r| {
            (r.status == 0 || r.status == status || r.status == status / 100)
                && (r.code.is_empty() || r.code.eq_ignore_ascii_case(code))
        })
        .unwrap_or(&UNKNOWN)
}

/// Makes the error of a line; the message is bounded and printable.
pub(crate) fn error(rule: &Rule, status: u16, code: &str, message: &str) -> RemoteError {
    RemoteError {
        class: rule.class,
        status,
        code: clean(code, 100),
        message: clean(message, MESSAGE_MAX),
        fields: Vec::new(),
        advice: rule.advice,
        retry_after_ms: rule.wait_ms,
        maybe_applied: rule.maybe_applied,
    }
}

/// Adds the fields that the CRM blames, bounded.
pub(crate) fn blame(error: &mut RemoteError, fields: impl IntoIterator<Item = String>) {
    for field in fields {
        if error.fields.len() >= FIELDS_MAX {
            break;
        }
        if !field.is_empty() && !error.fields.contains(&field) {
            error.fields.push(clean(&field, 100));
        }
    }
}

/// An error of our own making: the request cannot be built or the server
/// cannot do what was asked.
pub(crate) fn unusable(code: &str, message: &str, advice: &'static str) -> RemoteError {
    error(
        &Rule::new(0, "", ErrorClass::Stop, advice),
        0,
        code,
        message,
    )
}

/// Control characters become spaces, the rest is cut at `max` characters.
pub(crate) fn clean(text: &str, max: usize) -> String {
    text.chars()
        .take(max)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect::<String>()
        .trim()
        .to_owned()
}

/// What is wrong with a body, without any of it: it may hold people's data,
/// and errors are kept longer than they may be.
pub(crate) fn where_json_fails(why: &serde_json::Error) -> String {
    let what = match why.classify() {
        serde_json::error::Category::Io => "unreadable",
        serde_json::error::Category::Syntax => "not JSON",
        serde_json::error::Category::Data => "not of the expected shape",
        serde_json::error::Category::Eof => "cut short",
    };
    format!("{what} at line {} column {}", why.line(), why.column())
}
