//! What happened in a history, line by line, when somebody wants to read it.

use std::cell::RefCell;

thread_local! {
    static LINES: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// From now on lines are kept.
pub fn start() {
    LINES.with_borrow_mut(|l| *l = Some(Vec::new()));
}

/// The lines so far; none are kept afterwards.
pub fn take() -> Vec<String> {
    LINES.take().unwrap_or_default()
}

/// Keeps a line, if lines are kept.
pub fn note(line: impl FnOnce() -> String) {
    LINES.with_borrow_mut(|lines| {
        if let Some(lines) = lines {
            lines.push(line());
        }
    });
}
