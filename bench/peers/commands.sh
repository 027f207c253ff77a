# Read by scripts/bench.sh: how the peers are run. `binaries`, `keepalive`, `port` and what is set here are its variables.
# shellcheck shell=bash disable=SC2034,SC2154

# Sets `command` and `program` for peer $1, pinned by $2, with $3 after its options; no such peer is an error.
peer_command() {
    local installed=${binaries%/release}/peers rust="" options=$3
    case $1 in
    tungstenite | fastwebsockets | soketto) rust=peer-$1 ;;
    tungstenite-small) rust=peer-tungstenite options=" --small-buffers$3" ;;
    node)
        program=$installed/node/node_modules/ws
        if [ -n "$keepalive" ]; then options="$options --ping-interval $keepalive"; fi
        command="env NODE_PATH=$installed/node/node_modules $2 node bench/peers/node/relay.js$options $port"
        ;;
    python)
        program=$installed/venv/bin/python
        if [ -n "$keepalive" ]; then options="$options --ping-interval $keepalive"; fi
        command="$2 $program bench/peers/python/relay.py$options $port"
        ;;
    nginx)
        program=/usr/lib/nginx/modules/ngx_nchan_module.so
        if [ -n "$keepalive" ]; then options="$options --ping-interval $keepalive"; fi
        command="$2 bench/peers/nginx/relay.sh$options $port"
        ;;
    *) return 1 ;;
    esac
    if [ -n "$rust" ]; then
        program=$installed/cargo/release/$rust
        command="$2 $program$options $port"
    fi
}
