#!/usr/bin/env bash
# Measures what the crates cost, and rewrites the tables in src/guide/performance.md.
#
#   ./scripts/bench.sh            client, pieces, server, outbox: under ten minutes on two cores, once built
#   ./scripts/bench.sh client     the client beside plain reqwest and its peers
#   ./scripts/bench.sh wires      the client to a name, over HTTP/2 and TLS: half an hour
#   ./scripts/bench.sh pieces     the parts of an operation: a key, a request, a decision, a claim
#   ./scripts/bench.sh server     the layer, store by store; starts its own Redis and PostgreSQL
#   ./scripts/bench.sh outbox     whole operations through an outbox, beside bare commits; its own PostgreSQL
#   ./scripts/bench.sh compile    the extra build time of a user; builds three small crates
#
# valgrind counts the instructions; it is installed if it is missing. Instructions and allocations
# are the same in every run of one build. Times are not, so run nothing else at the same time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PAGE=src/guide/performance.md

# Replaces the text between <!-- NAME --> and <!-- /NAME --> with standard input.
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

need_valgrind() {
    command -v valgrind >/dev/null || ./scripts/apt_install.sh valgrind
}

bench_client() {
    need_valgrind
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

bench_wires() {
    need_valgrind
    (cd benches/compare && cargo build --release)
    benches/compare/target/release/compare wires | rewrite wires
}

# Turns divan's tree into a table: medians with one thread and with two, and the allocations.
as_table() {
    sed 's/^[│├╰─ ]*//' | LC_ALL=C awk -F ' *│ *' '
        function row() { if (name != "") printf "| %s | %s | %s | %s |\n", name, one, two == "" ? "-" : two, int(count + 0.5) }
        function begin(what) { row(); name = what; gsub("_", " ", name); one = two = ""; count = 0 }
        BEGIN {
            print "| piece | median | by two threads at once | allocations |"
            print "| --- | ---: | ---: | ---: |"
        }
        counting { if (!second) count += $3; counting = 0; next }
        /^(alloc|grow):/ { counting = 1; next }
        /^t=1 / { begin(parent); second = 0; one = $3; next }
        /^t=2 / { second = 1; two = $3; next }
        /^[0-9]+ +[0-9.]+ (ns|µs|ms)/ && $3 ~ /s$/ { begin(parent " " $1); sub(/ +[0-9.]+ (ns|µs|ms)$/, "", name); second = 0; one = $3; next }
        /^[a-z_]+ +[0-9.]+ (ns|µs|ms)/ { split($1, words, / +/); begin(words[1]); second = 0; one = $3; next }
        /^[a-z_]+/ { split($1, words, / +/); parent = words[1] }
        END { row() }'
}

bench_pieces() {
    cargo bench -q -p steadfast-benches --bench pieces -- --color never --sample-count 200 | as_table | rewrite pieces
}

bench_server() {
    local counts tables
    need_valgrind
    (cd benches/compare && cargo build --release --features peers)
    counts=$(benches/compare/target/release/compare layer)
    tables=$(./scripts/with_servers.sh cargo bench -p steadfast-benches --bench server | sed -n '/^|/,$p')
    printf '%s\n\n%s\n' "$counts" "$tables" | rewrite server
}

# Prints the dependencies of a user's crate.
dependency() { # name
    case $1 in
    reqwest) echo 'reqwest = { version = "0.13.5", features = ["json"] }' ;;
    steadfast) echo "steadfast = { path = \"$PWD\" }" ;;
    reqwest-retry) printf '%s\n' 'reqwest = { version = "0.13.5", features = ["json"] }' 'reqwest-middleware = "0.5"' 'reqwest-retry = "0.9"' ;;
    esac
}

tree_of() { # name, what else
    cargo tree --manifest-path "$FOLDER/$1/Cargo.toml" -e normal --prefix none "${@:2}" 2>/dev/null
}

bench_outbox() {
    ./scripts/with_servers.sh cargo bench -q -p steadfast-benches --bench outbox | sed -n '/^|/,$p' | rewrite outbox
}

# Builds each crate three times from scratch, in turns, and takes the fastest: other load only adds
# seconds.
bench_compile() {
    local name round start took crates plain_crates plain_seconds
    local -A fastest=()
    FOLDER=$(mktemp -d)
    trap 'rm -rf "$FOLDER"' EXIT
    for name in reqwest steadfast reqwest-retry; do
        cargo init -q --vcs none --name user "$FOLDER/$name"
        dependency "$name" >>"$FOLDER/$name/Cargo.toml"
        cargo fetch -q --manifest-path "$FOLDER/$name/Cargo.toml"
    done
    for round in 1 2 3; do
        for name in reqwest steadfast reqwest-retry; do
            rm -rf "$FOLDER/target"
            start=$(date +%s.%N)
            CARGO_TARGET_DIR="$FOLDER/target" cargo build -q --manifest-path "$FOLDER/$name/Cargo.toml"
            took=$(awk -v from="$start" -v to="$(date +%s.%N)" 'BEGIN { printf "%.1f", to - from }')
            fastest[$name]=$(printf '%s\n' "$took" ${fastest[$name]:-} | sort -n | head -1)
        done
    done
    {
        echo '| a user of | crates | more | in two versions | debug build, s | ratio |'
        echo '| --- | ---: | ---: | --- | ---: | ---: |'
        for name in reqwest steadfast reqwest-retry; do
            crates=$(tree_of "$name" | awk '{ print $1, $2 }' | sort -u | wc -l)
            plain_crates=${plain_crates:-$crates} plain_seconds=${plain_seconds:-${fastest[$name]}}
            printf '| %s | %d | %d | %s | %.0f | %.2f |\n' "$name" "$crates" $((crates - plain_crates)) \
                "$(tree_of "$name" -d --depth 0 | awk 'NF { print $1 }' | sort -u | paste -sd ' ' | sed 's/^$/none/')" \
                "${fastest[$name]}" "$(awk -v one="${fastest[$name]}" -v other="$plain_seconds" 'BEGIN { print one / other }')"
        done
    } | rewrite compile
}

[ $# -gt 0 ] || set -- client pieces server outbox
for part in "$@"; do
    declare -F "bench_$part" >/dev/null || { echo "no part '$part'; there are: client wires pieces server outbox compile" >&2 && exit 2; }
done
for part in "$@"; do "bench_$part"; done
