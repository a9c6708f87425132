"""The law of imports, the sizes of rooms, files and functions, and who does without MindSpore and PyTorch."""

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Each room, or file of src itself, and what of src it may import beside itself.
IMPORTS = {
    "common": "",
    "images": "common",
    "published": "common",
    "models": "common",
    "kernels": "common",
    "lr_generator": "common",
    "loss": "common",
    "Monitor": "common",
    "data": "common images",
    "preparation": "common images data",
    "dataset": "common images data",
    "parameters": "common images models.family lr_generator",
    "config": "common images parameters",
    "runtime": "common kernels",
    "weights": "common images data models published",
    "evaluation": "common images runtime",
    "mistakes": "common images data preparation evaluation",
    "inference": "common images data weights evaluation",
    "export": "common images data models weights inference",
    "launch": "common config parameters published",
    "recipes": "common images data models config",
    "training": (
        "common images data preparation dataset models kernels config parameters recipes weights runtime evaluation"
        " mistakes loss lr_generator Monitor"
    ),
}
# What does without MindSpore and PyTorch, and the modules within it that do not.
WITHOUT_MINDSPORE = set(
    "common images data preparation inference launch published weights config parameters lr_generator models.family"
    " models.table evaluation.metrics evaluation.class_report evaluation.grad_cam mistakes".split()
)
WITH_MINDSPORE = set("data.mindrecord_writer weights.checkpoint weights.network weights.conversion".split())
MODULES = sorted(
    ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
    for path in (ROOT / "src").rglob("*.py")
    if path.name != "__init__.py" or len(path.relative_to(ROOT / "src").parts) > 1
)


@functools.cache
def imports_of(module):
    """What a module imports, anywhere in it: modules of src without `src.`, others by their full name."""
    found = set()
    for node in ast.walk(ast.parse(path_of(module).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {find_module(name[4:]) if name.startswith("src.") else name for name in found}


def path_of(module):
    return ROOT / "src" / (module.replace(".", "/") + ".py")


def find_module(name):
    """The module that a dotted name within src means: itself, or the one whose attribute it is."""
    name = name.removesuffix(".__init__")
    while name not in MODULES and f"{name}.__init__" not in MODULES:
        name = name.rpartition(".")[0]
    return name if name in MODULES else f"{name}.__init__"


def room_of(module):
    return module.partition(".")[0]


@pytest.mark.parametrize("module", MODULES)
def test_imports_lead_downward(module):
    allowed = set(IMPORTS[room_of(module)].split())
    ours = {name for name in imports_of(module) if name in MODULES and room_of(name) != room_of(module)}
    assert {name for name in ours if not {name, room_of(name)} & allowed} == set()


def test_there_is_no_circle():
    reaches = {module: {name for name in imports_of(module) if name in MODULES} for module in MODULES}
    while True:
        free = {module for module, names in reaches.items() if not names & reaches.keys()}
        if not free:
            break
        reaches = {module: names for module, names in reaches.items() if module not in free}
    assert reaches == {}


@pytest.mark.parametrize("module", [m for m in MODULES if {m, room_of(m)} & WITHOUT_MINDSPORE])
def test_does_without_mindspore_and_pytorch(module):
    if module not in WITH_MINDSPORE:
        reached, new = set(), {module}
        while new:
            reached |= new
            new = set().union(*(imports_of(name) for name in new if name in MODULES)) - reached
        assert {name for name in reached if name.partition(".")[0] in ("mindspore", "torch")} == set()


def test_rooms_have_at_most_12_files_and_common_6():
    for room in {path.parent for path in (ROOT / "src").rglob("*.py")}:
        files = [path for path in room.iterdir() if path.is_file()]
        assert len(files) <= (6 if room.name == "common" else 12), room


PYTHON = sorted(path.relative_to(ROOT) for folder in ("src", "scripts") for path in (ROOT / folder).rglob("*.py"))
PYTHON += sorted(path.relative_to(ROOT) for path in ROOT.glob("*.py"))


@pytest.mark.parametrize("path", PYTHON, ids=str)
def test_files_functions_and_parameter_lists_are_short(path):
    text = (ROOT / path).read_text()
    assert text.count("\n") <= (130 if path.name == "train.py" else 300)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            count = sum(map(len, (node.args.posonlyargs, node.args.args, node.args.kwonlyargs)))
            name = getattr(node, "name", "lambda")
            own = bool(node.args.args and node.args.args[0].arg in ("self", "cls"))
            assert count - own <= 8, f"{name} takes {count - own} parameters"
            assert name != "__init__" or len(node.args.args) <= 5, "more than 4 arguments are given by keyword"
            assert node.end_lineno - node.lineno < 60, f"{name} has {node.end_lineno - node.lineno + 1} lines"


@pytest.mark.parametrize("path", PYTHON, ids=str)
def test_constructors_of_more_than_four_arguments_are_called_by_keyword(path):
    if path.name != "family.py":  # the paper's table
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id[0].isupper():
                assert len(node.args) <= 4, f"{node.func.id} in line {node.lineno}"


def test_no_two_things_have_one_name():
    """Functions and classes of modules; every script has its own main and parse_arguments."""
    found = {}
    for path in PYTHON:
        for node in ast.parse((ROOT / path).read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name not in ("main", "parse_arguments"):
                found.setdefault(node.name, []).append(str(path))
    assert {name: paths for name, paths in found.items() if len(paths) > 1} == {}


def test_benchmarks_do_not_import_from_tests():
    for path in (ROOT / "benchmarks").glob("*.py"):
        assert "from tests" not in path.read_text() and "import tests" not in path.read_text(), path
