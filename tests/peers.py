"""PyTorch's EfficientNets, to compare with: timm's and torchvision's own models with random weights."""

import importlib.util
import os

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the peers are needed: pip install -r requirements-dev.txt")

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
    """A peer's model by our name of its source: timm, timm_tf or torchvision; without dropout and drop-connect."""
    if source == "torchvision":
        create = getattr(torchvision.models, f"efficientnet_{variant}")
        return create(num_classes=num_classes, dropout=0.0, stochastic_depth_prob=0.0, **settings)
    prefix = {"timm": "", "timm_tf": "tf_"}[source]
    return timm.create_model(f"{prefix}efficientnet_{variant}", num_classes=num_classes, drop_rate=0.0, **settings)


def randomise(model, image_size, seed=0, images=None):
    """Random weights and batch-norm statistics with which activations keep their size and logits are of order 1.

    The statistics are those of a batch, random unless given, then disturbed, so that none is 0, 1 or equal to another.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    momentum = [norm.momentum for norm in norms]
    noise = torch.randn(8, 3, image_size, image_size, generator=generator)
    images = noise if images is None else torch.from_numpy(images)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
            elif name.startswith("classifier"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[1] ** 0.5)
        for norm in norms:
            norm.momentum = 1.0
        model.train()(images)
        for norm, before in zip(norms, momentum):
            norm.momentum = before
            norm.running_mean.add_(0.1 * torch.randn(norm.running_mean.shape, generator=generator))
            norm.running_var.mul_(0.8 + 0.4 * torch.rand(norm.running_var.shape, generator=generator))
            norm.num_batches_tracked.zero_()
        classifier = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
        classifier.weight.div_(model.eval()(images).std())
    return model


def tensors(model):
    """The model's state as NumPy arrays."""
    return {name: value.numpy() for name, value in model.state_dict().items()}


def random_images(count, size, seed=1):
    """Standard normal images of shape (count, 3, size, size)."""
    return np.random.default_rng(seed).standard_normal((count, 3, size, size)).astype(np.float32)


def logits_of(model, images):
    """The peer's logits in evaluation mode."""
    with torch.no_grad():
        return model.eval()(torch.from_numpy(images)).numpy()
