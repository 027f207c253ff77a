# Read by scripts/bench.sh.
# shellcheck shell=bash disable=SC2034
about="1 subscriber besides the publisher, one message in flight"
servers="floor corecast corecast-executor"
load="fanout --connections 1 --window 1 --rounds 30000"
quick="fanout --connections 1 --window 1 --rounds 10000"
