#!/bin/sh
# Build ascend310_infer into build/main; compile only what changed. Engines: AscendCL where CANN's set_env.sh was sourced,
# MindSpore Lite where LITE_HOME names its package, OpenVINO where the Python environment has it.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
build=${BUILD_DIR:-$here/build}

fail() {
    printf 'error: %s\n' "$1" >&2
    exit "${2:-1}"
}

case ${1:-} in
    -h | --help)
        echo "usage: sh build.sh [CMake options, for example -DSANITIZE=address]"
        echo "       ASCEND_HOME_PATH   CANN's folder; its set_env.sh sets this"
        echo "       LITE_HOME=DIR      MindSpore Lite's cloud-side package"
        echo "       PYTHON=FILE        the Python whose environment may have the package openvino"
        echo "       WITH_OPENVINO=OFF  leaves that engine out"
        echo "       BUILD_DIR=DIR      instead of build/ beside this script"
        exit 0
        ;;
esac

# What is missing, by the names of Debian's and Ubuntu's packages.
missing=
command -v cmake > /dev/null || missing="$missing cmake"
command -v make > /dev/null || command -v ninja > /dev/null || missing="$missing make"
command -v "${CXX:-c++}" > /dev/null || missing="$missing g++"
if command -v "${CXX:-c++}" > /dev/null; then
    has_header() {
        printf '#include <cstdio>\n#include <%s>\n' "$1" | "${CXX:-c++}" -x c++ -std=c++17 -fsyntax-only - 2> /dev/null
    }
    has_header jpeglib.h || missing="$missing libjpeg62-turbo-dev(Debian)/libjpeg-turbo8-dev(Ubuntu)"
    has_header png.h || missing="$missing libpng-dev"
    has_header nlohmann/detail/macro_scope.hpp || missing="$missing nlohmann-json3-dev"
    has_header CLI/Version.hpp || missing="$missing libcli11-dev"
fi
[ -z "$missing" ] || fail "these packages are missing:$missing"

# The engines.
if [ -n "${PYTHON:-}" ]; then
    python=$PYTHON
elif [ -x "$here/../.venv/bin/python" ]; then
    python=$here/../.venv/bin/python
else
    python=python3
fi
openvino=
if [ "${WITH_OPENVINO:-ON}" != OFF ] && command -v "$python" > /dev/null; then
    # Found without importing it, which would take seconds.
    openvino=$("$python" -c 'import importlib.util as u; s = u.find_spec("openvino"); print(s.submodule_search_locations[0] if s else "")' 2> /dev/null) || openvino=
fi
ascend=${ASCEND_HOME_PATH:-${ASCEND_TOOLKIT_HOME:-}}
if [ -n "$ascend" ] && [ ! -f "$ascend/include/acl/acl.h" ]; then
    echo "without the engine ascendcl: there is no include/acl/acl.h in '$ascend'"
    ascend=
fi
set -- -DASCEND_HOME="$ascend" -DLITE_HOME="${LITE_HOME:-}" "$@"
if [ -n "$openvino" ] && [ -f "$openvino/cmake/OpenVINOConfig.cmake" ]; then
    set -- -DWITH_OPENVINO=ON -DOpenVINO_DIR="$openvino/cmake" "$@"
else
    set -- -DWITH_OPENVINO=OFF "$@"
    [ -n "$ascend${LITE_HOME:-}" ] || fail "there is no engine to build: source CANN's set_env.sh, set LITE_HOME to MindSpore Lite's package, or 'pip install openvino' for '$python'"
fi
if [ -n "${LITE_HOME:-}" ] && [ ! -d "$LITE_HOME" ]; then
    fail "LITE_HOME is '$LITE_HOME', but there is no such folder"
fi

# The cache keeps the libraries of the last folders; other folders need a new search.
for folder in "ASCEND_HOME:PATH=$ascend" "LITE_HOME:PATH=${LITE_HOME:-}"; do
    if [ -f "$build/CMakeCache.txt" ] && ! grep -qxF "$folder" "$build/CMakeCache.txt"; then
        rm -f "$build/CMakeCache.txt"
    fi
done
cmake -S "$here" -B "$build" "$@" > "$build.configure.log" 2>&1 || {
    cat "$build.configure.log" >&2
    fail "CMake could not configure the build"
}
rm -f "$build.configure.log"
cmake --build "$build" --parallel "${JOBS:-$(nproc)}" || fail "the build failed"
echo "built $build/main"
