# Read by scripts/bench.sh.
# shellcheck shell=bash disable=SC2034
about="1,000 subscribers, 50 messages in flight"
servers="floor corecast"
load="fanout --connections 1000 --window 50 --rounds 20000"
quick="fanout --connections 1000 --window 50 --rounds 10000"
