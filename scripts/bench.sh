#!/usr/bin/env bash
# Runs the paired scenarios behind RESULTS.md: the servers of a scenario in turn, pass after pass, each on one CPU
# and loadgen on another. Raw results go to bench/results/, plots to bench/results/plots/, tables to
# bench/results/tables.md, and a summary to the terminal.
#
#   scripts/bench.sh [--peers [--skip-missing]] [--quick] [--pairs N] [--results DIR] [--no-build] [--no-run]
#                    [--update FILE] [SCENARIO…]
#
#   --peers        the scenarios of bench/scenarios/peers/ instead, in which floor and corecast run besides relays on
#                  other libraries, which bench/peers/install.sh installs; results go to bench/results/peers/
#   --skip-missing a peer that is not installed is no failure
#   --quick        short runs, one pass: shows that everything works, measures little; what it writes goes to
#                  quick-results/ below the target directory, unless --results or --update says otherwise
#   --pairs N      passes of each scenario (default: what the scenario says, else 5)
#   --results DIR  write there what would go to bench/results/, and leave that as it is
#   --no-build     use the binaries that are there
#   --no-run       measure nothing: make tables and plots from the raw results that are there
#   --update FILE  replace what stands between <!-- bench:begin --> and <!-- bench:end --> in FILE (with --peers:
#                  <!-- peers:begin --> and <!-- peers:end -->) by the summary
#   SCENARIO       a file of the scenarios without .sh (default: all)
#
# A pass in which a hypervisor took more than 2 % of the machine's CPU time away from one of its runs is done again, whatever
# came of it, twice at most; how much was taken from what is kept stands in its raw result.
#
# SERVER_CPU (default 0) and LOADGEN_CPU (default 1) choose the CPUs. Exit code 1 if a run lost or failed anything;
# what a peer loses or fails is a result and stands in the tables.
set -euo pipefail
called_from=$PWD
cd "$(dirname "$0")/.."

# shellcheck source=scripts/common.sh
. scripts/common.sh

server_cpu=${SERVER_CPU:-0}
loadgen_cpu=${LOADGEN_CPU:-1}
binaries=${CARGO_TARGET_DIR:-target}/release
suite=bench
scenarios=bench/scenarios
results=bench/results
results_chosen=""
run_limit_seconds=600
order="fanout-100-w1 fanout-1k-w1 fanout-10k-w1 fanout-19k-w1 fanout-1k-w50 fanout-1k-w500 open-loop-1k lone-w1 compressed-1k compressed-10k shards-1k-w1 shards-1k-w50 shards-1k-oversubscribed echo-100 echo-1000 connect-1k connect-1k-rival connect-18k idle-1k idle-10k idle-19k loadgen-ceiling"
peers_order="fanout-1k-w1 fanout-10k-w1 fanout-19k-w1 fanout-1k-w50 fanout-1k-w500 fanout-1k-1kib fanout-1k-16kib open-loop-1k echo-1 echo-100 echo-1000 connect idle-10k keepalive-10k"
skip_missing=no
pairs=""
quick_run=no
build=yes
run=yes
update=""
chosen=""
port=${BENCH_FIRST_PORT:-19400}
server_pid=""
rival_pid=""
failed=0
missing=""

