#!/usr/bin/env bash
# Runs steadfast inside kube, octocrab, object_store, a generated client and a chain of middlewares,
# on servers that break:
#
#   ./scripts/interop.sh          build and run
#   ./scripts/interop.sh fetch    only download the crates
#
# The parts are the packages of `examples/interop`. Each prints a table: what the server executed
# without steadfast, and with it. The last line sums up, and the script fails if a part does.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

WORKSPACE=examples/interop/Cargo.toml
PARTS=(kube octocrab object_store generated middleware)
# The target folder of the crates: TLS and tokio are often built there already.
CARGO_TARGET_DIR="$(realpath -m "${CARGO_TARGET_DIR:-target}")"
export CARGO_TARGET_DIR

if [ "${1:-}" = fetch ]; then
    exec cargo fetch --locked --manifest-path "$WORKSPACE"
fi

# One that does not build must not run as it was before, and must not keep the others from running.
for part in "${PARTS[@]}"; do rm -f "$CARGO_TARGET_DIR/debug/interop-$part"; done
cargo build --locked --keep-going --manifest-path "$WORKSPACE" || true

summary=interop: twice=0 failed=0
for part in "${PARTS[@]}"; do
    printf '\n'
    status=0
    output=$(timeout 120 "$CARGO_TARGET_DIR/debug/interop-$part" 2>&1) || status=$?
    echo "$output"
    last=$(tail -n 1 <<<"$output")
    if [ "$status" = 0 ] && [[ "$last" =~ ^$part:\ operations=[1-9][0-9]*\ naive_twice=[0-9]+\ wrong=0\ twice=([0-9]+)$ ]]; then
        summary+=" $part=ok"
    else
        echo "$part: exit status $status (124: it had not ended after two minutes; 127: it was not built)"
        summary+=" $part=failed" failed=1
    fi
    [[ ! "$last" =~ \ twice=([0-9]+)$ ]] || twice=$((twice + BASH_REMATCH[1]))
done

printf '\n%s twice=%s\n' "$summary" "$twice"
[ "$failed" = 0 ]
