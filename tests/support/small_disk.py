"""Commands on a real file system that is soon full or may only be read."""

import functools
import shutil
import subprocess


@functools.cache
def can_mount():
    """Whether this process may make a small file system of its own."""
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    return bool(shutil.which("unshare")) and subprocess.run(command, capture_output=True).returncode == 0


def run_on_small_disk(command, disk, size, kept, **options):
    """Run a command while `disk` is a file system of `size` bytes ("10m"); what it left there is copied to `kept`."""
    script = f'mount -t tmpfs -o size={size} none {disk} || exit 99\n"$@"; code=$?\ncp -r {disk}/. {kept}\nexit $code'
    command = ["unshare", "-rm", "sh", "-c", script, "sh", *command]
    return subprocess.run(command, capture_output=True, text=True, **options)


def run_with_read_only(command, *folders, **options):
    """Run a command for which these folders, with all that is below, may only be read."""
    mounts = "".join(
        f"mount --bind '{path}' '{path}' && mount -o remount,bind,ro '{path}' || exit 99\n" for path in folders
    )
    command = ["unshare", "-rm", "sh", "-c", f'{mounts}cd .\nexec "$@"', "sh", *map(str, command)]
    return subprocess.run(command, capture_output=True, text=True, **options)
