"""PyTorch's EfficientNets, to compare with: timm's and torchvision's own models with random weights."""

import importlib
import importlib.util
import os

import numpy as np
import torch

OPERATORS = ("nms", "roi_align", "ps_roi_align", "roi_pool", "ps_roi_pool", "deform_conv2d")


def define_missing_operators():
    """Let torchvision load where its compiled operators do not fit PyTorch's build; classification never calls them."""
    folder = importlib.util.find_spec("torchvision").submodule_search_locations[0]
    for name in os.listdir(folder):
        if name.startswith("_C") and name.endswith(".so"):
            try:
                torch.ops.load_library(os.path.join(folder, name))
            except OSError:
                break
    if hasattr(torch.ops.torchvision, "nms"):
        return None
    library = torch.library.Library("torchvision", "DEF")
    for operator in OPERATORS + ("qnms",):
        library.define(f"{operator}() -> ()")
    for operator in OPERATORS[1:]:
        library.define(f"_{operator}_backward() -> ()")
    return library


# The definitions live as long as the object.
LIBRARY = define_missing_operators()

import timm  # noqa: E402  after the operators that its import of torchvision needs
import torchvision  # noqa: E402


def create_peer(source, variant, num_classes=1000, **settings):
    """A peer's model by our name of its source, a key of `SOURCES`; without dropout and drop-connect."""
    if source == "efficientnet_pytorch":
        name = "efficientnet_lite_pytorch" if variant.startswith("lite") else "efficientnet_pytorch"
        package = importlib.import_module(name)
        settings = {"num_classes": num_classes, "dropout_rate": 0.0, "drop_connect_rate": 0.0, "image_size": None}
        return package.EfficientNet.from_name(f"efficientnet-{variant}", **settings)
    if source == "torchvision":
        create = getattr(torchvision.models, f"efficientnet_{variant}")
        return create(num_classes=num_classes, dropout=0.0, stochastic_depth_prob=0.0, **settings)
    return timm.create_model(peer_name(source, variant), num_classes=num_classes, drop_rate=0.0, **settings)


def randomise(model, images, seed=0):
    """Random weights and batch-norm statistics under which activations keep their size and logits are of order 1.

    Every number is random, the counters too, so that none is 0, 1 or equal to another. The statistics are those of the
    images, then disturbed: with arbitrary ones activations die out or explode, and with them the rounding errors that
    a comparison must not see. For the same reason the norms' factors are below 1: deep random networks are chaotic.

    Args:
        images: float32 array of shape (N, 3, H, W), those that the networks will be compared on.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]

    def noise(like):
        return torch.randn(like.shape, generator=generator)

    def measure(norm, inputs):
        variance, mean = torch.var_mean(inputs[0], (0, 2, 3))
        norm.running_mean.copy_(mean + 0.1 * variance.sqrt() * noise(mean))
        norm.running_var.copy_(variance * (0.8 + 0.4 * torch.rand(variance.shape, generator=generator)))
        norm.num_batches_tracked.random_(1, 10**6, generator=generator)

    with torch.no_grad():
        for parameter in model.parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
            parameter.copy_(scale * noise(parameter))
        for norm in norms:
            norm.weight.mul_(0.5).add_(0.3)
        hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
        spread = model.eval()(torch.from_numpy(images)).std()
        for hook in hooks:
            hook.remove()
        classifier = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
        classifier.weight.div_(spread)
        classifier.bias.div_(spread)
    return model


def peer_name(source, variant):
    """The peer's name of the network, also the start of its files' names."""
    if source == "efficientnet_pytorch":
        return f"efficientnet-{variant}"
    return f"{'tf_' if source == 'timm_tf' else ''}efficientnet_{variant}"


def random_images(count, size, seed=1):
    """Standard normal images of shape (count, 3, size, size)."""
    return np.random.default_rng(seed).standard_normal((count, 3, size, size)).astype(np.float32)
