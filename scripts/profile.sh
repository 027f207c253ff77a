#!/usr/bin/env bash
# Where the server's CPU time goes: samples the server with perf while loadgen keeps it busy, and sorts the samples into
# kernel, protocol, engine and the rest. Needs perf (Debian's package linux-perf) and addr2line (binutils).
#
#   scripts/profile.sh [--no-build] [--server FILE] [--seconds N] [--top N] [SCENARIO…]
#
#   --no-build     use the binaries that are there
#   --server FILE  profile this build of corecast: for a comparison of before and after
#   --seconds N    length of each measurement (default 8)
#   --top N        name the N functions with the most samples outside the kernel (default 0)
#   SCENARIO       fanout-1k fanout-10k fanout-1k-w50 echo connect (default: all)
#
# A sample outside the kernel belongs to the innermost function that is not of Rust's standard library, inlined ones
# included: protocol is src/ws/ and what it parses and hashes with, memory is malloc and memcpy, engine is everything else.
# SERVER_CPU (default 0) and LOADGEN_CPU (default 1) choose the CPUs.
set -euo pipefail
cd "$(dirname "$0")/.."

server_cpu=${SERVER_CPU:-0}
loadgen_cpu=${LOADGEN_CPU:-1}
binaries=${CARGO_TARGET_DIR:-target}/release
server=$binaries/corecast
build=yes
seconds=8
top=0
chosen=""
all="fanout-1k fanout-10k fanout-1k-w50 echo connect"

fail() {
    echo "profile.sh: $1" >&2
    exit 2
}

number() {
    [[ ${2:-} =~ ^[0-9]+$ ]] || fail "$1 ${2:-}: expected a number"
}

while [ $# -gt 0 ]; do
    case $1 in
    --no-build) build=no ;;
    --server)
        server=${2:-}
        [ -x "$server" ] || fail "--server $server: no such program"
        shift
        ;;
    --seconds)
        number "$1" "${2:-}"
        seconds=$2
        shift
        ;;
    --top)
        number "$1" "${2:-}"
        top=$2
        shift
        ;;
    -h | --help)
        sed -n '2,/^set/p' "$0" | sed -n 's/^# \{0,1\}//p'
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
for tool in perf addr2line setarch; do
    command -v "$tool" >/dev/null || fail "$tool is not installed"
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

# Without randomised addresses the program lies at a known place, which addr2line must be told.
start_server() {
    : >"$work/server.out"
    setarch -R taskset -c "$server_cpu" "$server" --listen 127.0.0.1:0 --control off --client-publish --echo \
        --keepalive 30s --drain-window 0ms --cpus "$server_cpu" >"$work/server.out" 2>"$work/server.err" &
    server_pid=$!
    url=""
    for _ in $(seq 100); do
        url=$(grep -om1 'ws://[0-9.]*:[0-9]*' "$work/server.out" || true)
        [ -z "$url" ] || return 0
        sleep 0.1
    done
    cat "$work/server.err" >&2
    fail "corecast did not start"
}

stop_server() {
    kill -TERM "$server_pid" 2>/dev/null || true
    wait "$server_pid" 2>/dev/null || true
    server_pid=""
}

