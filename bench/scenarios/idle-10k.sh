# Read by scripts/bench.sh.
# shellcheck shell=bash disable=SC2034
about="10,000 idle connections, keepalive 30 s"
servers="floor corecast"
load="idle --connections 10000 --settle 5s --duration 35s"
quick="idle --connections 10000 --settle 1s --duration 5s"
