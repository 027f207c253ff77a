# Read by scripts/bench.sh.
# shellcheck shell=bash disable=SC2034
# What a core can do is told by one that is never idle. Loadgen, which opens the other end of every connection, is no
# faster than the servers: so a process that does nothing takes half of their CPU.
about="Handshakes of a busy core: 1,000 connections, the oldest reset for each new one, half of the CPU for the server"
servers="floor corecast"
rival=yes
load="connect --connections 1000 --duration 4s --reset"
quick="connect --connections 1000 --duration 1s --reset"
