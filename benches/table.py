"""table.py OUT.json PIECE.json…: puts the figures of all pieces into one file and prints them as one table."""

import json
import os
import sys


def text(value):
    if isinstance(value, float):
        return f"{value:,.3f}" if abs(value) < 100 else f"{value:,.0f}"
    if isinstance(value, list):
        return " / ".join(text(v) for v in value)
    return "" if value is None else str(value)


def main():
    out, pieces = sys.argv[1], sys.argv[2:]
    figures = {}
    for piece in pieces:
        if not os.path.exists(piece) or os.path.getsize(piece) == 0:
            continue
        with open(piece, encoding="utf-8") as file:
            found = json.load(file)
        twice = figures.keys() & found.keys()
        if twice:
            sys.exit(f"two pieces measure {', '.join(sorted(twice))}")
        figures.update(found)
    with open(out, "w", encoding="utf-8") as file:
        json.dump(figures, file, indent=2)
        file.write("\n")

    heading = ["id", "value", "unit", "baseline", "goal", "met", "range"]
    rows = [heading]
    for name, figure in figures.items():
        met = {True: "yes", False: "NO"}.get(figure.get("met"), "")
        rows.append([name] + [text(figure.get(key)) for key in heading[1:5]] + [met, text(figure.get("range"))])
    widths = [max(len(row[i]) for row in rows) for i in range(len(heading))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    print(f"also in {out}")


main()
