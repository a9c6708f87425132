"""The pictures of a report: the images that get one within the space there is, and where the network looked."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from PIL import Image

from src.common.machine import map_in_order
from src.data.listing import ImageFolder, read_encoded
from src.evaluation.grad_cam import Head, class_maps
from src.images.preprocess import Preprocess, crop_encoded

MOST_THUMBNAILS = 5000
SIDE = 96
"""Pixels, the largest side of a thumbnail."""
QUALITY = 75
MOST_MAPS = 100
"""Mistakes that get heat maps, the most confident ones."""
BATCH = 8


def most_confident_mistakes(rows: np.ndarray) -> np.ndarray:
    """Numbers of the rows of `Outcomes` that are wrong, the most confident first."""
    wrong = np.flatnonzero(rows["prediction"] != rows["label"])
    return wrong[np.argsort(-rows["confidence"][wrong], kind="stable")]


def least_confident_hits(rows: np.ndarray) -> np.ndarray:
    """Numbers of the rows of `Outcomes` that are right, the least confident first."""
    right = np.flatnonzero(rows["prediction"] == rows["label"])
    return right[np.argsort(rows["confidence"][right], kind="stable")]


def order_of_importance(rows: np.ndarray, first: Iterable[int]) -> list[int]:
    """All rows, those whose pictures are missed most first.

    Args:
        rows: of `Outcomes`.
        first: numbers of rows that come before all others.

    Returns:
        list of int: after `first` one image of each kind of mistake, a second of each, and so on; then the same of the
        hits of each class.
    """
    wrong = rows["prediction"] != rows["label"]
    order = np.lexsort((-rows["confidence"], rows["prediction"], rows["label"]))
    cells = np.stack([rows["label"], rows["prediction"]], axis=1)[order]
    starts = np.flatnonzero(np.r_[True, (cells[1:] != cells[:-1]).any(axis=1)]) if len(order) else order
    lengths = np.diff(np.r_[starts, len(order)])
    turn = np.arange(len(order)) - np.repeat(starts, lengths)
    others = order[np.lexsort((np.arange(len(order)), turn, ~wrong[order]))]
    return list(dict.fromkeys([*map(int, first), *others.tolist()]))


def read_pixels_seen(folder: ImageFolder, index: int, preprocess: Preprocess) -> np.ndarray:
    """The part of an image that the network sees: uint8 of shape (S, S, 3).

    Raises:
        ImageError: if the file has become unusable since the evaluation.
    """
    return crop_encoded(read_encoded(folder, index), folder.full_path(index), preprocess)


def draw_thumbnails(
    folder: ImageFolder, images: Sequence[int], preprocess: Preprocess, space: int, threads: int
) -> Iterator[str]:
    """JPEGs of images in base64, in order, as long as they fit.

    Args:
        folder: the listing.
        images: their numbers, the most important first.
        preprocess: the part that the network sees.
        space: characters that all of them may take together.
        threads: that read, decode and encode.
    """

    def draw(index: int) -> str:
        picture = Image.fromarray(read_pixels_seen(folder, index, preprocess))
        picture.thumbnail((SIDE, SIDE))
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=QUALITY, optimize=True)
        return base64.b64encode(file.getvalue()).decode()

    for text in map_in_order(draw, images[:MOST_THUMBNAILS], threads, 4 * threads):
        space -= len(text) + len('"1234567":"",')
        if space < 0:
            return
        yield text


def draw_maps(
    folder: ImageFolder, images: Sequence[int], labels: np.ndarray, preprocess: Preprocess, head: Head
) -> list[list]:
    """Heat maps of images.

    Args:
        folder: the listing.
        images: their numbers.
        labels: int array of shape (len(images), K): the classes to draw for each of them.
        preprocess: the part that the network sees.
        head: of the network.

    Returns:
        For each image its maps' height and width, and K maps in base64, a byte for each position, row by row, of which
        the largest is 255 unless all are 0.
    """
    drawn = []
    for start in range(0, len(images), BATCH):
        chosen = images[start : start + BATCH]
        crops = np.stack([read_pixels_seen(folder, index, preprocess) for index in chosen])
        # Always as many: a batch of another size might be compiled anew.
        features = head.features(np.concatenate([crops, np.zeros((BATCH - len(crops), *crops.shape[1:]), np.uint8)]))
        for row, classes in enumerate(labels[start : start + BATCH]):
            maps = class_maps(np.repeat(features[row : row + 1], len(classes), axis=0), head.weights, classes)
            drawn.append([*maps.shape[1:], *map(encode_map, maps)])
    return drawn


def encode_map(values: np.ndarray) -> str:
    """A map of at least 0 as bytes in base64; what is not finite counts as 0."""
    values = np.nan_to_num(values, posinf=0.0)
    largest = values.max()
    levels = np.rint(values * (255 / largest)) if largest > 0 else np.zeros_like(values)
    return base64.b64encode(levels.astype(np.uint8).tobytes()).decode()
