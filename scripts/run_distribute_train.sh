#!/bin/sh
# Train on all devices that the rank table gives to this server. Each rank runs in ./train_parallel[RANK] with its log.txt.
set -eu
. "$(dirname -- "$0")/common.sh"

find_python
exec "$python" "$root/scripts/launch.py" "$@"