while [ $# -gt 0 ]; do
    case $1 in
    --peers)
        suite=peers scenarios=bench/scenarios/peers results=bench/results/peers order=$peers_order
        run_limit_seconds=60
        ;;
    --skip-missing) skip_missing=yes ;;
    --quick) quick_run=yes ;;
    --pairs)
        [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || fail "--pairs ${2:-}: expected a number from 1"
        pairs=$2
        shift
        ;;
    --results)
        [ -n "${2:-}" ] || fail "--results: expected a directory"
        results_chosen=$(realpath -m "$called_from/$2")
        case $2 in /*) results_chosen=$2 ;; esac
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
        show_help
        exit 0
        ;;
    -*) fail "$1: unknown option (see --help)" ;;
    *) chosen="$chosen $1" ;;
    esac
    shift
done
[ -z "$results_chosen" ] || [ -z "$update" ] || fail "--update $update: it shows bench/results/, not what --results says"
if [ "$quick_run$results_chosen$update" = yes ]; then results_chosen=${CARGO_TARGET_DIR:-target}/quick-results/$suite; fi
results=${results_chosen:-$results}
plots=$results/plots
for scenario in $chosen; do
    [ -f "$scenarios/$scenario.sh" ] || fail "$scenario: no such scenario; there are: $order"
done
if [ "$quick_run" = yes ]; then pairs=${pairs:-1}; fi
for cpu in "$server_cpu" "$loadgen_cpu"; do
    taskset -c "$cpu" true 2>/dev/null || fail "CPU $cpu is not there; set SERVER_CPU and LOADGEN_CPU"
done

stop_server() {
    if [ -n "$rival_pid" ]; then
        kill -KILL "$rival_pid" 2>/dev/null || true
        wait "$rival_pid" 2>/dev/null || true
        rival_pid=""
    fi
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

# shellcheck source=bench/peers/commands.sh
. bench/peers/commands.sh

# Sets `command` to the command line of server $1 on $port, and `program` to a file that must be there for it. It echoes
# where the scenario's route is /echo, and sends pings where it can and the scenario says how often.
server_command() {
    local echo=""
    program=$binaries/corecast
    if [ "$route" = /echo ]; then echo=" --echo"; fi
    local corecast="$binaries/corecast --listen 127.0.0.1:$port --control off --client-publish --keepalive ${keepalive:-30}s --drain-window 0ms$echo"
    case $1 in
    floor) program=$binaries/floor command="taskset -c $server_cpu $binaries/floor$echo $port" ;;
    corecast | corecast-plain) command="taskset -c $server_cpu $corecast --cpus $server_cpu" ;;
    corecast-executor) command="taskset -c $server_cpu $corecast --cpus $server_cpu --wait executor" ;;
    corecast-2-shards-1-cpu) command="taskset -c $server_cpu $corecast --cores 2 --oversubscribe" ;;
    corecast-4-shards-1-cpu) command="taskset -c $server_cpu $corecast --cores 4 --oversubscribe" ;;
    corecast-8-shards-1-cpu) command="taskset -c $server_cpu $corecast --cores 8 --oversubscribe" ;;
    corecast-2-shards-2-cpus) command="taskset -c $server_cpu,$loadgen_cpu $corecast --cores 2" ;;
    *) peer_command "$1" "taskset -c $server_cpu" "$echo" || fail "unknown server $1" ;;
    esac
}

# Starts server $1, whose output goes to $2.
start_server() {
    local log=$2
    TMPDIR=$logs $command >"$log" 2>&1 &
    server_pid=$!
    for _ in $(seq 300); do
        if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then return 0; fi
        kill -0 "$server_pid" 2>/dev/null || break
        sleep 0.1
    done
    echo "bench.sh: $1 did not start; its output:" >&2
    cat "$log" >&2
    stop_server
    return 1
}

# Prints the id of the only child of process $1, as soon as there is one.
worker_of() {
    for _ in $(seq 50); do
        pgrep -P "$1" && return 0
        sleep 0.1
    done
    echo "$1"
}

# A run that failed: one of a peer is a result, one of the others ends with exit code 1.
note_failure() {
    case $1 in floor | corecast*) failed=1 ;; esac
}

# Writes a result to $1 that says nothing but that a run of server $2 in pass $3 failed, and that the reason was $4.
write_failure() {
    local words=${arguments//\"/} reason
    reason=$(echo "$4" | tr -d '"\\[:cntrl:]')
    printf '{"schema_version": 1, "tool": "loadgen", "mode": "%s", "passed": false, "failures": ["%s"],
 "command": ["loadgen", "%s"],
 "labels": {"scenario": "%s", "server": "%s", "pass": "%s", "server_command": "%s"%s}}\n' \
        "${words%% *}" "$reason" "${words// /\", \"}" "$about" "$2" "$3" "${command//$port/PORT}" \
        "$([ "$suite" != peers ] || echo ', "reference": "corecast"')" >"$1"
}

# Runs load $2 of scenario $1 against server $3, pass $4; for a server named -plain without --compression.
run_once() {
    local scenario=$1 arguments=$2 server=$3 pass=$4 command program pid log_line label=() code=0
    case $server in *-plain) arguments=${arguments// --compression/} ;; esac
    local json=$results/$scenario.$server.$pass.json text log=$logs/$server.log errors=$logs/loadgen.log
    rm -f "$json"
    port=$((port + 1))
    server_command "$server"
    if ! [ -e "$program" ]; then
        [[ $missing == *" $server "* ]] || echo "bench.sh: $server is missing: there is no $program; skipped" >&2
        missing="$missing $server "
        return 0
    fi
    if ! start_server "$server" "$log"; then
        note_failure "$server"
        log_line=$(tail -1 "$log")
        write_failure "$json" "$server" "$pass" "did not start${log_line:+: $log_line}"
        return 0
    fi
    pid=$server_pid
    if [ "$server" = nginx ]; then pid=$(worker_of "$server_pid"); fi
    if [ "$rival" = yes ]; then
        taskset -c "$server_cpu" sh -c 'while :; do :; done' &
        rival_pid=$!
        arguments="$arguments --rival $rival_pid"
    fi
    # A comparison tells each command once, so it must not differ from run to run.
    if [ "$suite" = peers ]; then
        label=(--label "server_command=${command//$port/PORT}" --label reference=corecast)
    else
        label=(--label "server_command=$command")
    fi
    # The arguments are words by intention.
    # shellcheck disable=SC2086
    text=$(timeout --foreground "$run_limit_seconds" taskset -c "$loadgen_cpu" "$binaries/loadgen" $arguments \
        --url "ws://127.0.0.1:$port$route" --pid "$pid" --json "$json" --progress off --label "scenario=$about" \
        --label "server=$server" --label "pass=$pass" "${label[@]}" 2>"$errors") || code=$?
    cat "$errors" >&2
    if [ "$code" != 0 ]; then note_failure "$server"; fi
    if ! [ -f "$json" ]; then
        if [ "$code" = 124 ]; then echo "took longer than $run_limit_seconds s" >"$errors"; fi
        write_failure "$json" "$server" "$pass" "$(tail -1 "$errors")"
    fi
    stop_server
    echo "pass $pass/$passes  $scenario  $server: $(echo "$text" | sed -n \
        's/^  server cpu us per \([a-z ]*[a-z]\) *\(.*\)/\2 µs per \1/p
         s/^  server anonymous bytes per connection *\(.*\)/\1 B a connection/p
         s/^  ksoftirqd cpu percent *\(.*\)/(ksoftirqd used \1 % of a core)/p
         s/^  other cpu percent *\(.*\)/(others used \1 % of a core)/p' | tac | tr '\n' ' ')" \
        "$(echo "$text" | tail -1)" >&2
}

# Prints the servers $2… in the order of pass $1: each pass begins with the next one.
turn_of() {
    local begin=$((($1 - 1) % ($# - 1)))
    shift
    echo "${@:begin + 1}" "${@:1:begin}"
}

# Whether more than 2 % of the CPU time was taken away from a run of pass $2 of scenario $1.
is_disturbed() {
    cat "$results/$1".*."$2".json 2>/dev/null | sed -n 's/.*"stolen_cpu_percent": *\([0-9.]*\).*/\1/p' |
        awk '$1 > 2 { disturbed = 1 } END { exit !disturbed }'
}

