#!/usr/bin/env bash
# Docker's default seccomp profile refuses io_uring. This reads that profile, as the version of Docker in use has it
# (profiles/seccomp/default.json of its sources), and writes it with io_uring allowed:
#   scripts/packaging/seccomp.sh default.json >seccomp.json
#   docker run --security-opt seccomp=seccomp.json ...
set -euo pipefail

usage="usage: $0 DEFAULT_PROFILE.json >seccomp.json"
case ${1-} in
--help | -h)
    echo "$usage"
    echo "Writes Docker's default seccomp profile (profiles/seccomp/default.json of its sources) with io_uring allowed."
    exit
    ;;
esac
if [ $# -ne 1 ]; then
    echo "$usage" >&2
    exit 2
fi
command -v jq >/dev/null || { echo "$0: jq is needed" >&2; exit 1; }
jq -e '(.defaultAction | type) == "string" and (.syscalls | type) == "array"' "$1" >/dev/null || {
    echo "$0: $1 is no seccomp profile: expected defaultAction and syscalls" >&2
    exit 1
}
jq '["io_uring_enter", "io_uring_register", "io_uring_setup"] as $ring
    | (.syscalls |= map(.names = ((.names // []) - $ring) | select(.names != [])))
    | .syscalls += [{
        names: $ring,
        action: "SCMP_ACT_ALLOW",
        comment: "corecast: one io_uring per core"
      }]' "$1"
