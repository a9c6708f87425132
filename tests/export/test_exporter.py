"""export.py: ONNX and MINDIR files against timm's and torchvision's logits, what they say of themselves, wrong use."""

import dataclasses
import errno
import hashlib
import json
import os
import platform
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from benchmarks.peers import create_peer, random_images, randomise
from export import main
from src.common.cli import RunError, UsageError, run_cli
from src.export.formats import FORMATS, check_plan, complete_path
from src.export.onnx_graph import build_model, convolution_pads
from src.export.plan import ExportPlan, normalise_all
from src.export.seeded_images import seeded_images
from src.export.verification import compare, pick_evenly
from src.images.preprocess import Preprocess, normalise
from src.models.family import VARIANTS
from src.weights.checkpoint import read_checkpoint, write_checkpoint
from src.weights.folding import fold_batch_norm
from src.weights.layouts import LAYOUTS
from src.weights.model_info import METADATA_KEY, ModelInfo
from src.weights.names import to_ours, to_theirs
from src.weights.sources import SOURCES
from tests.support.hard_images import draw
from tests.support.peer_networks import logits_of, tensors

ROOT = Path(__file__).parent.parent.parent
CLASSES = ("ant", "bee", "cat", "dog", "eel")
SIZE = 64


def peer_and_weights(source, variant, size, num_classes=5):
    """A peer's random network, the same under our names, and images on which its logits are of order 1."""
    images = random_images(5, size)
    peer = randomise(create_peer(source, variant, num_classes=num_classes), images)
    weights = to_ours(tensors(peer), source).weights
    info = SOURCES[source].describe(variant, num_classes)
    return peer, weights, with_size(info, size), images


def with_size(info, size):
    """The same network for images of another size, five classes by name."""
    preprocess = Preprocess.for_image_size(size, mean=(120.0, 115.5, 103.25), std=(58.5, 57.25, 60.0))
    names = CLASSES if info.num_classes == len(CLASSES) else None
    return dataclasses.replace(info, preprocess=preprocess, class_names=names)


def run_onnx(model, images, outputs=("logits",)):
    """Outputs of a model, a path or a ModelProto, in ONNX Runtime."""
    model = model if isinstance(model, (str, os.PathLike)) else model.SerializeToString()
    return onnxruntime.InferenceSession(model).run(list(outputs), {"image": images})


@pytest.fixture(scope="module")
def network():
    """TensorFlow's kind of B0: peer, weights, info, images."""
    return peer_and_weights("timm_tf", "b0", SIZE)


@pytest.fixture(scope="module")
def checkpoint(network, tmp_path_factory):
    """That network as a checkpoint with averaged weights, which are those of the peer; the raw ones differ."""
    _, weights, info, _ = network
    raw = {**weights, "classifier.bias": weights["classifier.bias"] + np.arange(5, dtype=np.float32)}
    path = tmp_path_factory.mktemp("checkpoint") / "b0.ckpt"
    write_checkpoint(str(path), raw, info, ema=weights)
    return path


def export(capsys, *flags):
    """Exit code, standard output and standard error of export.py."""
    code = run_cli(main, [str(flag) for flag in flags])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


