"""Writes an upgrade script: python3 upgrade-sql.py OLD.sql NEW.sql TABLES.sql

Functions, views, triggers, comments and grants follow from the two install scripts: what is gone is dropped, what
changed is replaced, what is new is made. Tables hold users' data: what changes in them is written by hand in TABLES.sql,
which runs after the drops and before everything that is made, from `-- after:` on behind all of it. A statement that is
neither is an error here, so that none is forgotten; TABLES.sql takes it over by naming it as the error does in a comment
`-- done: …`. scripts/install-extension calls this for every version in sql/released.
"""
import re
import sys

QUOTE = re.compile(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|\"[^\"]*\"|\$(\w*)\$.*?\$\1\$|;", re.S)


def statements(text):
    """The statements of a script, without comments around them."""
    out, start = [], 0
    for token in QUOTE.finditer(text):
        if token.group() == ";":
            out.append(text[start : token.end()])
            start = token.end()
    return [s for s in (strip(s) for s in out) if s]


def strip(statement):
    """Without the comments and blank lines before it."""
    while True:
        trimmed = re.sub(r"\A(\s+|--[^\n]*\n|/\*.*?\*/)", "", statement, count=1, flags=re.S)
        if trimmed == statement:
            return statement.strip()
        statement = trimmed


def flat(text):
    return re.sub(r"\s+", " ", text).strip()


KINDS = [
    ("function", re.compile(r'CREATE\s+(?:OR REPLACE )?FUNCTION (?P<name>[\w."]+) ?\(', re.I)),
    ("view", re.compile(r"CREATE VIEW (?P<name>[\w.]+)")),
    ("trigger", re.compile(r"CREATE (?:CONSTRAINT )?TRIGGER (?P<name>\w+ .*? ON [\w.]+)", re.S)),
    ("event trigger", re.compile(r"CREATE EVENT TRIGGER (?P<name>\w+)")),
    ("table", re.compile(r"CREATE TABLE (?P<name>[\w.]+)")),
    ("sequence", re.compile(r"CREATE SEQUENCE (?P<name>[\w.]+)")),
    ("index", re.compile(r"CREATE (?:UNIQUE )?INDEX (?P<name>\w+)")),
    ("policy", re.compile(r"(?:CREATE POLICY \w+ ON|ALTER TABLE) (?P<name>[\w.]+)")),
    # Nobody but the extension fills it.
    ("data", re.compile(r"INSERT INTO (?P<name>crm\.standard_(?:map|link|reference))\b")),
    ("again", re.compile(r"(?P<name>COMMENT ON|GRANT|REVOKE)\b")),
]


class Statement:
    def __init__(self, text):
        self.text, self.flat, self.kind, self.name = text, flat(text), "other", ""
        for kind, pattern in KINDS:
            found = pattern.match(text)
            if found:
                self.kind, self.name = kind, flat(found.group("name"))
                break
        if self.kind == "trigger":
            self.name, self.table = re.match(r"(\w+) .* ON ([\w.]+)", self.name).groups()
        if self.kind == "other" and re.search(r"\b(GRANT|REVOKE|pg_extension_config_dump)\b", text):
            self.kind = "again"

    def label(self):
        """Its first line; of a block also what it begins with."""
        lines = self.text.split("\n")
        return flat(" ".join(lines[: 4 if lines[0].startswith("DO") else 1]))

    def header(self):
        """Arguments and result of a function: what CREATE OR REPLACE cannot change."""
        at = self.flat.index("(")
        depth = 0
        for end in range(at, len(self.flat)):
            depth += {"(": 1, ")": -1}.get(self.flat[end], 0)
            if depth == 0:
                break
        rest = re.split(r"\b(?:LANGUAGE|STRICT|STABLE|IMMUTABLE|VOLATILE|SECURITY|SET|AS)\b", self.flat[end + 1 :])[0]
        return self.flat[at : end + 1], rest.strip()

    def types(self):
        """The types of a function's arguments, as DROP FUNCTION wants them."""
        inner = self.header()[0][1:-1]
        inner = re.sub(r"/\*.*?\*/", "", inner)
        parts, depth, part = [], 0, ""
        for c in inner:
            depth += {"(": 1, ")": -1, "[": 0}.get(c, 0)
            if c == "," and depth == 0:
                parts.append(part)
                part = ""
            else:
                part += c
        parts = [re.split(r"\bDEFAULT\b|=", p)[0].strip() for p in parts + [part] if p.strip()]
        return ", ".join(re.sub(r'^("[^"]+"|\w+)\s+(?=\S)', "", p) for p in parts)


def main(old_path, new_path, tables_path):
    old = [Statement(s) for s in statements(open(old_path).read())]
    new = [Statement(s) for s in statements(open(new_path).read())]
    tables, _, after = open(tables_path).read().partition("-- after:\n")
    done = set(flat(d) for d in re.findall(r"^-- done: (.*)$", tables + after, re.M))
    known = {s.flat for s in old}
    wanted = {s.flat for s in new}

    def key(s):
        return (s.kind, s.name, s.header() if s.kind == "function" else getattr(s, "table", ""))

    kept = {key(s) for s in new}
    dropped = [s.name for s in old if s.kind == "view" and s.flat not in wanted]
    for s in old:
        # In the order they were made: what uses a dropped view goes with it and comes back.
        if s.kind == "view" and s.name not in dropped and any(re.search(rf"{v}\b", s.flat) for v in dropped):
            dropped.append(s.name)
            known.discard(s.flat)
    print(f"-- Written by scripts/upgrade-sql.py when the extension was installed; tables by {tables_path}.")
    print('\\echo Use "ALTER EXTENSION pg_crm_sync UPDATE" to load this file. \\quit')
    print()
    # Views first, the youngest first: they use the others.
    for s in reversed([s for s in old if s.kind == "view" and s.name in dropped]):
        print(f"DROP VIEW {s.name};")
    for s in old:
        if s.kind == "trigger" and s.flat not in wanted:
            print(f"DROP TRIGGER {s.name} ON {s.table};")
        elif s.kind == "event trigger" and s.flat not in wanted:
            print(f"DROP EVENT TRIGGER {s.name};")
    print()
    print(re.sub(r"(?m)^-- done: .*\n", "", tables).strip())
    print()
    for s in old:
        if s.kind == "function" and key(s) not in kept:
            print(f"DROP FUNCTION {s.name}({s.types()});")
    print()
    had = {(s.kind, s.name) for s in old}
    lost = []
    for s in new:
        if s.kind == "again":
            print(s.text + "\n")
        elif s.flat in known or s.label() in done:
            continue
        elif s.kind == "function":
            print(re.sub(r"\ACREATE\s+(?:OR REPLACE )?FUNCTION", "CREATE OR REPLACE FUNCTION", s.text) + "\n")
        elif s.kind == "data":
            print(f"DELETE FROM {s.name};\n{s.text}\n")
        elif s.kind == "policy" and ("table", s.name) not in had:
            print(s.text + "\n")
        elif s.kind in ("view", "trigger", "event trigger") or (s.kind, s.name) not in had and s.kind not in ("policy", "other"):
            print(s.text + "\n")
        else:
            lost.append(s.label())
    print(re.sub(r"(?m)^-- done: .*\n", "", after).strip())
    if lost:
        sys.exit(f"changed, and not written by hand in {tables_path} (-- done: …):\n  " + "\n  ".join(lost))


main(*sys.argv[1:4])
