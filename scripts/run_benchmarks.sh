#!/bin/sh
# Set up, run all benchmarks, write one table: bash run_benchmarks.sh [--out benchmarks.md] [NAME ...]
set -eu
. "$(dirname -- "$0")/common.sh"
. "$root/scripts/environment.sh"

prepare_environment dev -r "$root/requirements-dev.txt"
sh "$root/scripts/install_system_packages.sh" || echo "warning: cpp_inference cannot run without these packages" >&2
exec "$python" "$root/benchmarks/run_all.py" "$@"
