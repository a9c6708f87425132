"""Compare the result files of ascend310_infer with the labels: accuracy, top-5, missing and surplus files by name."""

from __future__ import annotations

from src.common.interrupt import listen

if __name__ == "__main__":
    listen()

import os
import sys
from collections.abc import Sequence

import numpy as np

from src.common.cli import ArgumentParser, RunError, printable, run_cli
from src.evaluation.metrics import top_k_hits
from src.inference.result_files import list_results, read_labels, read_result, result_names


def main(argv=None) -> None:
    """Match results with labels, name what does not match, count the hits."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--result_path", required=True, help="folder with [path below the root]_0.bin, float32 logits")
    parser.add_argument("--label_path", required=True, help="what create_imagenet2012_label.py wrote")
    arguments = parser.parse_args(argv)

    labels = read_labels(arguments.label_path)
    expected = dict(zip(result_names(list(labels)), labels.values()))
    found = list_results(arguments.result_path)
    missing = sorted(expected.keys() - found)
    surplus = sorted(found - expected.keys())
    print_names("missing", missing)
    print_names("surplus", surplus)
    if len(missing) == len(expected):
        raise RunError(f"{arguments.result_path}: none of the {len(expected)} labelled images has a result")

    names = sorted(expected.keys() & found)
    top_1, top_5 = count_hits(arguments.result_path, names, [expected[name] for name in names])
    # An image without a result counts as wrong: leaving it out would make the figure better than the run was.
    print(f"accuracy:{top_1 / len(expected):.3f}")
    print(f"top-5 accuracy:{top_5 / len(expected):.3f}")
    print(f"top-1 {top_1} and top-5 {top_5} of {len(expected)} images", flush=True)
    if missing or surplus:
        raise RunError(
            f"{arguments.result_path}: {len(missing)} result files are missing (counted as wrong) and {len(surplus)} "
            "surplus (not counted), named above"
        )


def print_names(what: str, names: Sequence[str]) -> None:
    """Name files on standard error, one a line."""
    for name in names:
        print(f"{what}: {printable(name)}", file=sys.stderr)


def count_hits(root: str, names: Sequence[str], labels: Sequence[int]) -> tuple[int, int]:
    """Count the results whose label is the largest logit, and among the five largest (or all, if there are fewer).

    Raises:
        RunError: if a file is broken, has another length than the first, or its label is beyond its logits.
    """
    top_1 = top_5 = classes = 0
    for name, label in zip(names, labels):
        path = os.path.join(root, name)
        logits = read_result(path)
        classes = classes or len(logits)
        if len(logits) != classes:
            raise RunError(f"{path}: it has {len(logits)} logits, but {os.path.join(root, names[0])} has {classes}")
        if label >= classes:
            raise RunError(f"{path}: it has {classes} logits, but its label is {label}; another model's results?")
        row, column = logits[None], np.array([label])
        top_1 += top_k_hits(row, column, 1)
        top_5 += top_k_hits(row, column, min(5, classes))
    return top_1, top_5


if __name__ == "__main__":
    sys.exit(run_cli(main))
