#!/bin/sh
# From the name of published weights to an ONNX file, in the foreground. Nothing else is left behind.
set -eu
. "$(dirname -- "$0")/common.sh"

if [ "$#" -lt 2 ]; then
    echo "usage: sh run_name_to_onnx.sh [NAME] [TARGET.onnx] [further flags of export.py]" >&2
    echo "       NAME is one of python convert_weights.py --list, or the path of a weight file" >&2
    exit 2
fi
name=$1
target=$2
shift 2
case $target in
    *.onnx) ;;
    *) fail "TARGET is '$target', the name of an ONNX file ends in .onnx" ;;
esac
find_python
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
"$python" "$root/convert_weights.py" --source "$name" --target "$folder/weights.ckpt"
"$python" "$root/export.py" --checkpoint_path "$folder/weights.ckpt" --file_name "$target" --file_format ONNX "$@"
