"""A peer's network as NumPy arrays."""

from benchmarks.peers import torch


def tensors(model):
    """The model's state as NumPy arrays."""
    return {name: value.numpy() for name, value in model.state_dict().items()}


def logits_of(model, images):
    """The peer's logits in evaluation mode."""
    with torch.no_grad():
        return model.eval()(torch.from_numpy(images)).numpy()
