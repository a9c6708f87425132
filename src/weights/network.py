"""Networks out of descriptions and weights: build one, set its parameters, find its weights among them."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import nn

from src.models.effnet import create_network
from src.weights.model_info import ModelInfo
from src.weights.names import Weights


def build_network(info: ModelInfo, **settings) -> nn.Cell:
    """The network that `info` describes, freshly initialised.

    Args:
        settings: further arguments of `create_network`, for training.
    """
    return create_network(
        info.variant, num_classes=info.num_classes, padding=info.padding, norm_eps=info.norm_eps, **settings
    )


def model_parameters(network: nn.Cell) -> dict[str, ms.Parameter]:
    """Weights and batch-norm statistics by name; not the position in the random numbers."""
    return {p.name: p for p in network.get_parameters() if not p.name.endswith("random_step")}


def load_weights(network: nn.Cell, weights: Weights) -> None:
    """Set every parameter of a network; names and shapes must have been checked."""
    for name, parameter in model_parameters(network).items():
        parameter.set_data(ms.Tensor(weights[name].astype(np.float32, copy=False)))
