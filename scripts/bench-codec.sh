#!/usr/bin/env bash
# Times the codec beside tungstenite, fastwebsockets and the standard library (bench/codec.rs), pinned to one CPU, and
# makes a table: ns per call, or per batch of messages that arrive in one read.
#
#   scripts/bench-codec.sh [--no-run] [--update FILE]
#
#   --no-run       measure nothing: make the table from bench/results/codec.txt
#   --update FILE  keep the results in bench/results/codec.txt, and replace what stands between <!-- codec:begin --> and
#                  <!-- codec:end --> in FILE by the table
#
# SERVER_CPU (default 0) chooses the CPU.
set -euo pipefail
cd "$(dirname "$0")/.."

# shellcheck source=scripts/common.sh
. scripts/common.sh

results=bench/results/codec.txt
run=yes
update=""

while [ $# -gt 0 ]; do
    case $1 in
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
    *) fail "$1: unknown option (see --help)" ;;
    esac
    shift
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ "$run" = yes ]; then
    # Lines of `GROUP/SERVER time: [LOW ESTIMATE HIGH]`; a long name stands on a line before.
    taskset -c "${SERVER_CPU:-0}" cargo bench --bench codec -- --color never \
        --warm-up-time 1 --measurement-time 2 |
        sed -n '/^[a-z].*\/[^:]*$/h; /time: .*[nµmp]s\]/{ /^ /{ x; G; s/\n//; }; s/  */ /gp; }' >"$work/codec.txt"
    if [ -n "$update" ]; then cp "$work/codec.txt" "$results"; else results=$work/codec.txt; fi
fi
[ -s "$results" ] || fail "$results: there are no results"

awk '
    BEGIN { columns = split("corecast|tungstenite|fastwebsockets|std", servers, "|") }
    {
        name = $0; sub(/ time: .*/, "", name)
        split($0, halves, /\[/); split(halves[2], words, " ")
        value = words[3] * (words[4] == "ms" ? 1e6 : words[4] == "µs" ? 1e3 : words[4] == "ps" ? 1e-3 : 1)
        match(name, /\/[^\/]*$/)
        group = substr(name, 1, RSTART - 1); server = substr(name, RSTART + 1)
        if (group ~ /^deflate/ || server == "corecast streamed") next
        if (!(group in best)) order[++groups] = group
        nanoseconds[group, server] = value
        if (!(group in best) || value < best[group]) best[group] = value
    }
    END {
        printf "| ns |"; for (i = 1; i <= columns; i++) printf " %s |", servers[i]
        printf "\n|---|"; for (i = 1; i <= columns; i++) printf "---|"
        print ""
        for (g = 1; g <= groups; g++) {
            group = order[g]
            printf "| %s |", group
            for (i = 1; i <= columns; i++) {
                if ((group, servers[i]) in nanoseconds) {
                    value = nanoseconds[group, servers[i]]
                    digits = value < 100 ? sprintf("%.1f", value) : sprintf("%.0f", value)
                    printf value == best[group] ? " **%s** |" : " %s |", digits
                } else printf " |"
            }
            print ""
        }
    }
' "$results" | tee "$work/table.md"
if [ -n "$update" ]; then scripts/replace-block.sh "$update" codec <"$work/table.md"; fi