run_scenario() {
    local scenario=$1 pass passes=5 server arguments about="" servers="" load="" quick="" route=/pubsub/bench keepalive="" rival=""
    # shellcheck source=/dev/null
    . "$scenarios/$scenario.sh"
    passes=${pairs:-$passes}
    if [ "$quick_run" = yes ]; then arguments=$quick; else arguments=$load; fi
    rm -f "$results/$scenario".*.json
    for pass in $(seq "$passes"); do
        for _ in 1 2 3; do
            # The servers are words by intention.
            # shellcheck disable=SC2086
            for server in $(turn_of "$pass" $servers); do
                run_once "$scenario" "$arguments" "$server" "$pass"
            done
            if [ "$quick_run" = yes ] || ! is_disturbed "$scenario" "$pass"; then break; fi
            echo "pass $pass/$passes  $scenario: CPU time was stolen" >&2
        done
    done
}

# All results that are there: scenarios, servers and passes in their order.
result_files() {
    local scenario server about="" servers="" load="" quick=""
    for scenario in $order; do
        # shellcheck source=/dev/null
        . "$scenarios/$scenario.sh"
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
# 19,000 connections need more than the 1,024 that are usual.
ulimit -Sn hard
for scenario in $order_of_runs; do
    run_scenario "$scenario"
done

files=$(result_files)
[ -n "$files" ] || fail "no results"
rm -f "$plots"/*.svg
# The tables refer to the plots from where they stand.
# shellcheck disable=SC2086
"$binaries/loadgen" report --plots "$plots" $files | sed "s|]($plots/|](plots/|" >"$results/tables.md"
# shellcheck disable=SC2086
"$binaries/loadgen" report --summary $files | tee "$logs/summary.md"
echo "bench.sh: all figures are in $results/tables.md" >&2
if [ -n "$update" ]; then scripts/replace-block.sh "$update" "$suite" <"$logs/summary.md"; fi
if [ -n "$missing" ] && [ "$skip_missing" = no ]; then failed=1; fi
exit "$failed"
