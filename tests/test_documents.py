"""README.md and README_CN.md say the same, and what they name is there."""

import re
from pathlib import Path

import pytest

from src.config import PARAMETERS, config

ROOT = Path(__file__).parent.parent.parent
DOCUMENTS = ("README.md", "README_CN.md")
SCRIPTS = ("train.py", "eval.py", "export.py", "infer_onnx.py", "convert_weights.py", "postprocess.py")


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def code_blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("language", ["shell", "python", "json"])
def test_both_languages_have_the_same_commands(language):
    first, second = (code_blocks(read(name), language) for name in DOCUMENTS)
    assert first == second
    assert first or language != "shell"


def test_both_languages_have_the_same_figures():
    """The rows of the tables hold the same numbers; words may stand in another order."""
    first, second = (
        [
            sorted(re.findall(r"\d+(?:[.,]\d+)*%?", line))
            for line in read(name).splitlines()
            if line.startswith("|") and re.search(r"\d", line)
        ]
        for name in DOCUMENTS
    )
    assert first == second


def test_both_languages_have_the_same_chapters():
    first, second = ([len(marks) for marks in re.findall(r"^(#+) ", read(name), re.MULTILINE)] for name in DOCUMENTS)
    assert first == second


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_within_the_repository_lead_somewhere(name):
    text = read(name)
    anchors = set()
    for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        anchors.add(re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-"))
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        assert (ROOT / path).exists() if path else anchor in anchors, target


@pytest.mark.parametrize("name", DOCUMENTS)
def test_scripts_and_files_that_commands_name_exist(name):
    for block in code_blocks(read(name), "shell"):
        for path in re.findall(r"(?:^|\s)((?:scripts/|benchmarks/|tests/)?[\w/]+\.(?:py|sh))\b", block):
            assert any((ROOT / folder / path).exists() for folder in ("", "scripts", "ascend310_infer")), path


@pytest.mark.parametrize("name", DOCUMENTS)
def test_flags_of_commands_exist(name):
    """Every `--flag` behind a Python script of ours stands in that script or among the parameters."""
    for block in code_blocks(read(name), "shell"):
        for line in block.replace("\\\n", " ").splitlines():
            found = re.search(rf"\b({'|'.join(map(re.escape, SCRIPTS))})\b(.*)", line)
            if not found:
                continue
            source = read(found[1]) + "".join(path.read_text() for path in (ROOT / "src").glob("*.py"))
            for flag in re.findall(r"--(\w+)", found[2]):
                assert flag in PARAMETERS or f'"--{flag}"' in source, f"{found[1]} --{flag}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_defaults_in_the_table_are_the_configurations(name):
    rows = re.findall(r"^\| ([a-z_, ]+) \| ([^|]+) \| [^|]+ \|$", read(name), re.MULTILINE)
    checked = 0
    for names, values in rows:
        names, values = names.split(", "), values.strip().split(", ")
        if len(names) != len(values) or not set(names) <= PARAMETERS.keys():
            continue
        for parameter, value in zip(names, values):
            default = getattr(config, parameter)
            if default is None:
                continue
            kind = type(default)
            shown = value == "True" if kind is bool else kind(value)
            assert shown == default, parameter
            checked += 1
    assert checked >= 20
