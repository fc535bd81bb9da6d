#!/usr/bin/env bash
# The engine from outside: backfill, webhooks, latency, calls, idle, limits, memory. See docs/benchmarks.md.
#
#   benches/engine/run.sh OUT.json BINDIR [PIECE…]
set -euo pipefail
out=${1:?usage: run.sh OUT.json BINDIR [PIECE…]}
bin=${2:?usage: run.sh OUT.json BINDIR [PIECE…]}
shift 2
cd "$(dirname "$0")/../.."
export CRM_TEST_PG_BIN=$bin
exec cargo run --locked --release --quiet -p crm-bench -- "$out" "$@"
