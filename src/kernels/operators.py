"""The kernels as MindSpore operators and cells with gradients.

Between the cells, activations have the shape (N, H, W, C), with C rounded up to a multiple of 16 and zeros in the added
channels; so every pixel's channels lie side by side and no loop has a tail. Weights have the shapes of `nn.Conv2d` and
`nn.BatchNorm2d`. All tensors are float32. Shapes must be known when a graph is compiled (MindSpore infers those of its
custom operators later from C++ only); a batch of another size compiles another graph.
"""

from __future__ import annotations

from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from mindspore.ops import signature as sig

CHANNEL_BLOCK = 16
ACTIVATIONS = (None, "swish", "relu6")
"""The activations that there are kernels for, in the order of their numbers in vector.h."""


def padded(channels: int) -> int:
    """The channels of a tensor between two layers."""
    return -(-channels // CHANNEL_BLOCK) * CHANNEL_BLOCK


def operator(
    path: str,
    shapes: Callable,
    outputs: int = 1,
    bprop: Callable | None = None,
    inputs: str = "",
    **depends,
) -> ops.Custom:
    """An operator of float32 tensors.

    Args:
        path: library and function, "file.so:function".
        shapes: from the inputs' shapes to the output's, or to a tuple of them.
        outputs: how many there are.
        bprop: gradient, as MindSpore's Custom takes it.
        inputs: "r" for each input that the operator reads and "w" for each parameter that it writes to; may be left
            out where it only reads.
        depends: what else `shapes` and `bprop` depend on, as attributes of the operator. MindSpore takes two operators
            for the same where path, input shapes and attributes are equal.
    """
    types = ms.float32 if outputs == 1 else (ms.float32,) * outputs
    made = ops.Custom(path, shapes, types, "aot", bprop=bprop)
    if inputs:
        access = {"r": sig.sig_rw.RW_READ, "w": sig.sig_rw.RW_WRITE}
        made.set_signatures([sig.make_sig(f"input_{i}", access[letter]) for i, letter in enumerate(inputs)])
        depends["side_effect_mem"] = True
    for name, value in depends.items():
        made.add_prim_attr(name, value)
    return made


class ConvNormKernel(nn.Cell):
    """Convolution, batch norm and activation, where the layer has one, as one operator.

    Args:
        library: path of the compiled kernels.
        layer: a `ConvNormActivation`, see `kernels.FUSED`.

    Inputs: tensor of shape (N, H, W, C rounded up), but (N, C, H, W) where neither 1x1 nor depthwise.
    Outputs: tensor of shape (N, ceil(H / stride), ceil(W / stride), C rounded up). Training moves the statistics on.
    """

    def __init__(self, library: str, layer: nn.Cell):
        super().__init__(auto_prefix=False)
        self.conv, self.norm = layer.conv, layer.norm
        self.in_training, self.in_evaluation = ConvNormTraining(library, layer), ConvNormEvaluation(library, layer)

    def construct(self, x):
        norm = self.norm
        inputs = (x, self.conv.weight, norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance)
        return self.in_training(*inputs)[0] if self.training else self.in_evaluation(*inputs)


class ConvNormOperator(nn.Cell):
    """What the operators of training and of evaluation have in common.

    Args:
        library, layer: see `ConvNormKernel`.
        training: take the statistics of the batch.

    Attributes:
        place: beginning of the functions' names. They are "pointwise" (1x1, stride 1), "depthwise" or "dense" (any
            convolution; its input is images).
        forward: the operator.

    Inputs: x, weight, gamma, beta, moving mean and moving variance. A gradient may not ask for parameters otherwise.
    """

    def __init__(self, library: str, layer: nn.Cell, training: bool):
        super().__init__(auto_prefix=False)
        conv, norm = layer.conv, layer.norm
        self.stride, self.images = conv.stride[0], conv.group == 1 and conv.kernel_size != (1, 1)
        kind = "dense" if self.images else "depthwise" if conv.group > 1 else "pointwise"
        self.place = f"{library}:{kind}_"
        symmetric, activation = conv.pad_mode == "pad", ACTIVATIONS.index(layer.activation)
        values = [self.stride, symmetric, activation, training, norm.eps, 1.0 - norm.momentum]
        self.settings = ms.Tensor(np.array(values, np.float32))
        self.backward = operator(self.place + "backward", self.backward_shapes, 3 if self.images else 4)
        # An operator of its own, which falls away where nobody asks for the images' gradient.
        self.backward_images = operator(self.place + "backward_images", lambda upper, x, *_: x) if self.images else None

    def construct(self, x, weight, gamma, beta, moving_mean, moving_variance):
        return self.forward(x, weight, gamma, beta, moving_mean, moving_variance, self.settings)

    def out_shape(self, x, weight, *_):
        """The output's shape."""
        height, width = x[2:] if self.images else x[1:3]
        return [x[0], -(-height // self.stride), -(-width // self.stride), padded(weight[0])]

    def backward_shapes(self, upper, x, weight, y, mean, variance, gamma, *_):
        """The gradients' shapes."""
        return (weight, gamma, gamma) if self.images else (x, weight, gamma, gamma)

    def gradients(self, *given):
        """Of all inputs, zero for the statistics; `given` is what the functions in C++ take."""
        statistics = (ops.zeros_like(given[4]), ops.zeros_like(given[5]))
        if self.images:
            return (self.backward_images(*given), *self.backward(*given), *statistics)
        return (*self.backward(*given), *statistics)


class ConvNormTraining(ConvNormOperator):
    """Gives the output, the convolution's output, and the batch's means and variances."""

    def __init__(self, library: str, layer: nn.Cell):
        super().__init__(library, layer, True)

        def shapes(x, weight, gamma, *_):
            out = self.out_shape(x, weight)
            return (out, out, gamma, gamma)

        self.forward = operator(self.place + "train", shapes, 4, inputs="rrrrwwr", stride=self.stride)

    def bprop(self, x, weight, gamma, beta, moving_mean, moving_variance, out, upper):
        return self.gradients(upper[0], x, weight, out[1], out[2], out[3], gamma, beta, self.settings)


class ConvNormEvaluation(ConvNormOperator):
    """Gives the output."""

    def __init__(self, library: str, layer: nn.Cell):
        super().__init__(library, layer, False)
        self.forward = operator(self.place + "infer", self.out_shape, stride=self.stride)
        self.convolve = operator(self.place + "convolve", self.out_shape, stride=self.stride)

    def bprop(self, x, weight, gamma, beta, mean, variance, out, upper):
        y = self.convolve(x, weight, self.settings)
        return self.gradients(upper, x, weight, y, mean, variance, gamma, beta, self.settings)


class SqueezeKernel(nn.Cell):
    """Squeeze-and-excitation as one operator.

    Args:
        library: path of the compiled kernels.
        layer: a `SqueezeExcitation`, see `kernels.FUSED`.

    Inputs and outputs: tensor of shape (N, H, W, C rounded up).
    """

    def __init__(self, library: str, layer: nn.Cell):
        super().__init__(auto_prefix=False)
        self.reduce, self.expand = layer.reduce, layer.expand
        path = f"{library}:squeeze_{layer.activation}"

        def forward_shapes(x, reduce, reduce_bias, *_):
            mean = [x[0], x[3]]
            return (x, mean, [x[0], reduce[0]], mean)

        def backward_shapes(upper, x, reduce, expand, *_):
            return (x, reduce, [reduce[0]], expand, [expand[0]])

        backward = operator(path + "_backward", backward_shapes, 5)

        def bprop(x, reduce, reduce_bias, expand, expand_bias, out, upper):
            return backward(upper[0], x, reduce, expand, out[1], out[2], out[3])

        self.operator = operator(path, forward_shapes, 4, bprop)

    def construct(self, x):
        return self.operator(x, self.reduce.weight, self.reduce.bias, self.expand.weight, self.expand.bias)[0]


class MeanKernel(nn.Cell):
    """The mean over an image's positions: (N, H, W, C rounded up) to (N, C).

    Args:
        library: path of the compiled kernels.
        layer: a `PositionMean`, see `kernels.FUSED`.
    """

    def __init__(self, library: str, layer: nn.Cell):
        super().__init__(auto_prefix=False)
        channels = layer.channels
        backward = operator(f"{library}:position_mean_backward", lambda upper, x: x)

        def bprop(x, out, upper):
            return (backward(upper, x),)

        self.operator = operator(f"{library}:position_mean", lambda x: [x[0], channels], 1, bprop, channels=channels)

    def construct(self, x):
        return self.operator(x)


class RMSPropKernel(nn.Cell):
    """RMSProp with momentum, epsilon inside the square root, for all parameters in one operator.

    Args:
        library: path of the compiled kernels.
        rule: an `RMSPropUpdate`, see `kernels.FUSED`.

    Inputs: learning rate (scalar); parameters, mean squares and moments, which are updated; gradients.
    """

    def __init__(self, library: str, rule: nn.Cell):
        super().__init__(auto_prefix=False)
        self.settings = ms.Tensor(np.array([rule.decay, rule.momentum, rule.epsilon], np.float32))
        self.weight_decays = ms.Tensor(np.array(rule.weight_decays, np.float32))
        count = len(rule.weight_decays)
        access = "rrr" + "w" * 3 * count + "r" * count
        self.operator = operator(f"{library}:rmsprop_update", lambda *_: [1], inputs=access)

    def construct(self, learning_rate, parameters, mean_squares, moments, gradients):
        return self.operator(
            learning_rate, self.settings, self.weight_decays, *parameters, *mean_squares, *moments, *gradients
        )
