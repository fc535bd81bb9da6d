#!/usr/bin/env bash
# run.sh OUT.json BINDIR: decisions per second of the pure rules on one core, and histories per second of the simulation
# on all cores. Needs no PostgreSQL.
set -euo pipefail
out=$1
cd "$(dirname "$0")/../.."

decide=$(cargo bench --locked -p crm-core --bench decide)
echo "$decide" >&2
# It exits with 1 when a history diverges: how many do is a figure of its row.
sim=$(HISTORIES=1000000 DURATION=20 scripts/sim | tail -1) || [[ $sim == histories=* ]]
echo "$sim" >&2
python3 - "$out" "$decide" "$sim" <<'PYTHON'
import json
import re
import sys

out, decide, sim = sys.argv[1:]
rate = {k: int(v) for k, v in re.findall(r"(decisions_per_second|low|high)=(\d+)", decide)}
run = {k: int(v) for k, v in re.findall(r"(histories|divergent|per_second)=(\d+)", sim)}
parts = {k: int(v) for k, v in re.findall(r"^(\w+): (\d+) ns$", decide, re.M)}
figures = {
    "decide.pure": {
        "value": rate["decisions_per_second"],
        "unit": "decisions/s and core",
        "baseline": "an edit, its echo, a conflict, a late event and an equal value in turn",
        "goal": 1000000,
        "met": rate["decisions_per_second"] >= 1000000,
        "range": [rate["low"], rate["high"]],
        "nanoseconds": parts,
    },
    "sim": {
        "value": run["per_second"],
        "unit": "histories/s, all cores",
        "baseline": f"{run['histories']} histories, {run['divergent']} divergent",
        "goal": None,
        "met": run["divergent"] == 0,
    },
}
with open(out, "w", encoding="utf-8") as file:
    json.dump(figures, file, indent=2)
    file.write("\n")
PYTHON
