"""The result files of ascend310_infer: what each is called and what it holds. The C++ program follows the same rule.

An image `[class]/[stem].jpg` has its logits in `[class]/[stem]_0.bin`, float32 in little-endian order and nothing else.
Images of one folder that differ in the suffix alone keep it (`a.jpg` and `a.png` give `a.jpg_0.bin` and `a.png_0.bin`),
so that no result overwrites another.
"""

from __future__ import annotations

import collections
import json
import os
from collections.abc import Sequence

import numpy as np

from src.common.cli import RunError, describe_os_error

ENDING = "_0.bin"


def result_names(paths: Sequence[str]) -> list[str]:
    """Name the result file of each image.

    Args:
        paths: all images of a labelled folder relative to its root, with "/" between folders, each once.

    Returns:
        list of str relative to the results' folder, in the order of `paths`, all different.
    """
    stems = [os.path.splitext(path)[0] for path in paths]
    while True:
        count = collections.Counter(stems)
        if len(count) == len(stems):
            return [stem + ENDING for stem in stems]
        # A kept suffix may meet another file's stem (a.jpg beside a.jpg.png): that one then keeps its own, too.
        stems = [stem if count[stem] == 1 else path for stem, path in zip(stems, paths)]


def read_labels(path: str) -> dict[str, int]:
    """Read a label file: JSON, {"[class]/[file]": label, ...} by path below the root.

    Raises:
        RunError: if it is missing, no such JSON, or empty.
    """
    try:
        with open(path, encoding="utf-8") as file:
            labels = json.load(file)
    except OSError as error:
        raise RunError(describe_os_error(error)) from None
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: it is not JSON ({error})") from None
    if not isinstance(labels, dict) or not labels:
        raise RunError(
            f"{path}: expected an object with a label for each image, as create_imagenet2012_label.py writes"
        )
    for name, label in labels.items():
        if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < 2**31:
            raise RunError(f"{path}: the label of '{name}' is {json.dumps(label)}, not a whole number of at least 0")
    return labels


def list_results(root: str) -> set[str]:
    """All files below a folder, hidden ones left out (what a killed run was writing), relative to it with "/".

    Raises:
        RunError: if the folder is missing or unreadable.
    """

    def refuse(error: OSError):
        raise RunError(describe_os_error(error))

    if not os.path.isdir(root):
        raise RunError(f"{root}: there is no such folder of result files")
    found = set()
    for folder, folders, names in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = os.path.relpath(folder, root).replace(os.sep, "/")
        found.update(name if below == "." else f"{below}/{name}" for name in names if not name.startswith("."))
    return found


def read_result(path: str) -> np.ndarray:
    """Read one image's logits: float32 array of shape (classes,).

    Raises:
        RunError: if the file is unreadable, empty, or holds no whole number of float32.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise RunError(describe_os_error(error)) from None
    if not data or len(data) % 4:
        raise RunError(f"{path}: it has {len(data)} bytes, which is no row of float32 logits")
    return np.frombuffer(data, "<f4")
