#!/bin/bash
# Install robustly for the verification competition: install_tool.sh v1
set -e
[ "$1" = v1 ] || { echo "expected the version v1, got '$1'" >&2; exit 1; }
project="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
python3 -m venv "$project/.venv-vnncomp"
"$project/.venv-vnncomp/bin/pip" install --quiet --upgrade pip
"$project/.venv-vnncomp/bin/pip" install --quiet "$project[onnx]" scipy vnnlib
"$project/.venv-vnncomp/bin/robustly" verify --help > /dev/null
