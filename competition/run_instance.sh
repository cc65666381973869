#!/bin/sh
# run_instance.sh v1 CATEGORY NET.onnx SPEC.vnnlib RESULT SECONDS: answer the instance within the seconds and write the result file.
set -eu
[ "${1:-}" = v1 ] || { echo "run_instance.sh: expected the version v1, got '${1:-}'" >&2; exit 1; }
[ $# -eq 6 ] || { echo "run_instance.sh: expected v1 CATEGORY NET.onnx SPEC.vnnlib RESULT SECONDS" >&2; exit 1; }
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
exec "$root/.venv/bin/python" -P -m verify.competition run "$3" "$4" "$5" "$6"
