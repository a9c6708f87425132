"""The operators for NPUs compute what the network's own cells compute.

No CPU has aclnn's convolution and batch norm. Their doubles here take the arguments, as MindSpore documents them, to
MindSpore's older operators, so that everything around them runs.
"""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, mint, nn, ops

from src.kernels.ascend import AclnnConvolution, AclnnNorm, AscendOperators, Gate, MeansBeside
from src.models.effnet import MBConv
from src.models.family import Block
from src.models.layers import ConvNormActivation, LayerSettings


def conv2d(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    return ops.conv2d(x, weight, bias, stride, "pad", padding, dilation, groups)


def batch_norm(x, mean, variance, weight, bias, training, momentum, eps):
    """momentum is the share of the new value, as in mint.nn.functional.batch_norm's documentation."""
    operator = ops.BatchNorm(is_training=training, epsilon=eps, momentum=momentum)
    return operator(x, weight, bias, mean, variance)[0]


class Small(nn.Cell):
    """A stem of stride 2, and a block with everything: its input is 8 channels of half the size."""

    def __init__(self, settings):
        super().__init__()
        ms.set_seed(1)
        self.stem = ConvNormActivation(3, 8, 3, 2, settings=settings)
        self.block = MBConv(Block(1, 1, 0, 4, 5, 1, 8, 8, 2), "swish", settings)

    def construct(self, x):
        return self.block(self.stem(x), None)


@pytest.fixture
def doubles(monkeypatch):
    monkeypatch.setattr(mint.nn.functional, "conv2d", conv2d)
    monkeypatch.setattr(mint.nn.functional, "batch_norm", batch_norm)


def step(network, images):
    """Output, gradients of all parameters, moving statistics afterwards."""
    weights = ms.ParameterTuple(network.trainable_params())
    out, gradients = ms.value_and_grad(lambda x: (network(x) ** 3).sum(), None, weights)(images)
    return [out, *gradients, *(p for p in network.get_parameters() if "moving" in p.name)]


@pytest.mark.parametrize("padding", ["same", "symmetric"])
def test_a_step_is_that_of_the_cells_that_are_replaced(doubles, padding):
    images = Tensor(np.random.default_rng(0).standard_normal((4, 3, 12, 12)).astype(np.float32))
    settings = LayerSettings(padding=padding, norm_momentum=0.8)
    network, other = Small(settings).set_train(), Small(settings).set_train()
    names = [p.name for p in network.get_parameters()]
    assert AscendOperators().install(network)
    assert [p.name for p in network.get_parameters()] == names
    kinds = [type(cell) for _, cell in network.cells_and_names()]
    # The stem's padding is one-sided, which aclnn has not.
    convolutions = 4 if padding == "symmetric" else 3
    assert [kinds.count(kind) for kind in (AclnnConvolution, AclnnNorm, Gate)] == [convolutions, 4, 1]
    for found, expected in zip(step(network, images), step(other, images)):
        np.testing.assert_allclose(found.asnumpy(), expected.asnumpy(), rtol=1e-3, atol=1e-4)


def test_the_gradient_of_means_is_added_to_every_position():
    """By hand: the sum of x gives 1, three times the means' sum gives 3 / 6 to each of 6 positions."""
    x = Tensor(np.arange(12, dtype=np.float32).reshape(1, 2, 2, 3))

    def total(x):
        same, means = MeansBeside()(x)
        return same.sum() + 3 * means.sum()

    np.testing.assert_allclose(ms.grad(total)(x).asnumpy(), np.full((1, 2, 2, 3), 1.5))


def test_relu6_stays():
    network = MBConv(Block(1, 1, 0, 4, 3, 1, 8, 8, 0), "relu6", LayerSettings())
    before = network.expand.activate
    AscendOperators().install(network)
    assert network.expand.activate is before
