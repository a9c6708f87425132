"""The report: its figures against scikit-learn, which images get pictures, its size, and full disks."""

import base64
import csv
import dataclasses
import io
import json
import os
import re

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics

from src.common.cli import RunError
from src.data.image_folder import read_image_folder
from src.data.listing import ImageFolder
from src.evaluation.grad_cam import Head
from src.evaluation.metrics import Score
from src.images.preprocess import Preprocess
from src.mistakes import pictures, report
from src.mistakes.outcomes import ROW, Outcomes
from src.mistakes.report import Report, Subject
from tests.support import hard_images as drawn

PREPROCESS = Preprocess.for_image_size(64)
SUBJECT = Subject("model.onnx", "a network", PREPROCESS, lambda: "no heat maps here")


def data_of(path):
    """The data of a page."""
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def write_images(root, classes, each=8):
    """A labelled folder of pictures that differ."""
    seed = 0
    for name in classes:
        os.makedirs(os.path.join(root, name))
        for number in range(each):
            seed += 1
            with open(os.path.join(root, name, f"{number:02}.jpg"), "wb") as file:
                file.write(drawn.encode(drawn.draw(80, 70, seed), "JPEG"))
    return read_image_folder(str(root))


def some_logits(labels, classes, seed=0, signal=1.5):
    logits = np.random.default_rng(seed).normal(0, 1, (len(labels), classes))
    logits[np.arange(len(labels)), labels] += signal
    return logits.astype(np.float32)


def write(path, folder, logits, subject=SUBJECT, unusable=None, counted=True):
    """Write a report on all images of a folder but those that are not usable."""
    unusable = unusable or {}
    made, score = Report(str(path), folder, 0.1), Score()
    usable = [index for index in range(len(folder)) if index not in unusable]
    for start in range(0, len(usable), 7):
        chosen = usable[start : start + 7]
        made.add(logits[chosen], folder.labels[chosen])
        score.add(logits[chosen], folder.labels[chosen], 0.1)
    score.add_wrong(len(unusable) if counted else 0)
    return made.write(score, subject, unusable, counted)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("report") / "data", "abcdefg")