class TestGraph:
    @pytest.mark.parametrize("fold_bn", [True, False])
    @pytest.mark.parametrize("source, size", [("timm", 64), ("timm", 75), ("timm_tf", 64), ("timm_tf", 75)])
    def test_logits_are_the_peers(self, source, size, fold_bn):
        """Even and odd sizes, because padding 'same' then falls on different sides."""
        peer, weights, info, images = peer_and_weights(source, "b0", size)
        model = build_model(fold_batch_norm(weights, info.norm_eps) if fold_bn else weights, info)
        expected = logits_of(peer, images)
        assert expected.std() > 0.3
        assert np.abs(run_onnx(model, images)[0] - expected).max() < 1e-4
        kinds = {node.op_type for node in model.graph.node}
        assert ("BatchNormalization" in kinds) != fold_bn

    @pytest.mark.parametrize(
        "variant",
        ["b2", "b7", *(pytest.param(name, marks=pytest.mark.slow) for name in ("b1", "b3", "b4", "b5", "b6"))],
    )
    def test_every_variant_is_the_peers(self, variant):
        peer, weights, info, images = peer_and_weights("timm_tf", variant, 48)
        logits = run_onnx(build_model(fold_batch_norm(weights, info.norm_eps), info), images[:2])[0]
        expected = logits_of(peer, images[:2])
        assert expected.std() > 0.3
        # Deep random networks magnify rounding.
        assert np.abs(logits - expected).max() < 1e-3

    @pytest.mark.parametrize(
        "padding, kernel, stride, size, expected",
        # By TensorFlow's rule, by hand: an even size at stride 2 needs one pixel at the end less than an odd one.
        [
            ("same", 3, 1, 7, [1, 1, 1, 1]),
            ("same", 3, 2, 224, [0, 0, 1, 1]),
            ("same", 3, 2, 75, [1, 1, 1, 1]),
            ("same", 5, 2, 28, [1, 1, 2, 2]),
            ("same", 5, 2, 15, [2, 2, 2, 2]),
            ("same", 1, 1, 9, [0, 0, 0, 0]),
            ("symmetric", 3, 2, 224, [1, 1, 1, 1]),
            ("symmetric", 5, 2, 15, [2, 2, 2, 2]),
        ],
    )
    def test_padding_is_written_out(self, padding, kernel, stride, size, expected):
        assert convolution_pads(padding, kernel, stride, size) == expected

    def test_format_and_names(self, network):
        _, weights, info, _ = network
        model = build_model(fold_batch_norm(weights, info.norm_eps), info)
        onnx.checker.check_model(model, full_check=True)
        assert model.opset_import[0].version >= 17 and not model.opset_import[0].domain
        assert [(i.name, i.type.tensor_type.shape.dim[0].dim_param) for i in model.graph.input] == [("image", "N")]
        assert [o.name for o in model.graph.output] == ["logits"]
        names = {node.name for node in model.graph.node}
        assert {"stem.conv", "blocks.3.depthwise.conv", "blocks.3.se", "blocks.15.project.conv", "head"} <= names
        assert {i.name for i in model.graph.initializer} >= {"classifier.weight", "stem.conv.bias"}

    def test_any_batch_gives_the_same(self, network):
        _, weights, info, images = network
        model = build_model(weights, info)
        together = run_onnx(model, images)[0]
        alone = np.concatenate([run_onnx(model, image[None])[0] for image in images])
        assert np.abs(together - alone).max() < 1e-5

    @pytest.mark.parametrize("dtype", [np.float32, np.float16])
    def test_preprocessing_in_the_graph_is_the_programs(self, network, dtype):
        _, weights, info, _ = network
        pixels = np.random.default_rng(3).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
        images = np.stack([normalise(crop, info.preprocess) for crop in pixels])
        inside = build_model(weights, info, dtype, include_preprocessing=True)
        np.testing.assert_array_equal(
            run_onnx(inside, pixels)[0], run_onnx(build_model(weights, info, dtype), images)[0]
        )

    def test_probabilities_are_the_softmax(self, network):
        _, weights, info, images = network
        logits, probabilities = run_onnx(
            build_model(weights, info, include_softmax=True), images, ("logits", "probabilities")
        )
        expected = np.exp(logits.astype(np.float64))
        np.testing.assert_allclose(probabilities, expected / expected.sum(1, keepdims=True), rtol=1e-5)

    @pytest.mark.parametrize("fold_bn", [True, False])
    def test_float16_is_half_the_size_and_near(self, network, fold_bn):
        _, weights, info, images = network
        weights = fold_batch_norm(weights, info.norm_eps) if fold_bn else weights
        full, half = build_model(weights, info), build_model(weights, info, np.float16)
        assert half.ByteSize() < 0.52 * full.ByteSize()
        difference = np.abs(run_onnx(half, images)[0] - run_onnx(full, images)[0]).max()
        # ONNX Runtime computes such files in float32 on x86, in float16 on Arm.
        assert 0 < difference < (0.02 if platform.machine() == "x86_64" else 0.04)

    def test_float16_refuses_numbers_beyond_its_range(self, network):
        _, weights, info, _ = network
        with pytest.raises(RunError, match=r"head.conv.weight holds numbers up to 1e\+05, more than float16 can"):
            build_model({**weights, "head.conv.weight": weights["head.conv.weight"] * 0 + 1e5}, info, np.float16)


