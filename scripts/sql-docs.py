"""sql-docs.py FOLDER: writes a page per object from the lines of scripts/sql-docs.sql on standard input."""

import json
import os
import sys

MARK = "<!-- by hand -->"
CHANGE = {
    "postmaster": "restart of the server",
    "sighup": "reload of the configuration",
    "superuser": "a superuser, at any time",
    "user": "anybody, in the own session",
}


def kept(path):
    if not os.path.exists(path):
        return ""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    return text[text.index(MARK) + len(MARK):].strip("\n") if MARK in text else ""


def write(path, lines):
    rest = kept(path)
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(lines).rstrip() + f"\n\n{MARK}\n" + (rest + "\n" if rest else ""))


def cell(text):
    return (text or "").replace("|", "\\|").replace("\n", " ")


def roles(names):
    return ", ".join(f"`{name}`" for name in names) if names else "superusers and the worker only"


def function_page(objects):
    lines = [f"# crm.{objects[0]['name']}", ""]
    for one in objects:
        lines += ["```sql", f"{one['signature']} → {one['returns']}", "```", "", one["comment"] or "", ""]
    return lines + [f"Who may call it: {roles(objects[0]['roles'])}.", ""]


def relation_page(one):
    lines = [f"# crm.{one['name']}", "", f"{one['kind'].capitalize()}. {one['comment'] or ''}", "", "| column | type | |", "|---|---|---|"]
    lines += [f"| `{name}` | {kind} | {cell(comment)} |" for name, kind, comment in one["columns"] or []]
    lines += ["", f"Who may read it: {roles(one['roles'])}."]
    if one["kind"] == "table":
        lines.append(f"Who may change it: {roles(one['writers'])}.")
    return lines + [""]


def settings_page(settings):
    lines = ["# Settings", "", "| setting | default | takes effect by | |", "|---|---|---|---|"]
    for one in settings:
        default = " ".join(part for part in (one["default"], one["unit"]) if part)
        lines.append(f"| `{one['name']}` | {cell(default)} | {CHANGE.get(one['context'], one['context'])} | {cell(one['comment'])} |")
    return lines


def main():
    folder = sys.argv[1]
    os.makedirs(folder, exist_ok=True)
    objects = [json.loads(line) for line in sys.stdin if line.strip()]
    pages, index = {}, {"function": [], "view": [], "table": []}
    for one in objects:
        if one["kind"] != "setting":
            pages.setdefault((one["kind"], one["name"]), []).append(one)
    texts = {}
    for (kind, name), group in pages.items():
        page = f"{name}.md"
        # A function and a table may share a name, and then a page.
        texts.setdefault(page, []).extend(function_page(group) if kind == "function" else relation_page(group[0]))
        index[kind].append(f"| [`crm.{name}`]({page}) | {cell((group[0]['comment'] or '').split('. ')[0])} |")
    for page, lines in texts.items():
        write(os.path.join(folder, page), lines)
    write(os.path.join(folder, "settings.md"), settings_page([o for o in objects if o["kind"] == "setting"]))

    lines = ["# The SQL interface", "", "Everything is in schema `crm`. Names that begin with `_` are private.",
             "The same texts are in the database: `\\df+ crm.`, `\\d+ crm.status`. Settings are on [their own page](settings.md)."]
    for kind, title in (("function", "Functions"), ("view", "Views"), ("table", "Tables")):
        lines += ["", f"## {title}", "", "| | |", "|---|---|"] + index[kind]
    write(os.path.join(folder, "README.md"), lines)
    known = {f"{name}.md" for _, name in pages} | {"README.md", "settings.md"}
    for stale in sorted(set(os.listdir(folder)) - known):
        os.remove(os.path.join(folder, stale))


main()
