# Functions of scripts/demo and scripts/demo-stop; sourced.

demo=${CRM_DEMO_DIR:-${TMPDIR:-/tmp}/pg_crm_sync-demo-$(id -u)}
psql_line="$demo/pg/bin/psql -h $demo/socket -U postgres app"

# PostgreSQL refuses to run as root.
as_server() { if [ "$(id -u)" = 0 ]; then runuser -u postgres -- "$@"; else "$@"; fi; }
own() { if [ "$(id -u)" = 0 ]; then chown -R postgres "$@"; fi; }

now_ms() { date +%s%3N; }
seconds() { awk -v ms=$(($(now_ms) - $1)) 'BEGIN { printf "%.1f s", ms / 1000 }'; }
if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'; else bold='' dim='' plain=''; fi
say() { echo; echo "$bold== $*$plain"; began_step=$(now_ms); }
note() { echo "   $dim$*$plain"; }

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

start_cluster() {
    mkdir -p "$demo/socket" "$demo/secrets"
    hooks=127.0.0.1:$(free_port)
    echo '{"token": "pat-na1-emulator", "hosts": ["127.0.0.1"], "webhook_secret": "emulator-secret"}' > "$demo/secrets/hubspot.json"
    echo '{"client_id": "emulator-app", "client_secret": "emulator-secret", "hosts": ["127.0.0.1"]}' > "$demo/secrets/salesforce.json"
    chmod 700 "$demo/secrets"
    chmod 600 "$demo"/secrets/*
    mkdir -p "$demo/data"
    own "$demo/socket" "$demo/secrets" "$demo/data"
    as_server "$demo/pg/bin/initdb" -D "$demo/data" -U postgres -A trust -E UTF8 --locale=C.UTF-8 >/dev/null
    cat >> "$demo/data/postgresql.conf" <<CONF
listen_addresses = ''
unix_socket_directories = '$demo/socket'
shared_preload_libraries = 'pg_crm_sync'
pg_crm_sync.secrets_dir = '$demo/secrets'
pg_crm_sync.allowed_hosts = '127.0.0.1'
pg_crm_sync.listen = '$hooks'
pg_crm_sync.webhook_public_url = 'http://$hooks'
pg_crm_sync.activation_file = '$demo/socket/activation'
CONF
    as_server "$demo/pg/bin/pg_ctl" -D "$demo/data" -l "$demo/socket/log" -w -s start || { cat "$demo/socket/log"; die "PostgreSQL did not start"; }
    as_server "$demo/pg/bin/createdb" -h "$demo/socket" -U postgres app
}

start_emulator() {
    local free=127.0.0.1:0
    setsid "$(target_dir)/debug/crm-emulator" --listen $free --tls-listen $free --pubsub-listen $free --pubsub-plain $free \
        --webhook-url "http://$hooks/webhook/hubspot" --ready-file "$demo/ready" "$@" >"$demo/emulator.log" 2>&1 </dev/null &
    echo $! > "$demo/emulator.pid"
    local i
    for i in $(seq 100); do [ -s "$demo/ready" ] && break; sleep 0.05; done
    [ -s "$demo/ready" ] || { cat "$demo/emulator.log"; die "the emulator did not start"; }
    http=$(ready http) pubsub=$(ready pubsub_plain)
}
ready() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$demo/ready" "$1"; }

psql() { "$demo/pg/bin/psql" -X -q -h "$demo/socket" -U postgres -d app -v ON_ERROR_STOP=1 "$@"; }
query() { psql -At -c "$1"; }
# sql STATEMENT: shows it as typed, then what it answers.
sql() {
    echo "$1;" | sed '1s/^/   app=# /; 2,$s/^/   app-# /'
    psql -P footer=off -c "$1" | sed '/^$/d; s/^/      /'
}

# wait_for WHAT CONDITION: until a SQL condition is true; at most 30 s.
wait_for() {
    local end=$(($(now_ms) + 30000))
    until [ "$(query "$2")" = t ]; do
        [ "$(now_ms)" -lt $end ] || failed "$1"
        sleep 0.02
    done
    note "$1 (after $(seconds "$began_step"))"
}

# As people in the CRM's user interface, and as they see it.
admin() { curl -sS --fail-with-body --max-time 10 "$http/_admin/$1" "${@:2}"; }
edit() { # edit CRM OBJECT ID FIELDS
    note "in $1: $4"
    began_step=$(now_ms)
    admin "$1/edit" -H 'Content-Type: application/json' -d "{\"object\": \"$2\", \"id\": \"$3\", \"fields\": $4}" >/dev/null
}
crm_field() { # crm_field CRM OBJECT ID FIELD
    admin "$1/record/$2/$3" | python3 -c '
import json, sys
record = json.load(sys.stdin)
for part in (record.get("properties"), record.get("fields"), record):
    if isinstance(part, dict) and part.get(sys.argv[1]) is not None:
        print(part[sys.argv[1]]); break' "$4"
}
wait_crm() { # wait_crm CRM OBJECT ID FIELD VALUE
    local end=$(($(now_ms) + 30000))
    until [ "$(crm_field "$1" "$2" "$3" "$4")" = "$5" ]; do
        [ "$(now_ms)" -lt $end ] || failed "$1 shows $4 = $5"
        sleep 0.02
    done
    note "$1 shows $4 = $5 (after $(seconds "$began_step"))"
}

failed() {
    echo
    echo "This did not happen within 30 s: $1. What the database says:" >&2
    query "SELECT * FROM crm.status" >&2 || true
    query "SELECT * FROM crm.outbox LIMIT 20" >&2 || true
    tail -20 "$demo/socket/log" >&2
    exit 1
}
