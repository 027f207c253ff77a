# Read by scripts/bench.sh.
# shellcheck shell=bash disable=SC2034
about="Peers: echo, 1,000 connections, one message in flight on each"
servers="floor corecast tungstenite tungstenite-small fastwebsockets soketto node python"
route=/echo
load="echo --connections 1000 --duration 2s"
quick="echo --connections 1000 --duration 500ms"
