"""An MBConv block as one operator of the kernels, so that its wide tensors are neither kept nor written more than once.

Tensors have the forms that `kernels.operators` describes.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from src.kernels.operators import ACTIVATIONS, ConvNormKernel, SqueezeKernel, operator, padded


class MBConvKernel(nn.Cell):
    """An MBConv block: one operator in training, its layers' operators in evaluation.

    Args:
        library: path of the compiled kernels.
        layer: an `MBConv`, see `kernels.FUSED`.

    Inputs: tensor of shape (N, H, W, C rounded up), and the mask of drop-connect or None.
    Outputs: tensor of shape (N, ceil(H / stride), ceil(W / stride), C rounded up). Training moves the statistics on.
    """

    def __init__(self, library: str, layer: nn.Cell):
        super().__init__(auto_prefix=False)
        self.has_expand, self.has_squeeze, self.has_residual = layer.has_expand, layer.has_squeeze, layer.has_residual
        if self.has_expand:
            self.expand = ConvNormKernel(library, layer.expand)
        self.depthwise = ConvNormKernel(library, layer.depthwise)
        if self.has_squeeze:
            self.se = SqueezeKernel(library, layer.se)
        self.project = ConvNormKernel(library, layer.project)
        self.in_training = MBConvTraining(library, layer)
        convolutions = ([self.expand] if self.has_expand else []) + [self.depthwise, self.project]
        weights = [(part.conv.weight, part.norm.gamma, part.norm.beta) for part in convolutions]
        if self.has_squeeze:
            reduce, expand = self.se.reduce, self.se.expand
            weights.insert(-1, (reduce.weight, reduce.bias, expand.weight, expand.bias))
        moving = [(part.norm.moving_mean, part.norm.moving_variance) for part in convolutions]
        self.weights, self.moving = sum(weights, ()), sum(moving, ())

    def construct(self, x, mask):
        if self.training:
            mask = ops.ones((x.shape[0],), ms.float32) if mask is None else mask
            return self.in_training(x, mask, self.weights, self.moving)[0]
        y = self.depthwise(self.expand(x) if self.has_expand else x)
        y = self.project(self.se(y) if self.has_squeeze else y)
        return y + x if self.has_residual else y


class MBConvTraining(nn.Cell):
    """The block's operator: output, then what the backward pass needs.

    Inputs: x, mask, weights, moving means and variances. A gradient may not ask for parameters otherwise.
    """

    def __init__(self, library: str, layer: nn.Cell):
        super().__init__(auto_prefix=False)
        conv, norm = layer.depthwise.conv, layer.depthwise.norm
        stride, expands, squeezes = conv.stride[0], layer.has_expand, layer.has_squeeze
        activation, symmetric = ACTIVATIONS.index(layer.depthwise.activation), conv.pad_mode == "pad"
        values = [stride, symmetric, activation, True, norm.eps, 1.0 - norm.momentum, expands, squeezes]
        values.append(layer.has_residual)
        self.settings = ms.Tensor(np.array(values, np.float32))
        parts = 2 + expands
        weights = 3 * parts + 4 * squeezes
        self.weights = weights

        def forward_shapes(settings, x, mask, *parameters):
            inside, after = x[1:3], [-(-side // stride) for side in x[1:3]]
            shapes = []
            for part in range(parts):
                at = weights - 3 if part == parts - 1 else 3 * part
                if part == parts - 1 and squeezes:
                    wide = [x[0], shapes[-3][3]]
                    shapes += [wide, [x[0], parameters[at - 4][0]], wide]
                size = inside if expands and part == 0 else after
                shapes += [[x[0], *size, padded(parameters[at][0])], parameters[at + 1], parameters[at + 1]]
            return (shapes[-3], *shapes)

        def backward_shapes(settings, x, mask, upper, *parameters):
            kept = parameters[weights:]
            space = (kept[3], kept[0]) if expands else (kept[0],)
            return (x, *parameters[:weights], *space)

        path = f"{library}:mbconv_"
        access = "rrr" + "r" * weights + "w" * 2 * parts
        self.forward = operator(path + "train", forward_shapes, 1 + weights - squeezes, inputs=access, stride=stride)
        self.backward = operator(path + "backward", backward_shapes, 2 + weights + expands, stride=stride)

    def construct(self, x, mask, weights, moving):
        return self.forward(self.settings, x, mask, *weights, *moving)

    def bprop(self, x, mask, weights, moving, out, upper):
        gradients = self.backward(self.settings, x, mask, upper[0], *weights, *out[1:])
        statistics = ()
        for value in moving:
            statistics += (ops.zeros_like(value),)
        return (gradients[0], ops.zeros_like(mask), gradients[1 : 1 + self.weights], statistics)
