"""The network against the paper's tables, timm's and torchvision's figures, and what drop-connect promises."""

import dataclasses
import math
import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from src.common.cli import UsageError
from src.models.effnet import EfficientNet, create_network
from src.models.family import STAGES, VARIANTS, scale_channels, scale_repeats
from src.models.table import count_activations, count_multiply_adds, format_table, layer_table, main

# The table of the published networks; timm and torchvision count the same.
PARAMETERS = {
    "b0": 5288548,
    "b1": 7794184,
    "b2": 9109994,
    "b3": 12233232,
    "b4": 19341616,
    "b5": 30389784,
    "b6": 43040704,
    "b7": 66347960,
    "lite0": 4652008,
    "lite1": 5416680,
    "lite2": 6092072,
    "lite3": 8197096,
    "lite4": 13006568,
}
# Billions: the paper's table 2, which rounds and counts B4 and B5 a little lower; and torchvision's own count of its
# networks, whose B2 is for 288 pixels.
PAPER_MULTIPLY_ADDS = {"b0": 0.39, "b1": 0.70, "b2": 1.0, "b3": 1.8, "b4": 4.2, "b5": 9.9, "b6": 19, "b7": 37}
TORCHVISION_MULTIPLY_ADDS = {
    "b0": 0.386,
    "b1": 0.687,
    "b2": 1.088,
    "b3": 1.827,
    "b4": 4.394,
    "b5": 10.266,
    "b6": 19.068,
    "b7": 37.746,
}
# The paper's table 1: operator, input resolution, output channels, layers.
PAPER_LAYERS = [
    ("Conv, k3x3, stride 2", 224, 32, 1),
    ("MBConv1, k3x3", 112, 16, 1),
    ("MBConv6, k3x3", 112, 24, 2),
    ("MBConv6, k5x5", 56, 40, 2),
    ("MBConv6, k3x3", 28, 80, 3),
    ("MBConv6, k5x5", 14, 112, 3),
    ("MBConv6, k5x5", 14, 192, 4),
    ("MBConv6, k3x3", 7, 320, 1),
    ("Conv, k1x1", 7, 1280, 1),
]


@pytest.fixture(scope="module")
def networks():
    """All members, as published."""
    return {variant: create_network(variant) for variant in VARIANTS}


@pytest.fixture
def graph_mode():
    before = ms.get_context("mode")
    ms.set_context(mode=ms.GRAPH_MODE)
    yield
    ms.set_context(mode=before)


def small_network(**settings):
    """A tenth of the width: the same code in a moment."""
    return EfficientNet(dataclasses.replace(VARIANTS["b0"], width_coeff=0.1), 5, **settings)


def random_images(count, size=32, seed=0):
    return Tensor(np.random.default_rng(seed).standard_normal((count, 3, size, size)).astype(np.float32))


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameter_counts_are_the_published_ones(networks, variant):
    assert sum(p.size for p in networks[variant].trainable_params()) == PARAMETERS[variant]
    assert sum(row.parameters for row in layer_table(VARIANTS[variant], 224)) == PARAMETERS[variant]


@pytest.mark.parametrize("variant", VARIANTS)
def test_channels_and_shapes_are_timms(networks, variant):
    """Every weight's shape, in order: counts alone could agree by accident."""
    from benchmarks.peers import create_peer, torch

    with torch.device("meta"):
        peer = create_peer("timm_tf", variant)

    def shapes(named):
        return sorted(tuple(shape) for shape in named)

    assert shapes(p.shape for p in networks[variant].trainable_params()) == shapes(p.shape for p in peer.parameters())


def test_layers_are_those_of_the_papers_table():
    rows = layer_table(VARIANTS["b0"], 224)[:-1]
    stages, sizes = [], [224] + [row.output_shape[1] for row in rows]
    for row, size in zip(rows, sizes):
        kind, channels = row.kind, row.output_shape[0]
        same_stage = row.name.startswith("blocks") and stages and stages[-1][2] == channels
        if same_stage:
            stages[-1][3] += 1
        else:
            stages.append([kind if row.name == "stem" else kind.replace(", stride 2", ""), size, channels, 1])
    assert [tuple(stage) for stage in stages] == PAPER_LAYERS


