//! Long texts as unified diffs, under the conditions Salesforce documents.

use sha2::{Digest, Sha256};
use std::fmt::Write;

/// Texts below this length are always sent whole.
const LEAST: usize = 1_000;

/// The diff that stands for `new`, when it may: both texts long, the change small, the diff shorter than the text.
pub(crate) fn unified(old: &str, new: &str) -> Option<String> {
    let (old_len, new_len) = (old.chars().count(), new.chars().count());
    if old_len < LEAST || new_len < LEAST || old_len.abs_diff(new_len) * 2 > old_len {
        return None;
    }
    let before: Vec<&str> = old.split('\n').collect();
    let after: Vec<&str> = new.split('\n').collect();
    let head = before
        .iter()
        .zip(&after)
        .take_while(|(a, b)| a == b)
        .count();
    let most = before.len().min(after.len()) - head;
    let tail = before
        .iter()
        .rev()
        .zip(after.iter().rev())
        .take(most)
        .take_while(|(a, b)| a == b)
        .count();
    let gone = &before[head..before.len() - tail];
    let come = &after[head..after.len() - tail];
    if gone.len().max(come.len()) * 4 > before.len().max(1) {
        return None;
    }
    let mut hash = String::new();
    for byte in Sha256::digest(new.trim().as_bytes()) {
        // Writing to a string cannot fail.
        let _ = write!(hash, "{byte:02x}");
    }
    // An empty side of a hunk names the line before it, as in diff(1).
    let start = |lines: &[&str]| if lines.is_empty() { head } else { head + 1 };
    let mut out = format!(
        "--- \n+++ {hash}\n@@ -{},{} +{},{} @@",
        start(gone),
        gone.len(),
        start(come),
        come.len()
    );
    for line in gone {
        let _ = write!(out, "\n-{line}");
    }
    for line in come {
        let _ = write!(out, "\n+{line}");
    }
    (out.chars().count() < new_len).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(lines: usize) -> String {
        (0..lines)
            .map(|line| format!("line {line} of a long description"))
            .collect::<Vec<_>>()
            .join("\n")
    }

    #[test]
    fn a_small_change_in_a_long_text_is_a_diff_with_the_hash_of_the_new_text() {
        let old = text(50);
        let new = old.replace("line 1 of", "row 1 of");
        let diff = unified(&old, &new).unwrap();
        let lines: Vec<&str> = diff.lines().collect();
        assert_eq!(lines[0], "--- ");
        assert_eq!(lines[1].len(), 4 + 64);
        assert_eq!(
            lines[2..],
            [
                "@@ -2,1 +2,1 @@",
                "-line 1 of a long description",
                "+row 1 of a long description"
            ]
        );
    }

    #[test]
    fn short_texts_and_large_changes_are_sent_whole() {
        assert_eq!(unified("short", "other"), None);
        let old = text(50);
        assert_eq!(
            unified(&old, &old.replace("line", "row")),
            None,
            "every line changed"
        );
        assert_eq!(
            unified(&old, &text(200)),
            None,
            "the length more than doubled"
        );
        let one_line = "x".repeat(2_000);
        assert_eq!(
            unified(&one_line, &format!("{one_line}y")),
            None,
            "all of one line changed"
        );
    }

    #[test]
    fn appended_lines_name_where_they_go() {
        let old = text(50);
        let diff = unified(&old, &format!("{old}\nthe end")).unwrap();
        assert!(diff.contains("@@ -50,0 +51,1 @@\n+the end"), "{diff}");
    }
}
