"""Images that are twice in a folder: the same bytes, or nearly the same picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from src.data.listing import ImageFolder
from src.preparation.alike import equal_pairs, similar_pairs, take_fingerprints


@dataclasses.dataclass(frozen=True)
class Group:
    """Images that show the same.

    Attributes:
        images: their numbers, at least two, sorted.
        same_bytes: whether their files are equal; else their pictures are nearly so.
    """

    images: tuple[int, ...]
    same_bytes: bool


def find_duplicates(folder: ImageFolder, images: Sequence[int]) -> list[Group]:
    """Groups of images that are the same, as `src/preparation/alike.py` defines it, in the order of their first images.

    Args:
        folder: the listing.
        images: the numbers of those that can be decoded.
    """
    # Imported here: SciPy takes a moment.
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    prints = take_fingerprints(folder, lambda count: None)
    pairs = np.array([*equal_pairs(prints.digests), *similar_pairs(prints)], np.int64).reshape(-1, 2)
    usable = np.isin(np.arange(len(folder)), images)
    pairs = pairs[usable[pairs].all(axis=1)]
    graph = coo_matrix((np.ones(len(pairs), bool), pairs.T), (len(folder), len(folder)))
    numbers = connected_components(graph, directed=False)[1]
    groups: dict[int, list[int]] = {}
    for index in np.unique(pairs).tolist():
        groups.setdefault(int(numbers[index]), []).append(index)
    return [Group(tuple(members), len({prints.digests[i] for i in members}) == 1) for members in groups.values()]
