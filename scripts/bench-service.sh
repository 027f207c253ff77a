#!/usr/bin/env bash
# The push service as a whole: that nobody misses anything while subscribers come and go, how long all take to come back at
# once, and how fast messages can be published by HTTP. Results go to bench/results/service/.
#
#   scripts/bench-service.sh [--no-build] [--quick] [--results DIR]
#
#   --no-build     use the binaries that are there
#   --quick        short runs: shows that everything works, measures little; needs --results
#   --results DIR  write there what would go to bench/results/service/
#
# SERVER_CPU (default 0) and LOADGEN_CPU (default 1) choose the CPUs. Exit code 1 if anything was lost or failed.
set -euo pipefail
called_from=$PWD
cd "$(dirname "$0")/.."

# shellcheck source=scripts/common.sh
. scripts/common.sh

server_cpu=${SERVER_CPU:-0}
loadgen_cpu=${LOADGEN_CPU:-1}
binaries=${CARGO_TARGET_DIR:-target}/release
results=bench/results/service
build=yes
quick=no
chosen=no

while [ $# -gt 0 ]; do
    case $1 in
    --no-build) build=no ;;
    --quick) quick=yes ;;
    --results)
        [ -n "${2:-}" ] || fail "--results: expected a directory"
        results=$2 chosen=yes
        case $2 in /*) ;; *) results=$called_from/$2 ;; esac
        shift
        ;;
    -h | --help)
        show_help
        exit 0
        ;;
    *) fail "$1: unknown option (see --help)" ;;
    esac
    shift
done
[ "$quick$chosen" != yesno ] || fail "--quick needs --results: it measures little"
if [ "$build" = yes ]; then cargo build --release --workspace; fi
mkdir -p "$results"
# 15,000 connections need more descriptors than the 1,024 that are usual.
ulimit -Sn hard

work=$(mktemp -d)
server=""
clean_up() {
    [ -z "$server" ] || kill -KILL "$server" 2>/dev/null || true
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# Starts the server with the flags given, and sets url and control.
start() {
    : >"$work/server.out"
    taskset -c "$server_cpu" "$binaries/corecast" --listen 127.0.0.1:0 --control 127.0.0.1:0 --cpus "$server_cpu" \
        --client-publish --drain-window 0ms "$@" >"$work/server.out" 2>"$work/server.err" &
    server=$!
    wait_for_address ws "$server" "$work"
    url=$address
    wait_for_address http "$server" "$work"
    control=$address
}

stop() {
    kill -TERM "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
    server=""
}

failed=0
# Runs loadgen with the arguments given, and keeps the result as $1.
load() {
    local name=$1
    shift
    taskset -c "$loadgen_cpu" "$binaries/loadgen" "$@" --pid "$server" --progress off --json "$results/$name.json" || failed=1
}

verify="--connections 5000 --topics 10 --rate 2000 --churn 20 --duration 60s"
storm="--connections 15000 --rounds 5"
passes=3 seconds=5
if [ "$quick" = yes ]; then
    verify="--connections 200 --topics 4 --rate 200 --churn 20 --duration 2s"
    storm="--connections 500 --rounds 2"
    passes=1 seconds=1
fi

# The arguments are words by intention.
# shellcheck disable=SC2086
{
    start --history 20000
    load verify verify --url "$url/pubsub/check" $verify
    stop
    start
    load storm storm --url "$url/pubsub/storm" $storm
    stop
}

: >"$results/publish.txt"
for arguments in "--connections 32 --depth 16" "--connections 64 --depth 1" "--connections 8 --depth 2 --batch 100"; do
    for _ in $(seq "$passes"); do
        start
        echo "publish $arguments --seconds $seconds" | tee -a "$results/publish.txt"
        # shellcheck disable=SC2086
        taskset -c "$loadgen_cpu" "$binaries/publish" --control "${control#http://}" --seconds "$seconds" $arguments |
            tee -a "$results/publish.txt" || failed=1
        stop
    done
done
[ "$failed" = 0 ]