def test_folding_computes_the_same_and_leaves_the_rest():
    """A convolution of one channel by hand: (2x - 3) * 4 / sqrt(15.75 + 0.25) + 1 is 2x - 2."""
    weights = {
        "stem.conv.weight": np.full((1, 1, 1, 1), 2, np.float32),
        "stem.norm.gamma": np.array([4], np.float32),
        "stem.norm.beta": np.array([1], np.float32),
        "stem.norm.moving_mean": np.array([3], np.float32),
        "stem.norm.moving_variance": np.array([15.75], np.float32),
        "blocks.0.se.reduce.weight": np.ones((1, 1, 1, 1), np.float32),
    }
    folded = fold_batch_norm(weights, 0.25)
    assert list(folded) == ["stem.conv.weight", "stem.conv.bias", "blocks.0.se.reduce.weight"]
    assert folded["stem.conv.weight"].item() == 2 and folded["stem.conv.bias"].item() == -2
    assert folded["blocks.0.se.reduce.weight"] is weights["blocks.0.se.reduce.weight"]


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    """The file of the plain command, and its exit code; the suffix is left out, the folder does not exist yet."""
    folder = tmp_path_factory.mktemp("onnx") / "new"
    os.umask(0o022)
    flags = ["--checkpoint_path", checkpoint, "--file_name", folder / "b0", "--file_format", "ONNX"]
    assert run_cli(main, [str(flag) for flag in flags]) == 0
    assert os.listdir(folder) == ["b0.onnx"]
    return str(folder / "b0.onnx")


