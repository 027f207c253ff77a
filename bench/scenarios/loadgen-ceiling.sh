# Read by scripts/bench.sh.
# shellcheck shell=bash disable=SC2034
# What loadgen itself can take: the floor joins what it gets, so that hundreds of messages come in one read.
about="Loadgen's own limit: 1,000 subscribers, 500 messages in flight"
servers="floor"
load="fanout --connections 1000 --window 500 --duration 4s"
quick="fanout --connections 1000 --window 500 --duration 1s"
