"""The proof of an exported file: right files pass in whatever order numbers are added up, and wrong ones never do.

The networks have random weights with the batch-norm statistics of the digits, as in the tests of infer_onnx.py: on the
digits they are well behaved, on other images their logits explode and every rounding error with them.
"""

import dataclasses
import functools

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from benchmarks.peers import create_peer, random_images, randomise
from src.common.cli import RunError
from src.export import exporter
from src.export.formats import FORMATS
from src.export.onnx_graph import build_model
from src.export.plan import ExportPlan, normalise_all
from src.export.seeded_images import COUNT, seeded_images, stem_statistics
from src.images.preprocess import Preprocess, load_image
from src.weights.folding import fold_batch_norm
from src.weights.model_info import ModelInfo
from src.weights.names import to_ours
from src.weights.network import build_network
from tests.support.peer_networks import tensors

torch = pytest.importorskip("torch")
INFO = ModelInfo("b0", 10, preprocess=Preprocess.for_image_size(64))
PLAN = ExportPlan("b0.onnx", FORMATS["ONNX"], INFO)
PIXELS_PLAN = ExportPlan("b0.onnx", FORMATS["ONNX"], INFO, include_preprocessing=True)
SEEDS = (0, 3, 9)


@pytest.fixture(scope="module", autouse=True)
def one_network():
    """MindSpore builds the network once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "build_network", functools.lru_cache(build_network))
        yield


@pytest.fixture(scope="module")
def networks(digits):
    """Seed, or "calm" for a network that magnifies nothing, to (peer, its weights under our names)."""
    paths = sorted(digits.glob("val/*/*.jpg"))[::6]
    images = np.stack([load_image(str(path), INFO.preprocess) for path in paths])
    peers = {seed: randomise(create_peer("timm_tf", "b0", num_classes=10), images, seed) for seed in SEEDS}
    # Statistics of white noise, on which hardly any image is out of the ordinary.
    peers["calm"] = randomise(create_peer("timm_tf", "b0", num_classes=10), random_images(5, 64))
    return {seed: (peer.eval(), to_ours(tensors(peer), "timm_tf").weights) for seed, peer in peers.items()}


def plain_noise():
    """Pixels unlike any digit: half single ones, half patches."""
    generator = np.random.default_rng(1)
    coarse = generator.integers(0, 256, (4, 4, 4, 3)).repeat(16, 1).repeat(16, 2)
    return ((coarse + generator.integers(0, 256, (4, 64, 64, 3))) // 2).astype(np.uint8)


def run_torch(peer, images, dtype):
    """A peer's logits computed in another precision."""
    with torch.no_grad():
        logits = peer.to(dtype)(torch.from_numpy(images).to(dtype)).numpy()
    peer.to(torch.float32)
    return logits


def run_onnx(model, images, optimised=False):
    """Logits of a model in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(["logits"], {"image": images})[0]


def run_openvino(model, images):
    """Logits of a model in OpenVINO, in float32 on processors that could take less, too."""
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    model = core.read_model(model.SerializeToString())
    return core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({"image": images})["logits"]


class TestRightFiles:
    @pytest.mark.parametrize("seed", SEEDS)
    @pytest.mark.parametrize("arithmetic", ["float32", "float64", "unfolded", "folded", "optimised", "openvino"])
    def test_pass_in_any_arithmetic(self, networks, seed, arithmetic):
        peer, weights = networks[seed]

        def run(images):
            if arithmetic.startswith("float"):
                return run_torch(peer, images, getattr(torch, arithmetic))
            model = build_model(weights if arithmetic == "unfolded" else fold_batch_norm(weights, INFO.norm_eps), INFO)
            if arithmetic == "openvino":
                return run_openvino(model, images)
            return run_onnx(model, images, optimised=arithmetic == "optimised")

        noise, seeded = plain_noise(), seeded_images(weights, INFO)
        on_noise, on_seeded = (
            exporter.compare_with_network(weights, PLAN, pixels, run(normalise_all(pixels, INFO)))
            for pixels in (noise, seeded)
        )
        assert on_noise.passed and on_noise.largest > 1e4, on_noise.describe()
        # On images that the network was made for, next to nothing is magnified.
        assert on_seeded.passed and on_seeded.largest < 1e4, on_seeded.describe()
        assert on_seeded.bound < 0.01 * on_seeded.largest and on_seeded.doubt is None


def scale_a_weight(model):
    change(model, "blocks.5.project.conv.weight", lambda value: value * np.float32(1.01))


def swap_two_channels(model):
    change(model, "head.conv.weight", lambda value: value[[1, 0, *range(2, len(value))]])


def zero_a_bias(model):
    def zero(value):
        value = value.copy()
        value[3] = 0
        return value

    change(model, "blocks.9.expand.conv.bias", zero)


def change_the_mean(model):
    change(model, "preprocess.mean", lambda value: value + np.float32(0.5))


def change_an_epsilon(model):
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            node.attribute[0].f = 1e-5


def change_the_padding(model):
    """PyTorch's in one of the convolutions, for TensorFlow's."""
    (node,) = (node for node in model.graph.node if node.name == "blocks.1.depthwise.conv")
    (pads,) = (attribute for attribute in node.attribute if attribute.name == "pads")
    assert list(pads.ints) == [0, 0, 1, 1]
    pads.ints[:] = [1, 1, 0, 0]


def change(model, name, function):
    """Replace a constant."""
    (constant,) = (constant for constant in model.graph.initializer if constant.name == name)
    constant.CopyFrom(onnx.numpy_helper.from_array(function(onnx.numpy_helper.to_array(constant)), name))


class TestWrongFiles:
    @pytest.mark.parametrize("seed", [*SEEDS, "calm"])
    @pytest.mark.parametrize(
        "mutate",
        [scale_a_weight, swap_two_channels, zero_a_bias, change_the_mean, change_an_epsilon, change_the_padding],
    )
    def test_are_refused_without_images_of_the_user(self, networks, seed, mutate):
        weights = networks[seed][1]
        folded = weights if mutate is change_an_epsilon else fold_batch_norm(weights, INFO.norm_eps)
        model = build_model(folded, INFO, include_preprocessing=True)
        pixels = seeded_images(weights, INFO)
        right = exporter.compare_with_network(weights, PIXELS_PLAN, pixels, run_onnx(model, pixels))
        mutate(model)
        wrong = exporter.compare_with_network(weights, PIXELS_PLAN, pixels, run_onnx(model, pixels))
        assert right.passed and not wrong.passed, wrong.describe()
        # Far from the bound, not by chance.
        assert wrong.difference > 2 * wrong.bound

    def test_are_refused_where_the_users_images_make_the_logits_explode(self, networks, tmp_path):
        """There a wrong weight hides among rounding errors; then the network's own kind of images decides."""
        weights = networks[3][1]
        for i, pixels in enumerate(plain_noise()):
            Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        paths = sorted(map(str, tmp_path.iterdir()))
        preprocess = Preprocess.for_image_size(64, crop_ratio=1.0)
        plan = dataclasses.replace(
            PIXELS_PLAN, verify_path=str(tmp_path), info=dataclasses.replace(INFO, preprocess=preprocess)
        )
        model = build_model(fold_batch_norm(weights, INFO.norm_eps), INFO, include_preprocessing=True)
        said = []
        exporter.verify(weights, plan, paths, functools.partial(run_onnx, model), said.append)
        assert said[0].startswith(f"verified on 4 images of {tmp_path}: ") and "rounding errors alone" in said[1]
        assert said[2].startswith("verified on seeded patterns: ") and len(said) == 3
        scale_a_weight(model)
        with pytest.raises(RunError, match="b0.onnx is not written, .*; on seeded patterns: "):
            exporter.verify(weights, plan, paths, functools.partial(run_onnx, model), said.append)


