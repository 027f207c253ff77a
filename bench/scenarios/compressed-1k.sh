# Read by scripts/bench.sh.
# shellcheck shell=bash disable=SC2034
about="Compression: 1,000 subscribers, 1 KiB, one message in flight"
servers="corecast-plain corecast"
load="fanout --connections 1000 --window 1 --rounds 700 --payload 1KiB --compression"
quick="fanout --connections 1000 --window 1 --rounds 300 --payload 1KiB --compression"
