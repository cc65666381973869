#!/bin/sh
# prepare_instance.sh v1 CATEGORY NET.onnx SPEC.vnnlib: see that the instance can be asked.
set -eu
[ "${1:-}" = v1 ] || { echo "prepare_instance.sh: expected the version v1, got '${1:-}'" >&2; exit 1; }
[ $# -eq 4 ] || { echo "prepare_instance.sh: expected v1 CATEGORY NET.onnx SPEC.vnnlib" >&2; exit 1; }
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
exec "$root/.venv/bin/python" -P -m verify.competition prepare "$3" "$4"
