"""RMSProp and SGD from the configuration, and which parameters decay."""

from __future__ import annotations

from typing import List

import numpy as np
from mindspore import nn

from src.config import Config


def group_parameters(parameters: list, weight_decay: float, decay_all: bool) -> List[dict]:
    """Split parameters into those that decay and those that do not.

    Convolution and dense weights decay (they have two dimensions or more); batch-norm parameters and biases do not,
    unless `decay_all`.
    """
    decayed = [p for p in parameters if decay_all or len(p.shape) > 1]
    others = [p for p in parameters if not decay_all and len(p.shape) <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]] + [{"order_params": parameters}]


def create_optimizer(parameters: list, learning_rates: np.ndarray, config: Config) -> nn.Optimizer:
    """RMSProp (epsilon inside the square root, as TensorFlow's) or SGD with momentum.

    Args:
        parameters: the network's trainable parameters.
        learning_rates: float32 array, the rate of every step.
        config: opt, momentum, opt_decay, opt_eps, weight_decay, decay_all.
    """
    groups = group_parameters(parameters, config.weight_decay, config.decay_all)
    shared = {
        "learning_rate": learning_rates.tolist(),
        "momentum": config.momentum,
        "loss_scale": 1.0,  # TrainStep has divided the gradients by the loss scale already
    }
    if config.opt == "rmsprop":
        return nn.RMSProp(groups, decay=config.opt_decay, epsilon=config.opt_eps, **shared)
    return nn.SGD(groups, **shared)
