"""The kernels against MindSpore's own operators, numerical gradients in float64, and each other's instruction sets."""

import ctypes
import dataclasses
import os
import pathlib
import platform
import shutil
import subprocess
import tempfile

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from src.common import native
from src.common.machine import cpu_flags
from src.common.native import CompileError
from src.kernels import build, load_kernels
from src.kernels.operators import ACTIVATIONS, padded
from src.loss import CrossEntropySmooth
from src.models import layers
from src.models.effnet import EfficientNet, MBConv
from src.models.family import VARIANTS, Architecture, Block
from src.models.layers import ConvNormActivation, LayerSettings, PositionMean, SqueezeExcitation
from src.training.optimizer import OptimizerSettings, create_optimizer
from src.training.step import StepSettings, TrainStep

ROOT = pathlib.Path(__file__).parent.parent.parent
LEVELS = list(build.LEVELS)
TOLERANCE = 1e-5
EPS, MOMENTUM = 1e-3, 0.9
SMALL = dataclasses.replace(VARIANTS["b0"], width_coeff=0.5, depth_coeff=0.3)
# EfficientNet-Lite: ReLU6, and no squeeze-and-excitation.
LITE = Architecture(
    "lite0", 1.0, 1.0, 224, 0.2, ends_scale=False, fixed_stages=(0, 6), activation="relu6", squeeze_ratio=0.0
)
SMALL_LITE = dataclasses.replace(LITE, width_coeff=0.5, depth_coeff=0.3, fixed_stages=())
DEFINITIONS = {None: lambda z: z, "swish": lambda z: z / (1 + np.exp(-z)), "relu6": lambda z: np.clip(z, 0, 6)}
# Beside the bounds of ReLU6 rounding decides about the gradient.
BOUNDS_MARGIN = 1e-3


@pytest.fixture(scope="module")
def kernels():
    """The kernels as the scripts load them."""
    return load_kernels()


def can_run(level):
    """Whether this machine has a level's instructions."""
    return LEVELS.index(level) >= LEVELS.index(build.find_levels()[0])


@pytest.fixture(scope="module", params=LEVELS)
def library(request):
    """The compiled functions of each instruction set that this machine has."""
    if not can_run(request.param):
        pytest.skip(f"this machine has no {request.param}")
    return Library(build.library(request.param))


class Library:
    """The functions of a library, called as MindSpore calls them."""

    def __init__(self, path):
        self.functions = ctypes.CDLL(path)

    def status(self, name, inputs, outputs):
        """What function `name` returns; `outputs` are overwritten."""
        arrays = [*inputs, *outputs]
        count = len(arrays)
        shapes = [(ctypes.c_int64 * max(1, array.ndim))(*array.shape) for array in arrays]
        return getattr(self.functions, name)(
            count,
            (ctypes.c_void_p * count)(*[array.ctypes.data for array in arrays]),
            (ctypes.c_int * count)(*[array.ndim for array in arrays]),
            (ctypes.c_void_p * count)(*[ctypes.addressof(shape) for shape in shapes]),
            (ctypes.c_char_p * count)(*[str(array.dtype).encode() for array in arrays]),
            None,
            None,
        )

    def call(self, name, inputs, shapes):
        """Outputs of the given shapes; those not written stay NaN."""
        outputs = [np.full(shape, np.nan, np.float32) for shape in shapes]
        assert self.status(name, inputs, outputs) == 0
        return outputs


def channels_last(array):
    """(N, C, H, W) as the kernels take it."""
    count, channels, height, width = array.shape
    last = np.zeros((count, height, width, padded(channels)), np.float32)
    last[..., :channels] = array.transpose(0, 2, 3, 1)
    return last


def channels_first(array, channels):
    """Back; what lies in the added channels must be zero."""
    assert not array[..., channels:].any()
    return array[..., :channels].transpose(0, 3, 1, 2)


def relative_error(found, expected):
    """Largest difference by the largest number."""
    return np.abs(found - expected).max() / np.abs(expected).max()


def all_in_all(found, expected):
    """A thousandth of the difference's norm by the norm, for numbers of which single ones may differ."""
    return 1e-3 * np.linalg.norm(found - expected) / np.linalg.norm(expected)


def random_array(generator, *shape):
    return generator.standard_normal(shape).astype(np.float32)


