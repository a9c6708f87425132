"""export.py --file_format OM: AIPP, ATC by a double of it, and what is left on a machine without ATC."""

import json
import os
import re
import shlex
import subprocess

import numpy as np
import onnx
import onnxruntime
import pytest

from benchmarks.peers import create_peer, random_images, randomise
from export import main
from src.common.cli import RunError, run_cli
from src.common.files import atomic_path
from src.export.formats import FORMATS
from src.export.plan import ExportPlan
from src.images.aipp import Aipp
from src.images.preprocess import Preprocess, crop_encoded, normalise
from src.weights.checkpoint import write_checkpoint
from src.weights.model_info import METADATA_KEY, ModelInfo
from src.weights.names import to_ours
from src.weights.sources import SOURCES
from tests.support import atc_double
from tests.support.hard_images import good_images
from tests.support.peer_networks import logits_of, tensors

SIZE = 64
CLASSES = ("ant", "bee", "cat")
IMAGENET = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
SETTINGS = [
    {},
    IMAGENET,
    {"mean": (0.0, 0.0, 0.0), "std": (255.0, 255.0, 255.0)},
    {"mean": (127.0,) * 3, "std": (128.0,) * 3},
]
SOC = ("--file_format", "OM", "--soc_version", "Ascend310P3")


def written_aipp(preprocess):
    """AIPP's settings as they stand in the file, read by the double."""
    return atc_double.read_aipp(Aipp.from_preprocess(preprocess).to_text())


def emulate(pixels, settings, every_step=False):
    """The documented formula on pixels (..., 3): [pixel - mean_chn - min_chn] * var_reci_chn, in float16.

    Args:
        every_step: round to float16 after each operation, not only at the end; CANN does not say which.
    """
    kind = np.float16 if every_step else np.float64
    mean = np.array([int(settings[f"mean_chn_{i}"]) for i in range(3)], np.uint8)
    rest, reciprocal = (
        np.array([float(settings[f"{name}_chn_{i}"]) for i in range(3)]).astype(np.float16).astype(kind)
        for name in ("min", "var_reci")
    )
    values = (pixels.astype(kind) - mean.astype(kind) - rest).astype(kind) * reciprocal
    return values.astype(np.float16)


def steps_apart(found, expected):
    """How many float16 steps, of the expected numbers themselves, two arrays lie apart at most."""
    expected = expected.astype(np.float16)
    apart = np.abs(found.astype(np.float64) - expected.astype(np.float64))
    return (apart / np.spacing(np.abs(expected)).astype(np.float64)).max()


class TestAipp:
    @pytest.mark.parametrize("settings", SETTINGS)
    def test_every_pixel_value_is_within_one_step_of_ours(self, settings):
        preprocess = Preprocess(**settings)
        pixels = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, 2)
        ours = normalise(pixels, preprocess).transpose(1, 2, 0)
        assert steps_apart(emulate(pixels, written_aipp(preprocess)), ours) <= 1
        rough = emulate(pixels, written_aipp(preprocess), every_step=True).astype(np.float64)
        # With more roundings the error is one step of the largest number.
        largest = np.spacing(np.abs(ours).max().astype(np.float16))
        assert np.abs(rough - ours.astype(np.float16)).max() <= largest

    def test_the_whole_mean_in_min_chn_would_be_far_off(self):
        """As the usual guides write it: the mean's rounding to float16 moves small numbers."""
        usual = {**written_aipp(Preprocess(**IMAGENET))}
        for i, mean in enumerate(IMAGENET["mean"]):
            usual |= {f"mean_chn_{i}": "0", f"min_chn_{i}": str(mean)}
        pixels = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, 2)
        ours = normalise(pixels, Preprocess(**IMAGENET)).transpose(1, 2, 0)
        assert steps_apart(emulate(pixels, usual), ours) > 50

    def test_the_hard_images_are_within_one_step_of_ours(self):
        preprocess = Preprocess.for_image_size(SIZE, **IMAGENET)
        settings, aipp = written_aipp(preprocess), Aipp.from_preprocess(preprocess)
        images = [(name, data) for name, data in good_images() if not name.startswith("large/")]
        assert len(images) > 300
        for name, data in images:
            crop = crop_encoded(data, name, preprocess)
            ours = normalise(crop, preprocess)
            assert steps_apart(emulate(crop, settings).transpose(2, 0, 1), ours) <= 1, name
            # The proof at every export uses the same arithmetic.
            assert steps_apart(aipp.apply(crop[None])[0], ours) <= 1, name

    def test_channels_come_as_red_green_blue_and_are_not_swapped(self):
        settings = written_aipp(Preprocess(**IMAGENET))
        assert settings["input_format"] == "RGB888_U8" and settings["rbuv_swap_switch"] == "false"
        assert [settings[f"mean_chn_{i}"] for i in range(3)] == ["123", "116", "103"]
        assert [settings[f"min_chn_{i}"] for i in range(3)] == ["0.675", "0.28", "0.53"]
        assert settings["crop"] == settings["csc_switch"] == "false"

    @pytest.mark.parametrize(
        ("settings", "sentence"),
        [
            ({"mean": (-1.0, 0.0, 0.0)}, "AIPP subtracts means of 0 to 255"),
            ({"mean": (300.0, 0.0, 0.0)}, "AIPP subtracts means of 0 to 255"),
            ({"std": (1e-6, 1.0, 1.0)}, r"AIPP's float16 cannot hold 1 / std"),
        ],
    )
    def test_what_aipp_cannot_do_is_refused(self, settings, sentence):
        with pytest.raises(RunError, match=sentence):
            Aipp.from_preprocess(Preprocess(**settings))


