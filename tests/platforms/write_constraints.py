"""Write constraints/pythonX.Y.txt: the very releases of this environment, which the tests ran with.

Run it with the Python of an environment that `scripts/run_tests.sh` made: python tests/platforms/write_constraints.py
"""

import importlib.metadata
import re
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent.parent


def needed(lines, extras=()):
    """Requirements among lines of requirement files or of a package's description that hold here."""
    for line in lines:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement


def pins():
    """Releases by name, of what the requirement files name and what that needs in turn."""
    files = [ROOT / name for name in ("requirements.txt", "requirements-dev.txt")]
    lines = [line for file in files for line in file.read_text().splitlines() if re.match(r"\w", line)]
    found, new = {}, list(needed(lines))
    while new:
        requirement = new.pop()
        name = canonicalize_name(requirement.name)
        if name in found:
            continue
        try:
            package = importlib.metadata.distribution(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            # A build of PyTorch for CPUs does without what the default one needs.
            continue
        found[name] = package.version.partition("+")[0]
        new += needed(package.requires or (), requirement.extras)
    return found


if __name__ == "__main__":
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    text = "".join(f"{name}=={release}\n" for name, release in sorted(pins().items()))
    (ROOT / "constraints" / f"python{version}.txt").write_text(
        f"# What was installed on x86-64 when the tests last ran with Python {version}, written by\n"
        "# tests/platforms/write_constraints.py. Use: pip install -r requirements.txt -c this file.\n" + text
    )
