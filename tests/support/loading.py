"""Files as what they hold, where the programs take them apart step by step."""

import numpy as np

from src.images.decode import open_image, read_file
from src.weights.checkpoint import read_checkpoint
from src.weights.network import build_network, load_weights


def load_model(path: str, ema: bool = True):
    """Build the network that a checkpoint describes, with its weights, in evaluation mode.

    Args:
        path: the checkpoint.
        ema: take the averaged weights where the file has them.

    Raises:
        RunError: see `read_checkpoint`.
    """
    checkpoint = read_checkpoint(path)
    network = build_network(checkpoint.info)
    load_weights(network, checkpoint.ema if ema and checkpoint.ema else checkpoint.weights)
    network.set_train(False)
    return network, checkpoint.info


def read_image(path: str) -> np.ndarray:
    """Decode an image file: uint8 array of shape (H, W, 3), RGB.

    Raises:
        ImageError: see `open_image` and `read_file`.
    """
    return np.asarray(open_image(read_file(path), path))
