"""The network's pieces against hand calculations, PyTorch's convolutions and the laws of probability."""

import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from src.models.layers import (
    ConvNormActivation,
    DropConnect,
    Dropout,
    KeepMasks,
    LayerSettings,
    SqueezeExcitation,
    convolution,
    swish,
)


def step(number):
    return Tensor(number, ms.int32)


def draw(rate, stream=0, seed=1, at=0, count=1 << 16):
    """`count` numbers of one layer's mask as NumPy."""
    return KeepMasks([rate], [stream], seed)(step(at), (count,), ms.float32)[0].asnumpy()


def random_array(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_swish_is_x_times_sigmoid():
    values = np.array([-20.0, -1.0, 0.0, 0.5, 3.0], np.float32)
    expected = [value / (1 + math.exp(-value)) for value in values]
    np.testing.assert_allclose(swish(Tensor(values)).asnumpy(), expected, atol=1e-6)


def test_same_padding_puts_the_odd_pixel_right_and_below():
    """By hand: 4 pixels, kernel 3, stride 2 need one pixel of padding; TensorFlow puts it at the end."""
    layer = convolution(1, 1, 3, stride=2, padding="same")
    layer.weight.set_data(Tensor(np.ones((1, 1, 3, 3), np.float32)))
    image = np.zeros((1, 1, 4, 4), np.float32)
    image[0, 0, 0, 0] = 1  # seen by the first window, which starts at pixel 0
    image[0, 0, 3, 3] = 10  # seen by the last window, which ends in the padding
    np.testing.assert_array_equal(layer(Tensor(image)).asnumpy()[0, 0], [[1, 0], [0, 10]])
    image = np.zeros((1, 1, 4, 4), np.float32)
    image[0, 0, 1, 1] = 1
    np.testing.assert_array_equal(layer(Tensor(image)).asnumpy()[0, 0], [[1, 0], [0, 0]])


def test_symmetric_padding_starts_one_pixel_earlier():
    layer = convolution(1, 1, 3, stride=2, padding="symmetric")
    layer.weight.set_data(Tensor(np.ones((1, 1, 3, 3), np.float32)))
    image = np.zeros((1, 1, 4, 4), np.float32)
    image[0, 0, 1, 1] = 1
    np.testing.assert_array_equal(layer(Tensor(image)).asnumpy()[0, 0], [[1, 1], [1, 1]])


@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [7, 8])
def test_padding_is_the_peers(padding, kernel_size, stride, size):
    """timm's own convolutions, depthwise, for odd and even sizes."""
    from benchmarks.peers import timm, torch

    layer = convolution(4, 4, kernel_size, stride, groups=4, padding=padding)
    peer = timm.layers.create_conv2d(
        4, 4, kernel_size, stride=stride, groups=4, padding="same" if padding == "same" else "", bias=False
    )
    with torch.no_grad():
        peer.weight.copy_(torch.from_numpy(layer.weight.asnumpy()))
        images = random_array(2, 4, size, size)
        expected = peer(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(layer(Tensor(images)).asnumpy(), expected, atol=1e-5)


def test_unknown_padding_is_refused():
    with pytest.raises(ValueError, match="padding is 'valid', not one of same, symmetric"):
        convolution(1, 1, 3, padding="valid")


@pytest.mark.parametrize(
    "in_channels, out_channels, kernel_size, groups, fan_out",
    [(3, 512, 3, 1, 9 * 512), (256, 1024, 1, 1, 1024), (4096, 4096, 3, 4096, 9), (4096, 4096, 5, 4096, 25)],
)
def test_convolutions_start_from_the_stated_spread(in_channels, out_channels, kernel_size, groups, fan_out):
    weight = convolution(in_channels, out_channels, kernel_size, 1, groups).weight.asnumpy()
    # The deviation of n samples is known to about 1 / sqrt(2n): here at most 0.6%, so 3% is five deviations.
    assert weight.std() == pytest.approx(math.sqrt(2 / fan_out), rel=0.03)
    assert abs(weight.mean()) < 5 * math.sqrt(2 / fan_out) / math.sqrt(weight.size)
    assert abs(weight).max() > 3 * weight.std(), "the normal distribution has tails"


def test_squeeze_and_excitation_by_hand():
    layer = SqueezeExcitation(6, 2)
    images = random_array(3, 6, 4, 5)
    weights = {p.name: random_array(*p.shape, seed=i) for i, p in enumerate(layer.get_parameters())}
    for parameter in layer.get_parameters():
        parameter.set_data(Tensor(weights[parameter.name]))
    squeezed = images.mean((2, 3)) @ weights["reduce.weight"][:, :, 0, 0].T + weights["reduce.bias"]
    squeezed = squeezed / (1 + np.exp(-squeezed))
    gate = 1 / (1 + np.exp(-(squeezed @ weights["expand.weight"][:, :, 0, 0].T + weights["expand.bias"])))
    np.testing.assert_allclose(layer(Tensor(images)).asnumpy(), images * gate[:, :, None, None], atol=1e-5)


def test_batch_norm_keeps_the_stated_share_of_its_statistics():
    settings = LayerSettings(norm_eps=0.25, norm_momentum=0.9)
    layer = ConvNormActivation(2, 2, 1, activation=None, settings=settings).set_train()
    layer.conv.weight.set_data(Tensor(np.eye(2, dtype=np.float32).reshape(2, 2, 1, 1)))
    images = random_array(8, 2, 3, 3) * 3 + 1
    result = layer(Tensor(images)).asnumpy()
    mean, variance = images.mean((0, 2, 3)), images.var((0, 2, 3))
    expected = (images - mean[:, None, None]) / np.sqrt(variance + 0.25)[:, None, None]
    np.testing.assert_allclose(result, expected, atol=1e-5)
    np.testing.assert_allclose(layer.norm.moving_mean.asnumpy(), 0.1 * mean, rtol=1e-5)
    unbiased = images.var((0, 2, 3), ddof=1)
    np.testing.assert_allclose(layer.norm.moving_variance.asnumpy(), 0.9 + 0.1 * unbiased, rtol=0.01)


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5])
def test_keep_mask_has_its_rate_and_expectation(rate):
    mask = draw(rate)
    assert set(np.unique(mask)) == {np.float32(0), np.float32(1 / (1 - rate))}
    tolerance = 4 * math.sqrt(rate * (1 - rate) / mask.size)
    assert abs((mask == 0).mean() - rate) < tolerance
    assert abs(mask.mean() - 1) < tolerance / (1 - rate)


