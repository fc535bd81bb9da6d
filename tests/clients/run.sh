#!/usr/bin/env bash
# Runs the CRMs' own client libraries against the emulator. See README.md beside this file.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
what=${1:-all}
dir=${CRM_CLIENTS_DIR:-$root/target/clients}
emulator=${CRM_EMULATOR:-$(ls -t "${CARGO_TARGET_DIR:-$root/target}"/{debug,release}/crm-emulator 2>/dev/null | head -1 || true)}

case $what in python | node | all) ;; *) echo "usage: $0 [python|node|all]" >&2; exit 2 ;; esac
[ -x "$emulator" ] || { echo "$0: no crm-emulator; build it, or name it in CRM_EMULATOR" >&2; exit 2; }
mkdir -p "$dir"

# install NAME PINS COMMAND…: runs the command when the pins have changed since it last worked.
install() {
  local name=$1 pins=$2
  shift 2
  if ! cmp -s "$pins" "$dir/$name.installed"; then
    "$@"
    cp "$pins" "$dir/$name.installed"
  fi
}
install_python() {
  rm -rf "$dir/py"
  python3 -m venv "$dir/py"
  "$dir/py/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
}
install_node() {
  mkdir -p "$dir/node"
  cp "$here/package.json" "$dir/node/"
  (cd "$dir/node" && npm install --silent --no-audit --no-fund)
}
[ "$what" = node ] || install python "$here/requirements.txt" install_python
[ "$what" = python ] || install node "$here/package.json" install_node

work=$(mktemp -d)
pid=
stop() {
  [ -z "$pid" ] || { kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null; } || true
  pid=
}
trap 'stop; rm -rf "$work"' EXIT

address() { python3 -c 'import json,sys; print(json.load(open(sys.argv[1])).get(sys.argv[2]) or "")' "$work/ready" "$1"; }

# start: a fresh emulator for every client, so that none sees what another wrote.
start() {
  local free=127.0.0.1:0
  rm -f "$work/ready"
  "$emulator" --listen $free --tls-listen $free --pubsub-listen $free --pubsub-plain $free \
    --contacts 250 --write-ca "$work/ca.pem" --ready-file "$work/ready" >"$work/out" 2>"$work/err" &
  pid=$!
  for _ in $(seq 100); do
    [ -s "$work/ready" ] && break
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.1
  done
  [ -s "$work/ready" ] || { echo "$0: the emulator did not start:" >&2; cat "$work/err" >&2; exit 1; }
  EMULATOR_HTTP=$(address http)
  EMULATOR_HTTPS=$(address https)
  EMULATOR_PUBSUB=$(address pubsub)
  EMULATOR_CA=$(address ca)
  export EMULATOR_HTTP EMULATOR_HTTPS EMULATOR_PUBSUB EMULATOR_CA
  export REQUESTS_CA_BUNDLE=$EMULATOR_CA NODE_EXTRA_CA_CERTS=$EMULATOR_CA
}

failed=0
run() {
  echo "== $1"
  start
  "${@:2}" || { echo "FAILED $1" >&2; cat "$work/err" >&2; failed=1; }
  stop
}
if [ "$what" != node ]; then
  for file in "$here"/*.py; do
    run "$(basename "$file")" "$dir/py/bin/python" "$file"
  done
fi
if [ "$what" != python ]; then
  for file in "$here"/*.mjs; do
    # Beside the installed packages, because that is where imports are looked up.
    cp "$file" "$dir/node/"
    run "$(basename "$file")" node "$dir/node/$(basename "$file")"
  done
fi
exit $failed
