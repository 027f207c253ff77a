# Read by scripts/bench.sh.
# shellcheck shell=bash disable=SC2034
about="100 subscribers, one message in flight"
servers="floor corecast"
load="fanout --connections 100 --window 1 --rounds 4500"
quick="fanout --connections 100 --window 1 --rounds 900"
