# Read by scripts/bench.sh.
# shellcheck shell=bash disable=SC2034
about="Peers: 10,000 subscribers, one message in flight"
servers="floor corecast tungstenite tungstenite-small fastwebsockets soketto node python nginx"
load="fanout --connections 10000 --window 1 --warmup 3 --duration 2500ms"
quick="fanout --connections 10000 --window 1 --warmup 3 --duration 500ms"
