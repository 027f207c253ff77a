# Read by scripts/bench.sh.
# shellcheck shell=bash disable=SC2034
about="Shards: 1,000 subscribers, one message in flight"
servers="corecast corecast-2-shards-1-cpu corecast-2-shards-2-cpus"
load="fanout --connections 1000 --window 1 --rounds 700"
quick="fanout --connections 1000 --window 1 --rounds 300"