@pytest.mark.parametrize("variant", TORCHVISION_MULTIPLY_ADDS)
def test_multiply_adds_are_the_papers_and_torchvisions(variant):
    row = VARIANTS[variant]
    size = row.image_size
    assert count_multiply_adds(row, size) / 1e9 == pytest.approx(PAPER_MULTIPLY_ADDS[variant], rel=0.05)
    size = 288 if variant == "b2" else size
    assert round(count_multiply_adds(row, size) / 1e9, 3) == TORCHVISION_MULTIPLY_ADDS[variant]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_table_counts_what_the_cells_hold(networks, variant):
    network = networks[variant]
    layers = {"stem": network.stem, **{f"blocks.{i}": block for i, block in enumerate(network.blocks)}}
    layers.update(head=network.head, classifier=network.classifier)
    counted = {name: sum(p.size for p in layer.trainable_params()) for name, layer in layers.items()}
    assert {row.name: row.parameters for row in layer_table(VARIANTS[variant], 224)} == counted


@pytest.mark.parametrize("variant", ["lite0", "lite1", "lite2", "lite3", "lite4"])
def test_multiply_adds_and_activations_of_lite_are_those_of_timms_layers(variant):
    """Counted by hooks on timm's own convolutions and dense layer, at the published image size."""
    from benchmarks.peers import create_peer, torch

    counts, activations = [], []

    def count(module, inputs, output):
        positions = output[0, 0].numel() if output.ndim == 4 else 1
        counts.append(positions * module.weight.numel())
        activations.append(output.numel() if output.ndim == 4 else 0)

    with torch.device("meta"):
        peer = create_peer("timm_tf", variant).eval()
        for module in peer.modules():
            if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
                module.register_forward_hook(count)
        size = VARIANTS[variant].image_size
        peer(torch.zeros(1, 3, size, size))
    assert count_multiply_adds(VARIANTS[variant], size) == sum(counts)
    assert count_activations(VARIANTS[variant], size) == sum(activations)


def test_kernel_shapes_of_lite_come_in_timms_order():
    from benchmarks.peers import create_peer, torch

    with torch.device("meta"):
        peer = create_peer("timm_tf", "lite1")
    kernels = [tuple(p.shape) for p in peer.parameters() if p.ndim > 1]
    assert [p.shape for p in create_network("lite1").trainable_params() if len(p.shape) > 1] == kernels


@pytest.mark.parametrize("train", [False, True])
def test_a_lite_network_computes_what_timms_computes(train):
    """With the same weights and statistics, layer by layer in order."""
    from benchmarks.peers import timm, torch

    torch.manual_seed(5)
    peer = timm.create_model("tf_efficientnet_lite0", num_classes=7).train(train)
    own = EfficientNet(VARIANTS["lite0"], 7, dropout_rate=0.0, drop_connect_rate=0.0).set_train(train)
    kinds = (torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.Linear)
    theirs = [module for module in peer.modules() if isinstance(module, kinds)]
    ours = [c for _, c in own.cells_and_names() if isinstance(c, (nn.Conv2d, nn.BatchNorm2d, nn.Dense))]
    assert len(ours) == len(theirs)
    with torch.no_grad():
        for cell, module in zip(ours, theirs):
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-1, 2)
                pairs = ("gamma", module.weight), ("beta", module.bias)
            else:
                pairs = [("weight", module.weight)] + [("bias", module.bias)] * (module.bias is not None)
            for name, value in pairs:
                getattr(cell, name).set_data(Tensor(value.numpy()))
        images = random_images(4, 64)
        expected = peer(torch.from_numpy(images.asnumpy())).numpy()
    np.testing.assert_allclose(own(images).asnumpy(), expected, rtol=1e-3, atol=1e-3 * abs(expected).max())


