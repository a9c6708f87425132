"""The documents: both languages say the same, and the files, flags, defaults and links that they name are there."""

import functools
import re
import subprocess
import sys
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGTERM

import pytest

from src.common.cli import RunError, UsageError
from src.config import config
from src.parameters import PARAMETERS
from src.training.run_folder import RUN_NAME
from tests.test_house import IMPORTS, WITH_MINDSPORE, WITHOUT_MINDSPORE

ROOT = Path(__file__).parent.parent
TWINS = {"README.md": "README_CN.md"}
TWINS.update({f"docs/{path.name}": f"docs/zh/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))})
DOCUMENTS = [*TWINS, *TWINS.values()]
EXIT_CODES = ("docs/exit_codes.md", "docs/zh/exit_codes.md")
ARCHITECTURE = ("docs/architecture.md", "docs/zh/architecture.md")
# Folders whose scripts a document may name without the folder.
SCRIPT_FOLDERS = ("", "scripts", "ascend310_infer")
FOREIGN = {"set_env.sh"}  # CANN's
# Scripts that pass their further flags on to another.
PASSES_ON = {
    "run_standalone_train.sh": "train.py",
    "run_distribute_train.sh": "train.py",
    "run_eval.sh": "eval.py",
    "run_infer_onnx.sh": "infer_onnx.py",
    "run_name_to_onnx.sh": "export.py",
}

each_document = pytest.mark.parametrize("name", DOCUMENTS)
each_pair = pytest.mark.parametrize("first, second", TWINS.items(), ids=TWINS)


@functools.cache
def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


@functools.cache
def split(name):
    """A document's prose, tables included, with its fenced blocks blanked, and those blocks as (language, text)."""
    fence = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    blank = fence.sub(lambda block: "\n" * block[0].count("\n"), read(name))
    return blank, [block.groups() for block in fence.finditer(read(name))]


def commands(name):
    """The lines of the shell blocks and the inline commands, those continued by a backslash joined."""
    prose, blocks = split(name)
    text = "".join(text for language, text in blocks if language == "shell")
    return text.replace("\\\n", " ").splitlines() + inline_code(prose)


def inline_code(prose):
    return re.findall(r"`([^`\n]+)`", prose)


def rows(name):
    """The rows of the tables, each a list of cells; rows of dashes end a table's header."""
    lines = [line for line in split(name)[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def anchors(name):
    """The anchors that GitHub gives a document's headings."""
    titles = re.findall(r"^#+ (.*)$", split(name)[0], re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def numbers(text):
    return re.findall(r"\d+(?:[.,]\d+)*%?", text)


# The two languages


def test_every_page_has_its_twin():
    assert {path.name for path in (ROOT / "docs").glob("*.md")} == {
        path.name for path in (ROOT / "docs/zh").glob("*.md")
    }


@each_pair
def test_both_languages_have_the_same_blocks(first, second):
    assert split(first)[1] == split(second)[1]


def test_there_are_commands():
    assert len([block for name in TWINS for block in split(name)[1] if block[0] == "shell"]) >= 35


@each_pair
def test_both_languages_have_tables_of_the_same_shape_and_figures(first, second):
    """The rows of the tables hold the same numbers; words may stand in another order."""
    shapes = [[len(row) for row in rows(name)] for name in (first, second)]
    assert shapes[0] == shapes[1]
    for ours, theirs in zip(rows(first), rows(second)):
        assert sorted(numbers(" ".join(ours))) == sorted(numbers(" ".join(theirs)))


@each_pair
def test_both_languages_have_the_same_chapters(first, second):
    levels = [[len(marks) for marks in re.findall(r"^(#+) ", split(name)[0], re.MULTILINE)] for name in (first, second)]
    assert levels[0] == levels[1]


@each_pair
def test_both_languages_give_the_same_figures_in_each_chapter(first, second):
    chapters = [re.split(r"^#+ .*$", split(name)[0], flags=re.MULTILINE) for name in (first, second)]
    for ours, theirs in zip(*chapters):
        assert set(numbers(ours)) == set(numbers(theirs))


@each_pair
def test_both_languages_name_the_same_code(first, second):
    """Flags, files and programs; what code an inline example gives as a placeholder may be translated."""
    ours, theirs = (
        {code for code in inline_code(split(name)[0]) if not re.search(r"\[more flags|其他选项", code)}
        for name in (first, second)
    )
    assert ours == theirs


# Their form


@pytest.mark.parametrize("name", ["README.md", "README_CN.md"])
def test_readme_is_short(name):
    assert read(name).count("\n") <= 200


@each_document
def test_lines_of_prose_are_short(name):
    lines = [line for line in split(name)[0].splitlines() if not line.startswith("|")]
    assert [line for line in lines if len(re.sub(r"https?://[^\s)]+", "", line)) > 160] == []


# What they name


@each_document
def test_the_folder_of_a_run_is_called_what_training_calls_it(name):
    found = set(re.findall(r"\bmodel_(?:\d+|\[\w+\])", read(name)))
    assert found <= {RUN_NAME}


def test_exit_codes_are_those_of_the_errors():
    codes = [{row[0] for row in rows(name) if row[0].isdecimal()} for name in EXIT_CODES]
    expected = {0, RunError.exit_code, UsageError.exit_code} | {128 + number for number in (SIGHUP, SIGINT, SIGTERM)}
    assert codes == [set(map(str, expected))] * 2


@each_document
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)]+)\)", split(name)[0]):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        found = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        assert found.exists(), target
        assert not anchor or anchor in anchors(str(found.relative_to(ROOT))), target


@each_document
def test_chinese_and_english_pages_stay_among_themselves(name):
    """A link of a page leads to its own language, but for the one to its twin."""
    chinese = name in TWINS.values()
    others = set(DOCUMENTS) - set(TWINS.values() if chinese else TWINS)
    targets = {
        str(((ROOT / name).parent / target.partition("#")[0]).resolve().relative_to(ROOT))
        for target in re.findall(r"\]\(([^)]+)\)", split(name)[0])
        if not target.startswith(("http", "#"))
    }
    twin = {theirs: ours for ours, theirs in TWINS.items()}[name] if chinese else TWINS[name]
    assert targets & others == {twin}


@each_document
def test_scripts_and_modules_that_commands_name_exist(name):
    for line in commands(name):
        for path in re.findall(r"(?:^|\s)((?:\./)?[\w/]+\.(?:py|sh))\b", line):
            assert path in FOREIGN or any((ROOT / folder / path).exists() for folder in SCRIPT_FOLDERS), path
        for module in re.findall(r"\bpython -m ((?:src|tests)[\w.]*)", line):
            assert (ROOT / (module.replace(".", "/") + ".py")).exists(), module


@each_document
def test_paths_of_the_repository_exist(name):
    """What stands in code and begins with one of the repository's folders; braces and stars are a shell's."""
    prose, blocks = split(name)
    folders = r"(?:src|tests|scripts|benchmarks|docs|ascend310_infer)"
    for code in inline_code(prose) + [text for _, text in blocks]:
        for path in re.findall(rf"(?<![\w./-]){folders}/[\w./*-]*", code):
            path = path.rstrip(".")
            assert list(ROOT.glob(path.rstrip("/"))), path


@pytest.mark.parametrize("name", ARCHITECTURE)
def test_files_that_the_architecture_names_exist(name):
    prose, blocks = split(name)
    for code in inline_code(prose) + [text for _, text in blocks]:
        for path in re.findall(r"(?<![\w./-])[\w./-]+\.(?:py|c|h|cpp|sh|md)\b", code):
            assert (ROOT / path).exists(), path


@functools.cache
def help_of(script):
    path = next(ROOT / folder / script for folder in SCRIPT_FOLDERS if (ROOT / folder / script).exists())
    run = subprocess.run([sys.executable, path, "--help"], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    return run.stdout


@each_document
def test_scripts_take_the_flags_that_commands_give_them(name):
    """Every `--flag` behind a script stands in its `--help`, or in that of the script that it passes flags on to."""
    for line in commands(name):
        found = re.search(r"(?:^|\s)([\w./]*?)([\w]+\.(?:py|sh)) (.*)", line)
        if not found:
            continue
        script = PASSES_ON.get(found[2], found[1] + found[2])
        text = help_of(script) if script.endswith(".py") else shell_source(script)
        for flag in re.findall(r"(?<!\S)--(\w[\w-]*)", found[3]):
            assert re.search(rf"(?<![\w-])--{flag}\b", text), f"{script} --{flag}"


def shell_source(script):
    """A shell script and the programs behind it: flags of the C++ program stand in its own table."""
    path = next(ROOT / folder / script for folder in SCRIPT_FOLDERS if (ROOT / folder / script).exists())
    return path.read_text() + read("ascend310_infer/src/options.cpp")


@functools.cache
def all_sources():
    files = [path for folder in ("src", "scripts") for path in (ROOT / folder).rglob("*.*") if path.suffix != ".pyc"]
    files += [*ROOT.glob("*.py"), ROOT / "ascend310_infer/src/options.cpp"]
    return "".join(path.read_text(encoding="utf-8") for path in files)


@each_document
def test_flags_in_the_text_exist(name):
    """Those of inline examples: a parameter, a flag of one of our programs, or one of msrun's that a command has."""
    codes = [code for code in inline_code(split(name)[0]) if re.match(r"--\w", code) and " is gone" not in code]
    known = all_sources() + "".join(text for _, text in split(name)[1])
    for flag in (re.match(r"--([\w-]+)", code)[1] for code in codes):
        assert flag in PARAMETERS or re.search(rf"--{flag}\b", known), flag


def test_defaults_in_the_tables_are_the_configurations():
    checked = {name: 0 for name in DOCUMENTS}
    for name in DOCUMENTS:
        for row in rows(name):
            if len(row) != 3:
                continue
            names, values = row[0].split(", "), row[1].split(", ")
            if len(names) != len(values) or not set(names) <= PARAMETERS.keys():
                continue
            for parameter, value in zip(names, values):
                default = getattr(config, parameter)
                if default is None:
                    continue
                kind = type(default)
                shown = value == "True" if kind is bool else kind(value)
                assert shown == default, parameter
                checked[name] += 1
    assert checked["docs/training.md"] == checked["docs/zh/training.md"] >= 20


# The drawing of the rooms


@pytest.mark.parametrize("name", ARCHITECTURE)
def test_the_table_of_imports_is_the_law(name):
    table = {row[0].strip("`"): " ".join(inline_code(row[1])) for row in rows(name) if row[0].strip("`") in IMPORTS}
    assert table == IMPORTS


@pytest.mark.parametrize("name", ARCHITECTURE)
def test_the_drawing_shows_the_law_without_what_follows_from_it(name):
    (drawing,) = (text for language, text in split(name)[1] if language == "mermaid")
    drawn = set()
    for left, right in re.findall(r"^ *([\w &.]+) --> ([\w &.]+)$", drawing, re.MULTILINE):
        drawn |= {(source.strip(), target.strip()) for source in left.split("&") for target in right.split("&")}
    assert drawn == needed_arrows({room: set(allowed.split()) for room, allowed in IMPORTS.items()})


def needed_arrows(allowed):
    """(importer, imported) of the law, without those that a longer way replaces."""
    rooms = {room: {name.partition(".")[0] for name in names} for room, names in allowed.items()}

    def reach(room):
        return rooms[room].union(*(reach(other) for other in rooms[room]))

    return {
        (room, name)
        for room, names in rooms.items()
        for name in names
        if not any(name in reach(other) for other in names - {name})
    }


@pytest.mark.parametrize("name", ARCHITECTURE)
def test_a_chapter_lists_what_does_without_mindspore(name):
    """The rooms and modules of the law, and their exceptions; nothing else of src is named in that chapter."""
    expected = WITHOUT_MINDSPORE | WITH_MINDSPORE
    named = [
        {code[4:].rstrip("/").removesuffix(".py").replace("/", ".") for code in inline_code(text) if code[:4] == "src/"}
        for text in re.split(r"^## ", read(name), flags=re.MULTILINE)
    ]
    assert expected in named
