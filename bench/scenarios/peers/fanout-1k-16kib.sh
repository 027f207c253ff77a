# Read by scripts/bench.sh.
# shellcheck shell=bash disable=SC2034
about="Peers: 1,000 subscribers, one message of 16 KiB in flight"
servers="floor corecast tungstenite tungstenite-small fastwebsockets soketto node python nginx"
load="fanout --connections 1000 --window 1 --warmup 10 --duration 2500ms --payload 16KiB"
quick="fanout --connections 1000 --window 1 --warmup 10 --duration 500ms --payload 16KiB"
