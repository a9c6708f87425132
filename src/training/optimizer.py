"""RMSProp and SGD, and which parameters decay."""

from __future__ import annotations

import dataclasses

import mindspore as ms
import numpy as np
from mindspore import mint, nn, ops


def group_parameters(parameters: list, weight_decay: float, decay_all: bool) -> list[dict]:
    """Split parameters into those that decay and those that do not.

    Convolution and dense weights decay (they have two dimensions or more); batch-norm parameters and biases do not,
    unless `decay_all`.
    """
    decayed = [p for p in parameters if decay_all or len(p.shape) > 1]
    others = [p for p in parameters if not decay_all and len(p.shape) <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]] + [{"order_params": parameters}]


class RMSProp(nn.RMSProp):
    """`nn.RMSProp`, updated by a cell of its own; parameters and state are the same.

    MindSpore 2.10's kernel for the CPU adds epsilon outside of the square root for every eight neighbouring elements
    and inside of it for the rest of a tensor, and how many are the rest depends on how it divides the tensor among
    threads, which it finds out by trial in the first steps of a process. Small gradients are taken up to thirty times
    too far, and no run can be repeated. Other devices update by MindSpore's operator, and decay by one more.

    Args:
        groups: as `group_parameters` returns them.
        settings: arguments of `nn.RMSProp`.

    Attributes:
        update: the `RMSPropUpdate`.
    """

    def __init__(self, groups: list[dict], **settings):
        super().__init__(groups, **settings)
        decays = {id(parameter): group["weight_decay"] for group in groups[:-1] for parameter in group["params"]}
        self.update = RMSPropUpdate(
            self.decay, self.momentum, self.epsilon, tuple(decays[id(parameter)] for parameter in self._parameters)
        )

    def construct(self, gradients):
        learning_rate = self.get_lr()
        self.assignadd(self.global_step, self.global_step_increase_tensor)
        return self.update(learning_rate, self._parameters, self.ms, self.moment, gradients)


class RMSPropUpdate(nn.Cell):
    """Decays and updates all parameters: ms += (1 - decay) (g^2 - ms); m = momentum m + lr g / sqrt(ms + eps); w -= m.

    `src.kernels` knows this cell by the name of its class and reads its attributes; see its FUSED.

    Args and attributes:
        decay, momentum, epsilon: see `nn.RMSProp`; epsilon is inside of the square root.
        weight_decays: of each parameter.

    Inputs: learning rate (scalar); parameters, mean squares and moments, which are updated; gradients.
    """

    def __init__(self, decay: float, momentum: float, epsilon: float, weight_decays: tuple[float, ...]):
        super().__init__(auto_prefix=False)
        self.decay, self.momentum, self.epsilon, self.weight_decays = decay, momentum, epsilon, weight_decays
        self.hyper_map = ops.HyperMap()
        self.operator = None if ms.get_context("device_target") == "CPU" else ops.ApplyRMSProp()

    def construct(self, learning_rate, parameters, mean_squares, moments, gradients):
        if self.operator is not None:
            gradients = self.hyper_map(_decay_at_once, self.weight_decays, parameters, gradients)
            rule = (learning_rate, self.decay, self.momentum, self.epsilon)
            apply = ops.partial(_apply, self.operator, rule)
            return self.hyper_map(apply, parameters, mean_squares, moments, gradients)
        gradients = self.hyper_map(_decay, self.weight_decays, parameters, gradients)
        update = ops.partial(_update, self.decay, self.epsilon, self.momentum, learning_rate)
        return self.hyper_map(update, parameters, mean_squares, moments, gradients)


def _decay(weight_decay, weight, gradient):
    return gradient + weight * weight_decay if weight_decay > 0 else gradient


def _update(decay, epsilon, momentum, learning_rate, weight, mean_square, moment, gradient):
    mean_square = ops.assign_add(mean_square, (ops.square(gradient) - mean_square) * (1.0 - decay))
    moment = ops.assign(moment, moment * momentum + learning_rate * gradient / ops.sqrt(mean_square + epsilon))
    return ops.assign_sub(weight, moment)


def _decay_at_once(weight_decay, weight, gradient):
    return mint.add(gradient, weight, alpha=weight_decay) if weight_decay > 0 else gradient


def _apply(operator, rule, weight, mean_square, moment, gradient):
    learning_rate, decay, momentum, epsilon = rule
    return operator(weight, mean_square, moment, learning_rate, gradient, decay, momentum, epsilon)


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """The rule by which weights change.

    Attributes:
        opt: "rmsprop" or "sgd".
        momentum: of the updates, 0 <= momentum < 1.
        opt_decay, opt_eps: RMSProp's decay of the mean square, and its epsilon, inside the square root.
        weight_decay: of convolution and dense weights.
        decay_all: whether batch-norm parameters and biases decay as well.
    """

    opt: str = "rmsprop"
    momentum: float = 0.9
    opt_decay: float = 0.9
    opt_eps: float = 0.001
    weight_decay: float = 1e-5
    decay_all: bool = False


def create_optimizer(parameters: list, learning_rates: np.ndarray, settings: OptimizerSettings) -> nn.Optimizer:
    """RMSProp (epsilon inside the square root, as TensorFlow's) or SGD with momentum.

    Args:
        parameters: the network's trainable parameters.
        learning_rates: float32 array, the rate of every step.
        settings: the rule.
    """
    groups = group_parameters(parameters, settings.weight_decay, settings.decay_all)
    shared = {
        "learning_rate": learning_rates.tolist(),
        "momentum": settings.momentum,
        "loss_scale": 1.0,  # TrainStep has divided the gradients by the loss scale already
    }
    if settings.opt == "rmsprop":
        shared.update(decay=settings.opt_decay, epsilon=settings.opt_eps)
        return RMSProp(groups, **shared)
    return nn.SGD(groups, **shared)
