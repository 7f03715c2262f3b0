#!/usr/bin/env bash
# Everything that CI checks, in steps:
#
#   ./scripts/test.sh                all of them, the quick ones first
#   ./scripts/test.sh clippy tests   only these
#
# A failed step does not stop the others, so that one run shows every fault. You need a Rust
# toolchain and a C compiler. The script installs the rest if it is missing: tools under
# target/tools; C headers, Python, Node.js, Redis, PostgreSQL, pgbouncer, nginx and Valgrind by apt.
# The servers are the script's own, in a temporary folder, and end with the step that needs them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

STEPS=(fmt invariants typos tree deny clippy features msrv docs tests explore examples stripe interop package semver counts)
CARGO_DENY=0.20.2
SEMVER_CHECKS=0.51.0
TYPOS=1.52.0
TOOLS="$(realpath -m "${CARGO_TARGET_DIR:-target}")/tools"

NOTES=$(mktemp)
trap 'rm -f "$NOTES"' EXIT

fail() { echo "error: $*" >&2 && return 1; }

# Prints a note here and again in the summary.
note() { echo "$*" | tee -a "$NOTES"; }

# ---- tools for the steps -------------------------------------------------------------------------
# The feature `native-tls` is OpenSSL on Linux, and the system's own library elsewhere.
need_openssl() {
    [ "$(uname)" != Linux ] || pkg-config --exists openssl 2>/dev/null || ./scripts/apt_install.sh pkg-config libssl-dev
}

need_python() {
    python3 -c 'import ensurepip, venv' 2>/dev/null || ./scripts/apt_install.sh python3 python3-venv
}

# rustup's minimal profile leaves these two out.
need_component() {
    cargo "$1" --version >/dev/null 2>&1 || rustup component add "$2"
}

# The version is in the folder's name, so a new version is installed anew. Unoptimised: it runs for
# a second.
need_cargo_deny() {
    local root="$TOOLS/cargo-deny-$CARGO_DENY"
    [ -x "$root/bin/cargo-deny" ] ||
        env -u CARGO_TARGET_DIR cargo install -q --debug --locked --version "$CARGO_DENY" --root "$root" cargo-deny
    PATH="$root/bin:$PATH"
}

need_semver_checks() {
    local root="$TOOLS/semver-checks-$SEMVER_CHECKS"
    [ -x "$root/bin/cargo-semver-checks" ] ||
        env -u CARGO_TARGET_DIR cargo install -q --debug --locked --version "$SEMVER_CHECKS" --root "$root" cargo-semver-checks
    PATH="$root/bin:$PATH"
}

need_typos() {
    local venv="$TOOLS/typos-$TYPOS"
    need_python
    if [ ! -x "$venv/bin/typos" ]; then
        python3 -m venv "$venv"
        "$venv/bin/pip" install -q "typos==$TYPOS"
    fi
    PATH="$venv/bin:$PATH"
}

# ---- the steps -----------------------------------------------------------------------------------
step_fmt() {
    need_component fmt rustfmt
    cargo fmt --all --check
    cargo fmt --check --manifest-path benches/compare/Cargo.toml
    # Not by cargo: that would format the generated client too.
    find examples/interop -name '*.rs' -not -path '*/charges_client/*' -exec rustfmt --check --edition 2024 {} +
}

