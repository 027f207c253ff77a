#!/usr/bin/env bash
# Runs the Autobahn Testsuite against `corecast --echo` and compares every case with
# tests/autobahn-expected.json, where each outcome other than OK stands with its reason.
#
#   scripts/autobahn.sh            all cases (517; about a quarter of an hour)
#   scripts/autobahn.sh --quick    a choice that ends within two minutes
#
# Exit code: 0 as expected · 1 any difference, or the server failed · 2 bad arguments · 3 no wstest to be had.
#
# wstest is taken from $WSTEST, from PATH, from a virtualenv that this script makes in target/ with Python 2.7,
# or, where a Docker engine runs, from the image crossbario/autobahn-testsuite.
# AUTOBAHN_URL=ws://HOST:PORT/PATH tests a server that runs already, instead of building and starting corecast.
set -euo pipefail

cd "$(dirname "$0")/.."
readonly image=crossbario/autobahn-testsuite
target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target/autobahn"
work=$(cd "$target/autobahn" && pwd)

case "${1-}" in
    "") mode=full ;;
    --quick) mode=quick ;;
    -h | --help) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
    *) echo "autobahn: unknown argument '$1' (known: --quick)" >&2; exit 2 ;;
esac

say() { printf 'autobahn: %s\n' "$*"; }

# Python 2.7, of which Debian 12 has no package: from PATH or from pyenv.
python27() {
    local candidate
    for candidate in "$(command -v python2.7 || true)" "$(pyenv prefix 2.7.18 2>/dev/null || true)/bin/python2.7"; do
        # pyenv's shim is on PATH even where no 2.7 is active behind it.
        if [ -n "$candidate" ] && "$candidate" -c 'import ssl' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    return 1
}

# Makes a virtualenv with wstest. Versions are the last that Python 2.7 runs.
make_virtualenv() {
    local python=$1
    say "making a virtualenv with wstest (once; compiles some C) …"
    rm -rf "$work/venv" "$work/bootstrap"
    "$python" -m pip install --quiet --disable-pip-version-check --target "$work/bootstrap" 'virtualenv==20.15.1'
    PYTHONPATH="$work/bootstrap" "$python" -m virtualenv --quiet "$work/venv"
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check 'autobahntestsuite==25.10.1'
}

# Sets the array `wstest`: the command, up to its own arguments.
find_wstest() {
    local python
    if [ -n "${WSTEST-}" ]; then
        wstest=("$WSTEST")
    elif command -v wstest >/dev/null; then
        wstest=(wstest)
    elif [ -x "$work/venv/bin/wstest" ]; then
        wstest=("$work/venv/bin/wstest")
    elif python=$(python27) && make_virtualenv "$python" >"$work/install.log" 2>&1; then
        wstest=("$work/venv/bin/wstest")
    elif docker info >/dev/null 2>&1; then
        wstest=(docker run --rm --network host --volume "$work:$work" "$image" wstest)
    else
        echo "autobahn: SKIPPED: no wstest. It needs Python 2.7 (pyenv install 2.7.18) or a running Docker engine." >&2
        [ ! -s "$work/install.log" ] || tail -n 5 "$work/install.log" >&2
        exit 3
    fi
}

server=
stop_server() {
    [ -z "$server" ] || kill -KILL "$server" 2>/dev/null || true
}
trap stop_server EXIT

# Starts corecast on a free port and sets `url`.
start_server() {
    cargo build --release --quiet
    : >"$work/server.out" # an earlier run's URL must not be found below
    # The largest messages of the suite (9.1.6, 9.2.6) have 16 MiB.
    "$target/release/corecast" --echo --listen 127.0.0.1:0 --control off \
        --max-message-size 16MiB --send-queue 64MiB >"$work/server.out" 2>"$work/server.err" &
    server=$!
    local _
    for _ in $(seq 600); do
        url=$(grep -om1 'ws://[0-9.]*:[0-9]*' "$work/server.out" || true)
        [ -z "$url" ] || break
        kill -0 "$server" 2>/dev/null || break
        sleep 0.1
    done
    if [ -z "$url" ]; then
        say "corecast did not start:"
        cat "$work/server.err"
        exit 1
    fi
    url=$url/echo
}

find_wstest
url=${AUTOBAHN_URL-}
[ -n "$url" ] || start_server

# Python of whatever kind: the comparison below runs with 2.7 and with 3.
python=$(command -v python3 || python27)

rm -rf "$work/report"
"$python" - "$mode" "$url" "$work/report" >"$work/spec.json" <<'PYTHON'
import json
import sys

mode, url, report = sys.argv[1:]
with open("tests/autobahn-expected.json") as file:
    cases = json.load(file)["cases"][mode]["patterns"]
print(json.dumps({
    "outdir": report,
    "servers": [{"agent": "corecast", "url": url}],
    "cases": cases,
    "exclude-cases": [],
    "exclude-agent-cases": {},
}))
PYTHON

say "$mode run against $url …"
start=$(date +%s)
if ! "${wstest[@]}" --mode fuzzingclient --spec "$work/spec.json" >"$work/wstest.log" 2>&1; then
    say "wstest failed:"
    tail -n 20 "$work/wstest.log"
    exit 1
fi
say "took $(($(date +%s) - start)) s; the report is $work/report/index.html"

if [ -n "$server" ] && ! kill -0 "$server" 2>/dev/null; then
    say "corecast died during the run:"
    cat "$work/server.err"
    exit 1
fi

"$python" - "$mode" "$work/report/index.json" <<'PYTHON'
from __future__ import print_function
import fnmatch
import json
import sys

mode, report = sys.argv[1:]
with open("tests/autobahn-expected.json") as file:
    expected = json.load(file)
with open(report) as file:
    outcomes = json.load(file).get("corecast", {})  # empty if no connection could be made


def natural(case):
    return [int(part) for part in case.split(".")]


def expectation(case):
    """What stands for the case by name, else by the first pattern that fits, else OK."""
    listed = expected["outcomes"]
    patterns = [pattern for pattern in sorted(listed) if fnmatch.fnmatch(case, pattern)]
    found = listed.get(case) or (listed[patterns[0]] if patterns else {})
    if found and not found.get("reason"):
        sys.exit("autobahn: an expectation without a reason fits case %s" % case)
    return found.get("behavior", "OK"), found.get("behaviorClose", "OK")


faults, tally = [], {}
for case in sorted(outcomes, key=natural):
    seen = outcomes[case]["behavior"], outcomes[case]["behaviorClose"]
    tally[seen] = tally.get(seen, 0) + 1
    if seen != expectation(case):
        faults.append("case %s: %s/%s, expected %s/%s" % ((case,) + seen + expectation(case)))
count = expected["cases"][mode]["count"]
if len(outcomes) != count:
    faults.append("%d cases ran, expected %d" % (len(outcomes), count))

print("autobahn: %d cases (behaviour/close behaviour):" % len(outcomes))
for seen in sorted(tally, key=lambda seen: -tally[seen]):
    print("autobahn: %5d  %s/%s" % ((tally[seen],) + seen))
for fault in faults:
    print("autobahn: DIFFERENCE: %s" % fault)
sys.exit(1 if faults else 0)
PYTHON
say "all as expected"
