#!/bin/sh
# Train on all devices that the rank table gives to this server. Rank N runs in ./train_parallelN, its log is log.txt.
set -eu
. "$(dirname -- "$0")/common.sh"

find_python
exec "$python" "$root/scripts/launch.py" "$@"
