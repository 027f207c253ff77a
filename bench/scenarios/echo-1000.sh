# Read by scripts/bench.sh.
# shellcheck shell=bash disable=SC2034
about="Echo: 1,000 connections, one message in flight on each"
servers="floor corecast"
route=/echo
load="echo --connections 1000 --rounds 350"
quick="echo --connections 1000 --rounds 100"
passes=9