@pytest.fixture(scope="module")
def network():
    """A random Lite0 whose logits are of order 1: peer, weights, info."""
    peer = randomise(create_peer("timm_tf", "lite0", num_classes=3), random_images(5, SIZE))
    described = SOURCES["timm_tf"].describe("lite0", 3)
    preprocess = Preprocess.for_image_size(SIZE, **IMAGENET)
    info = ModelInfo(
        variant="lite0",
        num_classes=3,
        class_names=CLASSES,
        padding=described.padding,
        norm_eps=described.norm_eps,
        preprocess=preprocess,
    )
    return peer, to_ours(tensors(peer), "timm_tf").weights, info


@pytest.fixture(scope="module")
def checkpoint(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "lite0.ckpt"
    write_checkpoint(str(path), network[1], network[2])
    return path


@pytest.fixture
def atc(tmp_path, monkeypatch):
    """The double on the path, in place of a real ATC."""
    monkeypatch.setenv("PATH", atc_double.install(tmp_path / "cann"))


@pytest.fixture
def no_atc(monkeypatch):
    """A path without any ATC."""
    folders = [f for f in os.environ["PATH"].split(os.pathsep) if not os.path.exists(os.path.join(f, "atc"))]
    monkeypatch.setenv("PATH", os.pathsep.join(folders))


def export(capsys, checkpoint, *flags):
    """Exit code, standard output and standard error of export.py."""
    arguments = ("--checkpoint_path", checkpoint, "--device_target", "CPU", *flags)
    code = run_cli(main, [str(flag) for flag in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def check_source(model, network):
    """ATC reads this: an opset and a domain that it knows, and the logits of the peer."""
    peer, _, info = network
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 11)]
    onnx.checker.check_model(model, full_check=True)
    images = random_images(2, SIZE)
    logits = onnxruntime.InferenceSession(model.SerializeToString()).run(["logits"], {"image": images})[0]
    expected = logits_of(peer, images)
    assert expected.std() > 0.3 and np.abs(logits - expected).max() < 1e-3


class TestWithAtc:
    def test_the_file_and_its_description(self, network, checkpoint, atc, tmp_path, capsys):
        target = tmp_path / "out" / "b0.om"
        code, out, err = export(capsys, checkpoint, *SOC, "--file_name", target, "--batch_size", 16)
        assert code == 0, err
        assert sorted(os.listdir(target.parent)) == ["b0.json", "b0.om"]
        om = atc_double.read_om(target)
        options = om["options"]
        assert options["soc_version"] == "Ascend310P3" and options["input_shape"] == "image:16,3,64,64"
        assert options["input_format"] == "NCHW" and options["output_type"] == "FP32"
        assert om["aipp"] == written_aipp(network[2].preprocess)
        check_source(onnx.load_from_string(om["onnx"]), network)
        description = json.loads((target.parent / "b0.json").read_text())
        assert description.pop("aipp") is True
        assert ModelInfo.from_json(json.dumps(description), "b0.json") == network[2]
        assert "read back by atc: its input is uint8 (16, 64, 64, 3)" in out
        assert "verified on seeded patterns: largest difference " in out and "raw weights, fp16" in out
        assert f"written: {target}" in out
        assert "input image uint8 (16, 64, 64, 3), output logits float32 (16, 3)" in out

    def finish(self, network, folder, **settings):
        """What export.py does after the proof: (the plan, what was said)."""
        kind, said = FORMATS["OM"], []
        plan = ExportPlan(str(folder / "b0.om"), kind, network[2], soc_version="Ascend310B4", **settings)
        with atomic_path(plan.path) as path:
            kind.write(path, plan, network[1], __file__, [], said.append)
            kind.finish(path, plan, said.append)
        return plan, said

    def test_atc_may_add_the_system_to_the_name(self, network, atc, tmp_path, monkeypatch):
        monkeypatch.setenv("ATC_DOUBLE_WRITES", "named")
        self.finish(network, tmp_path)
        assert atc_double.read_om(tmp_path / "b0.om")["options"]["soc_version"] == "Ascend310B4"

    def test_atcs_reason_is_told_and_an_older_file_stays(self, network, atc, tmp_path, monkeypatch):
        (tmp_path / "b0.om").write_text("older")
        monkeypatch.setenv("ATC_DOUBLE_FAILS", "the operator Conv is not supported")
        with pytest.raises(
            RunError, match="b0.om is not written: atc failed: E40000: the operator Conv is not supported"
        ):
            self.finish(network, tmp_path)
        assert (tmp_path / "b0.om").read_text() == "older"
        assert sorted(os.listdir(tmp_path)) == ["b0.om", "cann"]

    def test_what_atc_wrote_is_read_back(self, network, atc, tmp_path, monkeypatch):
        monkeypatch.setenv("ATC_DOUBLE_WRITES", "broken")
        with pytest.raises(RunError, match="what atc wrote is no OM file"):
            self.finish(network, tmp_path)
        monkeypatch.setenv("ATC_DOUBLE_WRITES", "other")
        _, said = self.finish(network, tmp_path)
        assert any("warning: atc reads the file back, but shows no uint8 input (1, 64, 64, 3)" in line for line in said)

    def test_two_outputs(self, network, atc, tmp_path):
        self.finish(network, tmp_path, include_softmax=True)
        model = onnx.load_from_string(atc_double.read_om(tmp_path / "b0.om")["onnx"])
        assert [output.name for output in model.graph.output] == ["logits", "probabilities"]


class TestWithoutAtc:
    def test_all_that_atc_needs_is_left_and_makes_the_file(self, network, checkpoint, no_atc, tmp_path, capsys):
        folder = tmp_path / "out"
        code, out, err = export(capsys, checkpoint, *SOC, "--file_name", folder / "b0", "--batch_size", 4)
        assert code == 0, err
        assert sorted(os.listdir(folder)) == ["b0.json", "b0.om.aipp", "b0.om.onnx", "b0.om.sh"]
        assert f"{folder}/b0.om is not made, because there is no atc on the path" in out
        assert "run there: sh b0.om.sh" in out and f"written: {folder}/b0.om.onnx, " in out
        assert "for an OM file with input image uint8 (4, 64, 64, 3)" in out
        check_source(onnx.load(folder / "b0.om.onnx"), network)
        metadata = {entry.key: entry.value for entry in onnx.load(folder / "b0.om.onnx").metadata_props}
        assert ModelInfo.from_json(metadata[METADATA_KEY], "b0") == network[2]
        assert json.loads((folder / "b0.json").read_text())["aipp"] is True
        # The command that was printed is the one in the script, and on a machine with ATC both make the file.
        command = re.search(r"^that runs: (.*)$", out, re.MULTILINE)[1]
        assert command in (folder / "b0.om.sh").read_text()
        path = atc_double.install(tmp_path / "cann")
        run = {"env": {**os.environ, "PATH": path}, "check": True, "capture_output": True}
        subprocess.run(["sh", folder / "b0.om.sh"], cwd="/", **run)
        om = (folder / "b0.om").read_bytes()
        assert atc_double.read_om(folder / "b0.om")["aipp"] == written_aipp(network[2].preprocess)
        subprocess.run(shlex.split(command), cwd=folder, **run)
        assert (folder / "b0.om").read_bytes() == om

    def test_an_older_om_file_is_named(self, network, no_atc, tmp_path):
        (tmp_path / "b0.om").write_text("older")
        kind, said = FORMATS["OM"], []
        path = kind.destination(str(tmp_path / "b0.om"))
        kind.finish(path, ExportPlan(path, kind, network[2], soc_version="Ascend310P3"), said.append)
        assert (
            said[-1] == f"warning: {tmp_path}/b0.om is of an earlier export, which {tmp_path}/b0.json does not "
            "describe any more"
        )

    def test_a_wrong_aipp_file_does_not_pass_the_proof(self, checkpoint, no_atc, tmp_path, capsys, monkeypatch):
        """As if mean and deviation were those of pixels from 0 to 1."""
        right = Aipp.from_preprocess
        wrong = Preprocess(image_size=SIZE, resize=73, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        monkeypatch.setattr(Aipp, "from_preprocess", lambda preprocess: right(wrong))
        code, _, err = export(capsys, checkpoint, *SOC, "--file_name", tmp_path / "b0")
        assert code == 1 and "the exported file does not compute what the checkpoint does" in err
        assert os.listdir(tmp_path) == []


class TestWrongUse:
    @pytest.mark.parametrize(
        ("flags", "sentence"),
        [
            (("--file_format", "OM"), "--soc_version is missing; --file_format OM needs it, such as Ascend310P3"),
            (("--file_format", "OM", "--soc_version", "310P3"), "--soc_version is '310P3', which is no name of an NPU"),
            (("--file_format", "ONNX", "--soc_version", "Ascend310P3"), "--soc_version is for OM, but"),
            ((*SOC, "--precision", "int8"), "--precision int8 is for ONNX; "),
            ((*SOC, "--precision", "fp32"), "an OM file computes in float16"),
            ((*SOC, "--file_name", "b0.onnx"), "--file_format is OM; is ONNX meant?"),
        ],
    )
    def test_flags_that_do_not_fit(self, checkpoint, tmp_path, capsys, monkeypatch, flags, sentence):
        monkeypatch.chdir(tmp_path)
        code, _, err = export(capsys, checkpoint, *flags)
        assert code == 2 and sentence in err and err.count("\n") == 1
        assert os.listdir(tmp_path) == []
