"""Run by ranks of test_distribute.py: the averaged gradients of this rank's share of 16 fixed images, in a file."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from src.device import prepare_device

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, nn, ops

from src.loss import CrossEntropySmooth
from src.models.effnet import create_network
from src.train_step import TrainStep


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


device = prepare_device("CPU", 0, "--run_distribute" in sys.argv)
ms.set_seed(7)
# A momentum of 0: one pass in training mode gives the batch norms the statistics of these images.
network = create_network("b0", num_classes=10, dropout_rate=0.0, drop_connect_rate=0.0, norm_momentum=0.0, seed=7)
random = np.random.RandomState(7)
images = random.standard_normal((16, 3, 32, 32)).astype(np.float32)
labels = random.randint(0, 10, 16).astype(np.int32)
network.set_train(True)
network(ms.Tensor(images))

share = slice(16 * device.rank // device.rank_size, 16 * (device.rank + 1) // device.rank_size)
recorder = Recorder(network.trainable_params())
step = TrainStep(network, CrossEntropySmooth(0.1, 10), recorder, 1024.0, rank_size=device.rank_size).set_train()
network.set_train(False)
step(ms.Tensor(images[share]), ms.Tensor(labels[share]))
np.savez("gradients.npz", **{parameter.name: parameter.asnumpy() for parameter in recorder.kept})
print("rank", os.environ.get("RANK_ID"), "has finished")