# Sampling begins when the connections are open; of `connect`, opening and closing them is what is sampled.
record() {
    local arguments settle=3
    case $1 in
    fanout-1k) arguments="fanout --connections 1000 --window 1 --rounds 1000000 --url $url/pubsub/profile" ;;
    fanout-10k) arguments="fanout --connections 10000 --window 1 --rounds 1000000 --url $url/pubsub/profile" ;;
    fanout-1k-w50) arguments="fanout --connections 1000 --window 50 --rounds 1000000 --url $url/pubsub/profile" ;;
    echo) arguments="echo --connections 1000 --rounds 1000000 --url $url/echo" ;;
    connect)
        arguments="connect --connections 5000 --duration $((seconds + 4))s --url $url/sub/profile"
        settle=2
        ;;
    esac
    # The arguments are words by intention.
    # shellcheck disable=SC2086
    taskset -c "$loadgen_cpu" timeout "$((seconds + settle + 5))" "$binaries/loadgen" $arguments --progress off \
        >"$work/loadgen.out" 2>&1 &
    local loadgen_pid=$!
    sleep "$settle"
    base=$(sed -n '1s/-.*//p' "/proc/$server_pid/maps")
    perf record --quiet --freq 4000 --pid "$server_pid" --output "$work/perf.data" -- sleep "$seconds" \
        >"$work/perf.out" 2>&1 || { cat "$work/perf.out" >&2 && fail "$1: perf record failed"; }
    if ! kill -INT "$loadgen_pid" 2>/dev/null; then
        cat "$work/loadgen.out" >&2
        fail "$1: loadgen ended before the samples were taken"
    fi
    wait "$loadgen_pid" 2>/dev/null || true
}

# Lines of what a sample belongs to and its function, one for each sample.
classify() {
    perf script --input "$work/perf.data" --fields ip,sym,dso 2>/dev/null |
        awk -v program="$(basename "$server")" '
            index($0, "/" program ")") { print "program", $1; next }
            /\((\[kernel|\[guest|\[bpf|\[unknown\]|bpf_|.*\.ko)[^(]*\)$/ { print "kernel"; next }
            { print ($0 ~ /libc|ld-linux/ && $0 ~ /alloc|free|mem(cpy|move|set)|consolidate|sysmalloc/) ? "memory" : "system", $2 }
        ' >"$work/samples"
    awk '$1 == "program" { print $2 }' "$work/samples" | sort -u >"$work/addresses"
    # awk cannot be trusted with numbers of 64 bits.
    while read -r address; do
        printf '%x\n' $((16#$address - 16#$base))
    done <"$work/addresses" | addr2line -a -i -f -C -e "$server" |
        awk '
            /^0x[0-9a-f]+$/ { if (seen) print place; place = ""; seen = 1; next }
            { name = $0; getline file; if (place != "" && !standard) next }
            { standard = file ~ /^\/rustc\/|\/library\/(core|alloc|std)\/|^\/rust\/deps\// }
            {
                kind = "engine"
                if (file ~ /\/src\/ws\/|\/(tungstenite|http|httparse|sha1|base64|data-encoding|bytes|simdutf8|flate2|zlib-rs)-[0-9]/) kind = "protocol"
                gsub(/ /, "_", name)
                place = kind " " name
            }
            END { if (seen) print place }
        ' >"$work/places"
    paste -d ' ' "$work/addresses" "$work/places" >"$work/table"
    awk '
        FNR == NR { place[$1] = $2 " " $3; next }
        $1 == "program" { print place[$2]; next }
        { print $1, $2 }
    ' "$work/table" "$work/samples" >"$work/classified"
}

report() {
    awk -v scenario="$1" '
        { count[$1]++ }
        END {
            printf "| %s | %d |", scenario, NR
            split("kernel protocol engine memory system", kinds)
            for (i = 1; i <= 5; i++) printf " %.1f %% |", 100 * count[kinds[i]] / NR
            printf " **%.1f %%** |\n", 100 * (NR - count["kernel"]) / NR
        }
    ' "$work/classified"
    [ "$top" -gt 0 ] || return 0
    grep -v '^kernel' "$work/classified" | sort | uniq -c | sort -rn | sed -n "1,${top}p" |
        awk -v all="$(wc -l <"$work/classified")" '{ printf "    %5.2f %%  %-8s %s\n", 100 * $1 / all, $2, $3 }' >&2
}

echo "| scenario | samples | kernel | protocol | engine | memory | system calls, clock | all outside the kernel |"
echo "|---|---|---|---|---|---|---|---|"
for scenario in ${chosen:-$all}; do
    start_server
    record "$scenario"
    stop_server
    classify
    [ -s "$work/classified" ] || fail "$scenario: perf took no samples"
    report "$scenario"
done
