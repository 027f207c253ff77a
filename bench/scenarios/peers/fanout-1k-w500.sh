# Read by scripts/bench.sh.
# shellcheck shell=bash disable=SC2034
about="Peers: 1,000 subscribers, 500 messages in flight"
servers="floor corecast tungstenite tungstenite-small fastwebsockets soketto node python nginx"
load="fanout --connections 1000 --window 500 --warmup 100 --duration 2500ms"
quick="fanout --connections 1000 --window 500 --warmup 100 --duration 500ms"
