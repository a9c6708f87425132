"""The files of constraints: what was tested lies within what the requirement files allow."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent.parent
FILES = sorted((ROOT / "constraints").glob("python3.*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_requirement_is_pinned_to_a_release_that_it_allows(path):
    pins = dict(line.split("==") for line in path.read_text().splitlines() if not line.startswith("#"))
    environment = {"python_version": path.stem.removeprefix("python"), "platform_machine": "x86_64"}
    texts = [(ROOT / name).read_text() for name in ("requirements.txt", "requirements-dev.txt")]
    lines = "".join(texts).splitlines()
    wanted = [Requirement(line) for line in lines if re.match(r"\w", line)]
    wanted = [each for each in wanted if each.marker is None or each.marker.evaluate(environment)]
    assert len(wanted) > 20
    for requirement in wanted:
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_the_oldest_and_the_usual_python_have_one():
    assert {"python3.9", "python3.11"} <= {path.stem for path in FILES}
