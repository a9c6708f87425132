"""The report on an evaluation: a page to look at (.html), or the accuracy of every class (.csv)."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Mapping
from typing import Callable

import numpy as np

from src.common.cli import printable, tell_each_minute
from src.common.machine import count_cores
from src.data.imagenet import names_in_words
from src.data.listing import ImageFolder
from src.evaluation.class_report import ClassTally, check_writable, write_report
from src.evaluation.grad_cam import Head
from src.evaluation.metrics import Score
from src.images.preprocess import Preprocess
from src.mistakes import measures
from src.mistakes.duplicates import Group, find_duplicates
from src.mistakes.outcomes import Outcomes
from src.mistakes.page import check_packages, encode, write_page
from src.mistakes.pictures import (
    MOST_MAPS,
    draw_maps,
    draw_thumbnails,
    least_confident_hits,
    most_confident_mistakes,
    order_of_importance,
)

PAGE, TABLE = ".html", ".csv"
LARGEST_PAGE = 20_000_000
"""Bytes; thumbnails take what the rest leaves, less ROOM_FOR_PARTS."""
ROOM_FOR_PARTS = 50_000
LARGEST_LISTING = 6_000_000
"""Bytes that the names of images may take; those of less importance are counted only."""
MOST_CELLS = 50_000
MOST_SHOWN = 200
"""Images of a list, or groups of images, that get thumbnails before all others."""
MOST_GROUPS = 500


def report_path(text: str) -> str:
    """Read the flag `--report`."""
    if os.path.splitext(text)[1].lower() not in (PAGE, TABLE):
        raise argparse.ArgumentTypeError(
            f"expected a file that ends in {PAGE}, for a page to look at, or in {TABLE}, for the accuracy of every "
            f"class, not '{text}'"
        )
    return text


def add_report_flag(parser) -> None:
    """Give a parser, or a group of one, the flag `--report`."""
    what = "write a page to look at the mistakes (FILE.html), or the accuracy of every class (FILE.csv)"
    parser.add_argument("--report", metavar="FILE", type=report_path, help=what)


@dataclasses.dataclass(frozen=True)
class Subject:
    """What was evaluated.

    Attributes:
        path: of the model's file.
        description: a line on it.
        preprocess: what it sees of an image.
        find_head: gives its end, for heat maps; or a sentence that says why there are none.
    """

    path: str
    description: str
    preprocess: Preprocess
    find_head: Callable[[], Head | str]


class Report:
    """Batches are added in the order of the images, then it is written.

    Args:
        path: of the file; its suffix, .html or .csv, decides what is written.
        folder: the images.
        smooth_factor: label smoothing of the loss.

    Attributes:
        is_page: whether it is a page.

    Raises:
        RunError: if it could not be written, or a page needs a package that is not installed.
    """

    def __init__(self, path: str, folder: ImageFolder, smooth_factor: float):
        check_writable(path)
        self.is_page = os.path.splitext(path)[1].lower() == PAGE
        if self.is_page:
            check_packages()
        self.path, self.folder = path, folder
        self.tally = ClassTally(len(folder.classes), False)
        self.outcomes = Outcomes(len(folder), len(folder.classes), smooth_factor) if self.is_page else None

    def add(self, logits: np.ndarray, labels: np.ndarray) -> None:
        """Add a batch of images that could be used: float32 logits of shape (N, C) and int labels of shape (N,)."""
        self.tally.add(logits, labels)
        if self.outcomes:
            self.outcomes.add(logits, labels)

    @tell_each_minute("report")
    def write(self, score: Score, subject: Subject, unusable: Mapping[int, str], counted: bool) -> str:
        """Write the file.

        Args:
            score: of all images.
            subject: what was evaluated.
            unusable: numbers of the images that could not be used, with the sentence on each; they were not added.
            counted: whether they count as wrong.

        Returns:
            str, a line on what was written.

        Raises:
            OSError: if the file cannot be written; then there is none, or the one that was there before.
        """
        for index in unusable:
            self.tally.add_unusable(self.folder.labels[index], counted)
        if not self.is_page:
            write_report(self.path, self.tally, self.folder.classes)
            return f"classes: {self.path}"
        usable = [index for index in range(len(self.folder)) if index not in unusable]
        data = collect_data(self, score, subject, usable)
        data["unusable"] = [
            [printable(self.folder.paths[index]), int(self.folder.labels[index]), printable(sentence)]
            for index, sentence in unusable.items()
        ][:MOST_GROUPS]
        add_pictures(data, self, subject, usable)
        write_page(self.path, f"{printable(os.path.basename(subject.path))}: {len(self.folder)} images", data)
        calibration = data["calibration"]
        return (
            f"report: {self.path}; expected calibration error {calibration['error']:.4f}, and "
            f"{calibration['errorAfter']:.4f} with the logits divided by the temperature "
            f"{calibration['temperature']:.4f}"
        )


def collect_data(report: Report, score: Score, subject: Subject, usable: list[int]) -> dict:
    """Everything on the page but the pictures and what could not be used.

    Images have their places in `usable` as numbers, and `data["listed"]` gives those whose names are told.
    """
    rows, tally, folder = report.outcomes.rows, report.tally, report.folder
    classes = len(folder.classes)
    predicted = np.bincount(rows["prediction"], minlength=classes)
    figures = measures.class_figures(tally.top_1, tally.images, predicted)
    low, high = measures.wilson_interval(tally.top_1, tally.images)
    groups = find_duplicates(folder, usable)
    groups.sort(key=lambda group: len({int(folder.labels[index]) for index in group.images}) < 2)
    places = {index: place for place, index in enumerate(usable)}
    mislabelled = measures.find_mislabelled(rows, classes)
    shown_groups = [[places[index] for index in group.images] for group in groups[:MOST_SHOWN]]
    first = [
        *most_confident_mistakes(rows)[:MOST_SHOWN],
        *least_confident_hits(rows)[:MOST_SHOWN],
        *mislabelled[:MOST_SHOWN],
        *(place for group in shown_groups for place in group[:10]),
    ]
    order = order_of_importance(rows, first)
    listed = choose_listed([folder.paths[usable[place]] for place in order], order)
    numbers = {place: number for number, place in enumerate(listed)}
    return {
        "model": printable(subject.path),
        "description": printable(subject.description),
        "folder": printable(folder.root),
        "images": len(folder),
        "smoothing": report.outcomes.smooth_factor,
        "scores": {
            "top1": score_with_interval(score.top_1, score.images),
            "top5": score_with_interval(score.top_5, score.images),
            "balanced": measures.balanced_accuracy(tally.top_1, tally.images),
            "loss": [value if np.isfinite(value) else None for value in measures.mean_interval(rows["loss"])],
        },
        "classes": [
            [printable(name), int(tally.images[k]), int(tally.unusable[k]), int(predicted[k]), *figures[k]]
            + [float(low[k]), float(high[k])]
            for k, name in enumerate(names_in_words(folder.classes))
        ],
        "cells": confusion_cells(rows),
        "calibration": calibrate(report.outcomes),
        "mislabelled": [numbers[place] for place in mislabelled.tolist() if place in numbers],
        "groups": describe_groups(groups, places, numbers),
        "listed": listed,
        "order": [numbers[place] for place in order[: len(listed)]],
    }


def score_with_interval(hits: int, images: int) -> list[float]:
    """[share, low, high], Wilson's interval of 95%."""
    low, high = measures.wilson_interval(hits, images)
    return [hits / max(1, images), float(low), float(high)]


