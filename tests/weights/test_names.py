"""Names, shapes and expectations of other projects' weights against timm's and torchvision's own networks."""

import functools
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from benchmarks.peers import create_peer, peer_name, timm, torch, torchvision
from src.common.cli import RunError
from src.models.effnet import create_network
from src.models.family import VARIANTS
from src.weights.layouts import LAYOUTS
from src.weights.model_info import ModelInfo
from src.weights.names import parameter_names, parameter_shapes, to_ours, to_theirs
from src.weights.sources import SOURCES

PEERS = ("timm", "timm_tf", "torchvision", "efficientnet_pytorch")
PUBLISHED = {"zoo": "model_zoo_parameters.tsv", "mindcv": "mindcv_parameters.tsv"}
EVERY = [(source, variant) for source in PEERS for variant in SOURCES[source].members]


def shapes(variant):
    """Parameter names and shapes of our networks."""
    return parameter_shapes(VARIANTS[variant], 1000)


def meta_peer(create):
    """A peer's network without memory for its numbers."""
    with torch.device("meta"):
        return create()


@functools.cache
def published_peer(source, variant):
    return meta_peer(lambda: create_peer(source, variant))


def shapes_of(peer):
    return {name: tuple(value.shape) for name, value in peer.state_dict().items()}


def numbered(shapes):
    """Entries of the given shapes, each filled with its position: where a number arrives tells where it came from."""
    return {
        name: np.int64(i) if name.endswith("num_batches_tracked") else np.broadcast_to(np.float32(i), shape)
        for i, (name, shape) in enumerate(shapes.items())
    }


def published_shapes(project):
    """Names and shapes of a checkpoint that a MindSpore project published."""
    lines = (Path(__file__).parent.parent / "data" / PUBLISHED[project]).read_text().splitlines()
    rows = [line.split("\t") for line in lines]
    return {name: tuple(int(side) for side in shape.split("x")) for name, shape in rows}


def numbers(weights):
    """The position that each array carries; fails where it carries several."""
    assert all((value == value.flat[0]).all() for value in weights.values())
    return [int(value.flat[0]) for value in weights.values()]


def zoo_entries():
    return numbered(published_shapes("zoo"))


@pytest.mark.parametrize(
    "variant", [v if v in ("b0", "b3") else pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS]
)
@pytest.mark.parametrize("num_classes", [1000, 7])
def test_names_shapes_and_order_are_the_networks_own(variant, num_classes):
    parameters = create_network(variant, num_classes=num_classes).get_parameters()
    expected = [(p.name, tuple(p.shape)) for p in parameters if p.name != "random_step"]
    assert list(parameter_shapes(VARIANTS[variant], num_classes).items()) == expected


