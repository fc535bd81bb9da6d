//! Tokens of SOQL.

use super::SoqlError;

/// A token and where it starts (bytes).
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Spanned {
    pub(crate) token: Token,
    pub(crate) at: usize,
}

/// Lexical units.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Token {
    /// Keywords, field and object names, relationship paths (`Account.Name`), `true`, `null`.
    Word(String),
    /// A quoted literal, escapes resolved.
    Text(String),
    /// A number, date or date-time: told apart when its field is known.
    Literal(String),
    /// Punctuation and operators.
    Sign(&'static str),
    End,
}

const SIGNS: [&str; 12] = [
    "!=", "<>", "<=", ">=", "=", "<", ">", "(", ")", ",", ":", ".",
];

/// Splits a query into tokens; the last is [`Token::End`].
pub(crate) fn tokens(query: &str) -> Result<Vec<Spanned>, SoqlError> {
    let bytes = query.as_bytes();
    let mut out = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let start = at;
        let byte = bytes[at];
        if byte.is_ascii_whitespace() {
            at += 1;
            continue;
        }
        let token = if byte == b'\'' {
            let (text, end) = quoted(query, at)?;
            at = end;
            Token::Text(text)
        } else if byte.is_ascii_digit()
            || (matches!(byte, b'-' | b'+') && bytes.get(at + 1).is_some_and(u8::is_ascii_digit))
        {
            at += 1;
            while at < bytes.len()
                && (bytes[at].is_ascii_alphanumeric()
                    || matches!(bytes[at], b'-' | b'+' | b':' | b'.'))
            {
                at += 1;
            }
            Token::Literal(query[start..at].to_owned())
        } else if byte.is_ascii_alphabetic() || byte == b'_' {
            while at < bytes.len()
                && (bytes[at].is_ascii_alphanumeric() || matches!(bytes[at], b'_' | b'.'))
            {
                at += 1;
            }
            Token::Word(query[start..at].to_owned())
        } else if let Some(sign) = SIGNS.into_iter().find(|sign| query[at..].starts_with(sign)) {
            at += sign.len();
            Token::Sign(sign)
        } else {
            let found = query[at..].chars().next().unwrap_or(' ');
            return Err(SoqlError::at(
                "MALFORMED_QUERY",
                query,
                at,
                &format!("unexpected token: '{found}'"),
            ));
        };
        out.push(Spanned { token, at: start });
    }
    out.push(Spanned {
        token: Token::End,
        at: query.len(),
    });
    Ok(out)
}

/// Reads the quoted literal that starts at `at`; its text and the byte after its closing quote.
fn quoted(query: &str, at: usize) -> Result<(String, usize), SoqlError> {
    let mut text = String::new();
    let mut chars = query[at + 1..].char_indices();
    while let Some((offset, symbol)) = chars.next() {
        match symbol {
            '\'' => return Ok((text, at + 1 + offset + 1)),
            '\\' => {
                let Some((_, escaped)) = chars.next() else {
                    break;
                };
                let symbol = match escaped {
                    'n' | 'N' => '\n',
                    'r' | 'R' => '\r',
                    't' | 'T' => '\t',
                    'b' | 'B' => '\u{8}',
                    'f' | 'F' => '\u{c}',
                    'u' => unicode(&mut chars, query, at)?,
                    '\'' | '"' | '\\' => escaped,
                    // Kept with its backslash: LIKE reads \_ and \% itself.
                    '_' | '%' => {
                        text.push('\\');
                        escaped
                    }
                    other => {
                        let what = format!(
                            "Illegal string literal: Invalid string literal escape '\\{other}'"
                        );
                        return Err(SoqlError::at("MALFORMED_QUERY", query, at, &what));
                    }
                };
                text.push(symbol);
            }
            other => text.push(other),
        }
    }
    Err(SoqlError::at(
        "MALFORMED_QUERY",
        query,
        at,
        "unexpected end of a string literal: a closing ' is missing",
    ))
}

fn unicode(
    chars: &mut std::str::CharIndices<'_>,
    query: &str,
    at: usize,
) -> Result<char, SoqlError> {
    let digits: String = chars.by_ref().take(4).map(|(_, digit)| digit).collect();
    u32::from_str_radix(&digits, 16)
        .ok()
        .filter(|_| digits.len() == 4)
        .and_then(char::from_u32)
        .ok_or_else(|| {
            SoqlError::at(
                "MALFORMED_QUERY",
                query,
                at,
                "Illegal string literal: bad \\u escape",
            )
        })
}
