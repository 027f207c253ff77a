#!/usr/bin/env bash
# Installs and builds all peers: relays in Rust, the npm module ws and the PyPI package websockets below the target
# directory, nginx with nchan as packages of Debian. Nothing of it is needed for corecast itself.
set -euo pipefail

cd "$(dirname "$0")"
folder=$(realpath -m "${CARGO_TARGET_DIR:-../../target}")/peers
mkdir -p "$folder/node"

packages=""
command -v node >/dev/null || packages="$packages nodejs"
command -v npm >/dev/null || packages="$packages npm"
command -v python3 >/dev/null || packages="$packages python3-venv"
[ -x /usr/sbin/nginx ] || packages="$packages nginx-light"
[ -e /usr/lib/nginx/modules/ngx_nchan_module.so ] || packages="$packages libnginx-mod-nchan"
if [ -n "$packages" ]; then
    apt-get update
    # The packages are words by intention.
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $packages
fi

cargo build --release --locked --target-dir "$folder/cargo"
cp node/package.json node/package-lock.json "$folder/node/"
npm ci --loglevel=error --no-audit --no-fund --prefix "$folder/node"
[ -x "$folder/venv/bin/python" ] || python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --requirement python/requirements.txt
