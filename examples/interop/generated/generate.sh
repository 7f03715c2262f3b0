#!/usr/bin/env bash
# Makes `../charges_client` from `openapi.yaml` again:
#
#   ./examples/interop/generated/generate.sh
#
# You need Java 11 or later, and Python. openapi-generator comes from PyPI, into a temporary folder.
# Nothing in it is edited by hand.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

GENERATOR=7.26.0

command -v java >/dev/null || { echo "error: please install Java 11 or later" >&2 && exit 1; }
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
python3 -m venv "$temporary"
"$temporary/bin/pip" install -q --disable-pip-version-check "openapi-generator-cli==$GENERATOR"

rm -rf ../charges_client/src ../charges_client/Cargo.toml
"$temporary/bin/openapi-generator-cli" generate \
    --generator-name rust \
    --input-spec openapi.yaml \
    --output ../charges_client \
    --additional-properties packageName=charges_client,packageVersion=1.0.0,supportMiddleware=true \
    --global-property apiDocs=false,modelDocs=false