class Case:
    """A layer and its input: kind, images, channels, size, kernel, stride, padding."""

    def __init__(self, kind, count, in_channels, out_channels, height, width, kernel=1, stride=1, padding="same"):
        self.kind, self.stride, self.padding, self.kernel = kind, stride, padding, kernel
        self.in_channels, self.out_channels = in_channels, out_channels
        self.groups = in_channels if kind == "depthwise" else 1
        generator = np.random.default_rng(0)
        self.x = random_array(generator, count, in_channels, height, width) + 0.5
        self.weight = random_array(generator, out_channels, in_channels // self.groups, kernel, kernel)
        self.gamma = 1 + 0.5 * random_array(generator, out_channels)
        self.beta = random_array(generator, out_channels)
        self.moving_mean = random_array(generator, out_channels)
        self.moving_variance = 0.5 + generator.random(out_channels).astype(np.float32)
        self.out_shape = (count, out_channels, -(-height // stride), -(-width // stride))
        self.upper = random_array(generator, *self.out_shape)

    def __repr__(self):
        shape = "x".join(map(str, self.x.shape))
        return f"{self.kind}-{shape}-to-{self.out_channels}-k{self.kernel}s{self.stride}-{self.padding}"

    @property
    def parameters(self):
        return [self.weight, self.gamma, self.beta]

    def inputs(self, activation, training):
        x = self.x if self.kind == "dense" else channels_last(self.x)
        symmetric = self.padding == "symmetric"
        kind = ACTIVATIONS.index(activation)
        settings = np.array([self.stride, symmetric, kind, training, EPS, MOMENTUM], np.float32)
        # Training writes to the statistics.
        moving = self.moving_mean.copy(), self.moving_variance.copy()
        return (x, self.weight, self.gamma, self.beta, *moving, settings)

    def normalised(self, x, weight, gamma, beta, training):
        """The layer without its activation in float64, straight from its definition."""
        x, weight = x.astype(np.float64), weight.astype(np.float64)
        before = [self.padding_of(size) for size in x.shape[2:]]
        x = np.pad(x, ((0, 0), (0, 0), *before))
        height, width = self.out_shape[2:]
        y = np.zeros(self.out_shape)
        for row in range(self.kernel):
            for column in range(self.kernel):
                rows = slice(row, row + (height - 1) * self.stride + 1, self.stride)
                columns = slice(column, column + (width - 1) * self.stride + 1, self.stride)
                seen, tap = x[:, :, rows, columns], weight[:, :, row, column]
                y += seen * tap[:, 0, None, None] if self.groups > 1 else np.einsum("nihw,oi->nohw", seen, tap)
        mean, variance = self.moving_mean, self.moving_variance
        if training:
            mean, variance = y.mean((0, 2, 3)), y.var((0, 2, 3))
        scale, shift = gamma / np.sqrt(variance + EPS), beta
        return (y - mean[:, None, None]) * scale[:, None, None] + shift[:, None, None]

    def padding_of(self, size):
        """Pixels before and after, from the definitions of TensorFlow and PyTorch."""
        if self.padding == "symmetric":
            return ((self.kernel - 1) // 2,) * 2
        total = max((-(-size // self.stride) - 1) * self.stride + self.kernel - size, 0)
        # What the last window leaves over counts as well.
        return total // 2, total - total // 2


def away_from_bounds(upper, z):
    """An output's gradient, zero where ReLU6 of z is close to its bounds."""
    return np.where(np.minimum(np.abs(z), np.abs(z - 6)) < BOUNDS_MARGIN, np.float32(0), upper)


def run_layer(library, case, activation, training, upper):
    """Output, and the gradients of x, weight, gamma and beta."""
    inputs = case.inputs(activation, training)
    out_shape = (case.out_shape[0], *case.out_shape[2:], padded(case.out_channels))
    vector = case.gamma.shape
    if training:
        shapes = [out_shape, out_shape, vector, vector]
        out, y, mean, variance = library.call(f"{case.kind}_train", inputs, shapes)
    else:
        (out,) = library.call(f"{case.kind}_infer", inputs, [out_shape])
        (y,) = library.call(f"{case.kind}_convolve", (*inputs[:2], inputs[-1]), [out_shape])
        mean, variance = case.moving_mean, case.moving_variance
    arguments = [
        channels_last(upper),
        inputs[0],
        case.weight,
        y,
        mean,
        variance,
        case.gamma,
        case.beta,
        inputs[-1],
    ]
    shapes = [case.weight.shape, vector, vector]
    if case.kind == "dense":
        gradients = library.call("dense_backward", arguments, shapes)
        gradients = [*library.call("dense_backward_images", arguments, [case.x.shape]), *gradients]
    else:
        gradients = library.call(f"{case.kind}_backward", arguments, [inputs[0].shape, *shapes])
        gradients[0] = channels_first(gradients[0], case.in_channels)
    return channels_first(out, case.out_channels), gradients


POINTWISE = [
    Case("pointwise", 2, 16, 24, 5, 7),
    Case("pointwise", 3, 40, 240, 9, 8),
    Case("pointwise", 1, 24, 8, 1, 13),
    Case("pointwise", 2, 320, 1280, 4, 4),
    Case("pointwise", 2, 112, 672, 7, 7),
    Case("pointwise", 2, 672, 112, 14, 13),
    Case("pointwise", 2, 10, 7, 3, 3),
]
DEPTHWISE = [
    Case("depthwise", count, channels, channels, height, width, kernel, stride, padding)
    for count, channels, height, width in [(2, 24, 7, 9), (1, 96, 28, 28), (2, 40, 8, 6), (6, 48, 2, 3), (13, 16, 1, 1)]
    for kernel in (3, 5)
    for stride in (1, 2)
    for padding in ("same", "symmetric")
] + [
    Case("depthwise", 1, 16, 16, 112, 110, 3, 2),
    Case("depthwise", 1, 16, 16, 300, 5, 5, 1),
    Case("depthwise", 2, 24, 24, 9, 8, 7, 2, "symmetric"),
    Case("depthwise", 2, 20, 20, 9, 11, 4, 3),
    Case("depthwise", 2, 24, 24, 9, 8, 1, 2),
]
DENSE = [
    Case("dense", 2, 3, 32, 17, 16, kernel, stride, padding)
    for kernel in (3, 5)
    for stride in (1, 2)
    for padding in ("same", "symmetric")
] + [Case("dense", 1, 3, 40, 1, 5, 3, 2), Case("dense", 3, 4, 10, 33, 200, 3, 2)]


@pytest.mark.parametrize("activation", ["swish", None, "relu6"], ids=["swish", "linear", "relu6"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("case", POINTWISE + DEPTHWISE + DENSE, ids=repr)
def test_layer_is_its_definition_and_gradients_are_numerical_ones(library, case, training, activation):
    """Gradients along random directions, by central differences in float64, away from the bounds of ReLU6."""
    values = [case.x, *case.parameters]
    z, define = case.normalised(*values, training), DEFINITIONS[activation]
    upper = away_from_bounds(case.upper, z) if activation == "relu6" else case.upper
    out, gradients = run_layer(library, case, activation, training, upper)
    # Where ReLU6 cuts off large numbers, their rounding errors stay.
    assert np.abs(out - define(z)).max() < TOLERANCE * np.abs(z if activation == "relu6" else define(z)).max()
    generator = np.random.default_rng(1)
    for i, gradient in enumerate(gradients):
        direction = generator.standard_normal(values[i].shape)
        change = 1e-6 * direction
        ends = [[*values[:i], values[i] + sign * change, *values[i + 1 :]] for sign in (1, -1)]
        rise = [(define(case.normalised(*end, training)) * upper) for end in ends]
        slope = (rise[0] - rise[1]).sum() / 2e-6
        # The sum of terms of either sign may be small beside them.
        size = np.linalg.norm(gradient.astype(np.float64)) * np.linalg.norm(direction) / np.sqrt(gradient.size)
        assert abs((gradient * direction).sum() - slope) < TOLERANCE * max(size, abs(slope))


def test_relu6_at_its_bounds_is_mindspores(library):
    """A layer whose convolution and norm change nothing; what is not a number stays so, as in small tensors there."""
    beside = [np.nextafter(np.float32(6), np.float32(bound)) for bound in (0, 7)]
    z = np.array([-1, -1e-30, 0, 1e-30, 3, 6, *beside, 1e30], np.float32)
    x = channels_last(np.append(z, np.float32(np.nan)).reshape(1, 1, 1, -1))
    one, zero, weight = np.ones(1, np.float32), np.zeros(1, np.float32), np.ones((1, 1, 1, 1), np.float32)
    settings = np.array([1, 0, ACTIVATIONS.index("relu6"), 0, 0, 0], np.float32)
    inputs = [x, weight, one, zero, zero, one, settings]
    (out,) = library.call("pointwise_infer", inputs, [x.shape])
    (y,) = library.call("pointwise_convolve", [x, weight, settings], [x.shape])
    upper = channels_last(np.ones((1, 1, 1, x.shape[2]), np.float32))
    vectors = [(1, 1, 1, 1), (1,), (1,)]
    x_gradient = library.call(
        "pointwise_backward", [upper, x, weight, y, zero, one, one, zero, settings], [x.shape, *vectors]
    )[0]
    np.testing.assert_array_equal(out[0, 0, :-1, 0], ops.relu6(Tensor(z)).asnumpy())
    np.testing.assert_array_equal(x_gradient[0, 0, :-1, 0], ops.grad(ops.relu6)(Tensor(z)).asnumpy())
    assert np.isnan(out[0, 0, -1, 0])


class Alone(nn.Cell):
    """A network of one layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def construct(self, x):
        return self.layer(x)


def with_own_parameters(kernels, make):
    """A network with MindSpore's operators and the same with the kernels, with equal, random parameters.

    Weights keep the size of activations: beyond the bounds of ReLU6 a deep network would make rounding errors large.
    """
    own, fast = make(), make()
    assert kernels.install(fast)
    generator = np.random.default_rng(2)
    for parameter, twin in zip(own.get_parameters(), fast.get_parameters()):
        assert parameter.name == twin.name and parameter.shape == twin.shape
        scale = parameter[0].size ** -0.5 if parameter.ndim > 1 else 0.5
        value = scale * random_array(generator, *parameter.shape)
        if parameter.name.endswith(("gamma", "moving_variance")):
            value = 1 + 0.5 * np.tanh(value)
        parameter.set_data(Tensor(value))
        twin.set_data(Tensor(value))
    return own, fast


def outputs_and_gradients(layer, x, upper):
    """Output, gradient of x, gradients of the parameters by name."""

    def weighted_sum(x):
        out = layer(x)
        return (out * upper).sum(), out

    weights = layer.trainable_params()
    (_, out), (x_gradient, gradients) = ops.value_and_grad(weighted_sum, 0, weights, has_aux=True)(Tensor(x))
    return out.asnumpy(), x_gradient.asnumpy(), {p.name: g.asnumpy() for p, g in zip(weights, gradients)}


def compare_layers(own, fast, x, upper, from_images=False, error=relative_error):
    """Outputs, gradients and moving statistics of two layers agree; `upper` is the output's gradient."""
    expected = outputs_and_gradients(own, x, Tensor(upper))
    last = [a if a.ndim == 2 else channels_last(a) for a in (x, upper)]
    out, x_gradient, gradients = outputs_and_gradients(fast, x if from_images else last[0], Tensor(last[1]))
    if out.ndim == 4:
        out = channels_first(out, upper.shape[1])
    if not from_images:
        x_gradient = channels_first(x_gradient, x.shape[1])
    assert error(out, expected[0]) < TOLERANCE
    assert error(x_gradient, expected[1]) < TOLERANCE
    for name, gradient in gradients.items():
        assert error(gradient, expected[2][name]) < TOLERANCE, name
    for parameter, twin in zip(own.get_parameters(), fast.get_parameters()):
        assert error(twin.asnumpy(), parameter.asnumpy()) < TOLERANCE, parameter.name


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("activation", ["swish", "relu6"])
@pytest.mark.parametrize("case", POINTWISE[1:4:2] + DEPTHWISE[4:8] + DEPTHWISE[12:18] + DENSE[:4:2], ids=repr)
def test_layer_is_mindspores(kernels, case, activation, training):
    """Moving statistics included: MindSpore's momentum and its variance divided by one less than the count."""

    def make(activation=activation):
        settings = LayerSettings(case.padding, EPS, MOMENTUM)
        sizes = (case.in_channels, case.out_channels, case.kernel, case.stride)
        layer = ConvNormActivation(*sizes, groups=case.groups, activation=activation, settings=settings)
        return Alone(layer).set_train(training)

    upper = case.upper
    if activation == "relu6":
        upper = away_from_bounds(upper, with_own_parameters(kernels, lambda: make(None))[0](Tensor(case.x)).asnumpy())
    compare_layers(*with_own_parameters(kernels, make), case.x, upper, case.kind == "dense")


@pytest.mark.parametrize("activation", ["swish", "relu6"])
@pytest.mark.parametrize(
    "channels, squeezed, size", [(24, 6, (5, 7)), (96, 4, (9, 9)), (40, 3, (1, 2)), (672, 28, (7, 7))]
)
def test_squeeze_and_excitation_is_mindspores(kernels, channels, squeezed, size, activation):
    own, fast = with_own_parameters(kernels, lambda: Alone(SqueezeExcitation(channels, squeezed, activation)))
    compare_layers(own, fast, *random_array(np.random.default_rng(4), 2, 3, channels, *size))


class MaskedBlock(nn.Cell):
    """An MBConv block with a mask of drop-connect."""

    def __init__(self, block, activation, padding, mask):
        super().__init__()
        self.block = MBConv(block, activation, LayerSettings(padding, EPS, MOMENTUM))
        self.mask = None if mask is None else Tensor(np.array(mask, np.float32))

    def construct(self, x):
        return self.block(x, self.mask)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize("activation", ["swish", "relu6"])
@pytest.mark.parametrize(
    "ratio, kernel, stride, in_channels, out_channels, squeezed, size, mask",
    [
        (6, 3, 1, 24, 24, 6, (3, 24, 9, 7), [0, 1.25, 2]),
        (6, 5, 1, 40, 40, 10, (13, 40, 5, 6), None),
        (6, 5, 2, 16, 40, 4, (2, 16, 23, 18), None),
        (1, 3, 1, 32, 16, 8, (2, 32, 40, 33), None),
        (1, 3, 1, 24, 24, 0, (2, 24, 8, 9), [1, 0]),
        (6, 3, 2, 10, 24, 0, (1, 10, 11, 1), None),
        (6, 3, 1, 56, 56, 12, (20, 56, 2, 3), [1.5] * 20),
        (4, 7, 1, 100, 20, 3, (5, 100, 7, 7), None),
    ],
)
def test_block_is_mindspores(
    kernels, ratio, kernel, stride, in_channels, out_channels, squeezed, size, mask, activation, padding, training
):
    """One operator computes it; images share blocks of positions, and bands share images."""
    block = Block(0, 0, 0, ratio, kernel, stride, in_channels, out_channels, squeezed)
    own, fast = with_own_parameters(kernels, lambda: MaskedBlock(block, activation, padding, mask).set_train(training))
    assert "MBConvKernel" in classes_of(fast)
    generator = np.random.default_rng(10)
    x = random_array(generator, *size)
    after = [-(-side // stride) for side in size[2:]]
    # Of so many values a few lie so close to the bounds of ReLU6 that rounding decides about their gradient.
    error = all_in_all if activation == "relu6" else relative_error
    compare_layers(own, fast, x, random_array(generator, size[0], out_channels, *after), error=error)


@pytest.mark.parametrize("channels, size", [(24, (5, 7)), (1280, (2, 3))])
def test_mean_is_mindspores(kernels, channels, size):
    generator = np.random.default_rng(5)
    x, upper = random_array(generator, 3, channels, *size), random_array(generator, 3, channels)
    compare_layers(PositionMean(channels), kernels.fuse(PositionMean(channels)), x, upper)


def test_rmsprop_is_its_formula_for_every_element_and_decays_what_it_should(kernels):
    """TensorFlow's formula in float64, parameters of odd sizes, three steps; state under MindSpore's names."""
    generator = np.random.default_rng(6)
    shapes = [(5, 3, 1, 1), (7,), (33, 17), (1,), (40000,)]
    values = [random_array(generator, *shape) for shape in shapes]
    parameters = [ms.Parameter(Tensor(value), name=f"w{i}") for i, value in enumerate(values)]
    config = OptimizerSettings(opt_decay=0.8, momentum=0.9, opt_eps=0.001, weight_decay=0.1)
    rates = np.array([0.5, 0.4, 0.3], np.float32)
    optimizer = create_optimizer(parameters, rates, config)
    assert kernels.install(optimizer)
    weights = [value.astype(np.float64) for value in values]
    squares, moments = [np.ones(shape) for shape in shapes], [np.zeros(shape) for shape in shapes]
    for rate in rates:
        gradients = [0.01 * random_array(generator, *shape) for shape in shapes]
        optimizer(tuple(Tensor(gradient) for gradient in gradients))
        for i, gradient in enumerate(gradients):
            gradient = gradient + (0.1 * weights[i] if len(shapes[i]) > 1 else 0.0)
            squares[i] += 0.2 * (gradient**2 - squares[i])
            moments[i] = 0.9 * moments[i] + rate * gradient / np.sqrt(squares[i] + 0.001)
            weights[i] -= moments[i]
    state = {parameter.name: parameter.asnumpy() for parameter in optimizer.get_parameters()}
    for i in range(len(shapes)):
        for name, expected in ((f"w{i}", weights), (f"mean_square.w{i}", squares), (f"moment.w{i}", moments)):
            assert relative_error(state[name], expected[i]) < TOLERANCE, name


def train_steps(network, images, labels, steps, kernels):
    """Losses of training steps in graph mode, and all parameters afterwards."""
    ms.set_context(mode=ms.GRAPH_MODE)
    optimizer = create_optimizer(network.trainable_params(), np.full(steps, 0.001, np.float32), OptimizerSettings())
    assert kernels is None or kernels.install(optimizer)
    step = TrainStep(network, CrossEntropySmooth(0.1, 10), optimizer).set_train()
    losses = [float(step(Tensor(images), Tensor(labels)).asnumpy()) for _ in range(steps)]
    return losses, {parameter.name: parameter.asnumpy() for parameter in step.get_parameters()}


def small_network(kernels, padding="same", row=SMALL):
    """One block for each of the seven stages."""
    ms.set_seed(3)
    network = EfficientNet(row, 10, layers=LayerSettings(padding, norm_momentum=MOMENTUM))
    assert kernels is None or kernels.install(network)
    return network


@pytest.mark.parametrize("row", [SMALL, SMALL_LITE], ids=lambda row: row.name)
def test_training_steps_of_the_network_are_mindspores_and_the_same_each_time(kernels, row):
    """Losses, statistics and state after three steps in graph mode; a second run has the same bits."""
    generator = np.random.default_rng(7)
    images, labels = random_array(generator, 4, 3, 33, 47), np.arange(4, dtype=np.int32)
    losses, parameters = train_steps(small_network(None, row=row), images, labels, 3, None)
    found, fast = train_steps(small_network(kernels, row=row), images, labels, 3, kernels)
    again, repeated = train_steps(small_network(kernels, row=row), images, labels, 3, kernels)
    np.testing.assert_allclose(found, losses, rtol=1e-4)
    assert found == again
    assert list(fast) == list(parameters)
    for name, value in parameters.items():
        assert np.abs(fast[name] - value).max() < 1e-3 * max(1.0, np.abs(value).max()), name
        assert fast[name].tobytes() == repeated[name].tobytes(), name


@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize(
    "row",
    [SMALL, dataclasses.replace(SMALL, squeeze_ratio=0), dataclasses.replace(SMALL, activation="relu6"), LITE],
    ids=["swish", "swish without gates", "relu6 with gates", "lite0"],
)
def test_evaluated_network_is_mindspores(kernels, row, padding):
    own, fast = with_own_parameters(kernels, lambda: small_network(None, padding, row).set_train(False))
    images = Tensor(random_array(np.random.default_rng(8), 3, 3, 40, 64))
    assert relative_error(fast(images).asnumpy(), own(images).asnumpy()) < TOLERANCE


def test_frozen_parts_and_micro_batches_work_with_kernels(kernels):
    """The first stages in evaluation mode, two micro-batches an update."""
    generator = np.random.default_rng(9)
    images, labels = random_array(generator, 6, 3, 64, 47), np.arange(6, dtype=np.int32)
    found = []
    ms.set_context(mode=ms.GRAPH_MODE)
    for chosen in (None, kernels):
        network = small_network(chosen)
        frozen = network.freeze(3)
        weights = network.trainable_params()
        optimizer = create_optimizer(weights, np.full(4, 1e-4, np.float32), OptimizerSettings())
        assert chosen is None or chosen.install(optimizer)
        loss = CrossEntropySmooth(0.1, 10)
        step = TrainStep(network, loss, optimizer, StepSettings(accumulate_steps=2), frozen=frozen).set_train()
        losses = [float(step(Tensor(images), Tensor(labels)).asnumpy()) for _ in range(4)]
        found.append((losses, {parameter.name: parameter.asnumpy() for parameter in step.get_parameters()}))
    (losses, parameters), (fast_losses, fast) = found
    np.testing.assert_allclose(fast_losses, losses, rtol=1e-4)
    for name, value in parameters.items():
        assert np.abs(fast[name] - value).max() < 1e-3 * max(1.0, np.abs(value).max()), name


def test_a_narrower_level_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("KERNELS", "generic")
    assert "kernels-generic-" in build.library()
    monkeypatch.setenv("KERNELS", "sse9")
    with pytest.raises(CompileError, match="^KERNELS is 'sse9', but this processor has .*generic$"):
        build.library()


def test_network_has_standard_operators_unless_kernels_are_asked_for():
    """Exported files must run everywhere; export.py builds its network without kernels."""
    modules = {type(cell).__module__ for _, cell in small_network(None).cells_and_names()}
    assert "src.models.layers" in modules and "src.kernels.operators" not in modules


def parameters_of(cell):
    """What checkpoints and optimisers go by."""
    return [(p.name, p.shape, p.requires_grad, id(p)) for p in cell.get_parameters()]


def classes_of(cell):
    return {type(part).__name__ for _, part in cell.cells_and_names()}


def test_installing_keeps_parameters_names_and_order(kernels):
    network = small_network(None).set_train(False)
    optimizer = create_optimizer(network.trainable_params(), np.full(1, 0.1, np.float32), OptimizerSettings())
    for cell in (network, optimizer):
        before, named = parameters_of(cell), [name for name, _ in cell.parameters_and_names()]
        assert kernels.install(cell)
        assert parameters_of(cell) == before
        assert [name for name, _ in cell.parameters_and_names()] == named
    fused = {"ConvNormActivation", "SqueezeExcitation", "PositionMean", "RMSPropUpdate"}
    assert not classes_of(network) & fused and not classes_of(optimizer) & fused
    assert {"ConvNormKernel", "MBConvKernel", "MeanKernel"} < classes_of(network)
    assert "RMSPropKernel" in classes_of(optimizer)
    assert not network.stem.training and network.set_train().stem.training


def test_freezing_after_installing_returns_the_cells_in_use(kernels):
    network = small_network(kernels)
    frozen = network.freeze(9)
    assert frozen == [network.stem, *network.blocks, network.head]
    assert [p.name for p in network.trainable_params()] == ["classifier.weight", "classifier.bias"]


@pytest.mark.parametrize(
    "architecture, settings",
    [
        (dataclasses.replace(SMALL, activation="gelu"), LayerSettings()),
        (dataclasses.replace(SMALL_LITE, activation="gelu"), LayerSettings()),
        (SMALL, LayerSettings(sync_norm=True)),
    ],
    ids=["gelu", "gelu without gates", "sync_norm"],
)
def test_network_with_what_the_kernels_do_not_know_is_left_alone(kernels, monkeypatch, architecture, settings):
    monkeypatch.setattr(nn, "SyncBatchNorm", OtherNorm)
    monkeypatch.setitem(layers.ACTIVATIONS, "gelu", ops.gelu)
    network = EfficientNet(architecture, 10, layers=settings).set_train(False)
    before, cells = parameters_of(network), [id(cell) for _, cell in network.cells_and_names()]
    assert not kernels.install(network)
    assert parameters_of(network) == before and [id(cell) for _, cell in network.cells_and_names()] == cells
    assert network(Tensor(np.zeros((1, 3, 32, 32), np.float32))).shape == (1, 10)


class OtherNorm(nn.BatchNorm2d):
    """In the place of MindSpore's norm over several ranks, which needs them."""


def test_gate_with_an_unknown_activation_keeps_kernels_out(kernels, monkeypatch):
    monkeypatch.setitem(layers.ACTIVATIONS, "gelu", ops.gelu)
    assert not kernels.install(Alone(SqueezeExcitation(8, 2, "gelu")))


def test_convolution_outside_of_the_known_cells_keeps_kernels_out(kernels):
    network = Alone(ConvNormActivation(3, 8, 3))
    network.other = nn.Conv2d(8, 8, 1)
    assert not kernels.install(network)
    assert "ConvNormKernel" not in classes_of(network)


def test_cells_of_a_sequential_cell_are_left_alone(kernels):
    """It would go on calling those that it was built from."""
    network = nn.SequentialCell(ConvNormActivation(3, 8, 3))
    assert not kernels.install(network)
    assert "ConvNormKernel" not in classes_of(network)


def test_cells_without_a_kernel_are_left_alone(kernels):
    assert not kernels.install(nn.Dense(3, 4))
    parameters = [ms.Parameter(Tensor(np.ones((2, 2), np.float32)), name="w")]
    assert not kernels.install(create_optimizer(parameters, np.full(1, 0.1, np.float32), OptimizerSettings(opt="sgd")))


def test_wrong_calls_are_refused(library):
    x, weight = np.zeros((1, 4, 4, 16), np.float32), np.zeros((8, 16, 1, 1), np.float32)
    settings = np.array([1, 0, 0, 0, 0, 0], np.float32)
    y = np.zeros((1, 4, 4, 16), np.float32)
    assert library.status("pointwise_convolve", [x, weight, settings], [y]) == 0
    assert library.status("pointwise_convolve", [x, weight], [y]) != 0
    assert library.status("pointwise_convolve", [x, weight, np.array([1, 0, 3, 0, 0, 0], np.float32)], [y]) != 0
    assert library.status("pointwise_convolve", [x.astype(np.float64), weight, settings], [y]) != 0
    assert library.status("pointwise_convolve", [x[..., :8], weight, settings], [y]) != 0
    assert library.status("pointwise_convolve", [x, weight, settings], [y[:, :2]]) != 0
    assert library.status("depthwise_convolve", [x, weight, settings], [y]) != 0


# Compiling.


@pytest.mark.parametrize(
    "flags, level",
    [
        ("fpu avx2 fma avx512f avx512bw avx512dq avx512vl", "avx512"),
        ("fpu avx2 fma avx512f", "avx2"),
        ("fpu avx2", "generic"),
        ("", "generic"),
    ],
)
def test_level_is_the_widest_that_the_processor_has(tmp_path, flags, level):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\nbogomips\t: 1\n")
    assert build.find_levels(cpu_flags(tmp_path / "cpuinfo", "x86_64"))[0] == level


def test_other_machines_have_the_generic_level(tmp_path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nFeatures\t: fp asimd\n")
    assert build.find_levels(cpu_flags(tmp_path / "cpuinfo", "aarch64"))[0] == "generic"
    (tmp_path / "cpuinfo").write_text("flags\t: avx2 fma avx512f avx512bw avx512dq avx512vl\n")
    assert build.find_levels(cpu_flags(tmp_path / "cpuinfo", "aarch64"))[0] == "generic"
    assert build.find_levels(cpu_flags(tmp_path / "nothing"))[0] == "generic"


@pytest.fixture
def fresh_cache(tmp_path, monkeypatch):
    """An empty cache, and a compiler that makes an empty library in no time."""
    compiler = tmp_path / "compiler"
    compiler.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exit\n'
        'while [ $# -gt 1 ]; do [ "$1" != -o ] || output=$2; shift; done\ncc -shared -x c /dev/null -o "$output"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    return tmp_path


def test_every_source_is_part_of_the_librarys_name(fresh_cache, monkeypatch):
    before = build.library()
    assert build.library() == before
    sources = fresh_cache / "sources"
    shutil.copytree(build.SOURCES, sources)
    with open(sources / "norm.h", "a") as file:
        file.write("// changed\n")
    monkeypatch.setattr(build, "SOURCES", str(sources))
    assert build.library() != before


def refused():
    """Kernels that are not there: what is said instead."""
    said = []
    assert load_kernels(say=said.append) is None
    assert len(said) == 1 and "\n" not in said[0]
    assert said[0].startswith("kernels: MindSpore's own operators, which are slower, because ")
    return said[0]


def test_without_a_compiler_there_are_no_kernels_and_one_sentence(fresh_cache, monkeypatch):
    monkeypatch.setenv("PATH", str(fresh_cache))
    monkeypatch.delenv("CXX")
    assert refused().endswith("there is no C++ compiler")


def test_compiler_that_fails_is_named(fresh_cache):
    (fresh_cache / "compiler").write_text("#!/bin/sh\necho 'x.h:1: error: no luck' >&2\nexit 1\n")
    assert refused().endswith(f"{fresh_cache}/compiler failed: x.h:1: error: no luck")
    assert not [name for name in os.listdir(native.cache_folder()) if name.endswith(".so")]


def test_no_place_for_the_library_is_a_sentence(fresh_cache):
    (fresh_cache / "cache").write_text("a file")
    (fresh_cache / "temporary").rmdir()
    (fresh_cache / "temporary").write_text("a file")
    assert "can keep compiled files neither in" in refused()


def compile_driver(output, compiler, level, *flags):
    """tests/cpp/kernels_test.cpp, which holds the kernels, as a program."""
    needed, vector_bytes = build.LEVELS[level]
    command = [compiler, "-std=gnu++17", "-pthread", "-Wall", "-Wextra", "-Werror", f"-DVECTOR_BYTES={vector_bytes}"]
    command += ["-DKEEP_NO_BLOCKS", "-Wl,--wrap=aligned_alloc"]
    command += [*(f"-m{name}" for name in needed), *flags, f"{ROOT}/tests/cpp/kernels_test.cpp", "-o", str(output)]
    subprocess.run(command, check=True)


def run_driver(*command, says="all layers are right"):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == f"{says}\n", done.stdout + done.stderr


def test_memory_or_threads_that_cannot_be_had_are_an_error_and_no_end_of_the_process(tmp_path):
    """Wherever an operator asks for memory; nor does it ask again and again, under a lock that all threads share."""
    program = tmp_path / "driver"
    compile_driver(program, "g++", "generic", "-O0")
    run_driver(program, "failures", says="all failures are right")


@pytest.mark.parametrize(
    "level, sanitizer",
    [
        (build.find_levels()[0], "address,undefined"),
        *((level, "address,undefined") for level in LEVELS[1:]),
        (build.find_levels()[0], "thread"),
    ],
)
@pytest.mark.slow
def test_kernels_under_sanitizers(tmp_path, level, sanitizer):
    if not can_run(level):
        pytest.skip(f"this machine has no {level}")
    program = tmp_path / "driver"
    flags = ["-O1", "-g", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    compile_driver(program, "g++", level, *flags)
    run_driver(program)
    run_driver(program, "failures", says="all failures are right")


@pytest.mark.slow
def test_kernels_on_arm(tmp_path):
    """Compiled for it, and run where there is an emulator or the machine itself."""
    compiler = "g++" if platform.machine() == "aarch64" else shutil.which("aarch64-linux-gnu-g++")
    if not compiler:
        pytest.skip("there is no compiler for Arm: apt-get install g++-aarch64-linux-gnu qemu-user")
    program = tmp_path / "driver"
    compile_driver(program, compiler, "generic", "-O2", "-static")
    if platform.machine() == "aarch64":
        run_driver(program)
    elif emulator := shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static"):
        run_driver(emulator, program)
