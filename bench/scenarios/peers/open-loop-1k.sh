# Read by scripts/bench.sh. A rate that the slowest peer keeps with half of its core.
# shellcheck shell=bash disable=SC2034
about="Peers: open loop, 1,000 subscribers, 40 messages a second"
servers="floor corecast tungstenite tungstenite-small fastwebsockets soketto node python nginx"
load="fanout --connections 1000 --rate 40 --duration 4s"
quick="fanout --connections 1000 --rate 40 --duration 1s"
