"""A loss scale that follows the gradients: halved when they overflow, doubled when they have not for a while."""

from __future__ import annotations

from mindspore import Parameter, Tensor, amp, int32, nn, ops

from src.runtime.collective import SumOverRanks

FACTOR = 2
WINDOW = 2000
"""Updates in a row without an overflow after which the scale is doubled; the default of DynamicLossScaleManager."""


class DynamicLossScale(nn.Cell):
    """MindSpore's `amp.DynamicLossScaler` with a state that checkpoints keep, and a decision that all ranks share.

    On cards that saturate (Atlas training products, or MS_ASCEND_CHECK_OVERFLOW_MODE=SATURATION_MODE) gradients are
    finite after an overflow; `amp.all_finite` reads and clears the card's own flag there, which remembers an overflow
    of any operator since it was read last.

    Args:
        start: the first scale, at least 1.
        ranks: how many ranks there are.
        window: see WINDOW.

    Attributes:
        scale: the scale, float32 scalar, never below 1.
        overflows: updates that were left out, int32 scalar.

    Inputs: the gradients, a tuple of tensors. Outputs: whether no rank's have overflowed, bool scalar; the scale has
        changed accordingly.
    """

    def __init__(self, start: float, ranks: int = 1, window: int = WINDOW):
        super().__init__(auto_prefix=False)
        self.scaler = amp.DynamicLossScaler(start, FACTOR, window)
        self.scale = self.scaler.scale_value
        self.good_updates = self.scaler.counter
        self.scale.name, self.good_updates.name = "loss_scale", "loss_scale_good_updates"
        self.overflows = Parameter(Tensor(0, int32), name="overflows", requires_grad=False)
        self.scale.requires_grad = self.good_updates.requires_grad = False
        self.sum_over_ranks = SumOverRanks() if ranks > 1 else ops.identity

    def construct(self, gradients):
        overflowed = 1.0 - ops.cast(amp.all_finite(gradients), self.scale.dtype)
        finite = self.sum_over_ranks(ops.reshape(overflowed, (1,)))[0] == 0
        ops.assign_add(self.overflows, 1 - ops.cast(finite, int32))
        self.scaler.adjust(finite)
        return finite
