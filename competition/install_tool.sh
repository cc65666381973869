#!/bin/sh
# install_tool.sh v1: make an environment with ringfence in it.
set -eu
[ "${1:-}" = v1 ] || { echo "install_tool.sh: expected the version v1, got '${1:-}'" >&2; exit 1; }
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
python=${PYTHON:-python3}
test -x "$root/.venv/bin/python" || "$python" -m venv "$root/.venv"
"$root/.venv/bin/python" -m pip install --quiet --disable-pip-version-check -c "$root/constraints.txt" -e "$root"