# Promises of the design that the compiler does not check. Any output below a promise breaks it; so
# does an error of grep.
step_invariants() {
    local broken=0 decisions siblings file lines
    promise() { [ -z "$2" ] || { broken=1 && printf '%s:\n%s\n' "$1" "$2"; }; }

    # The lint forbids unsafe code; the first line checks that the lint is still there.
    promise "no unsafe" "$(
        grep -q '^unsafe_code = "forbid"' Cargo.toml || echo 'Cargo.toml: the lint is gone'
        grep -rnE '\bunsafe *(\{|fn\b|impl\b|trait\b|extern\b)|\bunsafe\(' src crates 2>&1
    )"
    promise "every file opens with //!, what it is for" "$(
        find src crates tests examples benches -name '*.rs' -not -path '*/target/*' -not -path '*/charges_client/*' | while read -r file; do
            [[ "$(head -n 1 "$file")" == '//!'* ]] || echo "$file"
        done
    )"
    # The build without features finds most wrong imports, but none under #[cfg(feature)].
    decisions=$(find crates/steadfast-core/src -name '*.rs' | grep -vE '/(clock|deadline|key|latency|lib)\.rs$')
    siblings=$(basename -s .rs $decisions | paste -sd '|')
    promise "the decision modules import std, core, http and one another" "$(
        grep -nE '^ *(pub(\([a-z ]+\))? )?use ' $decisions 2>&1 |
            grep -vE "\buse (std|core|http|self|super|crate::($siblings|[A-Z{])|$siblings|[A-Z][A-Za-z]*|loom|proptest)(::|;)?"
        grep -nE '\b((clock|getrandom|tokio)::|Instant::now|SystemTime::now)' $decisions | grep -vE '^[^:]*:[0-9]+: *//'
    )"
    # A failed downcast of a foreign error means "unsure"; only these files handle that. The second
    # one is there because reqwest-middleware's error hides ours in an `anyhow::Error`.
    promise "only src/transport_error.rs and the middleware's error.rs look inside foreign errors" "$(
        grep -rnE --include='*.rs' '\bdowncast(_ref|_mut)?\b|\.is::<' src crates 2>&1 |
            grep -vE '^(src/transport_error|crates/steadfast-reqwest-middleware/src/error)\.rs:'
    )"
    promise "ARCHITECTURE.md names only files and tests that are there" "$(
        grep -oE '`[a-z0-9_/-]+\.rs`' ARCHITECTURE.md | tr -d '`' | sort -u | while read -r file; do
            [ -e "src/$file" ] || [ -e "tests/it/$file" ] || [ -e "$file" ] || [ -e "crates/$file" ] ||
                echo "$file"
        done
        grep -E '^\| [0-9]' ARCHITECTURE.md | grep -oE '`[a-z]+(_[a-z]+){3,}`' | tr -d '`' | sort -u | while read -r name; do
            grep -rqwE "fn $name" src crates tests || echo "fn $name"
        done
    )"

    # Only a note, because a long file may be right.
    while read -r file; do
        lines=$(awk '/#\[cfg\(test\)\]/ { exit } { n++ } END { print n + 0 }' "$file")
        [ "$lines" -le 400 ] || note "long: $file has $lines lines before its tests"
    done < <(find src crates -name '*.rs' | sort)
    [ "$broken" = 0 ]
}

step_typos() {
    need_typos
    typos
}

# Prints the crates that are linked with these options, one on each line.
linked() {
    cargo tree -e normal --prefix none --format '{p}' "$@" | awk '{ print $1, $2 }' | sort -u
}

# Crates that must not be linked, and crates that must not be linked twice. With a second version of
# hyper or h2 every downcast fails, and a failure that was safe to repeat becomes ambiguous.
step_tree() {
    need_python
    local bad=0 all name count
    not_linked() { # promise, pattern, options of cargo tree
        local found
        found=$(linked "${@:3}")
        found=$(grep -E "^($2) " <<<"$found" || true)
        [ -z "$found" ] || { bad=1 && printf '%s, but it links:\n%s\n' "$1" "$found"; }
    }
    not_linked "the core is no runtime" 'tokio|reqwest|tower|hyper|h2' -p steadfast-core
    not_linked "the client is no server" 'axum|axum-core|redis|sqlx|redb|steadfast-server' -p steadfast
    not_linked "the client has no middlewares" 'reqwest-middleware|anyhow' -p steadfast --all-features
    not_linked "the client's crate brings no store" 'axum|axum-core|redis|sqlx|redb' -p steadfast --all-features
    not_linked "the server half is no client" 'reqwest|hyper|h2|axum|axum-core' -p steadfast-server --all-features
    # As cargo itself plans the build; `cargo tree` does not know what the other default members turn on.
    count=$(RUSTC_BOOTSTRAP=1 cargo build --example payments --unit-graph -Z unstable-options | python3 -c "import json, sys; print(len({unit['pkg_id'] for unit in json.load(sys.stdin)['units']}))")
    [ "$count" -le 160 ] || { bad=1 && echo "the example payments builds $count crates, and 160 at most are right"; }
    all=$(linked --workspace --all-features)
    for name in hyper hyper-util h2 http http-body tokio rustls; do
        count=$(grep -c "^$name " <<<"$all" || true)
        [ "$count" = 1 ] || { bad=1 && echo "$count versions of $name are linked, and one is right"; }
    done
    [ "$bad" = 0 ]
}

