"""What a user is asked to report about a machine."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def report(*python_flags, **environment):
    """The report's lines by name."""
    command = [sys.executable, *python_flags, ROOT / "scripts" / "report_environment.py"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert (done.returncode, done.stderr) == (0, "")
    return {line[:12].strip(): line[13:] for line in done.stdout.splitlines()}


def test_one_screen_says_what_this_machine_is():
    lines = report(IMAGE_ENGINE="pillow", SECRET_TOKEN="hidden")
    assert len(lines) < 24 and "hidden" not in str(lines)
    assert platform.machine() in lines["system"] and platform.release() in lines["system"]
    assert lines["python"] == f"{platform.python_version()}, {sys.executable}"
    for package in ("mindspore", "numpy", "onnxruntime"):
        assert f"{package} {importlib.metadata.version(package)}" in lines["packages"]
    assert f"of {os.cpu_count()} cores" in lines["processor"]
    assert lines["device"].strip() == "CPU"
    assert "IMAGE_ENGINE is pillow" in lines["images"] and "IMAGE_ENGINE=pillow" in lines["variables"]
    cache = lines["cache"].partition(" (")[0]
    assert lines["kernels"].startswith(cache) and os.path.isdir(cache)


def test_where_nothing_is_installed_it_says_what_is_missing(tmp_path):
    # Without site-packages, and without a compiler.
    lines = report("-S", PATH=str(tmp_path), XDG_CACHE_HOME=str(tmp_path))
    assert lines["packages"].startswith("mindspore missing, numpy missing")
    assert lines["compilers"] == "there is no C compiler; there is no C++ compiler; there is no cmake"
    assert lines["repository"].startswith("FileNotFoundError: ")
