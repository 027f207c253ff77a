# What the scripts that measure have in common. They read it in the project's folder.
# shellcheck shell=bash

# Ends the script for a reason that its user can do something about.
fail() {
    echo "$(basename "$0"): $1" >&2
    exit 2
}

# Prints the comment at the script's head.
show_help() {
    sed -n '2,/^set/p' "scripts/$(basename "$0")" | sed -n 's/^# \{0,1\}//p'
}

# Waits until process $2 has written an address of scheme $1 to server.out in folder $3, and sets `address` to it. Where it
# does not come, server.err tells why.
wait_for_address() {
    for _ in $(seq 300); do
        address=$(grep -om1 "$1://[0-9.]*:[0-9]*" "$3/server.out" || true)
        [ -z "$address" ] || return 0
        kill -0 "$2" 2>/dev/null || break
        sleep 0.1
    done
    cat "$3/server.err" >&2
    fail "corecast did not start"
}
