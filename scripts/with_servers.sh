#!/usr/bin/env bash
# A command beside a real Redis and a real PostgreSQL of its own:
#
#   ./scripts/with_servers.sh cargo test --all-features
#   ./scripts/with_servers.sh cargo run --example transfer --features postgres
#
# Both listen on free ports of loopback, keep their files in a temporary folder, and are gone when the command ends. Nothing of
# the system's own servers is touched. Their programs are installed by apt if they are missing. The command finds them in
# STEADFAST_REDIS_URL and STEADFAST_POSTGRES_URL. STEADFAST_NGINX is the path of an nginx, which is not started: each test that
# wants one starts its own.
set -euo pipefail

[ $# -gt 0 ] || { sed -n '2,10s/^# \{0,1\}//p' "$0" && exit 2; }

fail() { echo "error: $*" >&2 && exit 1; }

# Debian's packages make a cluster and start a service; this script wants the programs alone.
no_cluster() {
    local sudo="" config=/etc/postgresql-common/createcluster.conf
    [ "$(id -u)" = 0 ] || sudo=sudo
    [ ! -e "$config" ] || return 0
    $sudo mkdir -p "$(dirname "$config")"
    echo 'create_main_cluster = false' | $sudo tee "$config" >/dev/null
}

# The newest PostgreSQL's folder of programs: Debian keeps initdb out of PATH.
postgres_bin() {
    if command -v initdb >/dev/null; then dirname "$(command -v initdb)" && return; fi
    find /usr/lib/postgresql -mindepth 2 -maxdepth 2 -name bin 2>/dev/null | sort -V | tail -n 1
}

# Debian keeps it where only root's PATH leads.
nginx_program() {
    PATH="$PATH:/usr/local/sbin:/usr/sbin" command -v nginx
}

missing=()
command -v redis-server >/dev/null || missing+=(redis-server)
[ -n "$(postgres_bin)" ] || missing+=(postgresql)
nginx_program >/dev/null || missing+=(nginx)
if [ ${#missing[@]} != 0 ]; then
    if command -v apt-get >/dev/null; then no_cluster; fi
    "$(dirname "${BASH_SOURCE[0]}")/apt_install.sh" "${missing[@]}"
fi
PG=$(postgres_bin)
STEADFAST_NGINX=$(nginx_program)
export STEADFAST_NGINX

folder=$(mktemp -d)
redis_pid=""
# PostgreSQL refuses to run as root.
as_user=()
if [ "$(id -u)" = 0 ]; then
    id -u postgres >/dev/null 2>&1 && as_user=(runuser -u postgres --) || as_user=(runuser -u nobody --)
fi

stop() {
    [ -z "$redis_pid" ] || kill "$redis_pid" 2>/dev/null || true
    [ ! -e "$folder/pg/postmaster.pid" ] || (cd / && "${as_user[@]}" "$PG/pg_ctl" -D "$folder/pg" -m immediate stop >/dev/null) || true
    [ -z "$redis_pid" ] || wait "$redis_pid" 2>/dev/null || true
    rm -rf "$folder"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# A port that nobody listens on now. Whoever loses a race for it tries another.
port() { echo $((20000 + RANDOM % 12000)); }
listens() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

start_redis() {
    local try port
    for try in 1 2 3 4 5; do
        port=$(port)
        ! listens "$port" || continue
        redis-server --bind 127.0.0.1 --port "$port" --dir "$folder" --save '' --appendonly yes --appendfsync everysec \
            --maxmemory-policy noeviction >"$folder/redis.log" 2>&1 &
        redis_pid=$!
        while kill -0 "$redis_pid" 2>/dev/null; do
            if listens "$port"; then
                export STEADFAST_REDIS_URL="redis://127.0.0.1:$port"
                return
            fi
            sleep 0.05
        done
    done
    cat "$folder/redis.log" >&2
    fail "redis-server does not start"
}

start_postgres() {
    local try port
    mkdir "$folder/pg" "$folder/socket"
    chmod 755 "$folder"
    [ ${#as_user[@]} = 0 ] || chown "${as_user[2]}" "$folder/pg" "$folder/socket"
    (cd / && "${as_user[@]}" "$PG/initdb" -D "$folder/pg" -U steadfast --auth=trust --encoding=UTF8 --locale=C >/dev/null)
    for try in 1 2 3 4 5; do
        port=$(port)
        ! listens "$port" || continue
        if (cd / && "${as_user[@]}" "$PG/pg_ctl" -D "$folder/pg" -w -l "$folder/pg/log" \
            -o "-h 127.0.0.1 -p $port -k $folder/socket -c max_connections=300" start >/dev/null); then
            export STEADFAST_POSTGRES_URL="postgres://steadfast@127.0.0.1:$port/postgres"
            return
        fi
    done
    cat "$folder/pg/log" >&2
    fail "PostgreSQL does not start"
}

start_redis
start_postgres
"$@"
