#!/usr/bin/env bash
# Redraws the pictures of the guide: runs the simulation, and renders its plots in a browser.
#
#   ./scripts/screenshots.sh             writes src/guide/img/
#   ./scripts/screenshots.sh page.png    also renders the whole report, for review
#
# Each plot gives two files. Readers of the repository see NAME.png. NAME.uri is the same picture as
# a link definition with a data URI, which rustdoc can include; rustdoc copies no files beside its
# pages. apt installs missing tools.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

IMAGES=src/guide/img
MOST_BYTES=$((150 * 1024))
REPORT_SIZE=1060,4700

WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT

need() { # command, package
    command -v "$1" >/dev/null || ./scripts/apt_install.sh "$2"
}

# Renders a page of width,height, with two pixels for each point. Prints the browser's log only if
# it fails.
render() { # page, size, picture
    timeout 60 chromium --headless --no-sandbox --disable-gpu --disable-quic --no-first-run \
        --disable-background-networking --disable-component-update --disable-sync --user-data-dir="$WORK/profile" \
        --hide-scrollbars --force-device-scale-factor=2 --window-size="$2" --screenshot="$3" "file://$1" \
        >"$WORK/browser.log" 2>&1 || { cat "$WORK/browser.log" >&2 && return 1; }
}

size() { # svg
    sed -n '1s/.*<svg width="\([0-9]*\)" height="\([0-9]*\)".*/\1,\2/p' "$1"
}

need chromium chromium
need pngquant pngquant
cargo run -q --example simulation -- --full --out "$WORK/report.html" --plots "$WORK/plots" >/dev/null

mkdir -p "$IMAGES"
for svg in "$WORK"/plots/*.svg; do
    name=$(basename "$svg" .svg)
    render "$svg" "$(size "$svg")" "$WORK/$name.png"
    pngquant --strip --speed 1 --force --output "$IMAGES/$name.png" 32 "$WORK/$name.png"
    printf '[%s]: data:image/png;base64,%s\n' "$name" "$(base64 -w 0 "$IMAGES/$name.png")" >"$IMAGES/$name.uri"
    bytes=$(stat -c %s "$IMAGES/$name.png")
    echo "$IMAGES/$name.png: $((bytes / 1024)) KiB"
    [ "$bytes" -lt "$MOST_BYTES" ] || { echo "error: $name.png is too large" >&2 && exit 1; }
done
[ $# = 0 ] || render "$WORK/report.html" "$REPORT_SIZE" "$(realpath -m "$1")"