# git's messages without a network. Responses of any status are not listed: a database that has
# moved, or a certificate that does not verify, must not count as "no network".
UNREACHABLE='could not resolve|failed to connect|could( no|n.)t connect|network is unreachable|connection (refused|reset)'
UNREACHABLE+='|timed out|tunnel failed|proxy connect aborted|recv failure|send failure|non-properly terminated|early eof'

step_deny() {
    command -v git >/dev/null || ./scripts/apt_install.sh git ca-certificates
    need_cargo_deny
    cargo-deny check --hide-inclusion-graph licenses bans sources

    # A separate fetch keeps a network failure apart from an advisory.
    local log="$TOOLS/advisories.log" status=0
    LC_ALL=C GIT_TERMINAL_PROMPT=0 timeout 300 cargo-deny fetch db >"$log" 2>&1 || status=$?
    cat "$log"
    if [ "$status" = 0 ]; then
        cargo-deny check --hide-inclusion-graph advisories
    elif [ "$status" = 124 ] || grep -qiE "$UNREACHABLE" "$log"; then
        note "advisories: NOT CHECKED, the advisory database cannot be reached"
        [ "${STEADFAST_REQUIRE_ADVISORIES:-0}" != 1 ] || fail "STEADFAST_REQUIRE_ADVISORIES=1 wants them checked"
    else
        fail "the advisory database could not be fetched, and not for want of a network"
    fi
}

step_clippy() {
    need_component clippy clippy
    need_openssl
    cargo clippy --workspace --all-targets --all-features -- -D warnings
    cargo clippy -p steadfast --all-targets -- -D warnings
}

