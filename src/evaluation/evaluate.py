"""Loss, top-1 and top-5 of a network over a labelled data set, every image counted once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Callable

import mindspore as ms
import numpy as np
from mindspore import nn

from src.common.cli import tell_each_minute
from src.evaluation.grad_cam import Head
from src.evaluation.metrics import Score
from src.images.preprocess import Preprocess, normalise
from src.runtime.collective import count_ranks, sum_counts, sum_floats
from src.runtime.pixels import Normalise


class PixelNetwork(nn.Cell):
    """A network in evaluation mode behind the normalisation of its images, which are sent to the device as bytes.

    Args:
        network: normalised images to logits.
        preprocess: its mean and std.

    Inputs: uint8 images of shape (N, 3, H, W), or normalised ones. Outputs: the network's.
    """

    def __init__(self, network: nn.Cell, preprocess: Preprocess):
        super().__init__(auto_prefix=False)
        self.normalise, self.network = Normalise(preprocess.mean, preprocess.std), network
        self.set_train(False)

    def construct(self, images):
        return self.network(self.normalise(images))


@tell_each_minute("evaluation")
def evaluate(
    network: nn.Cell,
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    smooth_factor: float,
    on_batch: Callable[[int], None] | None = None,
    collect: Callable[[np.ndarray, np.ndarray], None] | None = None,
) -> Score:
    """Run a network over batches of images.

    Args:
        network: in evaluation mode, images (N, 3, H, W) to logits.
        batches: of images as the network takes them and int labels; the last may be smaller than the others. A negative
            label is of an image that could not be decoded: it counts as wrong.
        smooth_factor: of the training loss, so that both losses can be compared.
        on_batch: called with the number of images of each batch, for progress.
        collect: called with the float32 logits and the labels of each batch's images that could be decoded.
    """
    score = Score()
    full = 0
    for images, labels in batches:
        full = max(full, len(labels))
        if len(labels) < full:
            # Filled up: another shape would compile the whole graph once more.
            images = np.concatenate([images, np.zeros((full - len(labels), *images.shape[1:]), images.dtype)])
        logits = network(ms.Tensor(images)).asnumpy()[: len(labels)]
        decoded = labels >= 0
        usable = logits[decoded].astype(np.float32), labels[decoded]
        score.add(*usable, smooth_factor)
        if collect:
            collect(*usable)
        score.add_wrong(int((~decoded).sum()))
        if on_batch:
            on_batch(len(labels))
    return score


def sum_over_ranks(score: Score) -> Score:
    """The score over all ranks' images; as it is where there is one rank."""
    if count_ranks() == 1:
        return score
    images, top_1, top_5, unusable = sum_counts([score.images, score.top_1, score.top_5, score.unusable])
    return Score(images=images, loss_sum=sum_floats([score.loss_sum])[0], top_1=top_1, top_5=top_5, unusable=unusable)


class FeatureMaps(nn.Cell):
    """An EfficientNet without what follows its head: images (N, 3, H, W) to the head's feature maps."""

    def __init__(self, network: nn.Cell):
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, x):
        network = self.network
        x = network.stem(x)
        for block in network.blocks:
            x = block(x, None)
        return network.head(x)


def network_head(network: nn.Cell, preprocess: Preprocess) -> Head:
    """The end of an EfficientNet in evaluation mode, for Grad-CAM."""
    cell = FeatureMaps(network).set_train(False)
    weights = network.classifier.weight.asnumpy()

    def features(crops: np.ndarray) -> np.ndarray:
        images = np.stack([normalise(crop, preprocess) for crop in crops])
        maps = cell(ms.Tensor(images)).asnumpy()
        if maps.shape[1] == weights.shape[1]:
            return maps
        # Of the kernels for CPUs: channels last, and rounded up.
        return maps[..., : weights.shape[1]].transpose(0, 3, 1, 2)

    return Head(features, weights)
