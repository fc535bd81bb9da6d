//! A subset of SOQL: `SELECT fields | COUNT() FROM object [WHERE …] [ORDER BY …] [LIMIT n] [OFFSET n]`.
//!
//! [`lexer`] and [`parser`] make an [`ast`] with names resolved against the schema; [`plan`] finds the cheapest walk;
//! [`run`] executes it.

pub(crate) mod ast;
mod lexer;
mod literal;
pub(crate) mod parser;
pub(crate) mod plan;
pub(crate) mod run;

/// Why a query was refused: Salesforce's error code and its message, with the offending line pointed out.
#[derive(Debug, PartialEq)]
pub(crate) struct SoqlError {
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

impl SoqlError {
    pub(crate) fn new(code: &'static str, message: String) -> Self {
        Self { code, message }
    }

    /// An error with Salesforce's quotation of the query and a caret under `at` (bytes).
    pub(crate) fn at(code: &'static str, query: &str, at: usize, what: &str) -> Self {
        let mut start = at.saturating_sub(40).min(query.len());
        while !query.is_char_boundary(start) {
            start -= 1;
        }
        let mut end = (at + 30).min(query.len());
        while !query.is_char_boundary(end) {
            end += 1;
        }
        let caret = " ".repeat(at.saturating_sub(start));
        let message = format!(
            "\n{}\n{caret}^\nERROR at Row:1:Column:{}\n{what}",
            &query[start..end],
            at + 1
        );
        Self { code, message }
    }
}
