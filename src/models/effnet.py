"""EfficientNet B0 to B7 (Tan and Le 2019, arXiv:1905.11946)."""

from __future__ import annotations

import sys

import mindspore as ms
from mindspore import Parameter, nn, ops
from mindspore.common.initializer import Uniform

from src.models.family import (
    HEAD_CHANNELS,
    SQUEEZE_RATIO,
    STAGES,
    STEM_CHANNELS,
    VARIANTS,
    Stage,
    classifier_bound,
    scale_channels,
    scale_repeats,
    scaled_blocks,
)
from src.models.layers import ConvNormActivation, DropConnect, Dropout, PositionMean, SqueezeExcitation


class MBConv(nn.Cell):
    """Inverted residual: expand 1x1, depthwise, squeeze-and-excitation, project 1x1, residual where shapes allow.

    Args:
        stage: expand ratio, kernel and stride; its channels are this block's, already scaled.
        drop_rate: drop-connect's rate for this block.
        stream, seed: see `layers.KeepMask`.
        norm: keyword arguments of `ConvNormActivation`: padding, norm_eps, norm_momentum, sync_norm,
            kernels.
    """

    def __init__(self, stage: Stage, drop_rate: float, stream: int, seed: int, norm: dict):
        super().__init__()
        hidden = stage.in_channels * stage.expand_ratio
        self.has_expand = stage.expand_ratio != 1
        if self.has_expand:
            self.expand = ConvNormActivation(stage.in_channels, hidden, 1, 1, 1, True, **norm)
        self.depthwise = ConvNormActivation(hidden, hidden, stage.kernel_size, stage.stride, hidden, True, **norm)
        self.se = SqueezeExcitation(hidden, max(1, int(stage.in_channels * SQUEEZE_RATIO)), norm["kernels"])
        self.project = ConvNormActivation(hidden, stage.out_channels, 1, 1, 1, False, **norm)
        self.has_residual = stage.stride == 1 and stage.in_channels == stage.out_channels
        if self.has_residual:
            self.drop_connect = DropConnect(drop_rate, stream, seed)

    def construct(self, x, step):
        y = self.expand(x) if self.has_expand else x
        y = self.project(self.se(self.depthwise(y)))
        return self.drop_connect(y, step) + x if self.has_residual else y


class EfficientNet(nn.Cell):
    """The network: images to logits.

    Args:
        width_coeff: factor on the channel counts, positive.
        depth_coeff: factor on the block counts, positive.
        dropout_rate: dropout before the dense layer, 0 <= rate < 1.
        drop_connect_rate: drop-connect grows linearly over the blocks from 0 towards this rate.
        num_classes: width of the logits.
        padding: "same" (TensorFlow's) or "symmetric" (PyTorch's).
        norm_eps: epsilon of the batch norms.
        norm_momentum: share of the old moving statistics that a step keeps.
        seed: seed of drop-connect and dropout; weights follow `mindspore.set_seed`.
        sync_norm: compute batch-norm statistics over the batches of all ranks; MindSpore can on Ascend.
        kernels: `src.kernels.Kernels` to compute with on a CPU. None takes MindSpore's operators, which every device
            has and which alone can be exported; parameters and, up to rounding, results are the same.

    Inputs: float32 tensor of shape (N, 3, H, W), any N; with kernels N must be known when a graph is compiled.
    Outputs: logits of shape (N, num_classes).
    """

    def __init__(
        self,
        width_coeff: float = 1.0,
        depth_coeff: float = 1.0,
        dropout_rate: float = 0.2,
        drop_connect_rate: float = 0.2,
        num_classes: int = 1000,
        padding: str = "same",
        norm_eps: float = 1e-3,
        norm_momentum: float = 0.99,
        seed: int = 1,
        sync_norm: bool = False,
        kernels=None,
    ):
        super().__init__()
        norm = {
            "padding": padding,
            "norm_eps": norm_eps,
            "norm_momentum": norm_momentum,
            "sync_norm": sync_norm,
            "kernels": kernels,
        }
        stem_channels = scale_channels(STEM_CHANNELS, width_coeff)
        head_channels = scale_channels(HEAD_CHANNELS, width_coeff)
        stages = scaled_blocks(width_coeff, depth_coeff)
        self.stage_repeats = tuple(scale_repeats(stage.repeats, depth_coeff) for stage in STAGES)
        self.stem = ConvNormActivation(3, stem_channels, 3, 2, 1, True, **norm)
        self.blocks = nn.CellList(
            [MBConv(block, drop_connect_rate * i / len(stages), i, seed, norm) for i, block in enumerate(stages)]
        )
        self.head = ConvNormActivation(stages[-1].out_channels, head_channels, 1, 1, 1, True, **norm)
        self.mean = PositionMean(head_channels, kernels)
        self.dropout = Dropout(dropout_rate, len(stages), seed)
        weight_init = Uniform(classifier_bound(num_classes))
        self.classifier = nn.Dense(head_channels, num_classes, weight_init=weight_init, bias_init="zeros")
        # Counts training steps: the position in the random numbers of drop-connect and dropout.
        self.random_step = Parameter(ms.Tensor(0, ms.int32), name="random_step", requires_grad=False)

    def construct(self, x):
        step = self.random_step
        if self.training:
            step = self.random_step + 1
            ops.assign(self.random_step, step)
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, step)
        x = self.mean(self.head(x))
        return self.classifier(self.dropout(x, step))

    def freeze(self, parts: int) -> list:
        """Hold the first parts of the network fixed: 1 is the stem, 2 to 8 add the seven stages, 9 the head.

        Returns:
            list of cells, which must stay in evaluation mode: their batch norms use the moving statistics.
        """
        blocks = list(self.blocks)
        starts = [sum(self.stage_repeats[:i]) for i in range(len(STAGES) + 1)]
        stages = [blocks[start:end] for start, end in zip(starts, starts[1:])]
        frozen = [cell for part in [[self.stem], *stages, [self.head]][:parts] for cell in part]
        for cell in frozen:
            for parameter in cell.get_parameters():
                parameter.requires_grad = False
        return frozen


def create_network(variant: str = "b0", **settings) -> EfficientNet:
    """Build a member of the family.

    Args:
        variant: "b0" to "b7".
        settings: arguments of `EfficientNet` that differ from the variant's.

    Raises:
        ValueError: for an unknown variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant is '{variant}', not one of {', '.join(VARIANTS)}")
    scaling = VARIANTS[variant]
    settings = {"dropout_rate": scaling.dropout_rate, **settings}
    return EfficientNet(scaling.width_coeff, scaling.depth_coeff, **settings)


if __name__ == "__main__":
    from src.common.cli import run_cli
    from src.models.table import main

    sys.exit(run_cli(main))
