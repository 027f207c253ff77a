#!/usr/bin/env bash
# Replaces what stands between <!-- NAME:begin --> and <!-- NAME:end --> in a file by standard input.
#
#   scripts/replace-block.sh FILE NAME
#
# Exit code 2 if the two lines do not stand in the file once each.
set -euo pipefail

file=${1:-} name=${2:-}
if ! [ -f "$file" ] || [ -z "$name" ]; then
    echo "usage: $0 FILE NAME" >&2
    exit 2
fi
begin="<!-- $name:begin -->" end="<!-- $name:end -->"
if [ "$(grep -cFx -e "$begin" "$file")" != 1 ] || [ "$(grep -cFx -e "$end" "$file")" != 1 ]; then
    echo "$0: $file: expected $begin and $end once each" >&2
    exit 2
fi
new=$(mktemp "$file.XXXXXX")
trap 'rm -f "$new"' EXIT
{
    sed "/^$begin\$/q" "$file"
    echo
    cat
    echo
    sed -n "/^$end\$/,\$p" "$file"
} >"$new"
# The file keeps its owner and mode.
cat "$new" >"$file"
