"""Which images of a listing belong together: the same bytes, nearly the same picture, or the same name.

A picture is nearly the same when it was encoded again, in another format, quality or size, but not when it was cut or
turned. Two small fingerprints decide: 64 bits that say where the picture gets brighter from left to right (a difference
hash), of which at most MAX_BITS may differ, and its colours at 8 x 8 points, which may differ by MAX_COLOUR on average.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from pathlib import PurePath
from typing import Callable

import numpy as np
from PIL import Image

from src.common.machine import count_cores, map_in_order
from src.data.listing import ImageFolder, read_encoded
from src.images.augment import choose_reduction
from src.images.bad_images import ImageError
from src.images.decode import decode

MAX_BITS = 3
"""With BANDS of 16 bits, two hashes that differ in no more bits have a band in common."""
BANDS = 4
MAX_COLOUR = 4.0
"""Of 255. Copies of half the size or of JPEG quality 50 stay below it, different photos of one series above."""
POINTS = 8
DECODED_SIDE = 64
"""Pixels; a JPEG is decoded at the lowest resolution that keeps its shorter side above."""
AHEAD = 256


@dataclasses.dataclass(frozen=True)
class Fingerprints:
    """What N images look like.

    Attributes:
        digests: of each image's bytes; of images that cannot be read an empty one.
        hashes: uint64 array of shape (N,).
        colours: uint8 array of shape (N, 192).
        decoded: bool array of shape (N,), False for images that cannot be decoded; their rows are 0.
    """

    digests: list[bytes]
    hashes: np.ndarray
    colours: np.ndarray
    decoded: np.ndarray


def group_alike(folder: ImageFolder, on_images: Callable = lambda count: None) -> tuple[np.ndarray, np.ndarray]:
    """Number the groups of images that belong together.

    Args:
        folder: the listing of N images.
        on_images: called with how many more images were looked at, for progress.

    Returns:
        int array of shape (N,), the group of each image; int array of shape (M, 2), pairs that look the same.
    """
    # Imported here: SciPy takes a moment, and comes with MindSpore.
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    prints = take_fingerprints(folder, on_images)
    same = [*equal_pairs(prints.digests), *similar_pairs(prints)]
    pairs = np.array([*same, *equal_pairs(names_of(folder))], np.int64).reshape(-1, 2)
    graph = coo_matrix((np.ones(len(pairs), bool), pairs.T), (len(folder), len(folder)))
    return connected_components(graph, directed=False)[1], np.array(same, np.int64).reshape(-1, 2)


def take_fingerprints(folder: ImageFolder, on_images: Callable) -> Fingerprints:
    """Read every image and look at it, in threads."""

    reduce = functools.partial(choose_reduction, side=DECODED_SIDE)

    def look(index: int) -> tuple[bytes, np.ndarray | None, np.ndarray | None]:
        try:
            data = read_encoded(folder, index)
        except ImageError:
            return b"", None, None
        digest = hashlib.blake2b(data, digest_size=16).digest()
        try:
            return (digest, *describe_picture(decode(data, "", reduce)[1]))
        except ImageError:
            return digest, None, None

    prints = Fingerprints(
        [],
        np.zeros(len(folder), np.uint64),
        np.zeros((len(folder), 3 * POINTS**2), np.uint8),
        decoded=np.zeros(len(folder), bool),
    )
    for index, found in enumerate(map_in_order(look, range(len(folder)), count_cores(), AHEAD)):
        digest, brighter, colours = found
        prints.digests.append(digest)
        if brighter is not None:
            prints.hashes[index], prints.colours[index], prints.decoded[index] = brighter, colours, True
        on_images(1)
    return prints


def describe_picture(image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """A picture's difference hash, a uint64, and its colours at 8 x 8 points, uint8 of shape (192,)."""
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BILINEAR))
    brighter = np.packbits(grey[:, 1:] > grey[:, :-1]).view(np.uint64)[0]
    return brighter, np.asarray(image.resize((POINTS, POINTS), Image.Resampling.BOX)).reshape(-1)


def names_of(folder: ImageFolder) -> list[str]:
    """File names without suffix, in small letters; "" for those that so many images share that they say nothing."""
    names = [PurePath(path).stem.casefold() for path in folder.paths]
    unique, place, counts = np.unique(names, return_inverse=True, return_counts=True)
    most = max(10, 2 * len(folder.classes))
    return [str(unique[number]) if counts[number] <= most else "" for number in place]


def equal_pairs(values: list) -> Iterator[tuple[int, int]]:
    """(first, other) positions of values that are equal, and not empty."""
    first: dict = {}
    for index, value in enumerate(values):
        before = first.setdefault(value, index)
        if value and before != index:
            yield before, index


def similar_pairs(prints: Fingerprints) -> Iterator[tuple[int, int]]:
    """Pairs of positions whose fingerprints are near, some of them more than once."""
    usable = np.flatnonzero(prints.decoded)
    for band in range(BANDS):
        keys = (prints.hashes[usable] >> np.uint64(16 * band)) & np.uint64(0xFFFF)
        order = usable[np.argsort(keys, kind="stable")]
        bounds = np.flatnonzero(np.diff(np.sort(keys))) + 1
        for bucket in np.split(order, bounds):
            if len(bucket) > 1:
                yield from similar_pairs_within(prints, bucket)


def similar_pairs_within(prints: Fingerprints, bucket: np.ndarray) -> Iterator[tuple[int, int]]:
    """The near pairs among images with a band of their hash in common."""
    means = prints.colours[bucket].mean(axis=1)
    order = np.argsort(means)
    bucket, means = bucket[order], means[order]
    for distance in range(1, len(bucket)):
        # The mean colours of two images differ by no more than their colours do on average.
        near = np.flatnonzero(means[distance:] - means[:-distance] <= MAX_COLOUR)
        if not len(near):
            return
        left, right = bucket[near], bucket[near + distance]
        bits = (prints.hashes[left] ^ prints.hashes[right]).view(np.uint8).reshape(-1, 8)
        close = np.unpackbits(bits, axis=1).sum(axis=1) <= MAX_BITS
        left, right = left[close], right[close]
        difference = prints.colours[left].astype(np.int16) - prints.colours[right]
        close = np.abs(difference).mean(axis=1) <= MAX_COLOUR
        yield from zip(left[close].tolist(), right[close].tolist())