@pytest.mark.parametrize("source, variant", [pair for pair in EVERY if pair[0] != "timm_tf"])
def test_every_tensor_of_the_peers_is_used_exactly_once(source, variant):
    entries = numbered(shapes_of(published_peer(source, variant)))
    translated = to_ours(entries, "file")
    assert (translated.layout, translated.variant) == (SOURCES[source].layout, variant)
    assert translated.num_classes == 1000
    assert translated.left_out == []
    assert {name: value.shape for name, value in translated.weights.items()} == shapes(variant)
    used = numbers(translated.weights) + translated.counters.tolist()
    assert sorted(used) == list(range(len(entries)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_timms_two_families_have_the_same_tensors(variant):
    """So what is shown of the one holds for the other, and only a name tells them apart."""
    assert shapes_of(published_peer("timm_tf", variant)) == shapes_of(published_peer("timm", variant))


@pytest.mark.parametrize("source, variant", EVERY)
def test_epsilon_and_padding_are_the_peers(source, variant):
    peer = published_peer(source, variant)
    info = SOURCES[source].describe(variant, 1000)
    assert {m.eps for m in peer.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {info.norm_eps}
    # The peers pad symmetrically by the convolution's own padding, and for TensorFlow's by a class of their own.
    strided = [m for m in peer.modules() if isinstance(m, torch.nn.Conv2d) and tuple(m.stride) == (2, 2)]
    assert len(strided) == 5
    assert {m.padding == (0, 0) for m in strided} == {info.padding == "same"}


@pytest.mark.parametrize("project, left_out", [("zoo", 5), ("mindcv", 0)])
def test_every_tensor_of_the_published_mindspore_checkpoints_is_used_or_named(project, left_out):
    entries = numbered(published_shapes(project))
    translated = to_ours(entries, "file")
    assert (translated.layout, translated.variant) == (LAYOUTS[project], "b0")
    assert translated.num_classes == 1000 and translated.counters is None
    assert {name: value.shape for name, value in translated.weights.items()} == shapes("b0")
    # The zoo's first block has an expansion that its network does not call.
    assert len(translated.left_out) == left_out
    assert all(name.startswith("blocks.0.layers.0.expand_conv.") for name in translated.left_out)
    named = [list(entries).index(name) for name in translated.left_out]
    assert sorted(numbers(translated.weights) + named) == list(range(len(entries)))


def test_a_norms_parts_keep_their_meaning():
    """The four arrays of a norm have one shape: only their names tell them apart."""
    for project, norm in (
        ("zoo", "stem.1"),
        ("mindcv", "features.1"),
        ("timm", "bn1"),
        ("torchvision", "features.0.1"),
    ):
        names = parameter_names(LAYOUTS[project], VARIANTS["b0"])
        theirs = {
            part: names[f"stem.norm.{part}"].removeprefix(f"{norm}.")
            for part in ("gamma", "beta", "moving_mean", "moving_variance")
        }
        if project in ("timm", "torchvision"):
            expected = ["weight", "bias", "running_mean", "running_var"]
        else:
            expected = list(theirs)
        assert list(theirs.values()) == expected


def test_the_states_of_mindspores_optimisers_are_left_out():
    """Under the names that MindSpore itself gives them, beside the names of the zoo's weights."""
    import mindspore as ms
    from mindspore import nn

    entries = zoo_entries()
    weights = [ms.Parameter(ms.Tensor(np.zeros((2, 2), np.float32)), name=name) for name in list(entries)[:3]]
    optimisers = [
        nn.RMSProp(weights, nn.cosine_decay_lr(0.0, 0.1, 4, 2, 2), momentum=0.9),
        nn.RMSProp(weights, 0.1, centered=True),
        nn.SGD(weights, 0.1, 0.9),
        nn.Momentum(weights, 0.1, 0.9),
        nn.Adagrad(weights),
        nn.Adadelta(weights),
        nn.AdaMax(weights),
        nn.Adam(weights, 0.1, use_amsgrad=True),
        nn.AdamWeightDecay(weights, 0.1),
        nn.Lamb(weights, 0.1),
        nn.Rprop(weights, 0.1),
    ]
    for optimiser in optimisers:
        states = {p.name: np.ones(p.shape, np.float32) for p in optimiser.get_parameters() if p.name not in entries}
        assert len(states) >= 3
        translated = to_ours({**entries, **states, "epoch_num": np.float32(3), "step_num": np.float32(3)}, "file")
        assert set(translated.left_out) >= set(states)


@pytest.mark.parametrize("project", LAYOUTS)
@pytest.mark.parametrize("variant", ["b0", "b1", "b2"])
def test_there_and_back_again(project, variant):
    weights = numbered(shapes(variant))
    counters = np.arange(7, 7 + sum(name.endswith("gamma") for name in weights)) if "t" in project else None
    theirs = to_theirs(LAYOUTS[project], variant, weights, counters)
    translated = to_ours(theirs, "file")
    assert (translated.layout, translated.variant) == (LAYOUTS[project], variant)
    assert dict(zip(translated.weights, numbers(translated.weights))) == dict(zip(weights, numbers(weights)))
    if counters is not None:
        assert translated.counters.tolist() == counters.tolist()


def test_counters_that_are_not_known_are_zero():
    theirs = to_theirs(LAYOUTS["timm"], "b0", numbered(shapes("b0")))
    counters = [value for name, value in theirs.items() if name.endswith("num_batches_tracked")]
    assert len(counters) == 49 and all(value.dtype == np.int64 and value.shape == () for value in counters)
    assert not any(counters)


@pytest.mark.parametrize(
    "create, sentence",
    [
        (lambda: timm.create_model("resnet18"), "no EfficientNet of timm"),
        (lambda: timm.create_model("efficientnet_b8"), "a head of 2816 channels; it is none of EfficientNet B0 to B7"),
        (lambda: timm.create_model("efficientnet_es"), "left over: blocks.0.0.conv_exp.weight, "),
        (lambda: timm.create_model("efficientnet_b0_gn"), "missing: bn1.running_mean"),
        (lambda: timm.create_model("mobilenetv3_small_100"), "a head of 1024 channels"),
        (lambda: timm.create_model("tf_efficientnetv2_b0"), "would be left over: blocks.0.0.conv.weight, blocks.1.0."),
        (lambda: torchvision.models.resnet18(), "its names are like conv1.weight"),
        (lambda: torchvision.models.mobilenet_v2(), "torchvision's names and no head"),
        (lambda: torchvision.models.efficientnet_v2_s(), "torchvision's names and no head"),
    ],
)
def test_other_networks_are_refused_by_name(create, sentence):
    entries = numbered(shapes_of(meta_peer(create)))
    with pytest.raises(RunError, match=re.escape(sentence)):
        to_ours(entries, "file")


def test_what_is_left_over_is_named():
    entries = {**zoo_entries(), "blocks.0.layers.0.gate.weight": np.zeros(3, np.float32), "extra": np.zeros(1)}
    with pytest.raises(RunError, match=r"2 entries would be left over: blocks.0.layers.0.gate.weight, extra$"):
        to_ours(entries, "file")
    many = {f"extra.{i}": np.zeros(1) for i in range(12)}
    with pytest.raises(RunError, match=r"12 entries would be left over: extra.0, .*, extra.9 and 2 others$"):
        to_ours({**zoo_entries(), **many}, "file")


def test_what_is_missing_is_named():
    entries = zoo_entries()
    del entries["blocks.3.layers.1.se.se.1.bias"]
    with pytest.raises(RunError, match=r"EfficientNet-B0, 1 entry missing: blocks.3.layers.1.se.se.1.bias$"):
        to_ours(entries, "file")


def test_a_block_too_few_is_missing_and_not_another_variant():
    entries = {name: value for name, value in zoo_entries().items() if not name.startswith("blocks.5.layers.3.")}
    with pytest.raises(RunError, match="read as the MindSpore model zoo's EfficientNet-B0, 19 entries missing"):
        to_ours(entries, "file")


def test_half_a_classifier_is_no_classifier_left_out():
    entries = zoo_entries()
    del entries["head.6.bias"]
    with pytest.raises(RunError, match=r"1 entry missing: head.6.bias$"):
        to_ours(entries, "file")


def test_a_missing_classifier_is_left_missing():
    entries = {name: value for name, value in zoo_entries().items() if not name.startswith("head.6.")}
    translated = to_ours(entries, "file")
    assert translated.num_classes is None and len(translated.weights) == 309


def test_two_projects_names_in_one_file_are_refused():
    mixed = {**zoo_entries(), **numbered(published_shapes("mindcv"))}
    with pytest.raises(RunError, match="311 entries would be left over: features.0.weight"):
        to_ours(mixed, "file")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_floating_types_become_float32_without_loss(dtype):
    entries = zoo_entries()
    values = np.random.default_rng(0).standard_normal(entries["stem.0.weight"].shape).astype(np.float16).astype(dtype)
    translated = to_ours({**entries, "stem.0.weight": values}, "file")
    stem = translated.weights["stem.conv.weight"]
    assert stem.dtype == np.float32
    np.testing.assert_array_equal(stem, values.astype(np.float32))


@pytest.mark.parametrize(
    "value, sentence",
    [
        (np.zeros((32, 3, 3, 3), np.int8), "stem.0.weight holds int8 instead of floating-point numbers"),
        (np.zeros((32, 3, 3, 3), bool), "stem.0.weight holds bool"),
        (np.full((32, 3, 3, 3), np.nan, np.float32), "stem.0.weight holds numbers that are not finite"),
        (np.full((32, 3, 3, 3), 1e300), "stem.0.weight holds numbers that are not finite"),
    ],
)
def test_entries_that_are_no_weights_are_refused(value, sentence):
    with pytest.raises(RunError, match=sentence):
        to_ours({**zoo_entries(), "stem.0.weight": value}, "file")


@pytest.mark.parametrize("value", [np.float32(3), np.arange(2), np.array("x")])
def test_counters_that_are_no_numbers_are_refused(value):
    theirs = to_theirs(LAYOUTS["timm"], "b0", numbered(shapes("b0")))
    with pytest.raises(RunError, match="bn1.num_batches_tracked is not one whole number"):
        to_ours({**theirs, "bn1.num_batches_tracked": value}, "file")


def timm_weights():
    """All weights that timm publishes for these networks: its name of them, and the names of their files."""
    for prefix in ("efficientnet", "tf_efficientnet"):
        for variant in VARIANTS:
            for name in timm.list_pretrained(f"{prefix}_{variant}.*"):
                config = timm.get_pretrained_cfg(name)
                # One set squashes whole images to a square, which no preprocessing here does.
                if config.crop_mode == "center":
                    files = [f"{name}.safetensors"] + ([config.url.rpartition("/")[2]] if config.url else [])
                    yield from (pytest.param(name, variant, config, file, id=file) for file in files)


@pytest.mark.parametrize("name, variant, config, file", list(timm_weights()))
def test_images_are_those_that_timm_says_its_weights_expect(name, variant, config, file):
    source = SOURCES["timm_tf" if name.startswith("tf_") else "timm"]
    images = source.describe(variant, config.num_classes, file).preprocess
    assert images.image_size == config.input_size[1]
    assert images.resize == int(config.input_size[1] / config.crop_pct)
    assert images.interpolation == config.interpolation
    np.testing.assert_allclose(images.mean, 255 * np.array(config.mean))
    np.testing.assert_allclose(images.std, 255 * np.array(config.std))


@pytest.mark.parametrize("source, variant", [pair for pair in EVERY if pair[0].startswith("timm")])
def test_a_bare_name_means_timms_default_weights(source, variant):
    config = timm.get_pretrained_cfg(peer_name(source, variant))
    images = SOURCES[source].describe(variant, 1000).preprocess
    size = config.input_size[1]
    # timm publishes no efficientnet_b6 and b7; there its settings of those networks count.
    assert (images.image_size, images.resize) == (size, int(size / config.crop_pct))
    np.testing.assert_allclose(images.mean, 255 * np.array(config.mean))


@pytest.mark.parametrize("variant", SOURCES["torchvision"].members)
def test_images_are_those_that_torchvision_says_its_weights_expect(variant):
    for weights in torchvision.models.get_model_weights(f"efficientnet_{variant}"):
        expected = weights.transforms()
        images = SOURCES["torchvision"].describe(variant, 1000, weights.url.rpartition("/")[2]).preprocess
        assert [images.image_size] == expected.crop_size and [images.resize] == expected.resize_size
        assert images.interpolation == expected.interpolation.value
        np.testing.assert_allclose(images.mean, 255 * np.array(expected.mean))
        np.testing.assert_allclose(images.std, 255 * np.array(expected.std))


def test_the_zoos_images_are_those_of_its_evaluation():
    """Resize to 255, centre crop of 224, (pixel - 127.5) / 127.5, as its dataset.py has it."""
    info = SOURCES["zoo"].describe("b0", 1000)
    images = info.preprocess
    assert (images.image_size, images.resize, images.mean, images.std) == (224, 255, (127.5,) * 3, (127.5,) * 3)
    assert (info.padding, info.norm_eps) == ("same", 1e-3)


@pytest.mark.parametrize("source", SOURCES)
def test_every_description_is_a_whole_one(source):
    for variant in SOURCES[source].members:
        info = SOURCES[source].describe(variant, 10)
        assert ModelInfo.from_json(info.to_json(), "file") == info
        assert info.class_names is None
        assert len(SOURCES[source].describe(variant, 1000).class_names) == 1000
