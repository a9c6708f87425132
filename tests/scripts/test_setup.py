"""The environment is the one that the requirement files describe."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent.parent


def read_requirements(name):
    """The requirements of a file with the comment above each, markers that do not hold here left out."""
    found, comment = [], []
    for line in (ROOT / name).read_text().splitlines():
        if line.startswith("#"):
            comment.append(line)
        elif not line:
            comment = []
        elif not line.startswith("-r"):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate():
                found.append((requirement, " ".join(comment)))
    return found


REQUIREMENTS = read_requirements("requirements.txt") + read_requirements("requirements-dev.txt")


@pytest.mark.parametrize("requirement", [requirement for requirement, _ in REQUIREMENTS], ids=lambda r: r.name)
def test_installed_version_is_in_the_range(requirement):
    assert importlib.metadata.version(requirement.name) in requirement.specifier


@pytest.mark.parametrize("requirement", [requirement for requirement, _ in REQUIREMENTS], ids=lambda r: r.name)
def test_every_range_has_an_upper_end(requirement):
    assert any(bound.operator in ("<", "<=", "==", "~=") for bound in requirement.specifier)


def test_every_dependency_of_a_user_has_its_reason():
    for requirement, comment in read_requirements("requirements.txt"):
        assert comment, requirement.name


def test_everything_installed_fits_together():
    check = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout


def test_licence_is_apache_2():
    text = (ROOT / "LICENSE").read_text()
    assert re.search(r"Apache License\s+Version 2\.0, January 2004", text)
    assert "END OF TERMS AND CONDITIONS" in text
