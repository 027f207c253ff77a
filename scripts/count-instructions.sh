#!/usr/bin/env bash
# Instructions that the server executes outside the kernel for one delivery, one round trip, or one handshake: valgrind counts
# them in a run and in one twice as long, so that start and connecting cancel out. Unlike times, they are the same on
# a busy machine; what the kernel does is not in them.
#
#   scripts/count-instructions.sh [--no-build] [--server FILE] [--top N] [SCENARIO…]
#
#   --no-build     use the binaries that are there
#   --server FILE  count in this build of corecast: for a comparison of before and after
#   --top N        name the N functions with the most instructions in the longer run (default 0)
#   SCENARIO       fanout echo connect (default: all): 1,000 subscribers and one message in flight; 200 connections and
#                  one message in flight on each; opening and closing a connection
#
# Needs valgrind.
set -euo pipefail
cd "$(dirname "$0")/.."

# shellcheck source=scripts/common.sh
. scripts/common.sh

binaries=${CARGO_TARGET_DIR:-target}/release
server=$binaries/corecast
port=${BENCH_FIRST_PORT:-19950}
build=yes
top=0
chosen=""
all="fanout echo connect"

while [ $# -gt 0 ]; do
    case $1 in
    --no-build) build=no ;;
    --server)
        server=${2:-}
        [ -x "$server" ] || fail "--server $server: no such program"
        shift
        ;;
    --top)
        [[ ${2:-} =~ ^[0-9]+$ ]] || fail "--top ${2:-}: expected a number"
        top=$2
        shift
        ;;
    -h | --help)
        show_help
        exit 0
        ;;
    -*) fail "$1: unknown option (see --help)" ;;
    *)
        [[ " $all " == *" $1 "* ]] || fail "$1: no such scenario; there are: $all"
        chosen="$chosen $1"
        ;;
    esac
    shift
done
for tool in valgrind callgrind_control callgrind_annotate; do
    command -v "$tool" >/dev/null || fail "$tool is not installed (Debian's package valgrind)"
done
if [ "$build" = yes ]; then cargo build --release --workspace; fi

work=$(mktemp -d)
server_pid=""
clean_up() {
    [ -z "$server_pid" ] || kill -KILL "$server_pid" 2>/dev/null || true
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# Runs scenario $1 with $2 rounds, and leaves what valgrind counted in $work/$2.
run() {
    local rounds=$2 arguments url counts=$work/$2
    port=$((port + 1))
    url=ws://127.0.0.1:$port
    valgrind --tool=callgrind --callgrind-out-file="$counts" "$server" --listen "127.0.0.1:$port" --control off \
        --client-publish --echo --keepalive 1h --drain-window 0ms --cores 1 >"$work/server.out" 2>&1 &
    server_pid=$!
    # valgrind lets one thread run at a time, and none while a shard sleeps: the server serves long before it says so.
    for _ in $(seq 300); do
        if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then break; fi
        kill -0 "$server_pid" 2>/dev/null || { cat "$work/server.out" >&2 && fail "corecast did not start"; }
        sleep 0.1
    done
    case $1 in
    fanout) arguments="fanout --connections 1000 --window 1 --warmup 10 --rounds $rounds --url $url/pubsub/count" ;;
    echo) arguments="echo --connections 200 --warmup 10 --rounds $rounds --url $url/echo" ;;
    connect) arguments="connect --connections $rounds --url $url/sub/count" ;;
    esac
    # The arguments are words by intention.
    # shellcheck disable=SC2086
    timeout 120 "$binaries/loadgen" $arguments --timeout 60s --progress off >"$work/loadgen.out" 2>&1 ||
        { cat "$work/loadgen.out" >&2 && fail "loadgen failed"; }
    # The counts so far. The server is then killed: its end is no part of them.
    timeout 60 callgrind_control --dump "$server_pid" >/dev/null 2>&1 || fail "valgrind does not answer"
    for _ in $(seq 100); do
        [ -s "$counts.1" ] && break
        sleep 0.1
    done
    kill -KILL "$server_pid" 2>/dev/null || true
    wait "$server_pid" 2>/dev/null || true
    server_pid=""
    [ -s "$counts.1" ] || fail "valgrind counted nothing"
}

instructions() {
    sed -n 's/^totals: //p' "$work/$1.1"
}

for scenario in ${chosen:-$all}; do
    case $scenario in
    fanout) rounds=300 units=1001 name="a delivery" ;;
    echo) rounds=300 units=200 name="a round trip" ;;
    connect) rounds=1500 units=1 name="a handshake" ;;
    esac
    run "$scenario" "$rounds"
    run "$scenario" $((2 * rounds))
    awk -v less="$(instructions "$rounds")" -v more="$(instructions $((2 * rounds)))" -v count=$((rounds * units)) \
        -v scenario="$scenario" -v name="$name" \
        'BEGIN { printf "%-8s %.0f instructions for %s\n", scenario, (more - less) / count, name }'
    if [ "$top" -gt 0 ]; then
        callgrind_annotate "$work/$((2 * rounds)).1" 2>/dev/null |
            awk '
                / file:function *$/ { in_list = 1 }
                in_list && /^$/ { in_list = 0 }
                in_list && /^ *[0-9,]+ +\( *[0-9.]+%\) / {
                    count = $1; gsub(/,/, "", count)
                    sub(/^[^)]*\) +[^:]*:/, ""); sub(/ \[[^\]]*\]$/, "")
                    counts[$0] += count
                }
                END { for (name in counts) printf "    %12d  %s\n", counts[name], name }
            ' | sort -rn | sed -n "1,${top}p"
    fi
done
