#!/usr/bin/env bash
# What capturing costs the user's own statements.
#
#   benches/capture/run.sh OUT.json [BINDIR]
#
# Starts a throw-away cluster with the server's programs in BINDIR (default: those
# of pg_config on the path), where the extension must be installed, in a release
# build. The same statement runs on three equal tables in turn: without trigger,
# with the native trigger, with a PL/pgSQL trigger that logs a jsonb difference.
# ROUNDS rounds (default 6), the first is dropped, medians are compared.
set -euo pipefail

out=${1:?usage: run.sh OUT.json [BINDIR]}
bin=${2:-$(pg_config --bindir)}
rounds=${ROUNDS:-6}
rows=${ROWS:-200000}
seconds=${SECONDS_SINGLE:-8}
here=$(cd "$(dirname "$0")" && pwd)
dir=$(mktemp -d "${TMPDIR:-/tmp}/crm-bench.XXXXXX")
runs=$dir/runs.tsv
port=$((20000 + RANDOM % 20000))

as_server() { if [ "$(id -u)" = 0 ]; then runuser -u postgres -- "$@"; else "$@"; fi; }
sql() { "$bin/psql" -X -q -h "$dir" -p "$port" -U postgres -d postgres -v ON_ERROR_STOP=1 "$@"; }
stop() { as_server "$bin/pg_ctl" -D "$dir/data" -m immediate stop >/dev/null 2>&1 || true; rm -rf "$dir"; }
trap stop EXIT

start() {
    cp "$here"/*.sql "$dir" && chmod 755 "$dir"
    if [ "$(id -u)" = 0 ]; then chown -R postgres "$dir"; fi
    as_server "$bin/initdb" -D "$dir/data" -A trust -U postgres -E UTF8 --no-locale >/dev/null
    # No database is served, so that no worker drains while we measure.
    as_server tee -a "$dir/data/postgresql.conf" >/dev/null <<CONF
port = $port
unix_socket_directories = '$dir'
listen_addresses = ''
shared_preload_libraries = 'pg_crm_sync'
pg_crm_sync.databases = 'nowhere'
pg_crm_sync.guard_hard_rows = 0
pg_crm_sync.guard_window_rows = 0
shared_buffers = 512MB
max_wal_size = 16GB
checkpoint_timeout = 1h
autovacuum = off
jit = off
CONF
    as_server "$bin/pg_ctl" -D "$dir/data" -l "$dir/log" -w start >/dev/null || { cat "$dir/log" >&2; exit 1; }
}

# bulk ROUND STATEMENT VARIANT: one timed statement; appends
# "bulk.STATEMENT VARIANT ROUND seconds cpu-ticks wal-bytes logged-rows".
bulk() {
    sql -At -v round="$1" -v what="$2" -v variant="$3" -v file="$dir/rows.txt" -v rows="$rows" \
        -f "$dir/statement_$2.sql" >>"$runs"
}

# single ROUND SYNC VARIANT: one-row transactions; appends microseconds each.
single() {
    local tps
    tps=$(PGOPTIONS="-c synchronous_commit=$2" "$bin/pgbench" -n -h "$dir" -p "$port" -U postgres -M prepared \
        -T "$seconds" -D variant="$3" -D rows="$rows" -f "$dir/single_$3.sql" postgres | sed -n 's/^tps = \([0-9.]*\).*/\1/p')
    awk -v r="$1" -v s="$2" -v v="$3" -v t="$tps" 'BEGIN { printf "single.%s\t%s\t%s\t%.3f\t0\t0\t0\n", s, v, r, 1e6 / t }' >>"$runs"
}

start
sql -v rows="$rows" -v file="$dir/rows.txt" -f "$dir/setup.sql" >/dev/null
for variant in bare native plpgsql; do
    sed "s/:variant/$variant/g" "$dir/single.sql" >"$dir/single_$variant.sql"
done
for ((round = 1; round <= rounds; round++)); do
    echo "round $round of $rounds" >&2
    # The order turns from round to round, so that none is always first.
    case $((round % 3)) in 0) order="bare native plpgsql" ;; 1) order="native plpgsql bare" ;; *) order="plpgsql bare native" ;; esac
    for what in insert copy update noop; do
        for variant in $order; do
            # COPY fills the table that UPDATE then changes.
            if [ "$variant" = plpgsql ] && [ "$what" != update ] && [ "$what" != copy ]; then continue; fi
            bulk "$round" "$what" "$variant"
        done
    done
    for sync in on off; do
        for variant in $order; do
            [ "$variant" = plpgsql ] || single "$round" "$sync" "$variant"
        done
    done
done
awk -v rows="$rows" -f "$here/report.awk" "$runs" >"$out"
cat "$out"
