# Read by scripts/bench.sh.
# shellcheck shell=bash disable=SC2034
about="Peers: 10,000 idle connections"
servers="floor corecast tungstenite tungstenite-small fastwebsockets soketto node python nginx"
load="idle --connections 10000 --settle 1s --duration 1s"
quick="idle --connections 10000 --settle 500ms --duration 500ms"