@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize("size", [64, 75])
def test_the_tables_shapes_are_those_that_come_out(padding, size):
    network = create_network("b0", padding=padding).set_train(False)
    rows = layer_table(VARIANTS["b0"], size)
    x = network.stem(random_images(1, size))
    shapes = [x.shape[1:]]
    for block in network.blocks:
        x = block(x, None)
        shapes.append(x.shape[1:])
    shapes.append(network.head(x).shape[1:])
    assert [row.output_shape for row in rows[:-1]] == shapes
    assert rows[-1].output_shape == (1000,)


def test_layer_table_command_prints_sums(capsys):
    main(["--variant", "b0"])
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == "5.29 M parameters, 0.39 G multiply-adds"
    assert "classifier" in printed and "1280 x 7 x 7" in printed and "5,288,548" in printed


def test_layer_table_command_runs_as_documented():
    run = subprocess.run(
        [sys.executable, "-m", "src.models.effnet", "--variant", "b1"], capture_output=True, text=True, check=True
    )
    assert run.stdout.endswith("7.79 M parameters, 0.69 G multiply-adds\n")
    assert run.stderr == ""


def test_layer_table_follows_size_and_classes(capsys):
    main(["--variant", "b0", "--image_size", "32", "--class_num", "10"])
    assert "1280 x 1 x 1" in capsys.readouterr().out
    assert format_table(layer_table(VARIANTS["b0"], 32, 10)).splitlines()[-1].startswith("4.02 M")


@pytest.mark.parametrize(
    "flags", [["--variant", "b8"], ["--image_size", "0"], ["--class_num", "x"], ["--varian", "b0"]]
)
def test_layer_table_command_refuses_wrong_flags(flags):
    with pytest.raises(UsageError):
        main(flags)


@pytest.mark.parametrize(
    "channels, width, expected",
    # By hand, from "a multiple of 8, never losing more than 10%".
    [
        (32, 1.0, 32),
        (32, 1.1, 32),
        (32, 1.2, 40),
        (16, 1.1, 16),
        (24, 1.6, 40),
        (1280, 1.1, 1408),
        (8, 0.1, 8),
        (80, 0.136, 16),
    ],
)
def test_channels_round_to_eights_and_lose_a_tenth_at_most(channels, width, expected):
    assert scale_channels(channels, width) == expected


def test_repeats_round_up():
    assert [scale_repeats(repeats, 1.1) for repeats in (1, 2, 3, 4)] == [2, 3, 4, 5]
    assert [scale_repeats(stage.repeats, 3.1) for stage in STAGES] == [4, 7, 7, 10, 10, 13, 4], "the published B7"


def test_squeeze_channels_follow_the_blocks_input(networks):
    for block in networks["b4"].blocks:
        inputs = (block.expand if block.has_expand else block.depthwise).conv.in_channels
        assert block.se.reduce.out_channels == inputs // 4


def test_residuals_are_where_shapes_allow(networks):
    found = [block.has_residual for block in networks["b0"].blocks]
    assert found == [False] + [False, True] * 2 + [False, True, True] * 2 + [False, True, True, True] + [False]


def test_drop_connect_grows_linearly_over_the_blocks(networks):
    network = networks["b0"]
    rates = network.rates[:-1]
    assert rates == pytest.approx([0.2 * i / 16 if block.has_residual else 0 for i, block in enumerate(network.blocks)])
    assert rates[14] == pytest.approx(0.175)


def test_dropout_follows_the_variant_unless_given(networks):
    assert [round(networks[v].rates[-1], 2) for v in VARIANTS] == [
        *(0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5, 0.5),
        *(0.2, 0.2, 0.3, 0.3, 0.3),
    ]
    assert create_network("b0", dropout_rate=0.0).rates[-1] == 0


@pytest.mark.parametrize("variant", ["b8", "B0", "", "efficientnet_b0"])
def test_unknown_variant_is_refused(variant):
    with pytest.raises(ValueError, match="not one of b0, b1, b2, b3, b4, b5, b6, b7"):
        create_network(variant)


