#!/bin/sh
# The suite's core with each minor release of MindSpore that requirements.txt allows: sh versions.sh [pytest arguments].
# Everything else comes from .venv, which run_tests.sh makes. VERSIONS names other releases, TMPDIR a place with 3 GB.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
[ "$#" -gt 0 ] || set -- tests/models tests/training tests/weights tests/export/test_exporter.py tests/test_dataset.py \
    tests/test_loss.py tests/evaluation tests/kernels tests/scripts/test_eval.py tests/scripts/test_train.py

cd "$root"
folder=
trap 'rm -rf "$folder"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
failed=
for version in ${VERSIONS:-2.7 2.8 2.9 2.10}; do
    folder=$(mktemp -d)
    echo "MindSpore $version"
    # Without what it needs: that is in .venv already.
    if "$python" -m pip install --quiet --no-deps --target "$folder" "mindspore==$version.*" &&
        PYTHONPATH=$folder "$python" -c 'import sys, mindspore; print("is", mindspore.__version__, "with Python", sys.version.split()[0])' &&
        PYTHONPATH=$folder "$python" -m pytest "$@"; then
        echo "MindSpore $version: passed"
    else
        failed="$failed $version"
    fi
    rm -rf "$folder"
done
[ -z "$failed" ] || {
    echo "error: it failed with MindSpore$failed" >&2
    exit 1
}
