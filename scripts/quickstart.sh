#!/bin/sh
# Set up, train EfficientNet-B0 on scikit-learn's handwritten digits, evaluate, export, run the exported file.
set -eu
. "$(dirname -- "$0")/common.sh"
. "$root/scripts/environment.sh"

usage="usage: bash quickstart.sh [--data DIR] [--epochs N] [--out DIR]   (DIR of --data: a folder for each class of your \
images; by default the digits for 8 epochs, into quickstart/ of the repository)"
epochs=
data=
out=$root/quickstart
while [ "$#" -gt 0 ]; do
    case $1 in
        -h | --help)
            echo "$usage"
            exit 0
            ;;
        --data | --epochs | --out) [ "$#" -gt 1 ] || fail "$1 needs a value; $usage" ;;
        *) fail "unknown argument '$1'; $usage" ;;
    esac
    case $1 in
        --data) data=$2 ;;
        --epochs) epochs=$2 ;;
        --out) out=$2 ;;
    esac
    shift 2
done
case $epochs in
    *[!0-9]*) fail "--epochs is '$epochs', not a whole number" ;;
esac
[ -n "$data" ] || [ "${epochs:-8}" -ge 2 ] || fail "--epochs is $epochs; the learning rate alone needs 2 to rise"
[ -z "$data" ] || check_data --data "$data"
[ -n "$out" ] || fail "--out is empty"

began=$(date +%s)
# scikit-learn brings the digits; the development requirements give the range of its versions.
prepare_environment user -r "$root/requirements.txt" -c "$root/requirements-dev.txt" scikit-learn
exec "$python" "$root/scripts/quickstart.py" "$epochs" "$out" "$(($(date +%s) - began))" "$data"
