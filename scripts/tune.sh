#!/usr/bin/env bash
# The kernel limits that matter for many connections: --check compares them with what they should be, --apply sets
# those that are too low, now and (in /etc/sysctl.d) for the next boot. Exit code 1 if one is still missed.
set -euo pipefail

# Elsewhere in tests.
sys=${TUNE_PROC_SYS:-/proc/sys}
file=${TUNE_SYSCTL_FILE:-/etc/sysctl.d/90-corecast.conf}

usage() {
    echo "usage: $0 --check | --apply" >&2
    exit 2
}
[ $# -eq 1 ] || usage
case $1 in --check) apply=false ;; --apply) apply=true ;; *) usage ;; esac

missed=0
lines=()

row() { # name, want, have, outcome
    printf '%-32s %-24s %-24s %s\n' "$1" "$2" "$3" "$4"
}

judge() { # name, want, have, whether it is enough, how to mend it
    if "$4"; then
        row "$1" "$2" "$3" ok
    else
        missed=$((missed + 1))
        row "$1" "$2" "$3" "MISSED: $5"
    fi
}

read_key() { # name: its value with single blanks, nothing if this kernel has no such key
    local path=$sys/${1//./\/}
    [ ! -r "$path" ] || tr -s '\t ' ' ' <"$path"
}

# The last of the numbers, or the one there is, must be at least (or at most) that of the wanted value.
enough() { # least|most|exactly, wanted, had
    local want=${2##* } have=${3##* }
    case $1 in
        least) [ "$have" -ge "$want" ] ;;
        most) [ "$have" -le "$want" ] ;;
        exactly) [ "$3" = "$2" ] ;;
    esac
}

key() { # name, least|most|exactly, value, why it may be absent
    local have good=false
    have=$(read_key "$1")
    if [ -z "$have" ]; then
        row "$1" "$3" - "ok: $4"
        return
    fi
    if enough "$2" "$3" "$have"; then
        good=true
    elif "$apply"; then
        local path=$sys/${1//./\/}
        if { printf '%s\n' "$3" >"$path"; } 2>/dev/null; then
            have=$(read_key "$1")
            lines+=("$1 = $3")
            ! enough "$2" "$3" "$have" || good=true
        fi
    fi
    judge "$1" "$3" "$have" "$good" "$0 --apply, as root"
}

at_least() { # wanted, had; unlimited is more than any number
    [ "$2" = unlimited ] || [ "$2" -ge "$1" ]
}

row LIMIT WANT HAVE ''
release=$(uname -r)
good=false
[ "$(printf '6.1\n%s\n' "$release" | sort -V | head -n 1)" != 6.1 ] || good=true
judge kernel 6.1 "$release" "$good" "a newer kernel"
key kernel.io_uring_disabled most 0 "this kernel has no such switch"

# One descriptor per connection, for a million of them.
key fs.file-max least 2097152 "no such limit"
key fs.nr_open least 1048576 "no such limit"
nofile=$(ulimit -Hn)
good=false
! at_least 1048576 "$nofile" || good=true
judge "nofile (hard)" 1048576 "$nofile" "$good" "LimitNOFILE= of systemd, or /etc/security/limits.conf"
memlock=$(ulimit -Hl)
good=false
! at_least 512 "$memlock" || good=true
judge "memlock (hard, KiB)" 512 "$memlock" "$good" "LimitMEMLOCK= of systemd, or /etc/security/limits.conf"

# Bursts of new connections: accepted and half open ones that may wait.
key net.core.somaxconn least 4096 "no such limit"
key net.ipv4.tcp_max_syn_backlog least 8192 "no such limit"
# A process that ends leaves what its listeners have not accepted to others on the port (--reuse-port).
key net.ipv4.tcp_migrate_req exactly 1 "this kernel cannot"
# Ports of a load generator or a proxy: for each address that it connects to.
key net.ipv4.ip_local_port_range exactly "1024 65535" "no such limit"

# Pages for TCP: a quarter of the memory at most, where the kernel itself takes about a tenth.
pages=$(($(awk '/^MemTotal:/ { print $2 }' /proc/meminfo) * 1024 / $(getconf PAGESIZE)))
key net.ipv4.tcp_mem least "$((pages / 8)) $((pages / 6)) $((pages / 4))" "no such limit"
key net.netfilter.nf_conntrack_max least 1048576 "connections are not tracked"

if [ ${#lines[@]} -gt 0 ]; then
    {
        echo "# Written by corecast's scripts/tune.sh"
        printf '%s\n' "${lines[@]}"
        # What was set before stays set.
        [ ! -e "$file" ] || grep -v '^#' "$file" || true
    } >"$file.new"
    awk -F' = ' '!seen[$1]++' "$file.new" >"$file"
    rm "$file.new"
    echo "written for the next boot: $file"
fi
if [ "$missed" -gt 0 ]; then
    echo "$missed missed"
    exit 1
fi
echo "all good"
