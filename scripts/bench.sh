#!/usr/bin/env bash
# Runs the paired scenarios behind RESULTS.md: the servers of a scenario in turn, pass after pass, each on one CPU
# and loadgen on another. Raw results go to bench/results/, plots to bench/results/plots/, tables to
# bench/results/tables.md and to the terminal.
#
#   scripts/bench.sh [--quick] [--pairs N] [--no-build] [--no-run] [--update FILE] [SCENARIO…]
#
#   --quick        short runs, one pass: shows that everything works, measures little
#   --pairs N      passes of each scenario (default 5)
#   --no-build     use the binaries that are there
#   --no-run       measure nothing: make tables and plots from the raw results that are there
#   --update FILE  replace what stands between <!-- bench:begin --> and <!-- bench:end --> in FILE by the tables,
#                  which refer to the plots; FILE stands beside bench/
#   SCENARIO       a file of bench/scenarios/ without .sh (default: all)
#
# SERVER_CPU (default 0) and LOADGEN_CPU (default 1) choose the CPUs. Exit code 1 if a run lost or failed anything.
set -euo pipefail
cd "$(dirname "$0")/.."

server_cpu=${SERVER_CPU:-0}
loadgen_cpu=${LOADGEN_CPU:-1}
binaries=${CARGO_TARGET_DIR:-target}/release
results=bench/results
plots=$results/plots
order="fanout-1k-w1 fanout-10k-w1 fanout-1k-w50 lone-w1 compressed-1k compressed-10k shards-1k-w1 shards-1k-w50 echo-100 echo-1000 idle-10k"
pairs=""
quick_run=no
build=yes
run=yes
update=""
chosen=""
port=${BENCH_FIRST_PORT:-19400}
server_pid=""
failed=0

fail() {
    echo "bench.sh: $1" >&2
    exit 2
}

while [ $# -gt 0 ]; do
    case $1 in
    --quick) quick_run=yes ;;
    --pairs)
        [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || fail "--pairs ${2:-}: expected a number from 1"
        pairs=$2
        shift
        ;;
    --no-build) build=no ;;
    --no-run) run=no ;;
    --update)
        update=${2:-}
        [ -f "$update" ] || fail "--update $update: no such file"
        shift
        ;;
    -h | --help)
        sed -n '2,/^set/p' "$0" | sed -n 's/^# \{0,1\}//p'
        exit 0
        ;;
    -*) fail "$1: unknown option (see --help)" ;;
    *)
        [ -f "bench/scenarios/$1.sh" ] || fail "$1: no such scenario; there are: $order"
        chosen="$chosen $1"
        ;;
    esac
    shift
done
if [ -z "$pairs" ]; then
    if [ "$quick_run" = yes ]; then pairs=1; else pairs=5; fi
fi
for cpu in "$server_cpu" "$loadgen_cpu"; do
    taskset -c "$cpu" true 2>/dev/null || fail "CPU $cpu is not there; set SERVER_CPU and LOADGEN_CPU"
done

stop_server() {
    [ -n "$server_pid" ] || return 0
    kill -TERM "$server_pid" 2>/dev/null || true
    for _ in $(seq 150); do
        kill -0 "$server_pid" 2>/dev/null || break
        sleep 0.1
    done
    kill -KILL "$server_pid" 2>/dev/null || true
    wait "$server_pid" 2>/dev/null || true
    server_pid=""
}
logs=$(mktemp -d)
trap 'stop_server; rm -rf "$logs"' EXIT
trap 'exit 130' INT TERM

# Sets `command` to the command line of server $1 on $port; it echoes where the scenario's route is /echo.
server_command() {
    local echo=""
    if [ "$route" = /echo ]; then echo=" --echo"; fi
    local corecast="$binaries/corecast --listen 127.0.0.1:$port --control off --client-publish --keepalive 30s --drain-window 0ms$echo"
    case $1 in
    floor) command="taskset -c $server_cpu $binaries/floor$echo $port" ;;
    corecast | corecast-plain) command="taskset -c $server_cpu $corecast --cpus $server_cpu" ;;
    corecast-executor) command="taskset -c $server_cpu $corecast --cpus $server_cpu --wait executor" ;;
    corecast-2-shards-1-cpu) command="taskset -c $server_cpu $corecast --cores 2 --oversubscribe" ;;
    corecast-2-shards-2-cpus) command="taskset -c $server_cpu,$loadgen_cpu $corecast --cores 2" ;;
    *) fail "unknown server $1" ;;
    esac
}

