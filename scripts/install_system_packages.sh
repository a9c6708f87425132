#!/bin/sh
# Install Debian or Ubuntu packages: sh install_system_packages.sh [packages], by default those that are needed to build and
# test ascend310_infer and the image engine. Packages that are installed already are left alone.
set -eu
. "$(dirname -- "$0")/common.sh"

packages="cmake make g++ libjpeg-dev libturbojpeg0-dev libpng-dev nlohmann-json3-dev libcli11-dev libgtest-dev"
[ "$#" -eq 0 ] || packages=$*

if ! command -v dpkg-query > /dev/null || ! command -v apt-get > /dev/null; then
    fail "this is neither Debian nor Ubuntu: install the counterparts of $packages yourself" 1
fi

missing=
for package in $packages; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2> /dev/null) || status=
    [ "$status" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

as_root=
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo > /dev/null || fail "missing packages, and neither root nor sudo to install them:$missing" 1
    as_root=sudo
fi
echo "system packages: installing$missing"
# shellcheck disable=SC2086  # $missing is a list of names, $as_root a word or nothing
if ! $as_root apt-get update -qq || ! $as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends $missing > /dev/null; then
    fail "apt-get could not install$missing" 1
fi