def choose_listed(paths: list[str], order: list[int]) -> list[int]:
    """The places in `order` whose paths fit on the page, sorted."""
    ends = np.cumsum([len(encode(printable(path))) + 1 for path in paths])
    return sorted(order[: int(np.searchsorted(ends, LARGEST_LISTING, side="right"))])


def confusion_cells(rows: np.ndarray) -> list[list[int]]:
    """[label, prediction, images] of the cells of the confusion matrix that are not empty, the largest first."""
    pairs = np.stack([rows["label"], rows["prediction"]], axis=1)
    cells, counts = np.unique(pairs, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:MOST_CELLS]
    return [[*cells[i].tolist(), int(counts[i])] for i in order]


def describe_groups(groups: list[Group], places: dict[int, int], numbers: dict[int, int]) -> list[list]:
    """[whether the bytes are the same, numbers of the listed images of a group], for groups with two of them."""
    described = []
    for group in groups:
        shown = [numbers[places[index]] for index in group.images if places[index] in numbers]
        if len(shown) > 1:
            described.append([group.same_bytes, shown])
    return described[:MOST_GROUPS]


def calibrate(outcomes: Outcomes) -> dict:
    """The reliability diagram, and the temperature that would mend it."""
    rows = outcomes.rows
    bins = measures.reliability(rows["confidence"], rows["prediction"] == rows["label"])
    logits, labels = outcomes.kept_logits()
    temperature = measures.fit_temperature(logits, labels) if len(labels) else 1.0
    after = measures.reliability(measures.tempered_confidences(logits, temperature), logits.argmax(axis=1) == labels)
    return {
        "bins": bins.tolist(),
        "binsAfter": after.tolist(),
        "error": measures.calibration_error(bins),
        "errorAfter": measures.calibration_error(after),
        "temperature": temperature,
        "limit": not 1.01 * measures.COLDEST < temperature < 0.99 * measures.HOTTEST,
    }


def add_pictures(data: dict, report: Report, subject: Subject, usable: list[int]) -> None:
    """Add the listed images, heat maps, and the thumbnails for which there is space."""
    folder, listed, order = report.folder, data.pop("listed"), data.pop("order")
    rows = report.outcomes.rows[listed]
    images = [usable[place] for place in listed]
    data["paths"] = [printable(folder.paths[index]) for index in images]
    for name in ("label", "prediction"):
        data[name + "s"] = rows[name].tolist()
    for name in ("confidence", "own"):
        # In ten thousandths, which are shorter.
        data[name] = np.rint(rows[name] * 10_000).astype(int).tolist()
    head = subject.find_head()
    data["maps"], data["noMaps"] = {}, head if isinstance(head, str) else ""
    if isinstance(head, Head):
        chosen = most_confident_mistakes(rows)[:MOST_MAPS].tolist()
        classes = np.stack([rows["prediction"], rows["label"]], axis=1)[chosen]
        maps = draw_maps(folder, [images[number] for number in chosen], classes, subject.preprocess, head)
        data["maps"] = dict(zip(map(str, chosen), maps))
    space = LARGEST_PAGE - ROOM_FOR_PARTS - len(encode(data))
    drawn = draw_thumbnails(folder, [images[number] for number in order], subject.preprocess, space, count_cores())
    data["thumbnails"] = dict(zip(map(str, order), drawn))