def test_keep_mask_of_rate_0_keeps_everything():
    assert (draw(0.0) == 1).all()


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
def test_keep_mask_refuses_impossible_rates(rate):
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        KeepMasks([0.1, rate], [0, 1], 1)


def test_keep_mask_is_a_function_of_seed_stream_step_and_position():
    assert (draw(0.5, 3, 7, 11) == draw(0.5, 3, 7, 11)).all()
    assert (draw(0.5, 3, 7, 11, 100) == draw(0.5, 3, 7, 11, 200)[:100]).all(), "the batch size does not shift the draws"


@pytest.mark.parametrize("other", [{"stream": 1}, {"seed": 2}, {"at": 1}, {"at": 2**31 - 1}, {"stream": 16, "at": 1}])
def test_keep_masks_of_other_streams_seeds_and_steps_are_independent(other):
    """Two independent fair masks agree in half of the places; 65,536 places make 4 deviations 0.8%."""
    agreement = (draw(0.5) == draw(0.5, **other)).mean()
    assert abs(agreement - 0.5) < 4 * 0.5 / math.sqrt(1 << 16)


def test_keep_masks_of_successive_steps_are_independent_for_the_same_image():
    masks = np.stack([draw(0.5, at=i, count=16) for i in range(200)]) > 0
    assert abs((masks[1:] == masks[:-1]).mean() - 0.5) < 4 * 0.5 / math.sqrt(199 * 16)
    assert abs((masks[:, 1:] == masks[:, :-1]).mean() - 0.5) < 4 * 0.5 / math.sqrt(200 * 15)