start_server() {
    port=$((port + 1))
    server_command "$1"
    local log
    log=$logs/$1.log
    $command >"$log" 2>&1 &
    server_pid=$!
    for _ in $(seq 100); do
        if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then return 0; fi
        kill -0 "$server_pid" 2>/dev/null || break
        sleep 0.1
    done
    echo "bench.sh: $1 did not start; its output:" >&2
    cat "$log" >&2
    server_pid=""
    return 1
}

# Runs load $2 of scenario $1 against server $3, pass $4; for a server named -plain without --compression.
run_once() {
    local scenario=$1 arguments=$2 server=$3 pass=$4
    case $server in *-plain) arguments=${arguments// --compression/} ;; esac
    local json=$results/$scenario.$server.$pass.json text
    rm -f "$json"
    if ! start_server "$server"; then
        failed=1
        return 0
    fi
    # The arguments are words by intention.
    # shellcheck disable=SC2086
    text=$(taskset -c "$loadgen_cpu" "$binaries/loadgen" $arguments --url "ws://127.0.0.1:$port$route" \
        --pid "$server_pid" --json "$json" --progress off --label "scenario=$about" --label "server=$server" \
        --label "pass=$pass" --label "server_command=$command") || failed=1
    stop_server
    echo "pass $pass/$pairs  $scenario  $server: $(echo "$text" | sed -n \
        's/^  server cpu us per \([a-z ]*[a-z]\) *\(.*\)/\2 µs per \1/p
         s/^  server anonymous bytes per connection *\(.*\)/\1 B a connection/p
         s/^  other cpu percent *\(.*\)/(others used \1 % of a core)/p' | tac | tr '\n' ' ')" \
        "$(echo "$text" | tail -1)" >&2
}

run_scenario() {
    local scenario=$1 pass server arguments about="" servers="" load="" quick="" route=/pubsub/bench turn
    # shellcheck source=/dev/null
    . "bench/scenarios/$scenario.sh"
    if [ "$quick_run" = yes ]; then arguments=$quick; else arguments=$load; fi
    rm -f "$results/$scenario".*.json
    for pass in $(seq "$pairs"); do
        turn=$servers
        if [ $((pass % 2)) = 0 ]; then turn=$(echo "$servers" | tr ' ' '\n' | tac | tr '\n' ' '); fi
        for server in $turn; do
            run_once "$scenario" "$arguments" "$server" "$pass"
        done
    done
}

# All results that are there: scenarios, servers and passes in their order.
result_files() {
    local scenario server about="" servers="" load="" quick=""
    for scenario in $order; do
        # shellcheck source=/dev/null
        . "bench/scenarios/$scenario.sh"
        for server in $servers; do
            ls -v "$results/$scenario.$server".*.json 2>/dev/null || true
        done
    done
}

if [ "$run" = no ]; then
    [ -z "$chosen" ] || fail "--no-run takes no scenarios: tables and plots are made of all results"
    order_of_runs="" needed="loadgen" packages="--package loadgen"
else
    order_of_runs=${chosen:-$order} needed="loadgen floor corecast" packages="--workspace"
fi
# The packages are words by intention.
# shellcheck disable=SC2086
if [ "$build" = yes ]; then cargo build --release $packages; fi
for binary in $needed; do
    [ -x "$binaries/$binary" ] || fail "$binaries/$binary is missing; run without --no-build"
done
mkdir -p "$results"
for scenario in $order_of_runs; do
    run_scenario "$scenario"
done

files=$(result_files)
[ -n "$files" ] || fail "no results"
rm -f "$plots"/*.svg
# shellcheck disable=SC2086
"$binaries/loadgen" report --plots "$plots" $files | tee "$logs/tables.md"
# tables.md is two directories further down than what --update writes to.
sed "s|]($plots/|](plots/|" "$logs/tables.md" >"$results/tables.md"
if [ -n "$update" ]; then
    if [ "$(grep -c -e '<!-- bench:begin -->' -e '<!-- bench:end -->' "$update")" != 2 ]; then
        fail "--update $update: expected <!-- bench:begin --> and <!-- bench:end --> once each"
    fi
    awk -v tables="$logs/tables.md" '
        /<!-- bench:begin -->/ { print; print ""; while ((getline line < tables) > 0) print line; print ""; skip = 1 }
        /<!-- bench:end -->/ { skip = 0 }
        !skip { print }
    ' "$update" >"$update.new" && mv "$update.new" "$update"
fi
exit "$failed"
