#!/bin/bash
# Decide an instance: run_instance.sh v1 CATEGORY ONNX VNNLIB RESULT_FILE TIMEOUT
# RESULT_FILE gets one of sat, unsat, timeout, unknown, error, and after sat the counterexample.
[ "$1" = v1 ] || { echo "expected the version v1, got '$1'" >&2; exit 1; }
project="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
robustly="${ROBUSTLY:-$project/.venv-vnncomp/bin/robustly}"
network="$3" property="$4" result="$5" seconds="$6"
[ -f "$network" ] || [ -f "$network.gz" ] || network="${network#*:}"
[ -f "$network" ] || network="$network.gz"
[ -f "$property" ] || property="$property.gz"
rm -f "$result"
mkdir -p "$(dirname "$result")"
timeout --kill-after=5 "$seconds" "$robustly" verify "$network" "$property" --timeout "$seconds" --result "$result"
code=$?
if [ ! -s "$result" ]; then # stopped by `timeout`, or killed for lack of memory
    [ "$code" -eq 124 ] && echo timeout > "$result" || echo unknown > "$result"
fi
exit 0
