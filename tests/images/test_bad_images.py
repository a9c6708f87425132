"""Images that cannot be decoded, seen by who runs the programs: train.py, eval.py, infer_onnx.py."""

import ast
import io

import numpy as np
import pytest
from PIL import Image

import eval as evaluation
from src.common.cli import run_cli
from src.images.preprocess import Preprocess
from src.weights.checkpoint import network_shapes, write_checkpoint
from src.weights.model_info import ModelInfo
from tests.support.hard_images import draw, encode
from tests.support.training_runs import run as train

SIZE = 32
PLAIN = {"mixup": 0, "cutmix": 0, "random_erasing": 0, "auto_augment": "none", "use_ema": False, "accumulate_steps": 1}


def bomb():
    """A PNG of some kilobytes that says it has 400 million pixels."""
    buffer = io.BytesIO()
    Image.new("1", (20000, 20000)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def root(tmp_path):
    """18 images in three classes; three more are a text, cut short, a decompression bomb."""
    for number in range(18):
        path = tmp_path / "images" / f"class{number % 3}" / f"{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(draw(50, 40, number), "JPEG"))
    (tmp_path / "images" / "class0" / "text.jpg").write_bytes(b"this is a text")
    (tmp_path / "images" / "class1" / "cut.jpg").write_bytes(encode(draw(50, 40), "JPEG")[:400])
    (tmp_path / "images" / "class2" / "bomb.png").write_bytes(bomb())
    return tmp_path / "images"


class TestTraining:
    def test_replaced_counted_and_each_named_once(self, root, tmp_path):
        code, _, errors = train(tmp_path, root, max_bad_images=0.2, epoch_size=2, **PLAIN)
        assert code == 0, errors
        warnings = [line for line in errors.splitlines() if line.startswith("warning: ")]
        assert all(line.endswith("; another image takes its place") for line in warnings)
        assert len(warnings) == len(set(warnings)) and 1 <= len(warnings) <= 3

    def test_too_many_end_the_run_with_a_sentence_that_names_the_scan(self, root, tmp_path):
        for number in range(3):
            (root / f"class{number}" / f"more{number}.jpg").write_bytes(b"no image")
        code, _, errors = train(tmp_path, root, **PLAIN)
        *_, last = errors.splitlines()
        assert code == 1 and "Traceback" not in errors
        assert errors.count("warning: ") == 4
        assert last.startswith(
            "error: 4 of 24 images cannot be used, more than the share of 0.001 that --max_bad_images"
        )
        assert f"`python -m src.data.image_folder {root}` lists them all" in last


class TestEvaluation:
    @pytest.fixture
    def checkpoint(self, tmp_path):
        random = np.random.default_rng(0)
        info = ModelInfo("b0", 3, ("class0", "class1", "class2"), "same", 1e-3, Preprocess.for_image_size(SIZE))
        weights = {
            name: random.uniform(0.01, 0.02, shape).astype(np.float32) for name, shape in network_shapes(info).items()
        }
        write_checkpoint(str(tmp_path / "b0.ckpt"), weights, info)
        return tmp_path / "b0.ckpt"

    def evaluate(self, capsys, root, checkpoint, *flags):
        arguments = ["--dataset_path", root, "--checkpoint_path", checkpoint, "--batch_size", 8, *flags]
        code = run_cli(evaluation.main, [str(argument) for argument in arguments])
        out, errors = capsys.readouterr()
        lines = out.splitlines()
        result = ast.literal_eval(lines[-1].split("result: ")[1].split(" ckpt=")[0])
        return code, lines, errors, result

    def test_named_and_counted_as_wrong_or_left_out(self, root, checkpoint, capsys):
        code, lines, errors, counted = self.evaluate(capsys, root, checkpoint)
        assert code == 1 and errors.count("; it counts as wrong") == 3
        assert errors.endswith("\nerror: 3 of 21 images could not be used; each is named above\n")
        assert "images that cannot be decoded: 3, counted as wrong" in lines
        for name in ("text.jpg", "cut.jpg", "bomb.png"):
            assert name in errors
        code, lines, errors, left_out = self.evaluate(capsys, root, checkpoint, "--skip_bad_images")
        assert code == 0 and errors.count("; it is left out") == 3
        assert "images that cannot be decoded: 3, left out" in lines
        # Three classes: top-5 is right for every image that was looked at.
        assert counted["Top_5_Acc"] == 18 / 21 and left_out["Top_5_Acc"] == 1
        assert counted["Top_1_Acc"] * 21 == pytest.approx(left_out["Top_1_Acc"] * 18)
