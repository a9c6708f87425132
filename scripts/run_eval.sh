#!/bin/sh
# Evaluate a checkpoint on one device. The result goes to ./eval_log.txt.
set -eu
. "$(dirname -- "$0")/common.sh"

if [ "$#" -lt 3 ]; then
    echo "usage: sh run_eval.sh [DEVICE_ID] [DATA_DIR] [PATH_CHECKPOINT] [further flags of eval.py]" >&2
    echo "       WAIT=1 waits for the end and passes on the exit code" >&2
    exit 2
fi
device_id=$1
data_dir=$2
checkpoint=$3
shift 3
check_device_id "$device_id"
check_data DATA_DIR "$data_dir"
check_file PATH_CHECKPOINT "$checkpoint"
find_python
start eval_log.txt "$python" -u "$root/eval.py" --device_id "$device_id" --dataset_path "$data_dir" \
    --checkpoint_path "$checkpoint" "$@"
