# Read by scripts/bench.sh.
# shellcheck shell=bash disable=SC2034
about="1,000 subscribers, 500 messages in flight"
servers="floor corecast"
load="fanout --connections 1000 --window 500 --warmup 100 --duration 3s"
quick="fanout --connections 1000 --window 500 --warmup 100 --duration 500ms"