# Each feature of each crate alone. With clippy, `-D warnings` after the `--` keeps the
# dependencies' cache valid; RUSTFLAGS would not.
step_features() {
    local package feature
    need_component clippy clippy
    need_openssl
    need_python
    while read -r package feature; do
        echo "feature: $package ${feature:-none}"
        cargo clippy -q -p "$package" --lib --no-default-features --features "$feature" -- -D warnings
    done < <(cargo metadata --no-deps --format-version 1 | python3 -c '
import json, sys
for package in json.load(sys.stdin)["packages"]:
    if package["publish"] is None:
        for feature in ["", *package["features"]]:
            print(package["name"], feature)')
}

# With the oldest compiler that CONTRIBUTING.md promises for these.
step_msrv() {
    local oldest
    oldest=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    if ! rustup toolchain install "$oldest" --profile minimal --no-self-update; then
        note "msrv: NOT CHECKED, rustup cannot install Rust $oldest"
        return
    fi
    need_openssl
    CARGO_TARGET_DIR="$TOOLS/msrv" cargo "+$oldest" check --all-features -p steadfast -p steadfast-core \
        -p steadfast-server -p steadfast-axum -p steadfast-testing -p steadfast-reqwest-middleware
}

# The pages as docs.rs builds them: an item names the feature that it needs. docs.rs has a nightly
# compiler; the variable lets this one do the same.
docs_name_features() {
    local docs="$TOOLS/docsrs/doc"
    RUSTC_BOOTSTRAP=1 RUSTDOCFLAGS="--cfg docsrs -D warnings" CARGO_TARGET_DIR="$TOOLS/docsrs" \
        cargo doc --no-deps --all-features -p steadfast-core -p steadfast-testing -p steadfast
    grep -q 'portability.*feature <code>stream' "$docs/steadfast/struct.RequestBuilder.html" &&
        grep -q 'portability.*feature <code>server' "$docs/steadfast_testing/fn.store_contract.html" ||
        fail "the pages do not say which features their items need"
}

# The pages for users are built last, so they remain in target/doc.
step_docs() {
    need_openssl
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --all-features --document-private-items
    docs_name_features
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --all-features
}

step_tests() {
    need_openssl
    ./scripts/with_servers.sh cargo test --workspace --all-features --no-fail-fast
    # Without a decompression feature reqwest exposes the end of a body, and the client checks it.
    cargo test -p steadfast-tests --no-default-features --test it wire::cut
}

# Plays every course of an operation, within bounds, through the client's own code. Only this build
# has the model checker; as a dev-dependency it would be built for every example.
step_explore() {
    RUSTFLAGS="--cfg steadfast_explore" CARGO_TARGET_DIR="$TOOLS/explore" \
        cargo test -p steadfast --lib --features json run::exploration
}

# Runs an example. It must end by itself, or have a `--self-test` that does.
run_example() {
    echo "example: $*"
    timeout 120 cargo run -q --example "$1" -- "${@:2}" </dev/null ||
        fail "example $*: exit status $? (124: it had not ended after two minutes)"
}

step_examples() {
    need_openssl
    cargo build --examples
    ./scripts/with_servers.sh ./scripts/test.sh every_example
}

# Prints the rows of the table of `payments` and the text below it, without the counts.
promise_table() {
    sed -n '/naive retry loop *│$/,/^└/p' "$1" | sed 's/┆.*//' && grep -A 2 '^The naive loop' "$1"
}

# Not a step by itself: `examples` runs it with servers.
step_every_example() {
    local file name last log="$TOOLS/example.log"
    mkdir -p "$TOOLS"
    for file in examples/*/main.rs; do
        [ -e "$file" ] || continue
        name=$(basename "${file%/main.rs}")
        [ "$name" != payments ] && [ "$name" != simulation ] || continue
        if grep -qE 'self[-_]test' "$file"; then run_example "$name" --self-test; else run_example "$name"; fi 2>&1 |
            tee "$log"
        # Its failures are staged, so an error that it prints is a real one.
        [ "$name" != checkout ] || ! grep 'no order yet' "$log" || fail "checkout prints an error"
    done

    run_example simulation | tee "$log"
    last=$(LC_ALL=C.UTF-8 grep -nE '.{101}' "$log" || true)
    [ -z "$last" ] || fail "the simulation prints lines of more than 100 columns: $last"

    # The command that `cargo install steadfast-probe` installs.
    cargo run -q -p steadfast-probe -- --self-test

    # The promise of the crate in one line: nothing was charged twice.
    run_example payments | tee "$log"
    last=$(tail -n 1 "$log")
    [[ "$last" =~ ^charges=[0-9]+\ once=[0-9]+\ twice=0\ unsure=[0-9]+$ ]] || fail "the last line of payments is: $last"
    promise_table README.md >"$log.readme"
    promise_table "$log" | diff -u "$log.readme" - || fail "the README shows another table than payments prints"
    run_example payments --ignore-keys --charges 100
    for name in --ignores-keys --postgres; do
        ./scripts/with_servers.sh timeout 120 cargo run -q --example outbox -- "$name" --charges 300 | tee "$log"
        last=$(tail -n 1 "$log")
        [[ "$last" =~ ^submitted=300\ once=300\ twice=0\ lost=0\ unknown=0 ]] || fail "the last line of outbox is: $last"
    done
}

# Stripe's own client libraries against the layer: nothing is charged twice, and every refusal is an
# error that they know.
step_stripe() {
    local last log="$TOOLS/stripe.log" npm_or_pip="ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ETIMEDOUT|new connection|NameResolutionError"
    mkdir -p "$TOOLS"
    if ! ./scripts/stripe.sh install >"$log" 2>&1; then
        cat "$log"
        grep -qiE "$UNREACHABLE|$npm_or_pip" "$log" || fail "Stripe's libraries could not be installed, and not for want of a network"
        note "stripe: NOT CHECKED, npm or PyPI cannot be reached"
        return
    fi
    ./scripts/stripe.sh | tee "$log"
    last=$(tail -n 1 "$log")
    [[ "$last" =~ ^stripe:\ node=ok\ python=ok\ executed=[1-9][0-9]*\ twice=0$ ]] || fail "the last line of stripe.sh is: $last"
}

# steadfast inside the clients of other libraries: nothing is executed twice.
step_interop() {
    local last log="$TOOLS/interop.log"
    mkdir -p "$TOOLS"
    if ! ./scripts/interop.sh fetch >"$log" 2>&1; then
        cat "$log"
        grep -qiE "$UNREACHABLE" "$log" || fail "the crates could not be downloaded, and not for want of a network"
        note "interop: NOT CHECKED, the registry cannot be reached"
        return
    fi
    ./scripts/interop.sh | tee "$log"
    last=$(tail -n 1 "$log")
    [ "$last" = "interop: kube=ok octocrab=ok object_store=ok generated=ok middleware=ok twice=0" ] ||
        fail "the last line of interop.sh is: $last"
}

# Every crate as the registry would get it: each is packed, and built from its package and those of
# the others.
step_package() {
    need_openssl
    # cargo keeps the packages of its temporary registry by their versions, unpacked and compiled. It
    # would build against those of an earlier run in the same folder.
    rm -rf "${CARGO_HOME:-$HOME/.cargo}"/registry/src/-*/steadfast-* \
        "${CARGO_TARGET_DIR:-target}"/debug/.fingerprint/steadfast-*
    cargo publish -q --workspace --dry-run --allow-dirty
}

# Whether a change breaks users, compared with the latest release.
step_semver() {
    local answer
    command -v curl >/dev/null || ./scripts/apt_install.sh curl ca-certificates
    answer=$(curl -sS -m 30 -o /dev/null -w '%{http_code}' https://index.crates.io/st/ea/steadfast || true)
    case $answer in
    200) need_semver_checks && cargo semver-checks --workspace ;;
    404) note "semver: nothing is released yet that a change could break" ;;
    *) note "semver: NOT CHECKED, the registry cannot be reached" ;;
    esac
}

