# Read by scripts/bench.sh.
# shellcheck shell=bash disable=SC2034
about="19,000 idle connections"
servers="floor corecast"
load="idle --connections 19000 --settle 3s --duration 5s"
quick="idle --connections 19000 --settle 1s --duration 2s"
