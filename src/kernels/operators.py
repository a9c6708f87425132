"""The kernels as MindSpore operators and cells with gradients.

Between the cells, activations have the shape (N, H, W, C), with C rounded up to a multiple of 16 and zeros in the added
channels; so every pixel's channels lie side by side and no loop has a tail. Weights have the shapes of `nn.Conv2d` and
`nn.BatchNorm2d`. All tensors are float32. Shapes must be known when a graph is compiled (MindSpore infers those of its
custom operators later from C++ only); a batch of another size compiles another graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from mindspore.ops import signature as sig

CHANNEL_BLOCK = 16


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
        inputs: where the operator writes to parameters, "r" or "w" for each of its inputs, read or written.
        depends: what else `shapes` and `bprop` depend on; MindSpore takes operators of one path, equal input shapes and
            equal attributes for the same.
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
    """Convolution, batch norm and swish as one operator; the parameters stay those of the layer that calls it.

    Args:
        library: path of the compiled kernels.
        kind: "pointwise" (1x1, stride 1), "depthwise", or "dense" (any; its input is images, (N, C, H, W)).
        stride: of the convolution.
        symmetric: PyTorch's padding; else TensorFlow's "same".
        activate: swish behind the norm.
        norm_eps, norm_momentum: see `ConvNormActivation`.

    Inputs: x, weight, gamma, beta, moving mean and variance, which training moves on.
    Outputs: tensor of shape (N, ceil(H / stride), ceil(W / stride), C rounded up).
    """

    def __init__(
        self,
        library: str,
        kind: str,
        stride: int,
        symmetric: bool,
        activate: bool,
        norm_eps: float,
        norm_momentum: float,
    ):
        super().__init__()
        place = f"{library}:{kind}_"
        images = kind == "dense"

        def settings(training: bool) -> ms.Tensor:
            return ms.Tensor(np.array([stride, symmetric, activate, training, norm_eps, norm_momentum], np.float32))

        def out_shape(x, weight):
            height, width = x[2:] if images else x[1:3]
            return [x[0], -(-height // stride), -(-width // stride), padded(weight[0])]

        def train_shapes(x, weight, gamma, *_):
            out = out_shape(x, weight)
            return (out, out, gamma, gamma)

        def backward_shapes(upper, x, weight, y, mean, variance, gamma, *_):
            return (weight, gamma, gamma) if images else (x, weight, gamma, gamma)

        backward = operator(place + "backward", backward_shapes, 3 if images else 4)
        convolve = operator(place + "convolve", lambda x, weight, settings: out_shape(x, weight), stride=stride)
        if images:
            backward_images = operator(place + "backward_images", lambda upper, x, *_: x)

        def gradients(upper, x, weight, y, mean, variance, gamma, beta, settings):
            inputs = (upper, x, weight, y, mean, variance, gamma, beta, settings)
            found = backward(*inputs)
            # The images' gradient is an operator of its own, which falls away where nobody asks for it.
            found = (backward_images(*inputs), *found) if images else found
            return (*found, ops.zeros_like(mean), ops.zeros_like(variance), ops.zeros_like(settings))

        def train_bprop(x, weight, gamma, beta, moving_mean, moving_variance, settings, out, upper):
            return gradients(upper[0], x, weight, out[1], out[2], out[3], gamma, beta, settings)

        def infer_bprop(x, weight, gamma, beta, moving_mean, moving_variance, settings, out, upper):
            y = convolve(x, weight, settings)
            return gradients(upper, x, weight, y, moving_mean, moving_variance, gamma, beta, settings)

        self.train_settings, self.infer_settings = settings(True), settings(False)
        self.train_operator = operator(place + "train", train_shapes, 4, train_bprop, "rrrrwwr", stride=stride)
        self.infer_operator = operator(
            place + "infer", lambda x, weight, *_: out_shape(x, weight), 1, infer_bprop, stride=stride
        )

    def construct(self, x, weight, gamma, beta, moving_mean, moving_variance):
        if not self.training:
            return self.infer_operator(x, weight, gamma, beta, moving_mean, moving_variance, self.infer_settings)
        return self.train_operator(x, weight, gamma, beta, moving_mean, moving_variance, self.train_settings)[0]


class RMSPropKernel(nn.Cell):
    """RMSProp with momentum, epsilon inside the square root, for all parameters in one operator.

    Args:
        library: path of the compiled kernels.
        decay, momentum, epsilon: see `nn.RMSProp`.
        weight_decays: of each parameter.

    Inputs: learning rate (scalar); parameters, mean squares and moments, which are updated; gradients.
    """

    def __init__(self, library: str, decay: float, momentum: float, epsilon: float, weight_decays: Sequence[float]):
        super().__init__()
        self.settings = ms.Tensor(np.array([decay, momentum, epsilon], np.float32))
        self.weight_decays = ms.Tensor(np.array(weight_decays, np.float32))
        count = len(weight_decays)
        access = "rrr" + "w" * 3 * count + "r" * count
        self.operator = operator(f"{library}:rmsprop_update", lambda *_: [1], inputs=access)

    def construct(self, learning_rate, parameters, mean_squares, moments, gradients):
        return self.operator(
            learning_rate, self.settings, self.weight_decays, *parameters, *mean_squares, *moments, *gradients
        )


class SqueezeKernel(nn.Cell):
    """Squeeze-and-excitation as one operator.

    Inputs: x of shape (N, H, W, C rounded up); weight and bias of the reducing and of the expanding convolution.
    """

    def __init__(self, library: str):
        super().__init__()

        def forward_shapes(x, reduce, reduce_bias, *_):
            mean = [x[0], x[3]]
            return (x, mean, [x[0], reduce[0]], mean)

        def backward_shapes(upper, x, reduce, expand, *_):
            return (x, reduce, [reduce[0]], expand, [expand[0]])

        backward = operator(f"{library}:squeeze_excite_backward", backward_shapes, 5)

        def bprop(x, reduce, reduce_bias, expand, expand_bias, out, upper):
            return backward(upper[0], x, reduce, expand, out[1], out[2], out[3])

        self.operator = operator(f"{library}:squeeze_excite", forward_shapes, 4, bprop)

    def construct(self, x, reduce, reduce_bias, expand, expand_bias):
        return self.operator(x, reduce, reduce_bias, expand, expand_bias)[0]


class MeanKernel(nn.Cell):
    """The mean over an image's positions: (N, H, W, C rounded up) to (N, C).

    Args:
        channels: C.
    """

    def __init__(self, library: str, channels: int):
        super().__init__()
        backward = operator(f"{library}:position_mean_backward", lambda upper, x: x)

        def bprop(x, out, upper):
            return (backward(upper, x),)

        self.operator = operator(f"{library}:position_mean", lambda x: [x[0], channels], 1, bprop, channels=channels)

    def construct(self, x):
        return self.operator(x)
