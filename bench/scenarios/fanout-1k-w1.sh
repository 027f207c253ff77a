# Read by scripts/bench.sh.
# shellcheck shell=bash disable=SC2034
about="1,000 subscribers, one message in flight"
servers="floor corecast"
load="fanout --connections 1000 --window 1 --rounds 700"
quick="fanout --connections 1000 --window 1 --rounds 300"
passes=9
