#!/bin/sh
# Evaluate an ONNX file on a folder of class folders, in the foreground.
set -eu
. "$(dirname -- "$0")/common.sh"

if [ "$#" -lt 2 ]; then
    echo "usage: bash run_infer_onnx.sh [ONNX_PATH] [DATASET_PATH] [DEVICE_TARGET] [further flags of infer_onnx.py]" >&2
    echo "       DEVICE_TARGET is CPU (default), GPU or Ascend" >&2
    exit 2
fi
onnx_path=$1
dataset_path=$2
shift 2
device_target=CPU
case ${1:-} in
    '' | --*) ;;
    *)
        device_target=$1
        shift
        ;;
esac
case $device_target in
    CPU | GPU | Ascend) ;;
    *) fail "DEVICE_TARGET is '$device_target', not one of CPU, GPU, Ascend" ;;
esac
check_file ONNX_PATH "$onnx_path"
check_data DATASET_PATH "$dataset_path"
find_python
exec "$python" "$root/infer_onnx.py" --onnx_path "$onnx_path" --dataset_path "$dataset_path" \
    --device_target "$device_target" "$@"
