#!/bin/sh
# Build ascend310_infer, classify every image of a folder of class folders, compare with the labels. The results are
# written to the current folder: build.log, infer.log, result_Files/, time_Result/, imagenet_label.json, acc.log.
set -eu
. "$(dirname -- "$0")/common.sh"

if [ "$#" -lt 2 ]; then
    echo "usage: bash run_infer_310.sh [MODEL_PATH] [DATA_PATH] [DEVICE_ID] [further flags of the program]" >&2
    echo "       the model's suffix says what runs it: .mindir MindSpore Lite, .om AscendCL, .onnx OpenVINO on the CPU" >&2
    echo "       LITE_HOME=DIR names MindSpore Lite's package, CANN's set_env.sh AscendCL;" >&2
    echo "       DEVICE_TARGET=CPU runs a MINDIR file on the CPU" >&2
    echo "       --skip_existing as a further flag goes on with a run that was stopped" >&2
    exit 2
fi
model_path=$1
data_path=$2
shift 2
device_id=0
case ${1:-} in
    '' | --*) ;;
    *)
        device_id=$1
        shift
        ;;
esac
check_device_id "$device_id"
check_file MODEL_PATH "$model_path"
check_data DATA_PATH "$data_path"
case ${DEVICE_TARGET:-} in
    '') ;;
    Ascend | CPU) set -- --device_target "$DEVICE_TARGET" "$@" ;;
    *) fail "DEVICE_TARGET is '$DEVICE_TARGET', not one of Ascend, CPU" ;;
esac
find_python
for log in build.log infer.log acc.log; do
    (: > "$log") 2> /dev/null || fail "the log '$log' cannot be written here" 1
done
rm -f acc.log time_Result/test_perform_static.txt time_Result/test_perform_static.json

# fail_with LOG SENTENCE CODE: print the last lines of the log, then fail with the sentence.
fail_with() {
    tail -n 20 "$1" >&2
    fail "$2; the whole log is $PWD/$1" "$3"
}

echo "building ascend310_infer, see build.log"
PYTHON=$python sh "$root/ascend310_infer/build.sh" > build.log 2>&1 || fail_with build.log "the build failed" 1
program=${BUILD_DIR:-$root/ascend310_infer/build}/main

if [ -n "${LITE_HOME:-}" ]; then
    LD_LIBRARY_PATH=$LITE_HOME/runtime/lib:$LITE_HOME/tools/converter/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    export LD_LIBRARY_PATH
fi
echo "classifying the images, follow it with: tail -f $PWD/infer.log"
code=0
"$program" --model_path "$model_path" --dataset_path "$data_path" --device_id "$device_id" \
    --result_path result_Files --time_path time_Result "$@" > infer.log 2>&1 || code=$?
# The program writes the timings last. If it has written them and failed all the same, some images could not be used,
# and the others have their results.
if [ "$code" -ne 0 ] && [ ! -f time_Result/test_perform_static.json ]; then
    fail_with infer.log "the inference failed" "$code"
fi
[ "$code" -eq 0 ] || grep '^error: ' infer.log >&2 || true
cat time_Result/test_perform_static.txt

"$python" "$root/create_imagenet2012_label.py" --img_path "$data_path" --label_path imagenet_label.json
compared=0
"$python" "$root/postprocess.py" --result_path result_Files --label_path imagenet_label.json > acc.log || compared=$?
cat acc.log
[ "$code" -ne 0 ] || code=$compared
exit "$code"
