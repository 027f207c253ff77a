# Read by scripts/bench.sh.
# shellcheck shell=bash disable=SC2034
# What a connection costs where many are open: the kernel looks into tables of theirs.
about="Handshakes: 18,000 connections, the oldest reset for each new one"
servers="floor corecast"
load="connect --connections 18000 --duration 4s --reset"
quick="connect --connections 2000 --duration 1s --reset"
