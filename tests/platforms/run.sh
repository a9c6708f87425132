#!/bin/sh
# README's two commands in a clean system of another release or processor, as an ordinary user, from a fresh clone of the
# last commit. Needs root and debootstrap; for arm64 qemu-user-static and binfmt as well.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
root=$(CDPATH='' cd -- "$here/../.." && pwd)
usage="usage: sh run.sh NAME [arguments of run_tests.sh]   NAME is debian11, debian12 or arm64
       PLATFORMS=DIR  where the systems are kept, up to 12 GB each (default: platforms in \$TMPDIR or /tmp)
       EPOCHS=N       length of the quickstart (default: 8; 0 leaves it out, as on arm64)
       MIRROR=URL     where debootstrap takes Debian from (default: http://deb.debian.org/debian)
       WHEELS=DIR     a folder of wheels that pip may use, for example PyTorch's for CPUs
       PIP_... variables with an address or a time are passed on"

fail() {
    printf 'error: %s\n' "$1" >&2
    exit "${2:-1}"
}

[ "$#" -gt 0 ] || fail "$usage" 2
name=$1
shift
epochs=${EPOCHS:-8}
case $name in
    debian11) release=bullseye machine=amd64 ;;
    debian12) release=bookworm machine=amd64 ;;
    arm64) release=bookworm machine=arm64 epochs=${EPOCHS:-0} ;;
    *) fail "$usage" 2 ;;
esac
if [ "$name" = arm64 ] && [ "$#" -eq 0 ]; then
    # What an emulator finishes: pixels, engine, kernels, files, the C++ program, and that a run which began on x86 ends here
    # with the same numbers. Left out is what takes hours, and what needs limits of memory that an emulator does not keep.
    set -- tests/common tests/images tests/kernels tests/ascend310_infer tests/weights/test_checkpoint.py \
        tests/export/test_exporter.py tests/inference tests/training/test_step.py tests/training/test_resume.py \
        tests/scripts/test_previous_version.py -m "" -k "not Soak and not sanitizers and not random_moments \
        and not own_size and not address_space and not cannot_be_had and not lack_of_memory"
fi
[ "$(id -u)" -eq 0 ] || fail "a system is made by root; the two commands in it run as an ordinary user"
command -v debootstrap > /dev/null || fail "there is no debootstrap; on Debian and Ubuntu: apt-get install debootstrap"
if [ "$machine" = arm64 ] && [ "$(uname -m)" != aarch64 ]; then
    [ -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ] || fail "this machine does not run programs for Arm; on Debian and \
Ubuntu: apt-get install qemu-user-static binfmt-support, then mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc \
where it is not mounted, and update-binfmts --enable qemu-aarch64"
fi

# The system. Of its packages the repository's own script installs most.
system=${PLATFORMS:-${TMPDIR:-/tmp}/platforms}/$name
if [ ! -f "$system/.complete" ]; then
    echo "$name: making $release for $machine in $system"
    mkdir -p "$system"
    [ -d "$system/bin" ] && [ ! -d "$system/debootstrap" ] ||
        debootstrap --variant=minbase --arch="$machine" --include=python3,python3-venv,git,ca-certificates,procps \
            "$release" "$system" "${MIRROR:-http://deb.debian.org/debian}" || fail "debootstrap failed"
    [ ! -f /etc/ssl/certs/ca-certificates.crt ] || cp /etc/ssl/certs/ca-certificates.crt "$system/etc/ssl/certs/"
    chroot "$system" id tester > /dev/null 2>&1 || chroot "$system" useradd --create-home tester
    : > "$system/.complete"
fi
git -C "$root" bundle create --quiet "$system/home/tester/clone.bundle" HEAD
cp "$here/inside.sh" "$system/home/tester/inside.sh"

emulated=
if [ "$machine" != amd64 ] && [ "$(uname -m)" = x86_64 ]; then
    # The emulator shows its host's, on which ONNX Runtime for Arm ends in a segmentation fault.
    for core in 0 1; do
        printf '%s\t: %s\n' processor "$core" BogoMIPS 200.00 Features "fp asimd aes pmull sha1 sha2 crc32 atomics asimdrdm" \
            "CPU implementer" 0x48 "CPU architecture" 8 "CPU variant" 0x1 "CPU part" 0xd01 "CPU revision" 0
        echo
    done > "$system/cpuinfo"
    # Nor can a sanitizer look for leaks there, and NumPy warns of the emulated arithmetic.
    emulated=yes
fi

# Mounts of its own, which end with the commands. Not private are processes, so that all of them end as well.
mkdir -p "$system/wheels"
# shellcheck disable=SC2016  # expanded by the inner shell
exec unshare --mount --pid --fork --kill-child sh -euc '
    system=$1 wheels=$2 epochs=$3 emulated=$4
    shift 4
    mount -t proc proc "$system/proc"
    [ -z "$emulated" ] || mount --bind "$system/cpuinfo" "$system/proc/cpuinfo"
    mount --rbind /dev "$system/dev"
    mount -t sysfs -o ro sysfs "$system/sys"
    [ -z "$wheels" ] || mount --bind "$wheels" "$system/wheels"
    cp /etc/resolv.conf /etc/hosts "$system/etc/"
    run() {
        account=$1
        shift
        [ "$account" = root ] || set -- setpriv --reuid=tester --regid=tester --clear-groups "$@"
        home=/home/tester
        set -- env -i HOME="$home" USER="$account" LANG=C.UTF-8 PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin \
            PIP_NO_CACHE_DIR=1 PIP_FIND_LINKS=/wheels PIP_DISABLE_PIP_VERSION_CHECK=1 \
            ${PIP_INDEX_URL:+PIP_INDEX_URL="$PIP_INDEX_URL"} ${PIP_CERT:+PIP_CERT="$PIP_CERT"} \
            ${PIP_DEFAULT_TIMEOUT:+PIP_DEFAULT_TIMEOUT="$PIP_DEFAULT_TIMEOUT"} \
            ${emulated:+ASAN_OPTIONS=detect_leaks=0 PYTHONWARNINGS=ignore::UserWarning} "$@"
        chroot "$system" "$@"
    }
    run root sh /home/tester/inside.sh system
    run tester sh /home/tester/inside.sh "$epochs" "$@"
' sh "$system" "${WHEELS:-}" "$epochs" "$emulated" "$@"