@pytest.fixture(scope="module")
def page(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    line = write(path, folder, some_logits(folder.labels, 7))
    return path, data_of(path), line


class TestFigures:
    def test_they_are_scikit_learns(self, page, folder):
        data, logits = page[1], some_logits(folder.labels, 7)
        predictions = logits.argmax(axis=1)
        assert data["scores"]["top1"][0] == metrics.accuracy_score(folder.labels, predictions)
        top_5 = metrics.top_k_accuracy_score(folder.labels, logits, k=5)
        assert data["scores"]["top5"][0] == pytest.approx(top_5, rel=1e-12)
        balanced = metrics.balanced_accuracy_score(folder.labels, predictions)
        assert data["scores"]["balanced"][0] == pytest.approx(balanced, rel=1e-12)
        expected = np.array(metrics.precision_recall_fscore_support(folder.labels, predictions)[:3])
        np.testing.assert_allclose(np.array([row[4:7] for row in data["classes"]]).T, expected, rtol=1e-12)
        matrix = np.zeros((7, 7), int)
        for label, prediction, images in data["cells"]:
            matrix[label, prediction] = images
        assert (matrix == metrics.confusion_matrix(folder.labels, predictions)).all()
        assert data["labels"] == folder.labels.tolist() and data["predictions"] == predictions.tolist()
        assert data["paths"] == folder.paths

    def test_the_line_tells_of_the_calibration(self, page):
        path, data, line = page
        found = re.fullmatch(rf"report: {path}; expected calibration error (\S+), and (\S+) with .* (\S+)", line)
        assert [float(text) for text in found.groups()] == [
            round(data["calibration"][name], 4) for name in ("error", "errorAfter", "temperature")
        ]

    def test_unusable_images_count_as_wrong_where_asked(self, folder, tmp_path):
        logits, bad = some_logits(folder.labels, 7), {0: "a/00.jpg: it is broken", 9: "b/01.jpg: it is broken"}
        for counted in (True, False):
            write(tmp_path / "r.html", folder, logits, unusable=bad, counted=counted)
            data = data_of(tmp_path / "r.html")
            assert [row[1:3] for row in data["classes"][:3]] == [[8, 1], [8, 1], [8, 0]] if counted else [[7, 1]] * 2
            wrong = np.array([index in bad for index in range(56)])
            predictions = np.where(wrong, -1, logits.argmax(axis=1))
            chosen = wrong < 2 if counted else ~wrong
            recalls = [(predictions == k)[chosen & (folder.labels == k)].mean() for k in range(7)]
            assert data["scores"]["balanced"][0] == pytest.approx(np.mean(recalls))
            assert data["unusable"] == [["a/00.jpg", 0, bad[0]], ["b/01.jpg", 1, bad[9]]]
            assert len(data["paths"]) == 54 and "a/00.jpg" not in data["paths"]

    @pytest.mark.filterwarnings("error")
    def test_a_folder_of_nothing_but_unusable_images(self, folder, tmp_path):
        bad = {index: "broken" for index in range(len(folder))}
        write(tmp_path / "r.html", folder, some_logits(folder.labels, 7), unusable=bad)
        data = data_of(tmp_path / "r.html")
        assert data["scores"]["top1"][0] == 0 and data["paths"] == [] and len(data["unusable"]) == 56

    def test_names_of_imagenets_classes_are_told_in_words(self, tmp_path):
        folder = write_images(tmp_path / "data", ["n01440764", "n01443537"], 2)
        write(tmp_path / "r.html", folder, some_logits(folder.labels, 2))
        assert [row[0] for row in data_of(tmp_path / "r.html")["classes"]] == [
            "n01440764 tench",
            "n01443537 goldfish",
        ]

    def test_a_table_has_every_class(self, folder, tmp_path):
        assert write(tmp_path / "r.csv", folder, some_logits(folder.labels, 7)) == f"classes: {tmp_path}/r.csv"
        with open(tmp_path / "r.csv", newline="") as file:
            assert [row["class"] for row in csv.DictReader(file)] == list("abcdefg")


class TestPictures:
    def test_they_show_what_the_network_saw(self, page, folder):
        data = page[1]
        assert data["thumbnails"].keys() == {str(number) for number in range(56)}
        for number in (0, 55):
            with Image.open(io.BytesIO(base64.b64decode(data["thumbnails"][str(number)]))) as image:
                shown = np.asarray(image.convert("RGB")).astype(int)
            seen = pictures.read_pixels_seen(folder, number, PREPROCESS)
            assert shown.shape == (64, 64, 3) and np.abs(shown - seen).mean() < 12

    def test_the_most_important_images_come_first(self):
        table = np.zeros(9, ROW)
        table["label"] = [0, 0, 0, 0, 0, 1, 1, 1, 1]
        table["prediction"] = [0, 0, 1, 1, 2, 1, 0, 1, 0]
        table["confidence"] = [0.5, 0.9, 0.6, 0.8, 0.4, 0.3, 0.7, 0.35, 0.2]
        assert pictures.most_confident_mistakes(table).tolist() == [3, 6, 2, 4, 8]
        assert pictures.least_confident_hits(table).tolist() == [5, 7, 0, 1]
        # After the first one mistake of each kind, then a second of each, then the same of the hits.
        assert pictures.order_of_importance(table, [7]) == [7, 3, 4, 6, 2, 8, 1, 0, 5]

    def test_the_page_keeps_within_its_size(self, folder, tmp_path, monkeypatch):
        write(tmp_path / "all.html", folder, some_logits(folder.labels, 7))
        whole = os.path.getsize(tmp_path / "all.html")
        monkeypatch.setattr(report, "LARGEST_PAGE", 110_000)
        write(tmp_path / "some.html", folder, some_logits(folder.labels, 7))
        data = data_of(tmp_path / "some.html")
        assert 120_000 < whole and os.path.getsize(tmp_path / "some.html") < 110_000
        assert 5 < len(data["thumbnails"]) < 56 and len(data["paths"]) == 56
        wrong = {i for i in range(56) if data["labels"][i] != data["predictions"][i]}
        surest = max(wrong, key=lambda i: data["confidence"][i])
        assert str(surest) in data["thumbnails"]

    def test_long_listings_are_cut_and_still_counted(self, folder, tmp_path, monkeypatch):
        monkeypatch.setattr(report, "LARGEST_LISTING", 300)
        write(tmp_path / "r.html", folder, some_logits(folder.labels, 7))
        data = data_of(tmp_path / "r.html")
        assert 20 < len(data["paths"]) < 30 and sum(cell[2] for cell in data["cells"]) == data["images"] == 56
        # All mistakes are there.
        wrong = [i for i in range(len(data["paths"])) if data["labels"][i] != data["predictions"][i]]
        assert len(wrong) == sum(cell[2] for cell in data["cells"] if cell[0] != cell[1])

    def test_heat_maps_are_those_of_the_mistakes(self, folder, tmp_path):
        """The maps of this network are the image's own colours, of which each class has another."""
        weights = np.eye(7, 3, dtype=np.float32)
        head = Head(lambda crops: crops[:, ::16, ::16].transpose(0, 3, 1, 2).astype(np.float32), weights)
        subject = dataclasses.replace(SUBJECT, find_head=lambda: head)
        logits = some_logits(folder.labels, 7)
        write(tmp_path / "r.html", folder, logits, subject)
        data = data_of(tmp_path / "r.html")
        wrong = np.flatnonzero(logits.argmax(axis=1) != folder.labels)
        assert data["maps"].keys() == {str(number) for number in wrong}
        for number in wrong:
            height, width, *maps = data["maps"][str(number)]
            pixels = pictures.read_pixels_seen(folder, number, PREPROCESS)[::16, ::16].astype(float)
            for text, label in zip(maps, (logits[number].argmax(), folder.labels[number])):
                levels = np.frombuffer(base64.b64decode(text), np.uint8).reshape(height, width)
                plane = pixels[..., label] if label < 3 else np.zeros((4, 4))
                np.testing.assert_allclose(levels, plane * 255 / max(1, plane.max()), atol=0.51)

    def test_the_reason_for_no_heat_maps_is_told(self, page):
        assert page[1]["noMaps"] == "no heat maps here" and page[1]["maps"] == {}

    def test_copies_with_different_labels_come_first(self, folder, tmp_path):
        for path in folder.paths:
            os.makedirs(tmp_path / "data" / os.path.dirname(path), exist_ok=True)
            os.link(folder.full_path(folder.paths.index(path)), tmp_path / "data" / path)
        for source, target in (("a/00.jpg", "a/99.jpg"), ("b/03.jpg", "f/99.jpg")):
            os.link(tmp_path / "data" / source, tmp_path / "data" / target)
        copies = read_image_folder(str(tmp_path / "data"))
        write(tmp_path / "r.html", copies, some_logits(copies.labels, 7))
        data = data_of(tmp_path / "r.html")
        groups = [(same, [data["paths"][number] for number in numbers]) for same, numbers in data["groups"]]
        assert groups == [(True, ["b/03.jpg", "f/99.jpg"]), (True, ["a/00.jpg", "a/99.jpg"])]


class TestPlaces:
    @pytest.mark.parametrize("name", ["file/r.html", "folder.html"])
    def test_a_place_that_cannot_be_is_refused_at_once(self, folder, tmp_path, name):
        (tmp_path / "file").write_text("")
        (tmp_path / "folder.html").mkdir()
        with pytest.raises(RunError, match="director"):
            Report(str(tmp_path / name), folder, 0.1)

    @pytest.mark.parametrize("package", ["jinja2", "scipy"])
    def test_a_missing_package_is_said_at_once(self, folder, tmp_path, monkeypatch, package):
        monkeypatch.setitem(__import__("sys").modules, package, None)
        with pytest.raises(RunError, match=f"pip install {package}"):
            Report(str(tmp_path / "r.html"), folder, 0.1)
        Report(str(tmp_path / "r.csv"), folder, 0.1)

    def test_a_device_or_a_link_is_written_into(self, folder, tmp_path):
        (tmp_path / "link.csv").symlink_to("target.csv")
        (tmp_path / "null.csv").symlink_to("/dev/null")
        for name in ("link.csv", "null.csv"):
            write(tmp_path / name, folder, some_logits(folder.labels, 7))
            assert (tmp_path / name).is_symlink()
        assert (tmp_path / "target.csv").read_text().startswith("label,class,")
        assert (tmp_path / "null.csv").is_char_device()

    def test_a_missing_folder_is_made(self, folder, tmp_path):
        write(tmp_path / "new" / "r.html", folder, some_logits(folder.labels, 7))
        assert os.listdir(tmp_path / "new") == ["r.html"]

    def test_the_same_evaluation_gives_the_same_bytes(self, page, folder, tmp_path):
        write(tmp_path / "r.html", folder, some_logits(folder.labels, 7))
        assert (tmp_path / "r.html").read_bytes() == page[0].read_bytes()


@pytest.mark.slow
def test_50000_images_of_1000_classes_are_at_most_20_megabytes(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3)).astype(np.uint8)
    encoded = drawn.encode(Image.fromarray(noise), "JPEG")

    class Noise(ImageFolder):
        def read(self, index):
            return encoded

    labels = np.repeat(np.arange(1000, dtype=np.int32), 50)
    paths = [f"n{label:08}/ILSVRC2012_val_{index:08}.JPEG" for index, label in enumerate(labels)]
    folder = Noise(str(tmp_path), [f"n{label:08}" for label in range(1000)], paths, labels)
    monkeypatch.setattr(report, "find_duplicates", lambda *arguments: [])
    write(tmp_path / "r.html", folder, some_logits(labels, 1000, signal=3))
    data = data_of(tmp_path / "r.html")
    assert os.path.getsize(tmp_path / "r.html") <= 20_000_000
    assert len(data["paths"]) == 50_000 and len(data["thumbnails"]) > 500


def test_the_reliability_diagram_counts_what_was_right():
    """Three of four images right, all with a confidence of 1 / (1 + exp(-2)), 0.88."""
    outcomes = Outcomes(4, 2, 0.0)
    outcomes.add(np.array([[2, 0], [2, 0], [2, 0], [0, 2]], np.float32), np.zeros(4, np.int32))
    (found,) = [row for row in report.calibrate(outcomes)["bins"] if row[0]]
    assert found == pytest.approx([4, 1 / (1 + np.exp(-2)), 0.75])


@pytest.mark.filterwarnings("error")
def test_a_heat_map_is_scaled_to_its_largest_value():
    """Where nothing is seen it is black, and what is no number is 0."""
    for values, levels in (([[0, 1], [2, np.nan]], [0, 128, 255, 0]), ([[0, 0], [0, np.inf]], [0, 0, 0, 0])):
        assert list(base64.b64decode(pictures.encode_map(np.array(values, np.float32)))) == levels
