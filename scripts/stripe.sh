#!/usr/bin/env bash
# Runs Stripe's own client libraries against the layer with `RejectionFormat::stripe()`, over
# connections that break:
#
#   ./scripts/stripe.sh            install what is missing, and run
#   ./scripts/stripe.sh install    only install
#
# The API is `examples/stripe_api`, with its records in memory. It counts what was charged, and its
# last line says so. The libraries have the versions of the example's lock files, and are installed
# under target/tools. apt installs Node.js and Python if they are missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

EXAMPLE=examples/stripe_api
TOOLS="$(realpath -m "${CARGO_TARGET_DIR:-target}")/tools/stripe"

command -v npm >/dev/null || ./scripts/apt_install.sh nodejs npm
python3 -c 'import ensurepip, venv' 2>/dev/null || ./scripts/apt_install.sh python3 python3-venv

# The folder's name has the lock files in it, so changed ones are installed anew. A folder that was
# not finished has another name.
lock=$(cat "$EXAMPLE"/package-lock.json "$EXAMPLE"/requirements.txt | cksum | cut -d ' ' -f 1)
installed="$TOOLS/$lock"
if [ ! -d "$installed" ]; then
    rm -rf "$TOOLS"
    mkdir -p "$TOOLS/new"
    cp "$EXAMPLE"/package.json "$EXAMPLE"/package-lock.json "$TOOLS/new"
    npm ci --prefix "$TOOLS/new" --no-audit --no-fund --silent
    python3 -m venv "$TOOLS/new/venv"
    "$TOOLS/new/venv/bin/pip" install -q --disable-pip-version-check -r "$EXAMPLE/requirements.txt"
    mv "$TOOLS/new" "$installed"
fi
[ "${1:-}" != install ] || exit 0
# Node.js looks for packages beside the program.
cp "$EXAMPLE/check.mjs" "$installed/check.mjs"

# Two charges panic on purpose.
RUST_BACKTRACE=0 cargo run -q --example stripe_api -- \
    --check "node=node $installed/check.mjs" \
    --check "python=$installed/venv/bin/python $EXAMPLE/check.py"
