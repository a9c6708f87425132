#!/bin/sh
# What run.sh runs in a system: `inside.sh system` as root, then `inside.sh EPOCHS [pytest arguments]` as an ordinary user.
set -eu
cd "$HOME"
clone=$HOME/clone
if [ "$1" = system ]; then
    rm -rf "$HOME/unpacked"
    git clone --quiet "$HOME/clone.bundle" "$HOME/unpacked"
    sh "$HOME/unpacked/scripts/install_system_packages.sh"
    rm -rf "$HOME/unpacked"
    exit
fi
epochs=$1
shift

# An environment that is there already is kept: installing it takes longest.
[ ! -d "$clone/.venv" ] || mv "$clone/.venv" "$HOME/kept"
rm -rf "$clone"
git clone --quiet clone.bundle "$clone"
[ ! -d kept ] || mv kept "$clone/.venv"
cd "$clone"
echo "$(uname -m), $(. /etc/os-release && echo "$PRETTY_NAME"), $(python3 --version), commit $(git rev-parse --short HEAD)"
[ "$epochs" -eq 0 ] || bash scripts/quickstart.sh --epochs "$epochs"
bash scripts/run_tests.sh "$@"
