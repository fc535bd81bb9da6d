//! The rules of the repository that no compiler checks; README.md lists them.
//!
//! Each test reads the tree, collects every breach and reports all of them at once. The rules are about code: comments
//! and literals are blanked out first ([`scan::code`]).

mod scan;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use scan::{code, functions, sql_bodies, words};

const MAX_FILE_LINES: usize = 500;
const MAX_FUNCTION_LINES: usize = 70;

/// Folders that hold nothing written by hand.
const SKIPPED: [&str; 7] = [
    "released",
    "target",
    ".git",
    "node_modules",
    "venv",
    ".venv",
    "__pycache__",
];

struct File {
    /// Relative to the root, with `/`.
    path: String,
    text: String,
}

impl File {
    fn has(&self, suffix: &str) -> bool {
        self.path.ends_with(suffix)
    }

    fn under(&self, folder: &str) -> bool {
        self.path
            .strip_prefix(folder)
            .is_some_and(|rest| rest.starts_with('/'))
    }

    fn is_test(&self) -> bool {
        ["/tests/", "/benches/"]
            .iter()
            .any(|d| self.path.contains(d))
            || self.has("tests.rs")
            || self.path.starts_with("tests/")
    }
}

fn root() -> PathBuf {
    Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("run by cargo"))
        .join("../..")
        .canonicalize()
        .expect("find the root")
}

/// Every text file of the tree that somebody wrote.
fn tree() -> Vec<File> {
    fn walk(folder: &Path, root: &Path, found: &mut Vec<File>) {
        for entry in fs::read_dir(folder)
            .expect("read a folder")
            .map(|e| e.expect("read an entry"))
        {
            let (path, name) = (entry.path(), entry.file_name());
            let kind = entry.file_type().expect("know its type");
            if SKIPPED.iter().any(|s| name == *s) {
                continue;
            }
            if kind.is_dir() {
                walk(&path, root, found);
            } else if kind.is_file()
                && let Ok(text) = fs::read_to_string(&path)
            {
                let relative = path.strip_prefix(root).expect("below the root");
                found.push(File {
                    path: relative.to_string_lossy().replace('\\', "/"),
                    text,
                });
            }
        }
    }
    let (root, mut found) = (root(), Vec::new());
    walk(&root, &root, &mut found);
    assert!(found.len() > 20, "the tree was found at {}", root.display());
    found
}

fn rust_files() -> Vec<File> {
    tree().into_iter().filter(|f| f.has(".rs")).collect()
}

fn report(rule: &str, breaches: &[String]) {
    assert!(breaches.is_empty(), "{rule}:\n  {}", breaches.join("\n  "));
}

/// Lines of `file` whose code satisfies `bad`, as `path:line: what`.
fn breaches(file: &File, bad: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let code = code(&file.text);
    let lines = code.lines().enumerate();
    lines
        .filter_map(|(i, line)| bad(line).map(|what| format!("{}:{}: {what}", file.path, i + 1)))
        .collect()
}

/// Names any of `names` as a whole word.
fn names<'a>(line: &str, names: &'a [&str]) -> Option<&'a str> {
    names
        .iter()
        .copied()
        .find(|name| words(line).any(|word| word == *name))
}

#[test]
fn files_fit_into_a_readers_head() {
    let script = |f: &File| f.text.starts_with("#!");
    let long: Vec<_> = tree()
        .iter()
        .filter(|f| {
            [".rs", ".sql", ".py", ".sh", ".mjs", ".js"]
                .iter()
                .any(|s| f.has(s))
                || script(f)
        })
        .map(|f| (f.text.lines().count(), &f.path))
        .filter(|(lines, _)| *lines > MAX_FILE_LINES)
        .map(|(lines, path)| format!("{path}: {lines} lines"))
        .collect();
    report("a file has at most 500 lines", &long);
}

#[test]
fn functions_fit_on_a_screen() {
    let mut long = Vec::new();
    for file in tree() {
        let found = match () {
            () if file.has(".rs") => functions(&code(&file.text)),
            () if file.has(".sql") => sql_bodies(&file.text),
            () => continue,
        };
        let too_long = found.into_iter().filter(|f| f.lines > MAX_FUNCTION_LINES);
        long.extend(
            too_long.map(|f| format!("{}:{}: {} has {} lines", file.path, f.line, f.name, f.lines)),
        );
    }
    report("a function has at most 70 lines", &long);
}

