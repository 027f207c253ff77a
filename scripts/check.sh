#!/usr/bin/env bash
# The one gate: format, lints, tests, docs, shell scripts, and short runs of server and loadgen together.
# Everything is an error; the first error ends it.
set -euo pipefail

if [ $# -gt 0 ]; then
    cat <<END
usage: $0
Format, lints, tests, docs, shell scripts, and short runs of server and loadgen together, the release build included. The
first error ends it. It takes no arguments, and a good while.
END
    [ "$1" = --help ] || [ "$1" = -h ] || exit 2
    exit
fi

cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
began=$(date +%s)

step() {
    printf '\n=== %s (after %s s)\n' "$1" "$(($(date +%s) - began))"
    shift
    "$@"
}

lint_scripts() {
    if ! command -v shellcheck >/dev/null; then
        echo "SKIPPED: shellcheck is not installed"
        return
    fi
    shellcheck -x scripts/*.sh scripts/packaging/*.sh bench/peers/*.sh bench/peers/nginx/*.sh .ci/run
}

server=
work=
clean_up() {
    [ -z "$server" ] || kill -KILL "$server" 2>/dev/null || true
    [ -z "$work" ] || rm -rf "$work"
}
trap clean_up EXIT

smoke_failed() {
    printf 'smoke: %s\n' "$*" >&2
    cat "$work/server.out" "$work/server.err" >&2
    exit 1
}

# The release server and loadgen, as a user would run them. loadgen exits 1 on anything lost or failed.
smoke() {
    work=$(mktemp -d)
    : >"$work/server.out"
    "$target/release/corecast" --listen 127.0.0.1:0 --control 127.0.0.1:0 --echo --client-publish \
        --history 10000 --drain-window 1s >"$work/server.out" 2>"$work/server.err" &
    server=$!
    local url='' control='' _
    for _ in $(seq 600); do
        url=$(grep -om1 'ws://[0-9.]*:[0-9]*' "$work/server.out" || true)
        control=$(grep -om1 'http://[0-9.]*:[0-9]*' "$work/server.out" || true)
        [ -z "$url" ] || [ -z "$control" ] || break
        kill -0 "$server" 2>/dev/null || break
        sleep 0.1
    done
    if [ -z "$url" ] || [ -z "$control" ]; then smoke_failed "corecast did not start"; fi

    "$target/release/loadgen" fanout --url "$url/pubsub/smoke" --connections 200 --rate 200 --duration 5s \
        --pid "$server" --progress off || smoke_failed "loadgen fanout found errors"
    "$target/release/loadgen" echo --url "$url/echo" --connections 20 --duration 2s \
        --pid "$server" --progress off || smoke_failed "loadgen echo found errors"
    "$target/release/loadgen" verify --url "$url/pubsub/verify" --connections 500 --rate 500 --churn 20 --duration 5s \
        --pid "$server" --progress off || smoke_failed "loadgen verify found errors"
    "$target/release/loadgen" storm --url "$url/pubsub/storm" --connections 1000 --rounds 2 \
        --pid "$server" --progress off || smoke_failed "loadgen storm found errors"

    kill -TERM "$server"
    wait "$server" || smoke_failed "corecast did not exit with 0 on SIGTERM"
    server=
    ! grep -q 'panicked' "$work/server.err" || smoke_failed "corecast panicked"
}

# The benchmarks of scripts/ and bench/ as a user would run them, shortly: that they work, not what they measure.
benchmarks() {
    local cpus server_cpu loadgen_cpu
    cpus=$(taskset -cp $$ | sed 's/.*: //')
    server_cpu=${cpus%%[-,]*} loadgen_cpu=${cpus##*[-,]}
    SERVER_CPU=$server_cpu LOADGEN_CPU=$loadgen_cpu CARGO_TARGET_DIR=$target scripts/bench.sh --no-build --quick \
        --results "$work/results" fanout-100-w1 open-loop-1k shards-1k-oversubscribed echo-100 connect-1k-rival idle-1k \
        >"$work/bench.out" || return 1
    grep -q '^|' "$work/results/tables.md" || return 1
    SERVER_CPU=$server_cpu LOADGEN_CPU=$loadgen_cpu CARGO_TARGET_DIR=$target scripts/bench-service.sh --no-build --quick \
        --results "$work/service" || return 1
    bench/large_broadcasts.py "$target/release/corecast" 100 50000 5 || return 1
    if command -v valgrind >/dev/null; then
        CARGO_TARGET_DIR=$target scripts/count-instructions.sh --no-build echo || return 1
    else
        echo "SKIPPED: scripts/count-instructions.sh needs valgrind"
    fi
    if ! perf record --quiet --output "$work/perf.data" true 2>/dev/null; then
        echo "SKIPPED: scripts/profile.sh needs perf, and leave to use it"
        return
    fi
    SERVER_CPU=$server_cpu LOADGEN_CPU=$loadgen_cpu CARGO_TARGET_DIR=$target scripts/profile.sh --no-build --seconds 1 \
        fanout-1k echo
}

step "format" cargo fmt --all --check
step "format of the peers" cargo fmt --manifest-path bench/peers/Cargo.toml --check
step "lints" cargo clippy --workspace --all-targets -- -D warnings
step "shell scripts" lint_scripts
step "tests" cargo test --workspace
step "docs" env RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps
step "release build" cargo build --workspace --release
step "smoke run" smoke
step "benchmarks" benchmarks
printf '\ncheck.sh: all good after %s s\n' "$(($(date +%s) - began))"
