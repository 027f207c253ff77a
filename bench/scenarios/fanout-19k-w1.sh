# Read by scripts/bench.sh.
# shellcheck shell=bash disable=SC2034
about="19,000 subscribers, one message in flight"
servers="floor corecast"
load="fanout --connections 19000 --window 1 --rounds 25 --warmup 5"
quick="fanout --connections 19000 --window 1 --rounds 5 --warmup 2"
passes=9