#[test]
fn pg_and_io_never_meet() {
    let mut found = Vec::new();
    for file in rust_files() {
        let forbidden: &[&str] = match () {
            () if file.under("src/pg") => &["crm_io", "tokio", "reqwest", "tonic", "axum", "hyper"],
            () if file.under("src/io") => &["pgrx", "pg_sys", "Spi", "pg_crm_sync"],
            () => continue,
        };
        found.extend(breaches(&file, |line| {
            names(line, forbidden).map(|n| format!("names {n}"))
        }));
        if file.under("src/pg") {
            found.extend(breaches(&file, |line| {
                ["crate::io", "crate::worker", "crate::ask"]
                    .iter()
                    .find(|p| line.contains(**p))
                    .map(|p| format!("names {p}"))
            }));
        }
    }
    report(
        "worker -> {pg, io} -> core, never back and never across",
        &found,
    );
}

#[test]
fn the_network_is_only_in_io() {
    let mut found = Vec::new();
    for file in rust_files()
        .iter()
        .filter(|f| f.under("src") && !f.under("src/io"))
    {
        let libraries = [
            "tokio",
            "reqwest",
            "tonic",
            "axum",
            "hyper",
            "TcpStream",
            "TcpListener",
        ];
        found.extend(breaches(file, |line| {
            names(line, &libraries).map(|n| format!("names {n}"))
        }));
    }
    report("only src/io names the network", &found);
}

#[test]
fn the_server_is_only_in_pg() {
    // The entry points that PostgreSQL itself calls have to speak its language.
    let entries = ["src/lib.rs", "src/worker/mod.rs", "src/worker/launcher.rs"];
    let mut found = Vec::new();
    for file in rust_files()
        .iter()
        .filter(|f| f.under("src") && !f.under("src/pg"))
    {
        if !entries.contains(&file.path.as_str()) {
            found.extend(breaches(file, |line| {
                names(line, &["Spi", "pg_sys"]).map(|n| format!("names {n}"))
            }));
        }
    }
    report("only src/pg names pgrx::Spi and pg_sys", &found);
}

#[test]
fn the_core_is_pure() {
    let mut found = Vec::new();
    let outside = [
        "SystemTime",
        "Instant",
        "thread",
        "env",
        "fs",
        "net",
        "pgrx",
        "crm_io",
    ];
    let clocks = ["Utc::now", "Local::now"];
    for file in rust_files()
        .iter()
        .filter(|f| f.under("src/core") && !f.is_test())
    {
        found.extend(breaches(file, |line| {
            let clock = clocks.iter().find(|c| line.contains(**c)).copied();
            let name = names(line, &outside).filter(|n| {
                // `env!` and paths such as `crate::net` of our own would be fine; std's are not.
                line.contains(&format!("std::{n}"))
                    || matches!(*n, "SystemTime" | "Instant" | "pgrx" | "crm_io")
            });
            clock.or(name).map(|n| format!("names {n}"))
        }));
    }
    report(
        "the core waits for nothing, reads no clock and knows no server",
        &found,
    );
}

/// The modules of the core by name, each with those that it names.
fn core_modules() -> BTreeMap<String, BTreeSet<String>> {
    let top = |f: &File| {
        let name = f.path.strip_prefix("src/core/")?.strip_suffix(".rs")?;
        (!name.contains('/') && !f.is_test() && name != "lib").then(|| name.to_owned())
    };
    let named = |f: &File| {
        let code = code(&f.text);
        let paths = code.split("crate::").skip(1);
        let first = paths.map(|p| p.split(|c: char| !c.is_alphanumeric() && c != '_'));
        first
            .filter_map(|mut p| p.next().map(str::to_owned))
            .collect()
    };
    let files = rust_files();
    let modules = files.iter().filter_map(|f| Some((top(f)?, named(f))));
    modules.collect()
}

#[test]
fn no_modules_of_the_core_need_each_other() {
    let mut left = core_modules();
    assert!(left.len() > 20, "the core was found");
    // What needs nothing that is left can be understood by itself.
    loop {
        let names: BTreeSet<String> = left.keys().cloned().collect();
        let before = left.len();
        left.retain(|name, needs| needs.iter().any(|n| n != name && names.contains(n)));
        if left.len() == before {
            break;
        }
    }
    let names: BTreeSet<String> = left.keys().cloned().collect();
    let circle = left.iter().map(|(name, needs)| {
        let needs: Vec<_> = needs.intersection(&names).cloned().collect();
        format!("{name} needs {}", needs.join(", "))
    });
    report("circles of modules", &circle.collect::<Vec<_>>());
}

