# Read by scripts/bench.sh.
# shellcheck shell=bash disable=SC2034
about="Peers: handshakes, 1,000 connections held open"
servers="floor corecast tungstenite tungstenite-small fastwebsockets soketto node python nginx"
load="connect --connections 1000 --duration 2s"
quick="connect --connections 1000 --duration 500ms"
