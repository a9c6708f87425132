"""One training step as one compiled graph: loss, gradients, update, moving average."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, nn, ops

from src.kernels.pieces import Pieces
from src.runtime.collective import MeanInOneMessage
from src.runtime.loss_scale import WINDOW, DynamicLossScale
from src.runtime.pixels import Normalise
from src.weights.checkpoint import EMA_PREFIX
from src.weights.names import Weights
from src.weights.network import model_parameters

# The warm-up of the moving average's decay, (1 + t) / (10 + t) after t updates, is TensorFlow's
# ExponentialMovingAverage(num_updates=t): the average follows closely at first and is useful in short runs too.
EMA_WARMUP = 10.0


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """How a step is computed.

    Attributes:
        loss_scale: factor on the loss while gradients are computed; "dynamic" begins with it.
        loss_scale_mode: "fixed", or "dynamic": an update whose gradients overflow is left out and the scale halved.
        scale_window: updates without an overflow after which a dynamic scale is doubled.
        clip_norm: largest global norm of the gradients; 0 clips nothing.
        accumulate_steps: batches whose mean gradient makes one update.
        ema_decay: decay of the weights' moving average; 0 keeps none.
        rank_size: ranks over which gradients are averaged.
        mean, std: of each channel, in units of 0 to 255, for pixels that arrive as uint8.
    """

    loss_scale: float = 1.0
    loss_scale_mode: str = "fixed"
    scale_window: int = WINDOW
    clip_norm: float = 0.0
    accumulate_steps: int = 1
    ema_decay: float = 0.0
    rank_size: int = 1
    mean: tuple[float, float, float] = (127.5,) * 3
    std: tuple[float, float, float] = (127.5,) * 3


class TrainStep(nn.Cell):
    """Forward, backward and update in one cell, so that data sink runs many steps without the host.

    Args:
        network: images to logits.
        loss: (logits, labels) to a float32 scalar.
        optimizer: holds the trainable parameters; its own loss_scale must be 1, gradients arrive unscaled.
        settings: how the step is computed; None takes the defaults.
        frozen: cells of the network that stay in evaluation mode.
        reduce: gradients to their mean over the ranks; None sends them as one message.

    Inputs: images (N, 3, H, W), normalised or uint8, and labels as `loss` takes them. Outputs: the unscaled loss.
    """

    def __init__(
        self,
        network: nn.Cell,
        loss: nn.Cell,
        optimizer: nn.Optimizer,
        settings: StepSettings | None = None,
        *,
        frozen: Sequence[nn.Cell] = (),
        reduce: nn.Cell | None = None,
    ):
        super().__init__(auto_prefix=False)
        settings = settings or StepSettings()
        self.network = network
        self.loss = loss
        self.optimizer = optimizer
        self.weights = optimizer.parameters
        self.loss_scale = float(settings.loss_scale)
        self.is_scaled = self.loss_scale != 1.0
        self.dynamic_scale = None
        if settings.loss_scale_mode == "dynamic":
            self.dynamic_scale = DynamicLossScale(self.loss_scale, settings.rank_size, settings.scale_window)
            self.loss_scale = self.dynamic_scale.scale
            self.is_scaled = True
        self.clip_norm = float(settings.clip_norm)
        self.accumulate = settings.accumulate_steps
        self.ema_decay = float(settings.ema_decay)
        self.frozen = list(frozen)
        self.normalise = Normalise(settings.mean, settings.std)
        self.gradients_of = ops.value_and_grad(self.scaled_loss, None, self.weights, has_aux=True)
        ranks = settings.rank_size
        shapes = [weight.shape for weight in self.weights]
        self.reduce = (reduce or MeanInOneMessage(shapes, ranks)) if ranks > 1 else ops.identity
        # On a device that is told of each operator, 213 small products take longer than one large one.
        self.pieces = None if ms.get_context("device_target") == "CPU" else Pieces(shapes)
        self.loss_sum = Parameter(ms.Tensor(0.0, ms.float32), name="loss_sum", requires_grad=False)
        if self.accumulate > 1:
            self.gradient_sums = self.weights.clone(prefix="gradient_sum", init="zeros")
            self.micro_step = Parameter(ms.Tensor(0, ms.int32), name="micro_step", requires_grad=False)
        if self.ema_decay:
            self.averaged = ParameterTuple(list(model_parameters(network).values()))
            # As one vector: on an NPU one parameter after the other takes more kernels than all the rest of the step.
            self.joined = Pieces([weight.shape for weight in self.averaged])
            self.averages = Parameter(self.join_averaged(), name=EMA_PREFIX + "joined", requires_grad=False)
            self.updates = Parameter(ms.Tensor(0, ms.int32), name="ema_updates", requires_grad=False)
        self.hyper_map = ops.HyperMap()

    def set_train(self, mode: bool = True):
        """Switch to training mode; frozen cells stay in evaluation mode."""
        super().set_train(mode)
        for cell in self.frozen:
            cell.set_train(False)
        return self

    def scaled_loss(self, images, labels):
        """What is differentiated, and the loss itself, which no scale can make infinite."""
        loss = self.loss(self.network(self.normalise(images)), labels)
        return loss * self.loss_scale, loss

    def construct(self, images, labels):
        (_, loss), gradients = self.gradients_of(images, labels)
        ops.assign_add(self.loss_sum, loss)
        if self.is_scaled:
            gradients = self.scale(gradients, 1.0 / self.loss_scale)
        if self.accumulate > 1:
            self.hyper_map(ops.assign_add, self.gradient_sums, gradients)
            ops.assign_add(self.micro_step, ms.Tensor(1, ms.int32))
            if self.micro_step % self.accumulate == 0:
                self.update_if_finite(self.scale(self.gradient_sums, 1.0 / self.accumulate))
                self.hyper_map(_clear, self.gradient_sums)
        else:
            self.update_if_finite(gradients)
        return loss

    def scale(self, gradients, factor):
        """Float32 gradients times a number."""
        if self.pieces is None:
            return self.hyper_map(ops.partial(_scale, factor), gradients)
        return self.pieces.part(self.pieces.join(gradients) * factor, gradients)

    def update_if_finite(self, gradients):
        """Update, unless a dynamic scale finds that the gradients of a rank have overflowed."""
        if self.dynamic_scale is None or self.dynamic_scale(gradients):
            self.update(gradients)
        else:
            # The learning rate follows the steps, so that it ends where the run does.
            ops.assign_add(self.optimizer.global_step, self.optimizer.global_step_increase_tensor)
        return True

    def update(self, gradients):
        """Average over the ranks, clip, step, and follow with the moving average."""
        gradients = self.reduce(gradients)
        if self.clip_norm > 0:
            gradients = ops.clip_by_global_norm(gradients, self.clip_norm)
        self.optimizer(gradients)
        if self.ema_decay > 0:
            ops.assign_add(self.updates, ms.Tensor(1, ms.int32))
            done = ops.cast(self.updates, ms.float32)
            decay = ops.minimum(ms.Tensor(self.ema_decay, ms.float32), (1.0 + done) / (EMA_WARMUP + done))
            gap = self.joined.join(self.averaged) - self.averages
            ops.assign(self.averages, self.averages + (1.0 - decay) * gap)
        return True

    def training_parameters(self) -> dict[str, Parameter]:
        """Everything beside the weights and their average that the next step depends on, by name."""
        # The table of learning rates is computed from the configuration, global_step says where in it a run stands.
        weights = model_parameters(self.network)
        return {
            p.name: p
            for p in self.get_parameters()
            if p.name not in weights and not p.name.startswith(EMA_PREFIX) and not p.name.startswith("learning_rate")
        }

    def average_weights(self) -> Weights | None:
        """The moving average under the weights' names, or None where none is kept."""
        if not self.ema_decay:
            return None
        ends = np.cumsum([weight.size for weight in self.averaged])[:-1]
        parts = np.split(self.averages.asnumpy(), ends)
        return {weight.name: part.reshape(weight.shape) for weight, part in zip(self.averaged, parts)}

    def restart_average(self) -> None:
        """Let the average begin at the present weights, for a run that starts from trained ones."""
        if self.ema_decay:
            self.averages.set_data(self.join_averaged())

    def join_averaged(self, weights: Weights | None = None) -> ms.Tensor:
        """Weights, the present ones if none are given, as one vector in the order of `averaged`."""
        values = [weight.asnumpy() if weights is None else weights[weight.name] for weight in self.averaged]
        return ms.Tensor(np.concatenate([value.astype(np.float32, copy=False).ravel() for value in values]))

    def restore(self, training: Weights, ema: Weights | None) -> list[str]:
        """Set what `training_parameters` and `average_weights` gave.

        Returns:
            list of names that a resumed run needs and that are not there.
        """
        wanted = self.training_parameters()
        needed = {name: (p, training.get(name)) for name, p in wanted.items()}
        if self.ema_decay:
            needed.update({EMA_PREFIX + p.name: (p, (ema or {}).get(p.name)) for p in self.averaged})
        missing = [name for name, (p, value) in needed.items() if value is None or value.shape != tuple(p.shape)]
        if not missing:
            for name, parameter in wanted.items():
                parameter.set_data(ms.Tensor(training[name].astype(ms.dtype_to_nptype(parameter.dtype), copy=False)))
            if self.ema_decay:
                self.averages.set_data(self.join_averaged(ema))
        return missing

    def overflow_state(self) -> tuple[int, float]:
        """Updates left out so far because of an overflow, and the loss scale; 0 and the scale where it is fixed."""
        if self.dynamic_scale is None:
            return 0, self.loss_scale
        return int(self.dynamic_scale.overflows.asnumpy()), float(self.dynamic_scale.scale.asnumpy())

    def take_loss_sum(self) -> float:
        """The sum of the losses since the last call, which it sets back to 0."""
        total = float(self.loss_sum.asnumpy())
        self.loss_sum.set_data(ms.Tensor(np.float32(0)))
        return total


def _scale(factor, gradient):
    return ops.cast(gradient, ms.float32) * factor


def _clear(total):
    return ops.assign(total, ops.zeros_like(total))


def network_weights(network: nn.Cell) -> Weights:
    """The weights and batch-norm statistics by name."""
    return {name: parameter.asnumpy() for name, parameter in model_parameters(network).items()}
