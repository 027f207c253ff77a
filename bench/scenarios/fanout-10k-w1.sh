# Read by scripts/bench.sh.
# shellcheck shell=bash disable=SC2034
about="10,000 subscribers, one message in flight"
servers="floor corecast"
load="fanout --connections 10000 --window 1 --rounds 70 --warmup 10"
quick="fanout --connections 10000 --window 1 --rounds 30 --warmup 5"
passes=9
