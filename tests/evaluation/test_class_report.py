"""The counts of every class and the picture of the confusion matrix, by hand."""

import os

import numpy as np
import pytest
from PIL import Image

from src.evaluation import class_report
from src.evaluation.class_report import ClassTally, draw_confusion, write_report


@pytest.fixture
def figure(monkeypatch):
    """The figure that is drawn next; its size in inches as the attribute `asked`."""
    figure = class_report.import_figure()()

    def create(figsize, layout):
        figure.asked = figsize
        return figure

    monkeypatch.setattr(class_report, "import_figure", lambda: create)
    return figure


def identity(classes):
    """One image of each class, all right."""
    tally = ClassTally(classes, confusion=True)
    tally.add(np.eye(classes), np.arange(classes))
    return tally


def test_counts_by_hand(tmp_path):
    tally = ClassTally(3, confusion=True)
    tally.add(np.array([[9.0, 1, 0], [0, 9, 1], [9, 1, 0]]), np.array([0, 0, 1]))
    tally.add(np.array([[0.0, 0, np.nan]]), np.array([1]))
    tally.add_unusable(1, counts=True)
    tally.add_unusable(0, counts=False)
    write_report(str(tmp_path / "r.csv"), tally, ["a,b", "c", "d"])
    assert (tmp_path / "r.csv").read_text().splitlines()[1:] == [
        '0,"a,b",2,1,1,2,0.5,1.0',
        "1,c,3,1,0,2,0.0,0.6666666666666666",
        "2,d,0,0,0,0,,",
    ]
    assert tally.confusion[:2, :2].tolist() == [[1, 1], [1, 0]]


def test_top_5_is_what_has_at_most_four_classes_before_it():
    tally = ClassTally(7, confusion=False)
    tally.add(np.tile(np.arange(7.0), (7, 1)), np.arange(7))
    assert tally.top_5.tolist() == [0, 0, 1, 1, 1, 1, 1] and tally.top_1.tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert tally.confusion is None


@pytest.mark.parametrize("classes", [1, 3, 25, 200])
def test_a_picture_for_any_number_of_classes(tmp_path, classes):
    draw_confusion(str(tmp_path / "c.png"), identity(classes), [f"${i}_{{$" for i in range(classes)])
    with Image.open(tmp_path / "c.png") as image:
        assert max(image.size) < 4000
    assert os.listdir(tmp_path) == ["c.png"]


def test_the_picture_says_which_axis_is_which(figure, tmp_path):
    """Rows are the true classes, as in scikit-learn's picture; colours are shares of a row."""
    tally = ClassTally(3, confusion=True)
    tally.add(np.array([[0.0, 1, 0], [0, 1, 0], [0, 1, 0], [1, 0, 0]]), np.array([0, 1, 1, 1]))
    draw_confusion(str(tmp_path / "a.png"), tally, ["cat", "dog", "owl"])
    panel = figure.axes[0]
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("predicted", "true")
    assert panel.images[0].get_array().tolist() == np.float32([[0, 1, 0], [1 / 3, 2 / 3, 0], [0, 0, 0]]).tolist()
    assert panel.images[0].get_clim() == (0, 1)
    cells = {text.get_position(): (text.get_text(), text.get_color()) for text in panel.texts}
    assert cells == {(1, 0): ("1", "white"), (0, 1): ("1", "black"), (1, 1): ("2", "white")}


@pytest.mark.parametrize(
    ("classes", "numbers", "names", "side"),
    [
        (3, True, True, 5.0),
        (20, True, True, 7.6),
        (21, False, True, 7.88),
        (60, False, True, 18.8),
        (61, False, False, 10),
    ],
)
def test_many_classes_leave_out_first_the_counts_and_then_the_names(figure, tmp_path, classes, numbers, names, side):
    draw_confusion(str(tmp_path / "a.png"), identity(classes), [f"class {i}" for i in range(classes)])
    panel = figure.axes[0]
    assert len(panel.texts) == (classes if numbers else 0)
    for labels in (panel.get_xticklabels(), panel.get_yticklabels()):
        assert ([label.get_text() for label in labels] == [f"class {i}" for i in range(classes)]) == names
    assert figure.asked == pytest.approx((side, side))