class TestOnnx:
    def test_logits_are_the_peers(self, network, exported):
        peer, _, _, images = network
        expected = logits_of(peer, images)
        assert expected.std() > 0.3
        assert np.abs(run_onnx(exported, images)[0] - expected).max() < 1e-4

    def test_others_may_read_it(self, exported):
        assert stat.S_IMODE(os.stat(exported).st_mode) == 0o644

    def test_it_says_what_it_is(self, network, checkpoint, exported):
        info = network[2]
        entries = onnxruntime.InferenceSession(exported).get_modelmeta().custom_metadata_map
        assert ModelInfo.from_json(entries[METADATA_KEY], exported) == info
        assert json.loads(entries["class_names"]) == list(CLASSES)
        assert json.loads(entries["preprocessing"])["mean"] == [120.0, 115.5, 103.25]
        resize, side = info.preprocess.resize, info.preprocess.image_size
        assert entries["input"] == (
            "input image float32 (N, 3, 64, 64); channels in the order R, G, B; (pixel - mean) / std, pixels of 0 to "
            f"255, mean [120.0, 115.5, 103.25] and std {list(info.preprocess.std)} in the same units"
        )
        assert entries["resize"].startswith(
            f"the shorter side to {resize} pixels, the longer to floor(long / short * {resize}), "
        )
        assert entries["crop"] == (
            f"{side} x {side} pixels from left = floor((width - {side}) / 2), top = floor((height - {side}) / 2)"
        )
        assert entries["source_sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
        assert entries["variant"] == "b0" and entries["weights"] == "averaged" and entries["precision"] == "fp32"
        assert entries["licence"] == "Apache-2.0" and entries["source"] == "b0.ckpt"

    def test_figures_are_printed(self, checkpoint, tmp_path, capsys, images):
        flags = ("--file_name", tmp_path / "b0.onnx", "--file_format", "ONNX", "--verify", images)
        code, out, _ = export(capsys, "--checkpoint_path", checkpoint, *flags, "--use_ema", "False")
        assert code == 0
        assert "5 classes, raw weights, fp32" in out
        assert f"verified on 3 images of {images}: largest difference " in out and "same class for 3 of 3 images" in out
        assert f"written: {tmp_path}/b0.onnx, 16.0 MB, input image float32 (N, 3, 64, 64)" in out
        entries = onnxruntime.InferenceSession(f"{tmp_path}/b0.onnx").get_modelmeta().custom_metadata_map
        assert entries["weights"] == "raw"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder with three images in folders of their own."""
    from PIL import Image

    root = tmp_path_factory.mktemp("images")
    for i in range(3):
        (root / f"class{i}").mkdir()
        pixels = np.random.default_rng(i).integers(0, 256, (90, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"class{i}" / "a.png")
    return root


class TestMindir:
    def test_it_is_the_peers_network_with_its_description_beside_it(self, network, checkpoint, tmp_path, capsys):
        import mindspore as ms
        from mindspore import Tensor, nn

        peer, _, info, images = network
        path = tmp_path / "out of [here]" / "b0.mindir"
        code, out, err = export(capsys, "--checkpoint_path", checkpoint, "--file_name", path, "--batch_size", 5)
        assert code == 0, err
        assert sorted(os.listdir(path.parent)) == ["b0.json", "b0.mindir"]
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        assert ModelInfo.from_json((path.parent / "b0.json").read_text(), "b0.json") == info
        logits = nn.GraphCell(ms.load(str(path)))(Tensor(images)).asnumpy()
        assert np.abs(logits - logits_of(peer, images)).max() < 1e-4
        assert "largest difference" in out and "input image float32 (5, 3, 64, 64)" in out

    def test_pixels_in_and_probabilities_out(self, network, checkpoint, tmp_path, capsys, images):
        import mindspore as ms
        from mindspore import Tensor, nn

        peer, weights, info, _ = network
        path = tmp_path / "b0.mindir"
        flags = ("--include_preprocessing", "True", "--include_softmax", "True", "--fold_bn", "False")
        flags += ("--verify", images, "--batch_size", "2")
        code, _, err = export(capsys, "--checkpoint_path", checkpoint, "--file_name", path, *flags)
        assert code == 0, err
        pixels = seeded_images(weights, info)[:2]
        logits, probabilities = (x.asnumpy() for x in nn.GraphCell(ms.load(str(path)))(Tensor(pixels)))
        expected = logits_of(peer, np.stack([normalise(crop, info.preprocess) for crop in pixels]))
        assert np.abs(logits - expected).max() < 1e-4
        odds = np.exp(expected.astype(np.float64))
        np.testing.assert_allclose(probabilities, odds / odds.sum(1, keepdims=True), atol=1e-5)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A checkpoint as the model zoo published them: its names, no description, no checksum."""
    import mindspore as ms

    peer, weights, _, images = peer_and_weights("timm_tf", "b0", SIZE, 1000)
    theirs = to_theirs(LAYOUTS["zoo"], "b0", weights)
    path = tmp_path_factory.mktemp("zoo") / "efficientnetb0_ascend_v180_imagenet2012.ckpt"
    ms.save_checkpoint([{"name": n, "data": ms.Tensor(v)} for n, v in theirs.items()], str(path))
    return path, peer, images


class TestPublishedCheckpoints:
    def test_it_exports_for_the_size_that_is_asked_for(self, published, tmp_path, capsys):
        path, peer, images = published
        flags = ("--file_name", tmp_path / "zoo", "--file_format", "ONNX", "--image_size", SIZE)
        code, out, err = export(capsys, "--checkpoint_path", path, *flags)
        assert code == 0, err
        assert np.abs(run_onnx(tmp_path / "zoo.onnx", images)[0] - logits_of(peer, images)).max() < 1e-4
        text = (
            onnxruntime.InferenceSession(str(tmp_path / "zoo.onnx")).get_modelmeta().custom_metadata_map[METADATA_KEY]
        )
        info = ModelInfo.from_json(text, "zoo.onnx")
        assert (info.preprocess.image_size, info.preprocess.resize, info.num_classes) == (64, 73, 1000)
        assert len(info.class_names) == 1000


class TestNames:
    @pytest.mark.parametrize(
        "name, kind, expected",
        [
            ("b0", "MINDIR", "b0.mindir"),
            ("b0.mindir", "MINDIR", "b0.mindir"),
            ("out/b0.v1", "ONNX", "out/b0.v1.onnx"),
            ("b0.onnx", "ONNX", "b0.onnx"),
            ("b0", "AIR", "b0.air"),
        ],
    )
    def test_a_missing_suffix_is_appended(self, name, kind, expected):
        assert complete_path(name, FORMATS[kind]) == expected

    def test_another_formats_suffix_is_refused(self):
        with pytest.raises(UsageError, match="--file_name is b0.onnx, but --file_format is MINDIR; is ONNX meant"):
            complete_path("b0.onnx", FORMATS["MINDIR"])

    @pytest.mark.parametrize("name", ["", "out/", ".."])
    def test_a_name_of_nothing_is_refused(self, name):
        with pytest.raises(UsageError, match="names no file"):
            complete_path(name, FORMATS["ONNX"])


class TestComparison:
    def test_by_hand(self):
        reference = np.array([[1, 3, 5], [101, 98, 104]], np.float32)
        result = compare(reference, reference + np.array([[0, 0, 0.5], [0, 0, 0]], np.float32), 0.1)
        assert (result.difference, result.largest, result.images, result.same_class) == (0.5, 3.0, 2, 2)
        assert result.bound == pytest.approx(0.3) and not result.passed

    def test_what_all_classes_share_counts_unless_told_otherwise(self):
        reference = np.array([[1, 3, 5]], np.float32)
        assert compare(reference, reference + 7, 0.1).difference == 7
        assert compare(reference, reference + 7, 0.1, relative=True).difference == 0

    def test_numbers_that_are_not_finite_never_pass(self):
        reference = np.ones((1, 2), np.float32)
        for value in (np.nan, np.inf):
            assert not compare(reference, np.array([[1, value]], np.float32), 1e30).passed

    def test_tiny_logits_prove_little(self):
        reference = np.array([[1e-6, 2e-6]], np.float32)
        assert compare(reference, reference, 0.1).passed
        assert "the network looks untrained" in compare(reference, reference, 0.1).doubt

    def test_one_class_has_logits_too(self):
        assert compare(np.array([[2.0]]), np.array([[2.5]]), 0.1, relative=True).difference == 0.5

    def test_rounding_is_allowed_beside_the_tolerance_not_on_top_of_it(self):
        reference = np.array([[1, 3, 5]], np.float32)
        assert compare(reference, reference, 0.1, rounding=0.01).bound == pytest.approx(0.2)
        assert compare(reference, reference, 0.1, rounding=0.15).doubt is None
        loose = compare(reference, reference + 0.4, 0.1, rounding=0.5)
        assert loose.bound == 0.5 and loose.passed and "rounding errors alone" in loose.doubt
        assert not compare(reference, reference, 0.1, rounding=np.inf).passed

    def test_images_are_picked_evenly(self):
        assert pick_evenly(list("abcdefghi"), 3) == ["a", "e", "i"]
        assert pick_evenly(list("ab"), 3) == ["a", "b"]


class TestFailures:
    @pytest.fixture
    def target(self, tmp_path):
        """An older file of the name, which must survive."""
        path = tmp_path / "kept.onnx"
        path.write_bytes(b"older")
        return path

    def check(self, capsys, code, sentence, *flags):
        """One sentence on standard error, and this exit code."""
        found, _, err = export(capsys, *flags)
        assert err.startswith("error: ") and err.count("\n") == 1, err
        assert sentence in err
        assert found == code

    @pytest.mark.parametrize("kind, part", [("ONNX", "src.export.onnx_file"), ("MINDIR", "src.export.mindir_file")])
    def test_a_wrong_file_is_not_delivered(self, kind, part, checkpoint, tmp_path, capsys, monkeypatch):
        """The export goes wrong in one weight; what was there before stays, nothing else does."""

        def fold_wrongly(weights, norm_eps):
            folded = fold_batch_norm(weights, norm_eps)
            return {**folded, "blocks.5.project.conv.weight": folded["blocks.5.project.conv.weight"] * np.float32(1.02)}

        monkeypatch.setattr(f"{part}.fold_batch_norm", fold_wrongly)
        path = tmp_path / f"kept.{kind.lower()}"
        path.write_bytes(b"older")
        (tmp_path / "kept.json").write_text("older")
        self.check(
            *(capsys, 1, f"{path} is not written, because the exported file does not compute what the checkpoint does"),
            *("--checkpoint_path", checkpoint, "--file_name", path, "--file_format", kind),
        )
        assert path.read_bytes() == b"older" and (tmp_path / "kept.json").read_text() == "older"
        assert sorted(os.listdir(tmp_path)) == sorted(["kept.json", path.name])

    @pytest.mark.parametrize(
        "change, sentence",
        [
            (lambda content: b"", "the checkpoint is empty"),
            (lambda content: content[: len(content) // 2], "it is truncated"),
            (lambda content: content[:9999] + b"\0\0\0\0" + content[10003:], "its checksum does not match"),
            (lambda content: b"not a checkpoint", "it is truncated or not a MindSpore checkpoint"),
        ],
        ids=["empty", "truncated", "altered", "text"],
    )
    def test_a_broken_checkpoint(self, change, sentence, checkpoint, tmp_path, target, capsys):
        broken = tmp_path / "broken.ckpt"
        broken.write_bytes(change(checkpoint.read_bytes()))
        flags = ("--checkpoint_path", broken, "--file_name", target, "--file_format", "ONNX")
        self.check(capsys, 1, sentence, *flags)
        assert target.read_bytes() == b"older"

    def test_a_checkpoint_of_another_network(self, tmp_path, target, capsys):
        import mindspore as ms

        other = tmp_path / "other.ckpt"
        ms.save_checkpoint([{"name": "conv1.weight", "data": ms.Tensor(np.ones(3, np.float32))}], str(other))
        flags = ("--checkpoint_path", other, "--file_name", target, "--file_format", "ONNX")
        self.check(capsys, 1, "it is a checkpoint of another network", *flags)
        assert target.read_bytes() == b"older"

    def test_a_missing_checkpoint(self, tmp_path, capsys):
        missing = tmp_path / "none.ckpt"
        self.check(capsys, 1, f"{missing}: there is no such checkpoint", "--checkpoint_path", missing)

    @pytest.mark.parametrize("kind", ["ONNX", "MINDIR"])
    def test_an_unwritable_output(self, kind, checkpoint, tmp_path, capsys):
        (tmp_path / "file").write_text("no folder")
        for name, sentence in (
            ("file/b0", f"{tmp_path}/file: it is there already, and is no directory"),
            ("folder", "it is a directory"),
        ):
            (tmp_path / f"folder.{kind.lower()}").mkdir(exist_ok=True)
            flags = ("--checkpoint_path", checkpoint, "--file_name", tmp_path / name, "--file_format", kind)
            self.check(capsys, 1, sentence, *flags)

    @pytest.mark.parametrize(("kind", "target"), [("MINDIR", "CPU"), ("ONNX", "CPU"), ("AIR", "Ascend")])
    def test_on_a_host_with_npus_what_can_be_is_made_and_compared_on_the_cpu(self, kind, target, monkeypatch):
        """Their convolutions may compute float32 in fewer bits, so that no comparison would hold."""

        def note(chosen, device_id):
            raise UsageError(f"chosen: {chosen}")

        monkeypatch.setattr("export.prepare_device", note)
        with pytest.raises(UsageError, match=f"chosen: {target}"):
            main(["--checkpoint_path", "a.ckpt", "--file_format", kind, "--device_target", "Ascend"])

    @pytest.mark.parametrize(
        "flags, sentence",
        [
            (["--file_format", "AIR"], "--file_format AIR needs an Ascend device, this is a CPU; take MINDIR"),
            (["--file_format", "TFLITE"], "expected one of MINDIR, ONNX, AIR, OM, not 'TFLITE'"),
            (["--file_format", "ONNX", "--batch_size", "2"], "--batch_size is for MINDIR, AIR and OM"),
            (["--batch_size", "0"], "expected a whole number of at least 1, not '0'"),
            (["--precision", "fp16"], "--precision fp16 is for ONNX"),
            (["--file_format", "ONNX", "--precision", "int4"], "expected one of fp32, fp16, int8, not 'int4'"),
            (["--file_format", "ONNX", "--precision", "int8"], "--precision int8 needs --calibration_path"),
            (["--file_format", "ONNX", "--calibration_path", "."], "--calibration_path is for --precision int8"),
            (["--file_format", "ONNX", "--reduce_range", "True"], "--reduce_range is for --precision int8"),
            (
                ["--file_format=ONNX", "--precision=int8", "--calibration_path=.", "--fold_bn=False"],
                "--precision int8 needs --fold_bn True",
            ),
            (["--file_name", "b0.onnx"], "--file_name is b0.onnx, but --file_format is MINDIR; is ONNX meant?"),
            (["--image_size", "128"], "--image_size is 128, but {checkpoint} was trained with 64; convert_weights.py"),
            (["--variant", "b1"], "--variant is b1, but {checkpoint} was trained with b0"),
            (["--class_num", "7"], "--class_num is 7, but {checkpoint} was trained with 5"),
            (["--device_target", "Ascend", "--file_format", "AIR"], "this MindSpore finds no Ascend device"),
            (["--fold_bn", "maybe"], "expected True or False, not 'maybe'"),
            (["--tolerance", "0"], "expected a number above 0"),
            (["--fold", "True"], "unrecognized arguments: --fold True"),
        ],
        ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
    )
    def test_wrong_flags(self, flags, sentence, checkpoint, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        self.check(capsys, 2, sentence.format(checkpoint=checkpoint), "--checkpoint_path", checkpoint, *flags)
        assert os.listdir(tmp_path) == []

    def test_the_checkpoint_is_needed(self, capsys):
        self.check(capsys, 2, "--checkpoint_path")

    @pytest.mark.parametrize("flag", ["--verify", "--calibration_path"])
    def test_folders_of_images(self, flag, checkpoint, tmp_path, target, capsys, images):
        empty, broken = tmp_path / "empty", tmp_path / "broken"
        empty.mkdir()
        broken.mkdir()
        (broken / "a.jpg").write_bytes(b"no image")
        flags = ("--checkpoint_path", checkpoint, "--file_name", target, "--file_format", "ONNX", flag)
        for folder, sentence in (
            (tmp_path / "none", f"{tmp_path}/none: there is no such file or directory"),
            (empty, f"{empty}: there is no image in this folder"),
            (broken, f"{broken}/a.jpg: it is not an image that can be decoded"),
        ):
            int8 = ("--precision", "int8") if flag == "--calibration_path" else ()
            self.check(capsys, 1, sentence, *flags, folder, *int8)
            assert target.read_bytes() == b"older"
        assert sorted(os.listdir(tmp_path)) == ["broken", "empty", "kept.onnx"]

    @pytest.mark.parametrize(
        "kind, writer", [("ONNX", "onnx_file.onnx.save"), ("MINDIR", "mindir_file.shutil.copyfile")]
    )
    def test_a_full_disk(self, kind, writer, checkpoint, tmp_path, capsys, monkeypatch):
        def write_half(source, path):
            with open(path, "wb") as file:
                file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(f"src.export.{writer}", write_half)
        path = tmp_path / f"b0.{kind.lower()}"
        flags = ("--checkpoint_path", checkpoint, "--file_name", path, "--file_format", kind)
        self.check(capsys, 1, f"{path}: there is no space left on the device", *flags)
        assert os.listdir(tmp_path) == []

    def test_a_weight_that_float16_cannot_hold(self, checkpoint, tmp_path, target, capsys):
        source = read_checkpoint(str(checkpoint))
        large = {**source.weights, "head.norm.gamma": source.weights["head.norm.gamma"] * np.float32(1e6)}
        write_checkpoint(str(tmp_path / "large.ckpt"), large, source.info)
        flags = ("--file_name", target, "--file_format", "ONNX", "--precision", "fp16")
        self.check(capsys, 1, "more than float16 can", "--checkpoint_path", tmp_path / "large.ckpt", *flags)
        assert target.read_bytes() == b"older"


class TestFormats:
    @pytest.mark.parametrize("kind", ["MINDIR", "AIR"])
    def test_a_format_of_a_fixed_batch_has_one_of_1(self, kind):
        assert ExportPlan("b0", FORMATS[kind], ModelInfo()).batch_size == 1
        assert ExportPlan("b0", FORMATS[kind], ModelInfo(), batch_size=3).batch_size == 3
        assert ExportPlan("b0.onnx", FORMATS["ONNX"], ModelInfo()).batch_size is None

    def test_what_cannot_be_run_cannot_be_verified(self):
        plan = ExportPlan("b0.air", FORMATS["AIR"], ModelInfo(), verify_path="images")
        with pytest.raises(UsageError, match="--verify is for MINDIR, ONNX and OM; nothing here can run an AIR file"):
            check_plan(plan)

    def test_mindir_needs_neither_onnx_nor_onnx_runtime(self):
        code = "import sys, export, src.export.mindir_file; sys.exit(str({'onnx', 'onnxruntime'} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert done.stderr.splitlines()[-1] == "set()"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ONNX", "MINDIR"])
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_every_variant_at_its_own_size(variant, kind, tmp_path, capsys):
    """As published: B7 at 600 pixels; verified against MindSpore by the export itself."""
    from src.weights.network import build_network, model_parameters

    info = with_size(SOURCES["timm_tf"].describe(variant, 5), VARIANTS[variant].image_size)
    size = info.preprocess.image_size
    photos = normalise_all(np.stack([np.asarray(draw(size, size, i)) for i in range(4)]), info)
    peer = randomise(create_peer("timm_tf", variant, num_classes=5), photos)
    weights = to_ours(tensors(peer), "timm_tf").weights
    assert set(model_parameters(build_network(info))) == set(weights)
    write_checkpoint(str(tmp_path / "a.ckpt"), weights, info)
    flags = ("--checkpoint_path", tmp_path / "a.ckpt", "--file_name", tmp_path / "a", "--file_format", kind)
    code, out, err = export(capsys, *flags)
    assert code == 0, err
    assert "same class for 4 of 4 images" in out
