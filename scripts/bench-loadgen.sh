#!/usr/bin/env bash
# Measures the load generator itself: what a message, a round trip and a handshake cost it, and beside it what a response costs wrk,
# an HTTP load generator in C, against nginx. These are the figures of "The load generator itself" in RESULTS.md.
#
#   scripts/bench-loadgen.sh [--passes N] [--no-build]
#
#   --passes N   runs of each kind (default 5); one line for each
#   --no-build   use the binaries that are there
#
# The server runs on SERVER_CPU (default 0), what is measured on LOADGEN_CPU (default 1). Without valgrind, or without
# wrk and nginx, that part is left out, and said so.
set -euo pipefail
cd "$(dirname "$0")/.."

# shellcheck source=scripts/common.sh
. scripts/common.sh

server_cpu=${SERVER_CPU:-0}
loadgen_cpu=${LOADGEN_CPU:-1}
binaries=${CARGO_TARGET_DIR:-target}/release
port=${BENCH_FIRST_PORT:-19700}
passes=5
build=yes
server_pid=""

while [ $# -gt 0 ]; do
    case $1 in
    --passes)
        [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || fail "--passes ${2:-}: expected a number from 1"
        passes=$2
        shift
        ;;
    --no-build) build=no ;;
    -h | --help)
        show_help
        exit 0
        ;;
    *) fail "$1: unknown option (see --help)" ;;
    esac
    shift
done

work=$(mktemp -d)
stop_server() {
    [ -n "$server_pid" ] || return 0
    kill -TERM "$server_pid" 2>/dev/null || true
    wait "$server_pid" 2>/dev/null || true
    server_pid=""
}
trap 'stop_server; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

# Starts a server, given as a command line, that listens on $port.
start_server() {
    taskset -c "$server_cpu" "$@" >"$work/server.log" 2>&1 &
    server_pid=$!
    for _ in $(seq 100); do
        if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then return 0; fi
        kill -0 "$server_pid" 2>/dev/null || break
        sleep 0.1
    done
    cat "$work/server.log" >&2
    fail "$1 did not start"
}

# Runs loadgen against a floor of its own and prints, after the title $1, the lines of its report that match $2.
loadgen() {
    local title=$1 lines=$2 text
    shift 2
    port=$((port + 1))
    if [ "$1" = echo ]; then start_server "$binaries/floor" --echo "$port"; else start_server "$binaries/floor" "$port"; fi
    text=$(taskset -c "$loadgen_cpu" "$binaries/loadgen" "$@" --url "ws://127.0.0.1:$port/" --pid "$server_pid" \
        --progress off) || { echo "$text" >&2 && fail "loadgen $*: it found errors"; }
    stop_server
    echo "$title:$(echo "$text" | grep -E "^  ($lines) " | sed 's/  */ /g' | paste -sd ';')"
}

# Runs loadgen under callgrind and prints the instructions in user mode for each of its messages.
instructions() {
    local sent=2000 subscribers=1000 total
    port=$((port + 1))
    start_server "$binaries/floor" "$port"
    total=$(valgrind --tool=callgrind --callgrind-out-file="$work/callgrind" "$binaries/loadgen" fanout \
        --connections "$subscribers" --window 500 --rounds "$sent" --warmup 500 --timeout 100s --progress off \
        --url "ws://127.0.0.1:$port/" 2>&1 | sed -n 's/.*Collected : //p')
    stop_server
    echo "callgrind: $((total / ((sent + 500) * (subscribers + 1)))) instructions per message, publishing and start included"
}

# Runs wrk with $2 requests in one write against nginx and prints, after the title $1, its rate and its CPU per response.
wrk_run() {
    local title=$1 depth=$2 rate responses
    port=$((port + 1))
    cat >"$work/nginx.conf" <<EOF
worker_processes 1;
daemon off;
pid $work/nginx.pid;
error_log stderr;
events { worker_connections 1024; }
http {
    access_log off;
    keepalive_requests 1000000000;
    server {
        listen 127.0.0.1:$port;
        location / { return 200 "0123456789012345678901234567890123456789012345678901234567890123"; }
    }
}
EOF
    cat >"$work/pipeline.lua" <<EOF
init = function(args)
    local requests = {}
    for i = 1, $depth do requests[i] = wrk.format("GET", "/") end
    request_bytes = table.concat(requests)
end
request = function() return request_bytes end
EOF
    start_server nginx -p "$work" -c "$work/nginx.conf"
    TIMEFORMAT='%U %S'
    { time taskset -c "$loadgen_cpu" wrk -t1 -c100 -d4s --timeout 30s -s "$work/pipeline.lua" "http://127.0.0.1:$port/" \
        >"$work/wrk.out" 2>&1; } 2>"$work/wrk.cpu" || { cat "$work/wrk.out" >&2 && fail "wrk failed"; }
    stop_server
    ! grep -E 'Socket errors|Non-2xx' "$work/wrk.out" >&2 || fail "wrk found errors"
    rate=$(sed -n 's/^Requests\/sec: *//p' "$work/wrk.out")
    responses=$(awk '/requests in/ { print $1 }' "$work/wrk.out")
    awk -v title="$title" -v rate="$rate" -v responses="$responses" '{
        printf "%s: %d responses/s; wrk cpu us per response %.3f; wrk CPU %.0f %% of a core\n",
            title, rate, ($1 + $2) * 1e6 / responses, ($1 + $2) * 100 / 4
    }' "$work/wrk.cpu"
}

if [ "$build" = yes ]; then cargo build --release --package loadgen --package floor; fi
for binary in loadgen floor; do
    [ -x "$binaries/$binary" ] || fail "$binaries/$binary is missing; run without --no-build"
done

for pass in $(seq "$passes"); do
    loadgen "messages, 500 in flight, pass $pass" 'client cpu us.*|deliveries per.*|loadgen CPU.*|server CPU.*|other cpu.*' \
        fanout --connections 1000 --window 500 --duration 4s
    loadgen "round trips, one in flight on each of 100 connections, pass $pass" \
        'client cpu us.*|round trips per.*|loadgen CPU.*' echo --connections 100 --duration 4s
    loadgen "handshakes, ended by reset, pass $pass" \
        'client cpu us.*|handshakes per.*|server cpu us.*|loadgen CPU.*' connect --connections 1000 --duration 4s --reset
done
if command -v valgrind >/dev/null; then
    instructions
else
    echo "callgrind: left out, valgrind is not installed"
fi
if command -v wrk >/dev/null && command -v nginx >/dev/null; then
    for pass in $(seq "$passes"); do
        wrk_run "wrk, one request in flight on each of 100 connections, pass $pass" 1
        wrk_run "wrk, 64 requests in one write, pass $pass" 64
    done
else
    echo "wrk: left out, wrk or nginx is not installed"
fi
