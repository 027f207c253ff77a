#!/usr/bin/env bash
# Where the server's CPU time goes: samples the server with perf while loadgen keeps it busy, and sorts the samples into
# kernel, protocol, engine and the rest. Needs perf (Debian's package linux-perf) and addr2line (binutils).
#
#   scripts/profile.sh [--no-build] [--no-run] [--server FILE] [--seconds N] [--top N] [--update FILE] [SCENARIO…]
#
#   --no-build     use the binaries that are there
#   --no-run       measure nothing: make the table from the samples that bench/results/profile/ has
#   --server FILE  profile this build of corecast: for a comparison of before and after
#   --seconds N    length of each measurement (default 8)
#   --top N        name the N functions with the most samples outside the kernel (default 0)
#   --update FILE  keep how many samples each function had in bench/results/profile/, and replace what stands between
#                  <!-- profile:begin --> and <!-- profile:end --> in FILE by the table
#   SCENARIO       fanout-1k fanout-10k fanout-1k-w50 echo connect (default: all)
#
# A sample outside the kernel belongs to the innermost function that is not of Rust's standard library, inlined ones
# included: protocol is src/ws/ and what it parses and hashes with, memory is malloc and memcpy, engine is everything else.
# SERVER_CPU (default 0) and LOADGEN_CPU (default 1) choose the CPUs.
set -euo pipefail
cd "$(dirname "$0")/.."

# shellcheck source=scripts/common.sh
. scripts/common.sh

server_cpu=${SERVER_CPU:-0}
loadgen_cpu=${LOADGEN_CPU:-1}
binaries=${CARGO_TARGET_DIR:-target}/release
server=$binaries/corecast
build=yes
run=yes
update=""
results=bench/results/profile
seconds=8
top=0
chosen=""
all="fanout-1k fanout-10k fanout-1k-w50 echo connect"

number() {
    [[ ${2:-} =~ ^[0-9]+$ ]] || fail "$1 ${2:-}: expected a number"
}

while [ $# -gt 0 ]; do
    case $1 in
    --no-build) build=no ;;
    --no-run) run=no ;;
    --update)
        update=${2:-}
        [ -f "$update" ] || fail "--update $update: no such file"
        shift
        ;;
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
if [ "$run" = yes ]; then
    for tool in perf addr2line setarch; do
        command -v "$tool" >/dev/null || fail "$tool is not installed"
    done
elif [ -n "$chosen" ]; then
    fail "--no-run takes no scenarios: the table is made of all of them"
fi
[ -z "$update" ] || [ -z "$chosen" ] || fail "--update takes no scenarios: the table has all of them"
if [ "$build$run" = yesyes ]; then cargo build --release --workspace; fi

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
    wait_for_address ws "$server_pid" "$work"
    url=$address
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

# Sorts the samples by what they belong to. Writes the number of samples that each function of scenario $1 had to $work/$1.txt, the most first.
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
                if (file ~ /\/rustix-[0-9]/) kind = "system"
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
    sort "$work/classified" | uniq -c | sort -k1,1nr -k2 | awk '{ print $1, $2, $3 }' >"$work/$1.txt"
}

# The line of scenario $1, of which file $2 has the number of samples of each function.
report() {
    awk -v scenario="$1" '
        { count[$2] += $1; all += $1 }
        END {
            printf "| %s | %d |", scenario, all
            split("kernel protocol engine memory system", kinds)
            for (i = 1; i <= 5; i++) printf " %.1f %% |", 100 * count[kinds[i]] / all
            printf " **%.1f %%** |\n", 100 * (all - count["kernel"]) / all
        }
    ' "$2"
    [ "$top" -gt 0 ] || return 0
    awk -v top="$top" '
        { all += $1 }
        $2 != "kernel" && lines < top { line[lines++] = $0 }
        END {
            for (i = 0; i < lines; i++) {
                split(line[i], words)
                printf "    %5.2f %%  %-8s %s\n", 100 * words[1] / all, words[2], words[3]
            }
        }
    ' "$2" >&2
}

{
    echo "| scenario | samples | kernel | protocol | engine | memory | system calls, clock | all outside the kernel |"
    echo "|---|---|---|---|---|---|---|---|"
} | tee "$work/table.md"
for scenario in ${chosen:-$all}; do
    counts=$results/$scenario.txt
    if [ "$run" = yes ]; then
        counts=$work/$scenario.txt
        start_server
        record "$scenario"
        stop_server
        classify "$scenario"
    fi
    [ -s "$counts" ] || fail "$scenario: there are no samples"
    report "$scenario" "$counts" | tee -a "$work/table.md"
done
if [ -n "$update" ]; then
    if [ "$run" = yes ]; then
        mkdir -p "$results"
        for scenario in $all; do cp "$work/$scenario.txt" "$results/"; done
    fi
    scripts/replace-block.sh "$update" profile <"$work/table.md"
fi
