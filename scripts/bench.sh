#!/usr/bin/env bash
# Measures what the crate costs, and rewrites the tables in src/guide/performance.md.
#
#   ./scripts/bench.sh                    client and server: under ten minutes on two cores, once built
#   ./scripts/bench.sh client             the client beside plain reqwest and its peers; needs valgrind
#   ./scripts/bench.sh server             the layer, store by store; starts a Redis and a PostgreSQL of its own
#   ./scripts/bench.sh compile            what a user's build costs more; builds three small crates from nothing
#
# Instructions and allocations are the same from run to run. Times are not: nothing else should run meanwhile.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PAGE=src/guide/performance.md

# Replaces what stands between <!-- NAME --> and <!-- /NAME --> by standard input.
rewrite() {
    local name=$1 tables page
    tables=$(cat)
    grep -qxF "<!-- $name -->" "$PAGE" && grep -qxF "<!-- /$name -->" "$PAGE" || { echo "$PAGE has no place for $name" >&2 && return 1; }
    page=$(TABLES=$tables awk -v open="<!-- $name -->" -v close_="<!-- /$name -->" '
        $0 == close_ { skip = 0 }
        !skip { print }
        $0 == open { skip = 1; print ""; print ENVIRON["TABLES"]; print "" }
    ' "$PAGE")
    printf '%s\n' "$page" >"$PAGE"
}

version() { # lock file, crate
    awk -v crate="\"$2\"" '$1 == "name" && $3 == crate { getline; gsub("\"", "", $3); print $3; exit }' "$1"
}

bench_client() {
    command -v valgrind >/dev/null || { echo "please install valgrind" >&2 && return 1; }
    local lock=benches/compare/Cargo.lock tables crate
    (cd benches/compare && cargo build --release --features peers)
    tables=$(benches/compare/target/release/compare)
    {
        printf 'With %s' "$(rustc --version | cut -d ' ' -f 1,2)"
        for crate in reqwest hyper hyper-util tokio reqwest-retry google-cloud-gax aws-smithy-runtime; do
            printf ', %s %s' "$crate" "$(version "$lock" "$crate")"
        done
        printf '.\n\n%s\n' "$tables"
    } | rewrite client
}

bench_server() {
    local tables
    tables=$(./scripts/with_servers.sh cargo bench --bench server --all-features | sed -n '/^|/,$p')
    echo "$tables" | rewrite server
}

# The crates that a user links, and the seconds that the build takes.
user() { # name, the dependency
    local folder="$FOLDER/$1" start
    cargo init -q --vcs none --name user "$folder"
    echo "$2" >>"$folder/Cargo.toml"
    cargo fetch -q --manifest-path "$folder/Cargo.toml"
    start=$(date +%s.%N)
    CARGO_TARGET_DIR="$folder/target" cargo build -q --manifest-path "$folder/Cargo.toml"
    SECONDS_TAKEN=$(awk -v from="$start" -v to="$(date +%s.%N)" 'BEGIN { printf "%.1f", to - from }')
    CRATES=$(cargo tree --manifest-path "$folder/Cargo.toml" -e normal --prefix none | awk '{ print $1, $2 }' | sort -u | wc -l)
    TWICE=$(cargo tree --manifest-path "$folder/Cargo.toml" -e normal -d --depth 0 --prefix none | awk 'NF { print $1 }' | sort -u | paste -sd ' ')
}

bench_compile() {
    local name plain_crates plain_seconds
    FOLDER=$(mktemp -d)
    trap 'rm -rf "$FOLDER"' EXIT
    {
        echo '| a user of | crates | more | in two versions | debug build, s | ratio |'
        echo '| --- | ---: | ---: | --- | ---: | ---: |'
        for name in reqwest steadfast reqwest-retry; do
            case $name in
            reqwest) user $name 'reqwest = { version = "0.13.5", features = ["json"] }' ;;
            steadfast) user $name "steadfast = { path = \"$PWD\" }" ;;
            reqwest-retry) user $name $'reqwest = { version = "0.13.5", features = ["json"] }\nreqwest-middleware = "0.5"\nreqwest-retry = "0.9"' ;;
            esac
            plain_crates=${plain_crates:-$CRATES} plain_seconds=${plain_seconds:-$SECONDS_TAKEN}
            printf '| %s | %d | %d | %s | %.0f | %.2f |\n' "$name" "$CRATES" $((CRATES - plain_crates)) "${TWICE:-none}" \
                "$SECONDS_TAKEN" "$(awk -v one="$SECONDS_TAKEN" -v other="$plain_seconds" 'BEGIN { print one / other }')"
        done
    } | rewrite compile
}

[ $# -gt 0 ] || set -- client server
for part in "$@"; do
    declare -F "bench_$part" >/dev/null || { echo "no part '$part'; there are: client server compile" >&2 && exit 2; }
done
for part in "$@"; do "bench_$part"; done
