"""The network as a MINDIR or AIR file, and a MINDIR file run in MindSpore."""

from __future__ import annotations

import os
import shutil

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from src.common.cli import RunError
from src.common.files import link_with_suffix, scratch_folder
from src.export.plan import ExportPlan, Run
from src.images.preprocess import Preprocess
from src.models.layers import ConvNormActivation, convolution
from src.weights.checkpoint import quiet_logging
from src.weights.folding import fold_batch_norm
from src.weights.names import Weights
from src.weights.network import build_network, load_weights


class ExportedNetwork(nn.Cell):
    """The network with what a file has before and after it.

    Args:
        network: normalised images to logits.
        preprocess: take pixels, uint8 of shape (N, S, S, 3), and normalise them so; None takes normalised images.
        include_softmax: give the probabilities as well.
    """

    def __init__(self, network: nn.Cell, preprocess: Preprocess | None, include_softmax: bool):
        super().__init__()
        self.network = network
        self.include_softmax = include_softmax
        self.normalises = preprocess is not None
        if preprocess is not None:
            self.mean = ms.Tensor(np.asarray(preprocess.mean, np.float32).reshape(1, 3, 1, 1))
            self.std = ms.Tensor(np.asarray(preprocess.std, np.float32).reshape(1, 3, 1, 1))

    def construct(self, image):
        if self.normalises:
            image = (ops.cast(ops.transpose(image, (0, 3, 1, 2)), ms.float32) - self.mean) / self.std
        logits = self.network(image)
        return (logits, ops.softmax(logits, 1)) if self.include_softmax else logits


def write_mindspore(path: str, plan: ExportPlan, weights: Weights) -> None:
    """Save the network as MindSpore's own kind of file.

    MindSpore writes it into a folder of its own first: it takes only plain names, and lets nobody else read the file.

    Args:
        path: of the file.
        plan: what is wanted.
        weights: of the network, batch norms and all.

    Raises:
        RunError: if MindSpore fails.
        OSError: if the file cannot be written.
    """
    network = build_network(plan.info)
    load_weights(network, weights)
    if plan.fold_bn:
        fold_cells(network, plan.info.padding, fold_batch_norm(weights, plan.info.norm_eps))
    network = ExportedNetwork(
        network, plan.info.preprocess if plan.include_preprocessing else None, plan.include_softmax
    ).set_train(False)
    image = ms.Tensor(np.zeros((plan.batch_size, *plan.input_shape), plan.input_type))
    with scratch_folder() as folder:
        written = os.path.join(folder, "network" + plan.file_format.suffix)
        try:
            with quiet_logging():
                ms.export(network, image, file_name=written, file_format=plan.file_format.name)
        except (RuntimeError, ValueError, TypeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RunError(f"{plan.path} is not written: MindSpore could not export the network: {reason}") from error
        shutil.copyfile(written, path)


def fold_cells(network: nn.Cell, padding: str, folded: Weights) -> None:
    """Take the batch norms out of a network whose convolutions get the weights and biases of `fold_batch_norm`."""
    layers = [(name, cell) for name, cell in network.cells_and_names() if isinstance(cell, ConvNormActivation)]
    for name, cell in layers:
        conv = cell.conv
        sizes = (conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0], conv.group)
        cell.conv = convolution(*sizes, padding, has_bias=True)
        cell.norm = nn.Identity()
        for part in ("weight", "bias"):
            parameter = getattr(cell.conv, part)
            parameter.name = f"{name}.conv.{part}"
            parameter.set_data(ms.Tensor(folded[parameter.name]))


def open_mindir(path: str, batch_size: int) -> Run:
    """A function that runs a MINDIR file in MindSpore: images as its input wants them to logits.

    Raises:
        RunError: if MindSpore cannot load the file.
    """
    try:
        with link_with_suffix(path, ".mindir") as link, quiet_logging():
            network = nn.GraphCell(ms.load(link))
    except (RuntimeError, ValueError) as error:
        raise RunError(f"MindSpore cannot load what was exported: {str(error).splitlines()[0]}") from error

    def run(images: np.ndarray) -> np.ndarray:
        return run_batches(network, images, batch_size)

    return run


def run_batches(network: nn.Cell, images: np.ndarray, batch_size: int) -> np.ndarray:
    """Logits of any number of images from a network that is compiled for batches of one size."""
    logits = []
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size]
        filled = np.concatenate([part, np.zeros((batch_size - len(part), *part.shape[1:]), part.dtype)])
        outputs = network(ms.Tensor(filled))
        outputs = outputs[0] if isinstance(outputs, (tuple, list)) else outputs
        logits.append(outputs.asnumpy()[: len(part)])
    return np.concatenate(logits)