def test_batch_and_image_size_are_free_at_run_time():
    network = small_network().set_train(False)
    images = random_images(5, 40)
    together = network(images).asnumpy()
    assert together.shape == (5, 5)
    np.testing.assert_allclose(network(images[:2]).asnumpy(), together[:2], atol=1e-6)
    assert network(random_images(1, 64)).shape == (1, 5)


def test_batch_size_is_free_in_graph_mode(graph_mode):
    network = small_network().set_train(False)
    images = random_images(3)
    np.testing.assert_allclose(network(images).asnumpy()[:1], network(images[:1]).asnumpy(), atol=1e-6)


def test_evaluation_is_the_same_every_time_and_ignores_the_rates():
    ms.set_seed(4)
    network = small_network(drop_connect_rate=0.8, dropout_rate=0.8).set_train(False)
    plain = small_network(drop_connect_rate=0.0, dropout_rate=0.0).set_train(False)
    for mine, other in zip(plain.get_parameters(), network.get_parameters()):
        mine.set_data(other)
    images = random_images(4)
    first = network(images).asnumpy()
    np.testing.assert_array_equal(network(images).asnumpy(), first)
    np.testing.assert_array_equal(plain(images).asnumpy(), first)
    assert network.random_step.asnumpy() == 0, "evaluation draws nothing"


def test_training_draws_anew_each_step_and_again_the_same_from_the_same_step():
    network = small_network(drop_connect_rate=0.5, dropout_rate=0.5).set_train()
    images = random_images(16)
    first = network(images).asnumpy()
    second = network(images).asnumpy()
    assert network.random_step.asnumpy() == 2
    assert abs(first - second).max() > 1e-3
    network.random_step.set_data(Tensor(0, ms.int32))
    np.testing.assert_array_equal(network(images).asnumpy(), first)


def test_training_differs_by_the_networks_seed_only_in_what_is_dropped():
    logits = []
    for seed in (1, 1, 2):
        ms.set_seed(3)
        logits.append(small_network(drop_connect_rate=0.5, dropout_rate=0.5, seed=seed).set_train()(random_images(16)))
    np.testing.assert_array_equal(logits[0].asnumpy(), logits[1].asnumpy())
    assert abs(logits[0].asnumpy() - logits[2].asnumpy()).max() > 1e-3


def test_training_drops_features_in_front_of_the_classifier_and_keeps_their_expectation():
    """Without the classifier the network shows what dropout has left of the means."""
    features = []
    for rate in (0.0, 0.75):
        ms.set_seed(3)
        network = small_network(drop_connect_rate=0.0, dropout_rate=rate).set_train()
        network.classifier = nn.Identity()
        features.append(network(random_images(16)).asnumpy())
    whole, left = features
    kept = left != 0
    assert abs(kept.mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / kept.size)
    np.testing.assert_allclose(left[kept], 4 * whole[kept], rtol=1e-5)


def test_training_drops_whole_branches_inside_the_network():
    """With the last block of a stage dropped for an image, that image leaves the block as it came."""
    network = small_network(drop_connect_rate=0.9).set_train()
    block = network.blocks[14]
    x = Tensor(np.random.default_rng(0).standard_normal((64, block.project.conv.out_channels, 2, 2)).astype(np.float32))
    y = block(x, network.mask_of(network.draw_masks(64, ms.float32), 14)).asnumpy()
    untouched = (y == x.asnumpy()).all((1, 2, 3))
    # The rate is 0.9 * 14 / 16; five deviations of 64 draws.
    rate = 0.9 * 14 / 16
    assert abs(untouched.mean() - rate) < 5 * math.sqrt(rate * (1 - rate) / 64)


def test_every_convolution_starts_from_the_stated_spread(networks):
    for name, cell in networks["b0"].cells_and_names():
        if isinstance(cell, nn.Conv2d):
            weight = cell.weight.asnumpy()
            outputs, _, height, width = weight.shape
            expected = math.sqrt(2 / (height * width * outputs / cell.group))
            # Five deviations of a sample's spread.
            assert weight.std() == pytest.approx(expected, rel=5 / math.sqrt(2 * weight.size)), name


