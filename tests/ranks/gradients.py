"""Run by ranks of test_distribute.py: the averaged gradients of this rank's share of 16 fixed images, in a file."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from src.runtime.device import prepare_device

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, nn, ops

from src.kernels.ranks import SharedMean
from src.runtime.collective import mean_over_ranks
from src.weights.network import model_parameters
from src.loss import CrossEntropySmooth
from src.models.effnet import create_network
from src.training.step import StepSettings, TrainStep

IMAGES = 16


class Recorder(nn.Cell):
    """In an optimiser's place: keeps the gradients instead of taking a step."""

    def __init__(self, parameters):
        super().__init__(auto_prefix=False)
        self.parameters = ParameterTuple(parameters)
        zeros = [Parameter(ops.zeros_like(p), name="gradient." + p.name, requires_grad=False) for p in parameters]
        self.kept = ParameterTuple(zeros)
        self.hyper_map = ops.HyperMap()

    def construct(self, gradients):
        return self.hyper_map(ops.assign, self.kept, gradients)


def create():
    """The network, 16 images and their labels, the same in every process."""
    ms.set_seed(7)
    # A momentum of 0: one pass in training mode gives the batch norms the statistics of these images.
    network = create_network("b0", num_classes=10, dropout_rate=0.0, drop_connect_rate=0.0, norm_momentum=0.0, seed=7)
    random = np.random.RandomState(7)
    images = random.standard_normal((IMAGES, 3, 32, 32)).astype(np.float32)
    return network, images, random.randint(0, 10, IMAGES).astype(np.int32)


def write_statistics(path):
    """The images' own batch-norm statistics: with any others the gradients would fade or explode on the way."""
    network, images, _ = create()
    network.set_train(True)
    network(ms.Tensor(images))
    statistics = {name: p.asnumpy() for name, p in model_parameters(network).items() if not p.requires_grad}
    np.savez(path, **statistics)


def write_gradients(path, statistics, rank=0, rank_size=1, kernels=None):
    """The gradients that the optimiser of this rank gets, by name; batch norm in evaluation mode.

    With `kernels`, ranks average them through memory that they share, else by messages.
    """
    network, images, labels = create()
    with np.load(statistics) as file:
        for name in file.files:
            model_parameters(network)[name].set_data(ms.Tensor(file[name]))
    share = slice(IMAGES * rank // rank_size, IMAGES * (rank + 1) // rank_size)
    recorder = Recorder(network.trainable_params())
    settings = StepSettings(loss_scale=1024.0, rank_size=rank_size)
    reduce = mean_over_ranks([weight.shape for weight in recorder.parameters], kernels) if rank_size > 1 else None
    assert isinstance(reduce, SharedMean) == bool(kernels)
    step = TrainStep(network, CrossEntropySmooth(0.1, 10), recorder, settings, reduce=reduce).set_train()
    network.set_train(False)
    step(ms.Tensor(images[share]), ms.Tensor(labels[share]))
    np.savez(path, **{parameter.name: parameter.asnumpy() for parameter in recorder.kept})


if __name__ == "__main__":
    device = prepare_device("CPU", 0, True)
    for path, kernels in (("messages.npz", None), ("memory.npz", device.kernels)):
        write_gradients(path, "../statistics.npz", device.rank, device.rank_size, kernels)
    # Where one rank has no compiler, all send messages.
    assert not isinstance(mean_over_ranks([(2, 3)], device.kernels if device.rank else None), SharedMean)
