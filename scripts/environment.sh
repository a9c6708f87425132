# shellcheck shell=sh disable=SC2154  # common.sh sets root and venv
# Sourced after common.sh by the scripts that install. Creates $venv, and updates it when requirements change.

# find_base_python: sets `base_python` to an interpreter that MindSpore has wheels for.
find_base_python() {
    for base_python in ${PYTHON:+"$PYTHON"} python3 python3.11 python3.12 python3.10 python3.9; do
        if "$base_python" -c 'import sys; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 12))' 2> /dev/null; then
            return
        fi
        [ -z "${PYTHON:-}" ] || fail "PYTHON is '$PYTHON', which is no Python of 3.9 to 3.12" 1
    done
    fail "no Python of 3.9 to 3.12 was found on the path; install one, or set PYTHON to it" 1
}

# prepare_environment NAME PIP_ARGUMENTS...: installs into $venv, unless it was done for the present requirement files.
# NAME is "user" or "dev"; an environment for developers serves users as well.
prepare_environment() {
    name=$1
    shift
    python=$venv/bin/python
    wanted=$(cat "$root/requirements.txt" "$root/requirements-dev.txt" | cksum)
    for stamp in "$venv/.installed-$name" "$venv/.installed-dev"; do
        if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && "$python" -c '' 2> /dev/null; then
            echo "environment: $venv is up to date, reusing it"
            return
        fi
    done
    if ! "$python" -m pip --version > /dev/null 2>&1; then
        find_base_python
        mkdir -p "$venv" 2> /dev/null || fail "the environment '$venv' cannot be made here; set VENV to a folder for it" 1
        echo "environment: creating $venv with $("$base_python" --version)"
        "$base_python" -m venv --clear "$venv" ||
            fail "no virtual environment could be created (on Debian and Ubuntu: apt-get install python3-venv)" 1
    fi
    echo "environment: installing into $venv (about a minute, 3 GB)"
    "$python" -m pip install --disable-pip-version-check "$@" || fail "the requirements could not be installed" 1
    printf '%s\n' "$wanted" > "$venv/.installed-$name"
}