# The cost beside plain reqwest, in instructions, allocations and bytes. `scripts/bench.sh` measures
# times.
step_counts() {
    if [ "$(uname -sm)" != "Linux x86_64" ]; then
        note "counts: NOT CHECKED, they are those of Linux on x86-64"
        return
    fi
    command -v valgrind >/dev/null || ./scripts/apt_install.sh valgrind
    cargo run -q --profile gate --locked --manifest-path benches/compare/Cargo.toml -- gate
}

# ---- the run -------------------------------------------------------------------------------------
failed=() summary=""

run_step() {
    local step=$1 start=$SECONDS status verdict=ok line
    printf '\n=== %s\n' "$step"
    # Not `if (step)`: inside a condition bash ignores `set -e` in the whole step.
    set +e
    (set -e && "step_$step")
    status=$?
    set -e
    [ "$status" = 0 ] || { verdict=FAILED && failed+=("$step"); }
    line=$(printf '%-9s %-6s %4d s' "$step" "$verdict" $((SECONDS - start)))
    summary+="$line"$'\n'
    echo "=== $line"
}

[ $# -gt 0 ] || set -- "${STEPS[@]}"
for step in "$@"; do
    declare -F "step_$step" >/dev/null || { fail "no step '$step'; there are: ${STEPS[*]}" || exit 2; }
done
for step in "$@"; do run_step "$step"; done

printf '\n=== summary, %d s\n%s' "$SECONDS" "$summary"
cat "$NOTES"
[ ${#failed[@]} = 0 ] || { echo "failed: ${failed[*]}" && exit 1; }
echo "all steps passed"
