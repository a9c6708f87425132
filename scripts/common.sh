# shellcheck shell=sh
# Functions that the scripts of this folder share. Sourced, not run; POSIX sh. Sets `root` to the repository's folder and
# `venv` to that of the Python environment.

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
# The Python environment; $VENV is for a repository that is read-only or shared by machines that differ.
venv=${VENV:-$root/.venv}
case $venv in
    /*) ;;
    *) venv=$PWD/$venv ;;
esac

# fail SENTENCE [CODE]: one line on standard error; 2 is wrong usage, 1 a failed run.
fail() {
    printf 'error: %s\n' "$1" >&2
    exit "${2:-2}"
}

# find_python: sets `python` to $PYTHON, else the environment's, else the one on the path.
find_python() {
    if [ -n "${PYTHON:-}" ]; then
        python=$PYTHON
    elif [ -x "$venv/bin/python" ]; then
        python=$venv/bin/python
    else
        python=python3
    fi
    command -v "$python" > /dev/null || fail "there is no '$python'; set PYTHON to a Python of 3.9 to 3.12"
}

# check_device_id TEXT: refuse what is not a whole number.
check_device_id() {
    case $1 in
        '' | *[!0-9]*) fail "DEVICE_ID is '$1', not a whole number" ;;
    esac
}

# check_data NAME PATH, check_file NAME PATH: refuse a path, or a file, that does not exist; NAME is for the message.
check_data() {
    [ -e "$2" ] || fail "$1: there is no '$2'"
}

check_file() {
    [ -f "$2" ] || fail "$1: there is no file '$2'"
}

# start LOG COMMAND...: runs the command in this folder with its output in LOG. The command runs in the background and
# survives the terminal; with WAIT=1 it replaces this script, so that the caller gets its exit code and can signal it.
start() {
    log=$1
    shift
    (: > "$log") 2> /dev/null || fail "the log '$log' cannot be written here" 1
    if [ "${WAIT:-0}" = 1 ]; then
        printf 'process %s, follow it with: tail -f %s\n' "$$" "$PWD/$log"
        exec "$@" > "$log" 2>&1
    fi
    nohup "$@" > "$log" 2>&1 < /dev/null &
    printf 'started process %s, follow it with: tail -f %s\n' "$!" "$PWD/$log"
}
