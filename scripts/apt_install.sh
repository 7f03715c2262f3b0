#!/usr/bin/env bash
# Installs packages that another script needs. Without apt it names the packages and fails.
#
#   ./scripts/apt_install.sh valgrind
set -euo pipefail

[ $# -gt 0 ] || { sed -n '2,4s/^# \{0,1\}//p' "$0" && exit 2; }

command -v apt-get >/dev/null || { echo "error: please install: $*" >&2 && exit 1; }
as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)

echo "installing $*" >&2
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends "$@" >/dev/null