#[test]
fn the_core_names_no_crm_outside_its_connectors() {
    // In two halves, so that this file obeys its own rule.
    let crms = [concat!("hub", "spot"), concat!("sales", "force")];
    let mut found = Vec::new();
    for file in tree()
        .iter()
        .filter(|f| f.under("src/core") && !f.under("src/core/connectors"))
    {
        for (i, line) in file.text.lines().enumerate() {
            let line = line.to_lowercase();
            found.extend(
                crms.iter()
                    .filter(|c| line.contains(**c))
                    .map(|c| format!("{}:{}: {c}", file.path, i + 1)),
            );
        }
    }
    report("a CRM is named in src/core/connectors only", &found);
}

#[test]
fn the_emulator_is_an_independent_witness() {
    let mut found = Vec::new();
    for file in tree().iter().filter(|f| f.under("tests/emulator")) {
        if file.has(".rs") {
            let ours = ["crm_core", "crm_io", "pg_crm_sync"];
            found.extend(breaches(file, |line| {
                names(line, &ours).map(|n| format!("names {n}"))
            }));
        } else if file.has("Cargo.toml")
            && ["crm-core", "crm-io"].iter().any(|n| file.text.contains(n))
        {
            found.push(format!("{}: depends on our code", file.path));
        }
    }
    report("the emulator shares no code with the extension", &found);
}

#[test]
fn unsafe_code_is_where_it_is_expected() {
    let entries = [
        "src/lib.rs",
        "src/worker/mod.rs",
        "src/worker/launcher.rs",
        "src/io/signals.rs",
    ];
    let mut found = Vec::new();
    for file in rust_files() {
        if !file.under("src/pg")
            && !file.under("src/io/tests")
            && !entries.contains(&file.path.as_str())
        {
            found.extend(breaches(&file, |line| {
                names(line, &["unsafe"]).map(|_| "unsafe".to_owned())
            }));
        }
    }
    report(
        "unsafe is for src/pg, the signal mask of src/io with its tests, and the entry points",
        &found,
    );
}

#[test]
fn nothing_depends_on_one_machine() {
    let homes = [
        concat!("/ro", "ot/"),
        concat!("/wo", "rk/"),
        concat!("/ho", "me/"),
    ];
    let mut found = Vec::new();
    for file in tree() {
        for (i, line) in file.text.lines().enumerate() {
            found.extend(
                homes
                    .iter()
                    .filter(|h| line.contains(**h))
                    .map(|h| format!("{}:{}: {h}", file.path, i + 1)),
            );
        }
    }
    report("no path of somebody's machine is in the tree", &found);
}

#[test]
fn every_sql_object_has_a_comment() {
    let files: Vec<_> = tree()
        .into_iter()
        .filter(|f| f.under("sql") && f.has(".sql"))
        .collect();
    let all: String = files.iter().flat_map(|f| [f.text.as_str(), "\n"]).collect();
    let commented: BTreeSet<String> = all
        .lines()
        .filter_map(|line| object_of(line, "COMMENT ON "))
        .collect();
    let mut bare = Vec::new();
    for file in &files {
        for (i, line) in file.text.lines().enumerate() {
            if let Some(object) =
                object_of(line, "CREATE ").or_else(|| object_of(line, "CREATE OR REPLACE "))
                && !commented.contains(&object)
            {
                bare.push(format!("{}:{}: {object}", file.path, i + 1));
            }
        }
    }
    report("every table, view and function has a COMMENT", &bare);
}

/// `table crm.x` for a line that starts with `verb TABLE crm.x…`; functions without their arguments.
fn object_of(line: &str, verb: &str) -> Option<String> {
    let rest = line.strip_prefix(verb)?;
    let (kind, rest) = ["TABLE ", "VIEW ", "FUNCTION ", "PROCEDURE ", "AGGREGATE "]
        .iter()
        .find_map(|kind| Some((kind.trim().to_lowercase(), rest.strip_prefix(kind)?)))?;
    let name: String = rest
        .chars()
        .take_while(|c| c.is_alphanumeric() || matches!(c, '_' | '.'))
        .collect();
    name.starts_with("crm.").then(|| format!("{kind} {name}"))
}
