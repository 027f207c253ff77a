# Read by scripts/bench.sh.
# shellcheck shell=bash disable=SC2034
about="Peers: 10,000 idle connections, a ping to each every 5 s"
servers="corecast python nginx"
keepalive=5
load="idle --connections 10000 --settle 1s --duration 5s"
quick="idle --connections 10000 --settle 500ms --duration 5s"
