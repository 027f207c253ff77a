# Read by scripts/bench.sh.
# shellcheck shell=bash disable=SC2034
about="Compression: 10,000 subscribers, 1 KiB, one message in flight"
servers="corecast-plain corecast"
load="fanout --connections 10000 --window 1 --rounds 70 --warmup 10 --payload 1KiB --compression"
quick="fanout --connections 10000 --window 1 --rounds 30 --warmup 5 --payload 1KiB --compression"
