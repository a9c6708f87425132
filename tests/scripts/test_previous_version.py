"""Files that the version before the rooms of src/ wrote are read, evaluated and gone on with.

tests/data/previous_version holds a run of a very narrow B0 on `few_images`, stopped within its 39th epoch of 40, the
checkpoint with which it would have ended, an ONNX file of the first, and a MindRecord of the held-out images. What that
version printed of them stands here.
"""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.support.training_runs import ROOT

FILES = ROOT / "tests" / "data" / "previous_version"
CHECKPOINT = FILES / "model_0" / "Efficientnet_b0-rank0-39_2.ckpt"
LOSS = {"averaged": 0.5167134948101807, "raw": 0.7313406417910687, "ONNX": 0.5167135673555869}
TOP_1 = {"averaged": 13 / 14, "raw": 8 / 14, "ONNX": 13 / 14}
# The same arithmetic in another order or on another processor.
TOLERANCE = 2e-4
NARROW = """
import dataclasses, importlib, sys
from src.common.cli import run_cli
from src.models.family import VARIANTS
VARIANTS["b0"] = dataclasses.replace(VARIANTS["b0"], width_coeff=0.05, depth_coeff=0.1)
sys.exit(run_cli(importlib.import_module(sys.argv.pop(1)).main))
"""
pytestmark = pytest.mark.slow


def run(script, *arguments):
    """A script of the repository on the narrow network; returns its standard output."""
    command = [sys.executable, "-c", NARROW, script, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", ["averaged", "raw"])
@pytest.mark.parametrize("packed", [False, True])
def test_its_checkpoint_and_mindrecord_give_the_result_that_it_gave(few_images, kind, packed):
    images = FILES / "mindrecord" if packed else few_images / "val"
    flags = ("--dataset_path", images, "--checkpoint_path", CHECKPOINT, "--use_ema", kind == "averaged")
    result = json.loads(re.search(r"result: (\{.*\})", run("eval", *flags))[1].replace("'", '"'))
    assert result["Loss"] == pytest.approx(LOSS[kind], abs=TOLERANCE)
    assert result["Top_1_Acc"] == pytest.approx(TOP_1[kind])


def test_its_onnx_file_gives_the_result_that_it_gave(few_images):
    flags = ("--onnx_path", FILES / "b0.onnx", "--dataset_path", few_images / "val", "--json")
    result = json.loads(run("infer_onnx", *flags))
    assert result["loss"] == pytest.approx(LOSS["ONNX"], abs=TOLERANCE)
    assert result["top_1"] == pytest.approx(TOP_1["ONNX"])


def test_its_mindrecord_holds_what_its_checksums_say():
    command = [sys.executable, ROOT / "scripts" / "convert_to_mindrecord.py", "--check", FILES / "mindrecord"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "14 images in 2 classes: all are what was packed\n"), done.stderr


def test_its_interrupted_run_goes_on_and_ends_where_it_would_have_ended(few_images, tmp_path):
    from src.weights.checkpoint import read_entries

    shutil.copytree(FILES / "model_0", tmp_path / "model_0")
    flags = ("--dataset_path", few_images / "train", "--eval_dataset_path", few_images / "val")
    out = run("train", *flags, "--save_checkpoint_path", tmp_path, "--resume", "auto")
    assert "after step 154 of 160" in out
    files = (tmp_path / "model_0" / "Efficientnet_b0-rank0-40_4.ckpt", FILES / "finished.ckpt", CHECKPOINT)
    ours, theirs, before = (read_entries(str(path)) for path in files)
    assert ours.keys() == theirs.keys()

    # That version blended and erased the floats of a batch, this one its bytes; without that they would be the same.
    def distance(first, second, names):
        return np.sqrt(sum(np.square(first[name] - second[name]).sum() for name in names))

    weights = [name for name in theirs if name.startswith(("stem", "blocks", "head", "classifier"))]
    weights = [name for name in weights if "moving_" not in name]
    for names, share in ((weights, 0.4), ([f"ema.{name}" for name in weights], 0.1)):
        assert len(names) == 96
        assert distance(ours, theirs, names) < share * distance(before, theirs, names)
