# Read by scripts/bench.sh.
# shellcheck shell=bash disable=SC2034
about="Handshakes: 1,000 connections, the oldest reset for each new one"
servers="floor corecast"
load="connect --connections 1000 --duration 4s --reset"
quick="connect --connections 1000 --duration 1s --reset"
