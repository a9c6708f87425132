#!/bin/sh
# Train on one device. The log goes to ./log.txt, checkpoints to ./checkpoint.
set -eu
. "$(dirname -- "$0")/common.sh"

if [ "$#" -lt 2 ]; then
    echo "usage: sh run_standalone_train.sh [DEVICE_ID] [DATA_DIR] [further flags of train.py]" >&2
    echo "       WAIT=1 waits for the end and passes on the exit code" >&2
    exit 2
fi
device_id=$1
data_dir=$2
shift 2
check_device_id "$device_id"
check_data DATA_DIR "$data_dir"
find_python
start log.txt "$python" -u "$root/train.py" --device_id "$device_id" --dataset_path "$data_dir" "$@"
