# Read by scripts/bench.sh.
# shellcheck shell=bash disable=SC2034
about="Echo: 100 connections, one message in flight on each"
servers="floor corecast"
route=/echo
load="echo --connections 100 --rounds 3500"
quick="echo --connections 100 --rounds 1000"
