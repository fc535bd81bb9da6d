# Shared by the scripts of this folder; sourced from the root of the repository.

die() { echo "error: $*" >&2; exit 1; }

# pg_major PG_CONFIG: 15, 16, …
pg_major() { "$1" --version | sed -E 's/^PostgreSQL ([0-9]+).*/\1/'; }

# The installation that everything is built for when nothing else is said.
default_pg_config() {
    local debian=/usr/lib/postgresql/15/bin/pg_config
    if [ -x "$debian" ]; then echo "$debian"; else command -v pg_config || die "no pg_config found: run 'make setup' or set PG_CONFIG"; fi
}

# The folder that cargo writes to, absolute.
target_dir() {
    local dir=${CARGO_TARGET_DIR:-target}
    mkdir -p "$dir"
    (cd "$dir" && pwd)
}

profile_dir() { if [ "$1" = dev ]; then echo debug; else echo "$1"; fi; }

extension_version() { sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml; }

# build_extension MAJOR PG_CONFIG PROFILE: builds and prints the path of the library.
# pgrx asks PGRX_PG_CONFIG_PATH first and its own config.toml otherwise; a changed variable rebuilds pgrx, so the variable is
# set only where the file does not already say the same.
build_extension() {
    local major=$1 pg_config=$2 profile=$3 config=${PGRX_HOME:-$HOME/.pgrx}/config.toml
    if ! grep -qsF "pg$major = \"$pg_config\"" "$config"; then export PGRX_PG_CONFIG_PATH=$pg_config; else unset PGRX_PG_CONFIG_PATH; fi
    local features=()
    # PostgreSQL 15 is the default feature: naming it would be another build to cargo.
    if [ "$major" != 15 ]; then features=(--no-default-features --features "pg_crm_sync/pg$major"); fi
    # What is built together shares its dependencies' features, and so the dependencies: tests build the whole workspace.
    local what=(-p pg_crm_sync)
    if [ "${CRM_BUILD_ALL:-}" = 1 ]; then what=(--workspace); fi
    cargo build --locked --lib "${what[@]}" --profile "$profile" "${features[@]}" >&2 || return 1
    echo "$(target_dir)/$(profile_dir "$profile")/libpg_crm_sync.so"
}

# schema_tool: builds crm-schema and prints its path.
schema_tool() {
    local what=(-p crm-schema)
    if [ "${CRM_BUILD_ALL:-}" = 1 ]; then what=(--workspace --bins); fi
    cargo build --locked "${what[@]}" >&2 || return 1
    echo "$(target_dir)/debug/crm-schema"
}
