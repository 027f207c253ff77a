#!/usr/bin/env bash
# Installs below the target directory what the foreign clients of the tests need: the npm modules ws and nchan and the
# PyPI package websockets. The browser is not among them: Debian's package chromium, or any Chrome in the PATH.
set -euo pipefail

cd "$(dirname "$0")/../.."
folder=${CARGO_TARGET_DIR:-target}/foreign
mkdir -p "$folder"

npm install --loglevel=error --no-audit --no-fund --no-save --no-package-lock --prefix "$folder" ws@8.23.0 nchan@1.0.10
[ -x "$folder/venv/bin/python" ] || python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check websockets==17.4
