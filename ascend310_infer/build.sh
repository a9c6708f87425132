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

# The Python whose packages bring the engine OpenVINO and, where the system has none, the headers of nlohmann-json.
if [ -n "${PYTHON:-}" ]; then
    python=$PYTHON
elif [ -x "${VENV:-$here/../.venv}/bin/python" ]; then
    python=${VENV:-$here/../.venv}/bin/python
else
    python=python3
fi
# package_folder NAME: found without importing it, which would take seconds; empty if there is none.
package_folder() {
    "$python" -c 'import importlib.util as u, sys; s = u.find_spec(sys.argv[1]); print(s.submodule_search_locations[0] if s else "")' "$1" 2> /dev/null || true
}
json=$(package_folder mindspore)/include/third_party

# What is missing, by the names of Debian's and Ubuntu's packages, behind a slash those of openEuler and CentOS.
missing=
command -v cmake > /dev/null || missing="$missing cmake"
command -v make > /dev/null || command -v ninja > /dev/null || missing="$missing make"
command -v "${CXX:-c++}" > /dev/null || missing="$missing g++/gcc-c++"
if command -v "${CXX:-c++}" > /dev/null; then
    has_header() {
        printf '#include <cstdio>\n#include <%s>\n' "$1" | "${CXX:-c++}" -x c++ -std=c++17 -fsyntax-only - 2> /dev/null
    }
    has_header jpeglib.h || missing="$missing libjpeg-dev/libjpeg-turbo-devel"
    has_header png.h || missing="$missing libpng-dev/libpng-devel"
    has_header nlohmann/json.hpp || [ -f "$json/nlohmann/json.hpp" ] || missing="$missing nlohmann-json3-dev/json-devel"
fi
[ -z "$missing" ] || fail "these packages are missing:$missing"

# The engines.
openvino=
[ "${WITH_OPENVINO:-ON}" = OFF ] || openvino=$(package_folder openvino)
ascend=${ASCEND_HOME_PATH:-${ASCEND_TOOLKIT_HOME:-}}
if [ -n "$ascend" ] && [ ! -f "$ascend/include/acl/acl.h" ]; then
    echo "without the engine ascendcl: there is no include/acl/acl.h in '$ascend'"
    ascend=
fi
set -- -DJSON_INCLUDE="$json" -DASCEND_HOME="$ascend" -DLITE_HOME="${LITE_HOME:-}" "$@"
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
mkdir -p "$build" 2> /dev/null && [ -w "$build" ] || fail "'$build' cannot be written; set BUILD_DIR to a folder for the build"
cmake -S "$here" -B "$build" "$@" > "$build.configure.log" 2>&1 || {
    cat "$build.configure.log" >&2
    fail "CMake could not configure the build"
}
rm -f "$build.configure.log"
cmake --build "$build" --parallel "${JOBS:-$(nproc)}" || {
    [ -z "${LITE_HOME:-}" ] || [ -z "$openvino" ] ||
        echo "note: OpenVINO's wheel may have C++'s old strings, MindSpore Lite the new ones; WITH_OPENVINO=OFF builds without it" >&2
    fail "the build failed"
}
echo "built $build/main"
