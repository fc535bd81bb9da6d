//! Just enough of a lexer to tell code from comments and literals, and to find where functions end.

/// A function: its name, the line it starts on (from 1) and how many lines it has.
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) line: usize,
    pub(crate) lines: usize,
}

/// Rust source with comments, strings and characters blanked out; line breaks stay.
pub(crate) fn code(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let end = literal_end(bytes, i);
        if end > i {
            out.extend(
                bytes[i..end]
                    .iter()
                    .map(|b| if *b == b'\n' { b'\n' } else { b' ' }),
            );
            i = end;
        } else {
            out.push(bytes[i]);
            i += 1;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Where the comment or literal that starts at `i` ends; `i` itself when none starts there.
fn literal_end(b: &[u8], i: usize) -> usize {
    let at = |k: usize| b.get(i + k).copied().unwrap_or(0);
    let in_word = i > 0 && (b[i - 1].is_ascii_alphanumeric() || b[i - 1] == b'_');
    match at(0) {
        b'/' if at(1) == b'/' => find(b, i, b"\n").unwrap_or(b.len()),
        b'/' if at(1) == b'*' => block_comment_end(b, i),
        b'"' => string_end(b, i + 1),
        b'r' | b'b' | b'c' if !in_word => prefixed_end(b, i),
        b'\'' => char_end(b, i).unwrap_or(i),
        _ => i,
    }
}

fn find(b: &[u8], from: usize, what: &[u8]) -> Option<usize> {
    b.get(from..)?
        .windows(what.len())
        .position(|w| w == what)
        .map(|p| p + from)
}

fn block_comment_end(b: &[u8], start: usize) -> usize {
    let (mut depth, mut i) = (0_usize, start);
    while i + 1 < b.len() {
        match (b[i], b[i + 1]) {
            (b'/', b'*') => (depth, i) = (depth + 1, i + 2),
            (b'*', b'/') if depth == 1 => return i + 2,
            (b'*', b'/') => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
    }
    b.len()
}

/// `i` is behind the opening quote.
fn string_end(b: &[u8], mut i: usize) -> usize {
    while i < b.len() {
        match b[i] {
            b'\\' => i += 2,
            b'"' => return i + 1,
            _ => i += 1,
        }
    }
    b.len()
}

/// Literals with a prefix: `r"…"`, `br#"…"#`, `c"…"`, `b'x'`.
fn prefixed_end(b: &[u8], start: usize) -> usize {
    let mut i = start;
    while matches!(b.get(i), Some(b'r' | b'b' | b'c')) && i < start + 2 {
        i += 1;
    }
    let raw = b[start..i].contains(&b'r');
    let hashes = b[i..].iter().take_while(|c| **c == b'#').count();
    match b.get(i + hashes) {
        Some(b'"') if raw => {
            let close: Vec<u8> = std::iter::once(b'"')
                .chain(std::iter::repeat_n(b'#', hashes))
                .collect();
            find(b, i + hashes + 1, &close).map_or(b.len(), |p| p + close.len())
        }
        Some(b'"') if hashes == 0 => string_end(b, i + 1),
        Some(b'\'') if hashes == 0 && b[start] == b'b' => char_end(b, i).unwrap_or(start),
        _ => start,
    }
}

/// `'x'`, `'\n'`, `'…'`; `None` for a lifetime.
fn char_end(b: &[u8], i: usize) -> Option<usize> {
    if b.get(i + 1) == Some(&b'\\') {
        return find(b, i + 3, b"'").map(|p| p + 1);
    }
    let width = match b.get(i + 1)? {
        0..=0x7f => 1,
        0x80..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0.. => 4,
    };
    (b.get(i + 1 + width) == Some(&b'\'')).then_some(i + 2 + width)
}

/// The identifiers of a line.
pub(crate) fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|w| !w.is_empty())
}

/// The functions with bodies in Rust source that went through [`code`]; nested ones count for themselves and their host.
pub(crate) fn functions(code: &str) -> Vec<Function> {
    let lines: Vec<&str> = code.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let mut names = words(line).skip_while(|w| *w != "fn").skip(1);
        let declared = words(line).take_while(|w| *w != "fn").all(|w| {
            matches!(
                w,
                "pub" | "crate" | "super" | "in" | "const" | "async" | "unsafe" | "extern" | "self"
            )
        });
        if let (true, Some(name)) = (declared && words(line).any(|w| w == "fn"), names.next())
            && let Some(end) = body_end(&lines, start)
        {
            found.push(Function {
                name: name.to_owned(),
                line: start + 1,
                lines: end - start + 1,
            });
        }
    }
    found
}

/// Line on which the braces opened from line `start` on are closed; `None` for a declaration without body.
fn body_end(lines: &[&str], start: usize) -> Option<usize> {
    let (mut depth, mut brackets) = (0_i32, 0_i32);
    for (i, line) in lines.iter().enumerate().skip(start) {
        for c in line.chars() {
            match c {
                '(' | '[' => brackets += 1,
                ')' | ']' => brackets -= 1,
                ';' if depth == 0 && brackets == 0 => return None,
                '{' => depth += 1,
                '}' => {
                    depth -= 1;
                    if depth == 0 {
                        return Some(i);
                    }
                }
                _ => {}
            }
        }
    }
    None
}

/// The bodies between dollar quotes, named by the `CREATE` line above them.
pub(crate) fn sql_bodies(source: &str) -> Vec<Function> {
    let mut found = Vec::new();
    let (mut name, mut open) = (String::new(), None::<(usize, String)>);
    for (i, line) in source.lines().enumerate() {
        if let Some((start, quote)) = &open {
            if line.contains(quote.as_str()) {
                found.push(Function {
                    name: name.clone(),
                    line: start + 1,
                    lines: i - start + 1,
                });
                open = None;
            }
            continue;
        }
        if line.starts_with("CREATE") {
            line.chars()
                .take(60)
                .collect::<String>()
                .clone_into(&mut name);
        }
        if let Some(quote) = dollar_quote(line)
            && line.matches(quote.as_str()).count() % 2 == 1
        {
            open = Some((i, quote));
        }
    }
    found
}

/// The first dollar quote of a line, `$$` or `$tag$`.
fn dollar_quote(line: &str) -> Option<String> {
    let start = line.find('$')?;
    let rest = &line[start + 1..];
    let end = rest.find('$')?;
    let tag = &rest[..end];
    let is_tag = tag.chars().all(|c| c.is_ascii_alphabetic() || c == '_');
    is_tag.then(|| format!("${tag}$"))
}

#[test]
fn literals_and_comments_are_blanked() {
    let source = "let a = \"unsafe { }\"; // unsafe\nlet c = '\\''; let l: &'static str = r#\"un\"safe\"#; /* unsafe /* */ */ b'{' c\"x\"";
    let code = code(source);
    assert!(!code.contains("unsafe") && !code.contains('{'), "{code}");
    assert!(code.contains("&'static str"), "{code}");
    assert_eq!(code.lines().count(), 2);
}

#[test]
fn functions_are_measured_to_their_closing_brace() {
    let source = "trait T { fn a(&self); }\npub(crate) async fn b(x: [u8; 3]) -> u8 {\n  if x { 1 }\n  else { 2 }\n}\n";
    let found = functions(&code(source));
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].name.as_str(), found[0].line, found[0].lines),
        ("b", 2, 4)
    );
}
