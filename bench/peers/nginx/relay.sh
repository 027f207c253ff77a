#!/bin/sh
# `relay.sh [--ping-interval SECONDS] PORT`: nginx with nchan, one worker, in a directory of its own below TMPDIR.
set -eu

interval=0
if [ "$1" = --ping-interval ]; then
    interval=$2
    shift 2
fi
directory=${TMPDIR:-/tmp}/peer-nginx-$1
mkdir -p "$directory"
sed -e "s/PORT/$1/" -e "s/PING_INTERVAL/$interval/" "$(dirname "$0")/nginx.conf" >"$directory/nginx.conf"
exec /usr/sbin/nginx -p "$directory" -c nginx.conf -e stderr
