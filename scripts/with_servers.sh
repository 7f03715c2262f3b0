#!/usr/bin/env bash
# Runs a command beside a real Redis, a real PostgreSQL and a real pgbouncer:
#
#   ./scripts/with_servers.sh cargo test --workspace --all-features
#   ./scripts/with_servers.sh cargo run --example transfer
#
# The servers listen on free loopback ports, keep their files in a temporary folder, and end with
# the command. The system's own servers are left alone. apt installs missing programs. The URLs are
# in STEADFAST_REDIS_URL, STEADFAST_POSTGRES_URL and STEADFAST_PGBOUNCER_URL. pgbouncer is a proxy
# of that PostgreSQL, in transaction mode. It has few sessions for each database, and keeps no
# prepared statements. STEADFAST_NGINX is the path of an nginx, which is not started: each test that
# needs one starts its own. STEADFAST_REDIS_SERVER names another program than redis-server, such as
# valkey-server.
set -euo pipefail

[ $# -gt 0 ] || { sed -n '2,13s/^# \{0,1\}//p' "$0" && exit 2; }

fail() { echo "error: $*" >&2 && exit 1; }

# Debian's packages make a cluster and start a service; this script needs only the programs.
no_cluster() {
    local sudo="" config=/etc/postgresql-common/createcluster.conf
    [ "$(id -u)" = 0 ] || sudo=sudo
    [ ! -e "$config" ] || return 0
    $sudo mkdir -p "$(dirname "$config")"
    echo 'create_main_cluster = false' | $sudo tee "$config" >/dev/null
}

# Prints the folder of the newest PostgreSQL's programs: Debian keeps initdb out of PATH.
postgres_bin() {
    if command -v initdb >/dev/null; then dirname "$(command -v initdb)" && return; fi
    find /usr/lib/postgresql -mindepth 2 -maxdepth 2 -name bin 2>/dev/null | sort -V | tail -n 1
}

# Debian keeps nginx and pgbouncer in sbin, which may be missing from PATH.
in_sbin() { PATH="$PATH:/usr/sbin:/usr/local/sbin" command -v "$1"; }

missing=()
REDIS=${STEADFAST_REDIS_SERVER:-redis-server}
command -v "$REDIS" >/dev/null || missing+=("$REDIS")
[ -n "$(postgres_bin)" ] || missing+=(postgresql)
in_sbin nginx >/dev/null || missing+=(nginx)
in_sbin pgbouncer >/dev/null || missing+=(pgbouncer)
if [ ${#missing[@]} != 0 ]; then
    if command -v apt-get >/dev/null; then no_cluster; fi
    "$(dirname "${BASH_SOURCE[0]}")/apt_install.sh" "${missing[@]}"
fi
PG=$(postgres_bin)
PGBOUNCER=$(in_sbin pgbouncer) || fail "there is no pgbouncer"
STEADFAST_NGINX=$(in_sbin nginx) || fail "there is no nginx"
export STEADFAST_NGINX

folder=$(mktemp -d)
redis_pid=""
pgbouncer_pid=""
# PostgreSQL and pgbouncer refuse to run as root.
as_user=()
if [ "$(id -u)" = 0 ]; then
    id -u postgres >/dev/null 2>&1 && as_user=(runuser -u postgres --) || as_user=(runuser -u nobody --)
fi

stop() {
    [ -z "$redis_pid" ] || kill "$redis_pid" 2>/dev/null || true
    [ -z "$pgbouncer_pid" ] || kill "$pgbouncer_pid" 2>/dev/null || true
    [ ! -e "$folder/pg/postmaster.pid" ] || (cd / && "${as_user[@]}" "$PG/pg_ctl" -D "$folder/pg" -m immediate stop >/dev/null) || true
    [ -z "$redis_pid" ] || wait "$redis_pid" 2>/dev/null || true
    [ -z "$pgbouncer_pid" ] || wait "$pgbouncer_pid" 2>/dev/null || true
    rm -rf "$folder"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Prints a random port. A server that cannot take it tries another.
port() { echo $((20000 + RANDOM % 12000)); }
listens() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

start_redis() {
    local try port
    for try in 1 2 3 4 5; do
        port=$(port)
        ! listens "$port" || continue
        "$REDIS" --bind 127.0.0.1 --port "$port" --dir "$folder" --save '' --appendonly yes --appendfsync everysec \
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
    fail "$REDIS does not start"
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
            postgres_port=$port
            export STEADFAST_POSTGRES_URL="postgres://steadfast@127.0.0.1:$port/postgres"
            return
        fi
    done
    cat "$folder/pg/log" >&2
    fail "PostgreSQL does not start"
}

# Succeeds if pgbouncer can keep prepared statements in transaction mode (1.21 and later).
keeps_statements() {
    local major minor
    IFS=. read -r major minor _ <<<"$("$PGBOUNCER" --version | sed -n 's/^PgBouncer //p')"
    [ "$major" -gt 1 ] || [ "$minor" -ge 21 ]
}

start_pgbouncer() {
    local try port config="$folder/pgbouncer/pgbouncer.ini"
    mkdir "$folder/pgbouncer"
    echo '"steadfast" ""' >"$folder/pgbouncer/users"
    for try in 1 2 3 4 5; do
        port=$(port)
        ! listens "$port" || continue
        {
            echo "[databases]"
            # Every database of that server by its name, so that each test can have its own.
            echo "* = host=127.0.0.1 port=$postgres_port"
            echo "[pgbouncer]"
            echo "listen_addr = 127.0.0.1"
            echo "listen_port = $port"
            echo "unix_socket_dir ="
            echo "auth_type = trust"
            echo "auth_file = $folder/pgbouncer/users"
            echo "pool_mode = transaction"
            echo "default_pool_size = 4"
            echo "max_client_conn = 500"
            # sqlx sends this when it connects, and pgbouncer does not know it.
            echo "ignore_startup_parameters = extra_float_digits"
            [ ${#as_user[@]} = 0 ] || echo "user = ${as_user[2]}"
            ! keeps_statements || echo "max_prepared_statements = 0"
        } >"$config"
        "$PGBOUNCER" "$config" >"$folder/pgbouncer.log" 2>&1 &
        pgbouncer_pid=$!
        while kill -0 "$pgbouncer_pid" 2>/dev/null; do
            if listens "$port"; then
                export STEADFAST_PGBOUNCER_URL="postgres://steadfast@127.0.0.1:$port/postgres"
                return
            fi
            sleep 0.05
        done
    done
    cat "$folder/pgbouncer.log" >&2
    fail "pgbouncer does not start"
}

start_redis
start_postgres
start_pgbouncer
"$@"
