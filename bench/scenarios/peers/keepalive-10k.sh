# Read by scripts/bench.sh. Those that send pings by themselves, one to each connection in the measured time.
# shellcheck shell=bash disable=SC2034
about="Peers: 10,000 idle connections, a ping to each every 10 s"
servers="corecast node python nginx"
keepalive=10
load="idle --connections 10000 --settle 1s --duration 10s"
quick="idle --connections 10000 --settle 500ms --duration 10s"
