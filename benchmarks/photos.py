"""Pictures like photos, drawn instead of taken: the same bytes on every machine with one version of Pillow."""

import io

import numpy as np
from PIL import Image


def draw(width, height, seed=0):
    """A picture with smooth areas, edges and noise."""
    random = np.random.default_rng([width, height, seed])
    coarse = Image.fromarray(random.integers(0, 256, (4, 5, 3)).astype(np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    pixels[height // 3 : height // 2, width // 4 : width // 2] = (
        255 - pixels[height // 3 : height // 2, width // 4 : width // 2]
    )
    tile = random.integers(-20, 21, (min(height, 256), min(width, 256), 1)).astype(np.int16)
    noise = np.tile(tile, (-(-height // tile.shape[0]), -(-width // tile.shape[1]), 1))[:height, :width]
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


def encode(image, kind, **options):
    """An image as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
