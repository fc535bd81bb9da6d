//! CSV as jobs speak it: every value quoted, delimiter and line ending as the job asked for.

use super::word;
use crate::salesforce::error::Error;
use crate::salesforce::value::Value;
use serde_json::{Map, Value as Json};

/// Delimiters by their names in requests.
const DELIMITERS: [(&str, u8); 6] = [
    ("BACKQUOTE", b'`'),
    ("CARET", b'^'),
    ("COMMA", b','),
    ("PIPE", b'|'),
    ("SEMICOLON", b';'),
    ("TAB", b'\t'),
];

/// Delimiter and line ending of a job.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Format {
    delimiter: u8,
    crlf: bool,
}

impl Format {
    /// Reads `columnDelimiter`, `lineEnding` and `contentType` of a request.
    pub(super) fn read(body: &Map<String, Json>) -> Result<Self, Error> {
        let names = DELIMITERS.map(|(name, _)| name);
        let name = word(body, "columnDelimiter", "COMMA", &names)?;
        let delimiter = DELIMITERS.iter().find(|(known, _)| *known == name);
        let ending = word(body, "lineEnding", "LF", &["LF", "CRLF"])?;
        word(body, "contentType", "CSV", &["CSV"])?;
        Ok(Self {
            delimiter: delimiter.map_or(b',', |(_, byte)| *byte),
            crlf: ending == "CRLF",
        })
    }

    pub(super) fn delimiter(self) -> u8 {
        self.delimiter
    }

    pub(super) fn delimiter_name(self) -> &'static str {
        let found = DELIMITERS.iter().find(|(_, byte)| *byte == self.delimiter);
        found.map_or("COMMA", |(name, _)| name)
    }

    pub(super) fn line_ending(self) -> &'static str {
        if self.crlf { "CRLF" } else { "LF" }
    }

    pub(super) fn end_line(self, out: &mut Vec<u8>) {
        out.extend_from_slice(if self.crlf { b"\r\n" } else { b"\n" });
    }

    /// A line of texts.
    pub(super) fn line<'a>(self, out: &mut Vec<u8>, cells: impl IntoIterator<Item = &'a str>) {
        for (at, cell) in cells.into_iter().enumerate() {
            if at > 0 {
                out.push(self.delimiter);
            }
            quoted(out, cell.as_bytes());
        }
        self.end_line(out);
    }
}

/// A text in quotes.
fn quoted(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| *byte == b'"') {
        out.extend_from_slice(&rest[..=at]);
        out.push(b'"');
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

/// A value in quotes; null is nothing between them. With `zulu`, times end in `Z`.
pub(super) fn value(out: &mut Vec<u8>, value: &Value, zulu: bool) {
    match value {
        Value::Null => out.extend_from_slice(b"\"\""),
        Value::Text(text) => quoted(out, text.as_bytes()),
        Value::DateTime(_) => {
            value.push_json(out);
            if zulu {
                out.truncate(out.len() - b"+0000\"".len());
                out.extend_from_slice(b"Z\"");
            }
        }
        Value::Date(_) | Value::Id(_) => value.push_json(out),
        Value::Bool(_) | Value::Int(_) | Value::Double(_) => {
            out.push(b'"');
            value.push_json(out);
            out.push(b'"');
        }
    }
}
