"""The optimisers against their formulas in NumPy, and which parameters decay."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, nn

from src.config import Config
from src.device import prepare_device
from src.models.effnet import create_network
from src.optimizer import create_optimizer, group_parameters


@pytest.fixture(autouse=True, scope="module")
def device():
    prepare_device("CPU")


class Update(nn.Cell):
    """An optimiser as a compiled graph, as it is in a training step."""

    def __init__(self, optimizer):
        super().__init__(auto_prefix=False)
        self.optimizer = optimizer

    def construct(self, *gradients):
        return self.optimizer(gradients)


def create(values, rates, **flags):
    """Parameters of these values, and the function that updates them with gradients."""
    parameters = [Parameter(ms.Tensor(value), name=f"w{number}") for number, value in enumerate(values)]
    update = Update(create_optimizer(parameters, np.array(rates, np.float32), Config(**flags)))
    return parameters, lambda *gradients: update(*map(ms.Tensor, gradients))


def close(found, expected):
    np.testing.assert_allclose(found.asnumpy(), expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("size", [1, 8, 20, 1003])
def test_rmsprop_adds_epsilon_inside_the_root_for_every_element(size):
    """TensorFlow's formula in float64, gradients far below the root of epsilon; the mean square starts at one."""
    random = np.random.default_rng(size)
    start = random.standard_normal(size).astype(np.float32)
    rates = [0.5, 0.4, 0.3]
    (parameter,), update = create([start], rates, opt_decay=0.1, opt_eps=0.001, momentum=0.9)
    weight, mean_square, moment = start.astype(np.float64), np.ones(size), np.zeros(size)
    for rate in rates:
        gradient = (random.standard_normal(size) * 1e-3).astype(np.float32)
        update(gradient)
        mean_square = 0.1 * mean_square + 0.9 * gradient.astype(np.float64) ** 2
        moment = 0.9 * moment + rate * gradient / np.sqrt(mean_square + 0.001)
        weight -= moment
        close(parameter, weight)


def test_rmsprop_of_the_same_numbers_is_the_same_however_often_it_has_run():
    size = 1003
    gradient = np.random.default_rng(1).standard_normal(size).astype(np.float32)
    zeros = np.zeros(size, np.float32)
    (parameter,), update = create([zeros], [0.1] * 60, momentum=0.0, opt_decay=0.0)
    update(gradient)  # the mean square is the gradient's from here on
    found = set()
    for _ in range(59):
        parameter.set_data(ms.Tensor(zeros))
        update(gradient)
        found.add(parameter.asnumpy().tobytes())
    assert len(found) == 1


def test_rmsprop_keeps_the_names_that_published_checkpoints_have():
    parameters, _ = create([np.zeros(3, np.float32)], [0.1])
    optimizer = create_optimizer(parameters, np.array([0.1], np.float32), Config())
    assert {p.name for p in optimizer.get_parameters()} >= {"w0", "mean_square.w0", "moment.w0", "global_step"}


@pytest.mark.parametrize("opt", ["rmsprop", "sgd"])
def test_weights_decay_and_biases_do_not(opt):
    """With a gradient of zero only the decay moves a weight: by lr * decay * w (RMSProp's mean square is near one)."""
    values = [np.full((8, 2), 2.0, np.float32), np.full(8, 2.0, np.float32)]
    (weight, bias), update = create(values, [0.1], opt=opt, weight_decay=0.01, opt_decay=0.99)
    update(*[np.zeros_like(value) for value in values])
    np.testing.assert_allclose(weight.asnumpy(), 2.0 - 0.1 * 0.01 * 2.0, rtol=1e-4)
    close(bias, values[1])


def test_sgd_has_momentum():
    (weight,), update = create([np.zeros(4, np.float32)], [0.1, 0.2], opt="sgd", momentum=0.9)
    for _ in range(2):
        update(np.ones(4, np.float32))
    close(weight, np.full(4, -(0.1 + 0.2 * 1.9)))


def test_of_the_network_only_convolutions_and_the_dense_layer_decay():
    parameters = create_network("b0", num_classes=10).trainable_params()
    decayed, others, order = group_parameters(parameters, 1e-5, False)
    assert (decayed["weight_decay"], others["weight_decay"]) == (1e-5, 0.0)
    assert all(p.name.endswith("weight") for p in decayed["params"])
    assert not any(p.name.endswith("weight") for p in others["params"])
    assert order["order_params"] == parameters
    (everything, _) = group_parameters(parameters, 1e-5, True)
    assert everything["params"] == parameters