def test_the_numbers_behind_the_mask_are_uniform():
    """Chi-square by hand: thresholds at tenths make ten classes; 9 degrees of freedom, 99.9% are below 27.9."""
    kept = [(draw(tenth / 10, at=5) > 0).sum() for tenth in range(10)] + [0]
    found = -np.diff(kept)
    expected = (1 << 16) / 10
    assert ((found - expected) ** 2 / expected).sum() < 27.9


def test_drop_connect_drops_whole_images_only():
    layer = DropConnect().set_train()
    images = np.ones((200, 2, 3, 3), np.float32)
    result = layer(Tensor(images), Tensor(draw(0.5, at=1, count=200))).asnumpy().reshape(200, -1)
    assert (result == result[:, :1]).all()
    assert set(np.unique(result)) == {0.0, 2.0}


def test_drop_connect_keeps_the_expectation():
    layer = DropConnect().set_train()
    images = np.ones((500, 1, 2, 2), np.float32)
    masks = [Tensor(draw(0.2, 3, at=i, count=500)) for i in range(100)]
    steps = np.stack([layer(Tensor(images), mask).asnumpy()[:, 0, 0, 0] for mask in masks])
    # A draw of 0 or 1.25 has deviation 0.5; over all, over the steps for one image, over the images of one step.
    assert abs(steps.mean() - 1) < 4 * 0.5 / math.sqrt(steps.size)
    assert abs(steps.mean(0) - 1).max() < 5 * 0.5 / math.sqrt(100)
    assert abs(steps.mean(1) - 1).max() < 5 * 0.5 / math.sqrt(500)


@pytest.mark.parametrize("layer", [DropConnect(), Dropout()])
def test_evaluation_drops_nothing(layer):
    layer.set_train(False)
    features = random_array(64, 8)
    assert (layer(Tensor(features), Tensor(draw(0.5, at=1, count=512))).asnumpy() == features).all()


def test_dropout_drops_single_features_and_keeps_the_expectation():
    mask = Tensor(draw(0.3, at=1, count=64 * 1024))
    result = Dropout().set_train()(Tensor(np.ones((64, 1024), np.float32)), mask).asnumpy()
    assert abs((result == 0).mean() - 0.3) < 4 * math.sqrt(0.21 / result.size)
    assert abs(result.mean() - 1) < 4 * math.sqrt(0.21 / result.size) / 0.7
    # Features of one image are dropped alone, not with their row or column.
    assert (result == 0).mean(0).min() > 0.05
    assert abs((result == 0).mean(1) - 0.3).max() < 5 * math.sqrt(0.21 / 1024)


@pytest.mark.parametrize("half", [False, True])
def test_keep_masks_of_several_layers_are_those_of_each_alone_in_graph_mode_and_mixed_precision_too(half):
    class Graph(nn.Cell):
        def __init__(self):
            super().__init__()
            self.masks = KeepMasks([0.3, 0.05], [5, 16], 9)

        @ms.jit
        def construct(self, at):
            return self.masks(at, (64, 4096), ms.float32)

    graph = Graph()
    if half:
        graph.to_float(ms.float16)
    first, second = graph(step(123))
    np.testing.assert_array_equal(first.asnumpy(), draw(0.3, 5, 9, 123, 64))
    np.testing.assert_array_equal(second.asnumpy(), draw(0.05, 16, 9, 123, 4096))


def scrambled_by_hand(value):
    """The bit mixer in Python's integers, from its published definition."""
    value &= 0xFFFFFFFF
    value = (value ^ (value >> 16)) * 0x7FEB352D & 0xFFFFFFFF
    value = (value ^ (value >> 15)) * 0x846CA68B & 0xFFFFFFFF
    return value ^ (value >> 16)


def test_keep_mask_is_its_definition_in_exact_integers():
    """Devices and releases must draw alike: here is every bit of it in Python, where integers do not overflow."""
    rate, stream, seed, at = 0.25, 4, 1000003, 77
    key = seed * 0x9E3779B1 + stream * 0x85EBCA77
    bits = [scrambled_by_hand(i + scrambled_by_hand(at + key)) & 0xFFFFFF for i in range(300)]
    expected = [0 if value < rate * 2**24 else 1 / (1 - rate) for value in bits]
    np.testing.assert_array_equal(draw(rate, stream, seed, at, 300), np.float32(expected))
