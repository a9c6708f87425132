"""RMSProp against timm's RMSpropTF and SGD against PyTorch's, from the same gradients; which parameters decay."""

import importlib

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, nn

from benchmarks.peers import timm, torch
from src.kernels import load_kernels
from src.lr_generator import get_lr
from src.models.effnet import create_network
from src.training.optimizer import OptimizerSettings, create_optimizer, group_parameters

optim = importlib.import_module("timm.optim")  # after the peers' import, which makes timm's possible
STEPS = 100
# A depthwise and a dense weight, a batch-norm parameter, a bias; sizes that fill no vector register.
SHAPES = {"depthwise.weight": (5, 1, 3, 3), "dense.weight": (3, 7), "norm.gamma": (33,), "dense.bias": (3,)}
SETTINGS = {"weight_decay": 0.01, "momentum": 0.9, "opt_decay": 0.9, "opt_eps": 0.001}
RATES = get_lr(0.0001, 0.00001, 0.05, 2, 10, STEPS // 10, "cosine")


@pytest.fixture(scope="module")
def kernels():
    found = load_kernels()
    if found is None:
        pytest.skip("there is no compiler for the kernels")
    return found


def begin():
    random = np.random.default_rng(0)
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def gradients(step):
    """Of sizes from 1e-4 to 10, so that epsilon matters for some and not for others."""
    random = np.random.default_rng([1, step])
    scale = 10.0 ** random.uniform(-4, 1, len(SHAPES))
    return [(s * random.standard_normal(shape)).astype(np.float32) for s, shape in zip(scale, SHAPES.values())]


class Update(nn.Cell):
    """The optimiser with gradients as inputs of its own: a tuple of tensors would be compiled in as constants."""

    def __init__(self, optimizer):
        super().__init__(auto_prefix=False)
        self.optimizer = optimizer

    def construct(self, *gradients):
        return self.optimizer(gradients)


def train_here(config, kernels=None):
    """The weights after each step."""
    weights = [Parameter(ms.Tensor(value), name=name) for name, value in begin().items()]
    optimizer = create_optimizer(weights, RATES, config)
    assert kernels is None or kernels.install(optimizer)
    update = Update(optimizer)
    for step in range(STEPS):
        update(*map(ms.Tensor, gradients(step)))
        yield [weight.asnumpy().copy() for weight in weights]


def train_peer(create, decay_all=False):
    """The peer's weights after each step."""
    weights = [torch.from_numpy(value).requires_grad_() for value in begin().values()]
    decayed = [weight for weight in weights if decay_all or weight.ndim > 1]
    others = [weight for weight in weights if not decay_all and weight.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": SETTINGS["weight_decay"]}]
    optimizer = create(groups + ([{"params": others, "weight_decay": 0.0}] if others else []))
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = float(RATES[step])
        for weight, gradient in zip(weights, gradients(step)):
            weight.grad = torch.from_numpy(gradient)
        optimizer.step()
        yield [weight.detach().numpy().copy() for weight in weights]


def assert_close(ours, theirs):
    """Same weights within 1e-5 of their size after every one of the steps."""
    steps = list(zip(ours, theirs))
    assert len(steps) == STEPS
    for step, (one, other) in enumerate(steps):
        for name, found, expected in zip(SHAPES, one, other):
            assert np.abs(found - expected).max() < 1e-5 * max(1, np.abs(expected).max()), (step, name)
    moved = max(np.abs(value - first).max() for value, first in zip(steps[-1][0], begin().values()))
    assert moved > 1


def rmsprop_tf(groups):
    return optim.RMSpropTF(groups, alpha=SETTINGS["opt_decay"], eps=SETTINGS["opt_eps"], momentum=SETTINGS["momentum"])


@pytest.mark.parametrize("decay_all", [False, True])
def test_rmsprop_is_timms(decay_all):
    ours = train_here(OptimizerSettings(**SETTINGS, decay_all=decay_all))
    assert_close(ours, train_peer(rmsprop_tf, decay_all))


@pytest.mark.parametrize("decay_all", [False, True])
def test_rmsprop_of_the_kernels_is_timms(decay_all, kernels):
    ours = train_here(OptimizerSettings(**SETTINGS, decay_all=decay_all), kernels)
    assert_close(ours, train_peer(rmsprop_tf, decay_all))


def test_rmsprop_by_hand():
    """The mean square begins at one, epsilon is inside of the root, the rate is inside of the momentum."""
    weights, squares, moments = begin(), 1.0, 0.0
    value = weights["dense.bias"].astype(np.float64)
    for step, found in enumerate(train_here(OptimizerSettings(**SETTINGS))):
        gradient = gradients(step)[3].astype(np.float64)
        squares = 0.9 * squares + 0.1 * gradient**2
        moments = 0.9 * moments + RATES[step] * gradient / np.sqrt(squares + 0.001)
        value = value - moments
        assert np.allclose(found[3], value, rtol=1e-5, atol=1e-5)


def test_sgd_is_pytorchs():
    ours = train_here(OptimizerSettings(**SETTINGS, opt="sgd"))
    assert_close(ours, train_peer(lambda groups: torch.optim.SGD(groups, lr=1.0, momentum=SETTINGS["momentum"])))


def test_the_weights_that_decay_are_those_that_decay_in_timm():
    network = create_network("b0")
    groups = group_parameters(network.trainable_params(), 1e-5, False)
    peer = optim.create_optimizer_v2(timm.create_model("efficientnet_b0"), "rmsproptf", lr=1.0, weight_decay=1e-5)
    expected = {group["weight_decay"]: sum(p.numel() for p in group["params"]) for group in peer.param_groups}
    found = {group["weight_decay"]: sum(p.size for p in group["params"]) for group in groups[:-1]}
    assert found == expected
    names = {p.name for p in groups[0]["params"]}
    assert all(name.endswith("weight") for name in names)
    assert {"stem.conv.weight", "classifier.weight", "blocks.3.se.reduce.weight"} < names
    assert [p.name for p in groups[-1]["order_params"]] == [p.name for p in network.trainable_params()]


def test_decay_all_takes_every_parameter():
    network = create_network("b0")
    groups = group_parameters(network.trainable_params(), 1e-5, True)
    assert [group["weight_decay"] for group in groups[:-1]] == [1e-5]
    assert len(groups[0]["params"]) == len(network.trainable_params())
