# Read by scripts/bench.sh.
# shellcheck shell=bash disable=SC2034
# For correctness: nothing is lost or reordered however the shards take turns.
about="Shards: 1,000 subscribers, 50 messages in flight, more shards than CPUs"
servers="corecast corecast-4-shards-1-cpu corecast-8-shards-1-cpu"
load="fanout --connections 1000 --window 50 --rounds 8000"
quick="fanout --connections 1000 --window 50 --rounds 1000"