def test_dense_layer_starts_uniformly_within_one_over_root_classes(networks):
    weight = networks["b0"].classifier.weight.asnumpy()
    bound = 1 / math.sqrt(1000)
    assert abs(weight).max() <= bound and abs(weight).max() > 0.999 * bound
    assert weight.std() == pytest.approx(bound / math.sqrt(3), rel=0.01)
    assert (networks["b0"].classifier.bias.asnumpy() == 0).all()


@pytest.mark.parametrize(("classes", "bound"), [(10, 0.0316), (1000, 0.0316), (21843, 0.00677)])
def test_few_classes_do_not_start_with_large_weights(classes, bound):
    row = dataclasses.replace(VARIANTS["b0"], width_coeff=0.25, depth_coeff=0.1)
    weight = EfficientNet(row, classes).classifier.weight.asnumpy()
    assert abs(weight).max() == pytest.approx(bound, rel=2e-3)


def block_spreads(train):
    """Standard deviation after stem, each block and head, of ours and of timm's network, both as initialised."""
    from benchmarks.peers import create_peer, torch

    images = random_images(16, 64, seed=5).asnumpy()
    ms.set_seed(11)
    network = create_network("b0", drop_connect_rate=0.0, dropout_rate=0.0, padding="symmetric", norm_eps=1e-5)
    network.set_train(train)
    x = network.stem(Tensor(images))
    ours = [x.asnumpy().std()]
    for block in network.blocks:
        x = block(x, None)
        ours.append(x.asnumpy().std())
    ours.append(network.head(x).asnumpy().std())

    torch.manual_seed(11)
    peer = create_peer("timm", "b0").train(train)
    with torch.no_grad():
        y = peer.bn1(peer.conv_stem(torch.from_numpy(images)))
        theirs = [float(y.std(correction=0))]
        for stage in peer.blocks:
            for block in stage:
                y = block(y)
                theirs.append(float(y.std(correction=0)))
        theirs.append(float(peer.bn2(peer.conv_head(y)).std(correction=0)))
    return np.array(ours), np.array(theirs)


def test_activations_keep_timms_spread_in_training():
    """After every block; batch norm holds each branch at 1, so the sums of the residuals show."""
    ours, theirs = block_spreads(train=True)
    np.testing.assert_allclose(ours, theirs, rtol=0.1)


def test_activations_fall_like_timms_without_batch_norm():
    """In evaluation fresh statistics are 0 and 1, batch norm does nothing, and the convolutions' spreads multiply up.

    A depthwise convolution drawn with the fan of a dense one would be 30 times smaller here, in each block.
    """
    ours, theirs = block_spreads(train=False)
    ratio = np.log(ours / theirs)
    assert abs(ratio).max() < math.log(2), np.exp(ratio).round(2)
    assert abs(ratio.mean()) < math.log(1.5)


def test_there_is_no_unused_parameter():
    """Every trainable parameter moves the loss."""
    network = small_network(drop_connect_rate=0.0, dropout_rate=0.0).set_train()
    for i, parameter in enumerate(network.trainable_params()):
        noise = np.random.default_rng(i).standard_normal(parameter.shape).astype(np.float32)
        parameter.set_data(parameter + Tensor(0.1 * noise))
    images = random_images(4, 64)
    gradients = ms.value_and_grad(lambda x: (network(x) ** 2).mean(), None, network.trainable_params())(images)[1]
    still = [p.name for p, g in zip(network.trainable_params(), gradients) if not abs(g.asnumpy()).max() > 0]
    assert still == []


def test_freeze_holds_the_first_parts(networks):
    network = create_network("b1")
    counted = [len([p for p in network.trainable_params()])]
    for parts in range(1, 10):
        frozen = network.freeze(parts)
        counted.append(len(network.trainable_params()))
    assert counted == sorted(counted, reverse=True) and len(set(counted)) == 10
    assert {p.name for p in network.trainable_params()} == {"classifier.weight", "classifier.bias"}
    assert len(frozen) == 1 + 23 + 1
