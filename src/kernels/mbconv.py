"""An MBConv block as one operator of the kernels, so that its wide tensors are neither kept nor written more than once.

Tensors have the forms that `kernels.operators` describes.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from src.kernels.operators import ACTIVATIONS, operator, padded

MADE_ANEW = 40
"""Where an expanding convolution reads at most so many channels, its output, the largest tensor of a block, is not kept
but made wherever it is read, forward and backward: few operations make it, and a step of 224 pixels needs 7% less
memory.
"""


class MBConvKernel(nn.Cell):
    """An MBConv block: one operator in training, one in evaluation.

    It holds the block's parameters itself, because MindSpore visits every cell of a network at each call.

    Args:
        library: path of the compiled kernels.
        layer: an `MBConv`, see `kernels.FUSED`.

    Inputs: tensor of shape (N, H, W, C rounded up), and the mask of drop-connect or None.
    Outputs: tensor of shape (N, ceil(H / stride), ceil(W / stride), C rounded up). Training moves the statistics on.
    """

    def __init__(self, library: str, layer: nn.Cell):
        super().__init__(auto_prefix=False)
        for name, parameter in layer.parameters_and_names():
            self.insert_param_to_cell(name, parameter, check_name_contain_dot=False)
        self.in_training, self.in_evaluation = MBConvTraining(library, layer), MBConvEvaluation(library, layer)
        convolutions = ([layer.expand] if layer.has_expand else []) + [layer.depthwise, layer.project]
        weights = [(part.conv.weight, part.norm.gamma, part.norm.beta) for part in convolutions]
        if layer.has_squeeze:
            reduce, expand = layer.se.reduce, layer.se.expand
            weights.insert(-1, (reduce.weight, reduce.bias, expand.weight, expand.bias))
        moving = [(part.norm.moving_mean, part.norm.moving_variance) for part in convolutions]
        self.weights, self.moving = sum(weights, ()), sum(moving, ())

    def construct(self, x, mask):
        if self.training:
            mask = ops.ones((x.shape[0],), ms.float32) if mask is None else mask
            return self.in_training(x, mask, self.weights, self.moving)[0]
        return self.in_evaluation(x, self.weights, self.moving)


class MBConvOperator(nn.Cell):
    """What the operators of training and of evaluation have in common.

    Args:
        library, layer: see `MBConvKernel`.
        training: take the statistics of the batch.

    Attributes:
        keep: the operator that gives the output and then what the backward pass needs.
        backward: the backward pass.

    Inputs: x, in training the mask, weights, moving means and variances. A gradient may not ask for parameters
    otherwise.
    """

    def __init__(self, library: str, layer: nn.Cell, training: bool):
        super().__init__(auto_prefix=False)
        conv, norm = layer.depthwise.conv, layer.depthwise.norm
        stride, expands, squeezes = conv.stride[0], layer.has_expand, layer.has_squeeze
        activation, symmetric = ACTIVATIONS.index(layer.depthwise.activation), conv.pad_mode == "pad"
        values = [stride, symmetric, activation, training, norm.eps, 1.0 - norm.momentum, expands, squeezes]
        values.append(layer.has_residual)
        self.settings = ms.Tensor(np.array(values, np.float32))
        parts = 2 + expands
        weights = 3 * parts + 4 * squeezes
        self.weights, self.stride, self.map = weights, stride, ops.HyperMap()
        self.path = f"{library}:mbconv_"
        anew = expands and layer.expand.conv.in_channels <= MADE_ANEW

        def kept_shapes(settings, x, mask, *parameters):
            after = [-(-side // stride) for side in x[1:3]]
            shapes = []
            for part in range(parts):
                at = weights - 3 if part == parts - 1 else 3 * part
                if part == parts - 1 and squeezes:
                    wide = [x[0], shapes[-3][3]]
                    shapes += [wide, [x[0], parameters[at - 4][0]], wide]
                size = x[1:3] if expands and part == 0 else after
                y = [1] if anew and part == 0 else [x[0], *size, padded(parameters[at][0])]
                shapes += [y, parameters[at + 1], parameters[at + 1]]
            return (shapes[-3], *shapes)

        def backward_shapes(settings, x, mask, upper, *parameters):
            kept = parameters[weights:]
            space = (kept[3], [*x[:3], padded(parameters[0][0])]) if expands else (kept[0],)
            return (x, *parameters[:weights], *space)

        access = "rrr" + "r" * weights + "w" * 2 * parts if training else ""
        self.keep = operator(self.path + "train", kept_shapes, 1 + weights - squeezes, inputs=access, stride=stride)
        self.backward = operator(self.path + "backward", backward_shapes, 2 + weights + expands, stride=stride)

    def gradients(self, x, mask, weights, moving, kept, upper):
        """Of x, the weights and the statistics, which is zero.

        `kept` is what `keep` has given, `upper` the gradient of the output.
        """
        # Not by a loop, which MindSpore unrolls at the cost of 20 MB for all blocks.
        gradients = self.backward(self.settings, x, mask, upper, *weights, *kept[1:])
        return gradients[0], gradients[1 : 1 + self.weights], self.map(ops.zeros_like, moving)


class MBConvTraining(MBConvOperator):
    """Gives the output, then what the backward pass needs."""

    def __init__(self, library: str, layer: nn.Cell):
        super().__init__(library, layer, True)

    def construct(self, x, mask, weights, moving):
        return self.keep(self.settings, x, mask, *weights, *moving)

    def bprop(self, x, mask, weights, moving, out, upper):
        x_gradient, gradients, statistics = self.gradients(x, mask, weights, moving, out, upper[0])
        return x_gradient, ops.zeros_like(mask), gradients, statistics


class MBConvEvaluation(MBConvOperator):
    """Gives the output."""

    def __init__(self, library: str, layer: nn.Cell):
        super().__init__(library, layer, False)
        stride, last = self.stride, self.weights - 3

        def shape(settings, x, *parameters):
            return [x[0], *(-(-side // stride) for side in x[1:3]), padded(parameters[last][0])]

        self.forward = operator(self.path + "infer", shape, stride=stride)

    def construct(self, x, weights, moving):
        return self.forward(self.settings, x, *weights, *moving)

    def bprop(self, x, weights, moving, out, upper):
        mask = ops.ones((x.shape[0],), ms.float32)
        kept = self.keep(self.settings, x, mask, *weights, *moving)
        return self.gradients(x, mask, weights, moving, kept, upper)