class TestSeededImages:
    def test_they_are_the_same_every_time(self, networks):
        weights = networks[0][1]
        pixels = seeded_images(weights, INFO)
        assert pixels.shape == (COUNT, 64, 64, 3) and pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, seeded_images(weights, INFO))
        assert len(np.unique(pixels.reshape(COUNT, -1), axis=0)) == COUNT and pixels.std() > 50

    def test_brightness_and_contrast_are_those_that_the_stem_remembers(self, networks, digits):
        """The digits are white on black and fill a quarter; the photos of another network are not."""
        weights = networks[0][1]
        paths = sorted(digits.glob("val/*/*.jpg"))[::20]
        own = np.stack([load_image(str(path), INFO.preprocess) for path in paths])
        found = normalise_all(seeded_images(weights, INFO), INFO)
        assert found.mean() == pytest.approx(own.mean(), abs=0.2)
        assert found.std() == pytest.approx(own.std(), rel=0.2)
        pale = {**weights, "stem.norm.moving_mean": 0 * weights["stem.norm.moving_mean"]}
        pale["stem.norm.moving_variance"] = weights["stem.norm.moving_variance"] / 100
        found = normalise_all(seeded_images(pale, INFO), INFO)
        assert abs(found.mean()) < 0.2 and found.std() < 0.2

    @pytest.mark.parametrize("padding", ["same", "symmetric"])
    @pytest.mark.parametrize("size", [32, 33])
    def test_the_stem_is_the_networks(self, padding, size):
        """Against PyTorch's convolution, padded by hand."""
        generator = np.random.default_rng(2)
        weight = generator.standard_normal((5, 3, 3, 3)).astype(np.float32)
        image = generator.standard_normal((3, size, size)).astype(np.float32)
        pads = (0, 1, 0, 1) if padding == "same" and size == 32 else (1, 1, 1, 1)
        padded = torch.nn.functional.pad(torch.from_numpy(image)[None], pads)
        expected = torch.nn.functional.conv2d(padded, torch.from_numpy(weight), stride=2)[0].numpy()
        info = ModelInfo(padding=padding, norm_eps=1e-5)
        mean, variance = stem_statistics(image, weight, info)
        np.testing.assert_allclose(mean, expected.mean((1, 2)), atol=1e-5)
        np.testing.assert_allclose(variance, expected.var((1, 2)) + 1e-5, rtol=1e-4)

    @pytest.mark.parametrize("value", [0, np.nan, np.inf])
    @pytest.mark.parametrize("name", ["stem.conv.weight", "stem.norm.moving_mean", "stem.norm.moving_variance"])
    def test_broken_weights_give_images_all_the_same(self, networks, name, value):
        weights = networks[0][1]
        assert seeded_images({**weights, name: np.full_like(weights[name], value)}, INFO).shape == (COUNT, 64, 64, 3)
