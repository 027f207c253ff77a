# Read by scripts/bench.sh.
# shellcheck shell=bash disable=SC2034
about="Peers: 19,000 subscribers, one message in flight"
# Without nginx: nchan takes some 1,200 descriptors for itself, and a process may have 20,000 where this is measured.
servers="floor corecast tungstenite tungstenite-small fastwebsockets soketto node python"
load="fanout --connections 19000 --window 1 --warmup 2 --duration 2500ms"
quick="fanout --connections 19000 --window 1 --warmup 2 --duration 500ms"
