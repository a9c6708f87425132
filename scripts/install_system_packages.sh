#!/bin/sh
# Install system packages: sh install_system_packages.sh [packages], by default those that are needed to build and test
# ascend310_infer and the image engine. Packages that are installed already are left alone. A package is named as in Debian
# and Ubuntu, and behind a slash as in openEuler, CentOS and Fedora where they have another name.
set -eu
. "$(dirname -- "$0")/common.sh"

packages="cmake make g++/gcc-c++ libjpeg-dev/libjpeg-turbo-devel libpng-dev/libpng-devel"
packages="$packages nlohmann-json3-dev/json-devel libgtest-dev/gtest-devel"
[ "$#" -eq 0 ] || packages=$*

manager=
if command -v dpkg-query > /dev/null && command -v apt-get > /dev/null; then
    manager=apt-get
elif command -v rpm > /dev/null; then
    for each in dnf yum; do
        [ -n "$manager" ] || ! command -v "$each" > /dev/null || manager=$each
    done
fi
[ -n "$manager" ] || fail "there is neither apt-get nor dnf nor yum: install the counterparts of $packages yourself" 1

is_installed() {
    case $manager in
        apt-get) [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2> /dev/null)" = installed ] ;;
        *) rpm -q "$1" > /dev/null 2>&1 ;;
    esac
}

missing=
for package in $packages; do
    case $manager in
        apt-get) package=${package%%/*} ;;
        *) package=${package##*/} ;;
    esac
    is_installed "$package" || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

as_root=
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo > /dev/null || fail "missing packages, and neither root nor sudo to install them:$missing" 1
    as_root=sudo
fi

# install PACKAGE...
install() {
    case $manager in
        apt-get) set -- env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" ;;
        *) set -- "$manager" install -y -q "$@" ;;
    esac
    $as_root "$@" > /dev/null
}

echo "system packages: installing$missing"
[ "$manager" != apt-get ] || $as_root apt-get update -qq || fail "apt-get could not fetch its lists of packages" 1
# shellcheck disable=SC2086  # a list of names
install $missing 2> /dev/null && exit 0
# Together they fail where the distribution lacks one of them.
lacking=
for package in $missing; do
    install "$package" || lacking="$lacking $package"
done
[ -z "$lacking" ] || fail "$manager could not install$lacking" 1
