# Read by scripts/bench.sh.
# shellcheck shell=bash disable=SC2034
# A fixed rate, less than half of the 270 messages a second that one in flight reaches on the machine of RESULTS.md: so
# that the goal, a p99 of at most twice the p50, is asked of a server that has time.
about="Open loop: 1,000 subscribers, 120 messages a second"
servers="floor corecast"
load="fanout --connections 1000 --rate 120 --duration 10s"
quick="fanout --connections 1000 --rate 60 --duration 1s"
passes=9
