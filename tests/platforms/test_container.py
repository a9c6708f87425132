"""The Dockerfile as far as it can be checked without an engine: what it copies and runs is there."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
STEPS = re.sub(r"\\\n", " ", re.sub(r"(?m)^#.*\n", "", (ROOT / "Dockerfile").read_text())).splitlines()
PLACE = "/opt/efficientnet/"


def arguments(kind):
    return [shlex.split(step.partition(" ")[2]) for step in STEPS if step.startswith(f"{kind} ")]


def test_every_step_is_one_that_docker_knows():
    assert {step.partition(" ")[0] for step in STEPS if step} == {"ARG", "FROM", "COPY", "RUN", "ENV", "WORKDIR", "CMD"}


def test_the_base_image_is_an_argument():
    assert STEPS[:2] == ["ARG BASE=python:3.11-slim-bookworm", "FROM ${BASE}"]


def test_every_source_is_in_the_repository_and_copied_before_it_is_used():
    copied = set()
    for step in filter(None, STEPS):
        kind, _, text = step.partition(" ")
        if kind == "COPY":
            *sources, target = shlex.split(text)
            assert target.startswith(PLACE.rstrip("/")) and all((ROOT / source).exists() for source in sources)
            copied |= {Path(source).name for source in sources}
        if kind == "RUN":
            assert {Path(word).name for word in shlex.split(text) if word.startswith(PLACE)} <= copied


@pytest.mark.parametrize("words", arguments("RUN"), ids=lambda words: words[0])
def test_a_step_is_valid_shell(words):
    assert subprocess.run(["sh", "-n", "-c", shlex.join(words)]).returncode == 0


def test_environments_and_results_stay_out_of_the_image():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {".git", ".venv", "quickstart", "checkpoint"} <= set(ignored)
