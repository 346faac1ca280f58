#!/bin/bash
# Check the files of an instance: prepare_instance.sh v1 CATEGORY ONNX VNNLIB
# A code other than 0 makes the competition skip the instance.
[ "$1" = v1 ] || { echo "expected the version v1, got '$1'" >&2; exit 1; }
network="$3"
[ -f "$network" ] || [ -f "$network.gz" ] || network="${network#*:}"
for file in "$network" "$4"; do
    [ -f "$file" ] || [ -f "$file.gz" ] || { echo "no file $file" >&2; exit 1; }
done
exit 0
