#!/bin/sh
# Set up, lint, test: sh run_tests.sh [pytest arguments]. Tests marked slow are left out; `-m slow` runs them alone.
set -eu
. "$(dirname -- "$0")/common.sh"
. "$root/scripts/environment.sh"

prepare_environment dev -r "$root/requirements-dev.txt"
sh "$root/scripts/install_system_packages.sh" || echo "warning: tests of the C++ program will fail without these packages" >&2
command -v chromedriver > /dev/null || sh "$root/scripts/install_system_packages.sh" chromium-driver/chromedriver ||
    echo "warning: tests of the report in a browser are skipped without Chromium and chromedriver" >&2

# Relative paths among the arguments start at the repository, whatever the caller's folder.
cd "$root"
lint=0
echo "lint: ruff check and ruff format --check"
"$python" -m ruff check . || lint=1
"$python" -m ruff format --check . || lint=1
tests=0
"$python" -m pytest "$@" || tests=$?
[ "$lint" -eq 0 ] || echo "error: ruff found the faults printed above" >&2
[ "$tests" -ne 0 ] || tests=$lint
exit "$tests"
