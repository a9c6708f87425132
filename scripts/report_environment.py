"""What a bug report should say of this machine, on one screen: system, versions, device, compilers, cores, caches."""

from __future__ import annotations

import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from src.common.interrupt import listen, run_child

if __name__ == "__main__":
    listen()

import importlib.metadata
import platform
import re
import shutil
from typing import Callable

from src.common.cli import ArgumentParser, run_cli

# What changes how the programs run; others, which may hold secrets, are not shown.
VARIABLES = re.compile(
    r"(MS|ASCEND|HCCL|RANK|DEVICE|OMP|ONEDNN|GLOG|IMAGE)_\w+|LITE_HOME|CXX?|PYTHON\w*|LANG|LC_ALL|TMPDIR"
)
# In a process of their own: what is wrong with a library may end it.
DEVICE = (
    "from src.runtime.device import count_devices, find_target; target = find_target(); "
    "print(target, '' if target == 'CPU' else f'with {count_devices(target)} devices')"
)
KERNELS = "from src.kernels import load_kernels; kernels = load_kernels(); print(kernels.library if kernels else '')"
ENGINE = "from src.images.engine import describe_engine; print('images are', describe_engine())"
SECONDS = 300


def main(argv=None) -> None:
    """Print the table; a line that cannot be found out says why."""
    ArgumentParser(description=__doc__).parse_args(argv)
    for name, describe in ROWS.items():
        try:
            text = describe()
        except Exception as error:  # A report is most needed where something is broken.
            text = f"{type(error).__name__}: {error}"
        print(f"{name:<12} {text}", flush=True)


def describe_commit() -> str:
    state = output_of("git", "-C", ROOT, "status", "--short", "--untracked-files=no")
    changed = f", {len(state.splitlines())} files changed" if state else ""
    return output_of("git", "-C", ROOT, "log", "-1", "--format=%h of %cs") + changed


def describe_system() -> str:
    with open("/etc/os-release", encoding="utf-8") as file:
        name = re.search(r'^PRETTY_NAME="?(.*?)"?$', file.read(), re.MULTILINE)
    libc = " ".join(platform.libc_ver())
    return f"{name[1] if name else '?'}; Linux {platform.release()}, {platform.machine()}, {libc}"


def describe_processor() -> str:
    from src.common.machine import available_memory, count_cores, cpu_flags, cpu_limit, cpu_name, usable_cores

    limits = f"bound to {len(usable_cores())}, container's limit {cpu_limit() or 'none'}"
    cores = f"{count_cores()} of {os.cpu_count()} cores ({limits})"
    vectors = sorted(cpu_flags() & {"avx2", "fma", "avx512f", "avx512_vnni", "asimd", "sve"})
    return f"{cpu_name()} [{' '.join(vectors)}], {cores}, {available_memory() / 2**30:.1f} GiB of memory free"


def describe_packages() -> str:
    with open(os.path.join(ROOT, "requirements.txt"), encoding="utf-8") as file:
        names = [found[0] for line in file if (found := re.match(r"\w+", line))]
    return ", ".join(f"{name} {version_of(name)}" for name in names)


def version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def describe_compilers() -> str:
    from src.common.native import CompileError, find_compiler

    found = []
    for variable in ("CC", "CXX"):
        try:
            command = find_compiler(variable)
            found.append(f"{' '.join(command)}: {output_of(*command, '--version').splitlines()[0]}")
        except CompileError as error:
            found.append(str(error))
    cmake = shutil.which("cmake")
    return "; ".join([*found, output_of(cmake, "--version").splitlines()[0] if cmake else "there is no cmake"])


def describe_cache() -> str:
    from src.common.native import cache_folder

    folder = cache_folder()
    files = [os.path.join(folder, name) for name in os.listdir(folder)]
    return f"{folder} ({len(files)} files, {sum(map(os.path.getsize, files)) / 2**20:.1f} MiB)"


def describe_disks() -> str:
    places = {"repository": ROOT, "home": os.path.expanduser("~"), "/tmp": "/tmp", "/dev/shm": "/dev/shm"}
    return ", ".join(f"{name} {free_space(path)}" for name, path in places.items())


def free_space(path: str) -> str:
    if not os.path.isdir(path):
        return "is missing"
    free = f"{shutil.disk_usage(path).free / 2**30:.1f} GiB"
    return free if os.access(path, os.W_OK) else f"{free} (read-only for this user)"


def describe_variables() -> str:
    found = sorted(f"{name}={value}" for name, value in os.environ.items() if VARIABLES.fullmatch(name))
    return " ".join(found) or "none of ours"


def output_of(*command: str) -> str:
    """What a command prints, its first complaint where it fails."""
    done = run_child(command, capture_output=True, text=True, errors="replace", cwd=ROOT, timeout=SECONDS)
    if not done.returncode:
        return done.stdout.strip()
    return f"exit code {done.returncode}: {(done.stderr or done.stdout).strip().rpartition(chr(10))[2][:300]}"


def run_python(*arguments: str) -> Callable[[], str]:
    return lambda: output_of(sys.executable, *arguments)


ROWS = {
    "repository": describe_commit,
    "system": describe_system,
    "processor": describe_processor,
    "python": lambda: f"{platform.python_version()}, {sys.executable}",
    "packages": describe_packages,
    "pip check": run_python("-m", "pip", "--disable-pip-version-check", "check"),
    "device": run_python("-c", DEVICE),
    "CANN": lambda: os.environ.get("ASCEND_HOME_PATH", "not in the environment (ASCEND_HOME_PATH)"),
    "compilers": describe_compilers,
    "images": run_python("-c", ENGINE),
    "kernels": run_python("-c", KERNELS),
    "cache": describe_cache,
    "free space": describe_disks,
    "variables": describe_variables,
}
"""Each line's name and what finds its text."""


if __name__ == "__main__":
    sys.exit(run_cli(main))
