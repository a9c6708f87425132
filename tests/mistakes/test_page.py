"""The page in a real browser, opened from disk: no errors, sorting, filtering, cells, heat maps, and hostile names."""

import dataclasses
import os

import numpy as np
import pytest

from src.data.image_folder import read_image_folder
from src.evaluation.grad_cam import Head
from tests.mistakes.test_report import SUBJECT, some_logits, write, write_images
from tests.support.browser import open_browser

By = pytest.importorskip("selenium.webdriver.common.by").By

HACK = "document.hacked=1"
HOSTILE = [
    f"<script>{HACK}<\\script>",
    f'"><img src=x onerror={HACK}>',
    f"'{{{{ 7*7 }}}}{{% {HACK} %}}${{{HACK}}}",
    "\u202egnp.evil \u05e9\u05dc\u05d5\u05dd",
    "long" * 60,
    os.fsdecode(b"caf\xe9 \xff"),
    "line\nbreak\tand\x1b[2J",
    "\u4e2d\u6587\u7c7b\u522b &amp; <b>bold<!--",
]
# No folder can be called so, but a class of a list can.
CLOSING = f"</script><script>{HACK}</script>"
HEAD = Head(lambda crops: crops[:, ::16, ::16].transpose(0, 3, 1, 2).astype(np.float32), np.eye(7, 3, dtype=np.float32))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with three pages, `plain.html` of 7 classes, `hostile.html` and `many.html` of 40 classes."""
    root = tmp_path_factory.mktemp("pages")
    folder = write_images(root / "data", "abcdefg")
    (root / "data" / "b" / "99.jpg").write_bytes((root / "data" / "a" / "00.jpg").read_bytes())
    folder = read_image_folder(str(root / "data"))
    subject = dataclasses.replace(SUBJECT, find_head=lambda: HEAD)
    write(root / "plain.html", folder, some_logits(folder.labels, 7), subject, {3: "a/03.jpg: it is broken"})
    hostile = write_images(root / "hostile", ["!", *HOSTILE], 3)
    for name in HOSTILE:
        path = root / "hostile" / HOSTILE[0] / f"{name[:200]}.jpg"
        path.write_bytes((root / "data" / "c" / "00.jpg").read_bytes())
    hostile = read_image_folder(str(root / "hostile"))
    hostile = dataclasses.replace(hostile, classes=[CLOSING, *hostile.classes[1:]], root=f"{root}/hostile")
    subject = dataclasses.replace(SUBJECT, path=f"{HOSTILE[1]}/{CLOSING}", description=CLOSING)
    logits = some_logits(hostile.labels, 1 + len(HOSTILE), signal=0)
    write(root / "hostile.html", hostile, logits, subject, {1: f"{HOSTILE[0]}: {CLOSING}"})
    many = write_images(root / "many", [f"class {number:02}" for number in range(40)], 2)
    write(root / "many.html", many, some_logits(many.labels, 40))
    return root


@pytest.fixture(scope="module")
def browser():
    with open_browser() as opened:
        yield opened


@pytest.fixture
def open_page(browser, place):
    """Opens one of the pages; afterwards nothing may be in the console."""
    browser.get_log("browser")

    def go(name):
        browser.get((place / name).as_uri())
        return browser

    yield go
    assert browser.get_log("browser") == []


def texts(browser, selector):
    return [element.text for element in browser.find_elements(By.CSS_SELECTOR, selector)]


def click(browser, selector):
    element = browser.find_element(By.CSS_SELECTOR, selector)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    element.click()


def data(browser):
    return browser.execute_script("return data")


def shown_images(browser, selector):
    """Paths of the tiles within an element, in order."""
    numbers = browser.execute_script(
        "return [...document.querySelectorAll(arguments[0] + ' .tile')].map((tile) => +tile.dataset.image)", selector
    )
    paths = data(browser)["paths"]
    return [paths[number] for number in numbers]


def class_column(browser, column):
    return texts(browser, f"#classes tbody td:nth-child({column})")


class TestAPage:
    def test_shows_the_figures_with_their_intervals(self, open_page):
        browser = open_page("plain.html")
        scores = data(browser)["scores"]
        for name, title in (("top1", "top-1"), ("top5", "top-5"), ("balanced", "balanced accuracy")):
            value, low, high = (f"{100 * part:.2f}%" for part in scores[name])
            assert texts(browser, f"#score-{name}") == [f"{title}\n{value}\n{low} to {high}"]
        assert texts(browser, "#score-loss b") == [f"{scores['loss'][0]:.4f}"]
        assert texts(browser, "#score-temperature b") == [f"{data(browser)['calibration']['temperature']:.3f}"]
        assert browser.title == "model.onnx: 57 images"

    def test_fetches_nothing(self, open_page):
        browser = open_page("plain.html")
        names = browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
        assert [name for name in names if not name.startswith("data:")] == []

    def test_sorts_its_classes(self, open_page):
        browser = open_page("plain.html")
        assert class_column(browser, 1) == list("abcdefg")
        recalls = {row[0]: row[5] for row in data(browser)["classes"]}
        click(browser, "#classes th:nth-child(4) button")
        assert class_column(browser, 1) == sorted("abcdefg", key=lambda name: recalls[name])
        assert class_column(browser, 4) == [f"{100 * recall:.2f}%" for recall in sorted(recalls.values())]
        click(browser, "#classes th:nth-child(4) button")
        assert class_column(browser, 1) == sorted("abcdefg", key=lambda name: -recalls[name])
        heading = browser.find_element(By.CSS_SELECTOR, "#classes th:nth-child(4)")
        assert heading.get_attribute("aria-sort") == "descending"

    def test_filters_its_classes(self, open_page):
        browser = open_page("many.html")
        field = browser.find_element(By.CSS_SELECTOR, "#classes input")
        field.send_keys("SS 1")
        assert class_column(browser, 1) == [f"class 1{digit}" for digit in range(10)]
        assert "10 of 40 classes" in texts(browser, "#classes")[0]
        field.send_keys("x")
        assert class_column(browser, 1) == []

    def test_a_cell_shows_its_images(self, open_page):
        browser = open_page("plain.html")
        told = data(browser)
        for label, prediction, images in (told["cells"][0], told["cells"][-1]):
            click(browser, f".matrix tbody tr:nth-child({label + 1}) td:nth-of-type({prediction + 1}) button")
            fits = zip(told["paths"], told["labels"], told["predictions"])
            expected = [path for path, own, guess in fits if (own, guess) == (label, prediction)]
            assert sorted(shown_images(browser, "#cell")) == expected and len(expected) == images
            assert texts(browser, "#cell h3") == [f"{'abcdefg'[label]} → {'abcdefg'[prediction]}: {images} images"]

    def test_a_class_shows_its_mistakes(self, open_page):
        browser = open_page("plain.html")
        told = data(browser)
        click(browser, "#classes tbody tr:nth-child(3) button")
        fits = zip(told["paths"], told["labels"], told["predictions"])
        assert sorted(shown_images(browser, "#cell")) == [path for path, own, guess in fits if own == 2 != guess]

    def test_lists_mistakes_and_hits_by_confidence(self, open_page):
        browser = open_page("plain.html")
        told = data(browser)
        rows = sorted(zip(told["confidence"], told["paths"], told["labels"], told["predictions"]))
        wrong = [path for _, path, own, guess in reversed(rows) if own != guess]
        right = [path for _, path, own, guess in rows if own == guess]
        assert shown_images(browser, "#mistakes") == wrong[:24]
        assert shown_images(browser, "#hits") == right[:24] and len(right) > 24
        click(browser, "#hits .more")
        assert shown_images(browser, "#hits") == right[:48]
        loaded = "return [...document.images].every((image) => image.complete && image.naturalWidth === 64)"
        assert browser.execute_script(loaded)

    def test_heat_maps_lie_over_the_mistakes_until_they_are_switched_off(self, open_page):
        browser = open_page("plain.html")
        assert len(browser.find_elements(By.CSS_SELECTOR, "#mistakes canvas.heat")) > 5
        pixels = (
            "const c = document.querySelector('#mistakes canvas.heat');"
            "return [c.width, c.height, ...c.getContext('2d').getImageData(0, 0, 4, 4).data].map(Number)"
        )
        width, height, *values = browser.execute_script(pixels)
        assert (width, height) == (4, 4)
        predicted = data(browser)["predictions"][
            browser.execute_script("return +document.querySelector('#mistakes .tile').dataset.image")
        ]
        # Only the first three classes of this network look at anything.
        assert (max(values[3::4]) > 0) == (predicted < 3)
        browser.execute_script(
            "const choice = document.getElementById('maps'); choice.value = 'off'; choice.onchange()"
        )
        assert browser.find_elements(By.CSS_SELECTOR, "#mistakes canvas.heat") == []

    def test_a_picture_is_enlarged_with_both_heat_maps(self, open_page):
        browser = open_page("plain.html")
        click(browser, "#mistakes .tile button")
        assert len(browser.find_elements(By.CSS_SELECTOR, "dialog[open] img")) == 3
        assert len(browser.find_elements(By.CSS_SELECTOR, "dialog[open] canvas.heat")) == 2
        click(browser, "dialog > button")
        assert browser.find_elements(By.CSS_SELECTOR, "dialog[open]") == []

    def test_names_images_that_are_twice_there_or_could_not_be_used(self, open_page):
        browser = open_page("plain.html")
        assert shown_images(browser, "#twice") == ["a/00.jpg", "b/99.jpg"]
        assert "the same bytes, different labels" in texts(browser, "#twice")[0]
        assert texts(browser, "#unusable li") == ["a/03.jpg (a): a/03.jpg: it is broken"]

    def test_draws_the_reliability_diagram(self, open_page):
        browser = open_page("plain.html")
        bins = [row for row in data(browser)["calibration"]["bins"] if row[0]]
        told = browser.execute_script(
            "const titles = document.querySelectorAll('#calibration svg:first-of-type rect title');"
            "return [...titles].map((title) => title.textContent)"
        )
        assert told[: len(bins)] == [
            f"{count:.0f} images, probability {100 * confidence:.2f}%, right {100 * share:.2f}%"
            for count, confidence, share in bins
        ]

    def test_many_classes_are_a_map_that_can_be_clicked_and_zoomed(self, open_page):
        browser = open_page("many.html")
        told = data(browser)
        label, prediction, images = next(cell for cell in told["cells"] if cell[0] != cell[1])
        point = (
            "const box = document.querySelector('canvas.map').getBoundingClientRect(), side = box.width / 40;"
            "for (const type of ['pointerdown', 'pointerup']) document.querySelector('canvas.map').dispatchEvent("
            "new PointerEvent(type, {pointerId: 1, clientX: box.left + (arguments[1] + 0.5) * side * arguments[2],"
            "clientY: box.top + (arguments[0] + 0.5) * side * arguments[2]}))"
        )
        browser.execute_script("HTMLElement.prototype.setPointerCapture = () => {}")
        browser.execute_script(point, label, prediction, 1)
        assert texts(browser, "#cell h3") == [f"class {label:02} → class {prediction:02}: {images} images"]
        click(browser, ".tools button")
        assert browser.execute_script("return state.zoom.scale") == 2
        colours = (
            "const context = document.querySelector('canvas.map').getContext('2d');"
            "return new Set(context.getImageData(0, 0, 720, 720).data).size"
        )
        assert browser.execute_script(colours) > 3

    def test_largest_confusions_lead_to_their_images(self, open_page):
        browser = open_page("many.html")
        row = browser.find_element(By.CSS_SELECTOR, "#confusions tbody tr:nth-child(2)")
        label, prediction, images = (cell.text for cell in row.find_elements(By.CSS_SELECTOR, "td"))
        click(browser, "#confusions tbody tr:nth-child(2) button")
        assert texts(browser, "#cell h3") == [f"{label} → {prediction}: {images} images"]
        field = browser.find_element(By.CSS_SELECTOR, "#confusion input")
        field.send_keys("class 07")
        assert all("class 07" in row for row in texts(browser, "#confusions tbody tr"))


class TestTheReader:
    def test_changes_the_language(self, open_page):
        browser = open_page("plain.html")
        assert texts(browser, "#classes h2") == ["Classes"]
        click(browser, "#language")
        assert texts(browser, "#classes h2") == ["各类别"]
        assert browser.execute_script("return document.documentElement.lang") == "zh-CN"
        click(browser, "#language")
        assert texts(browser, "#classes h2") == ["Classes"]

    def test_of_chinese_finds_chinese(self, place):
        with open_browser("zh-CN") as browser:
            browser.get((place / "plain.html").as_uri())
            assert texts(browser, "#classes h2") == ["各类别"] and browser.get_log("browser") == []

    def test_of_either_language_is_told_the_same(self, open_page):
        browser = open_page("plain.html")
        english, chinese = browser.execute_script("return [TEXTS.en, TEXTS.zh]")
        assert english.keys() == chinese.keys()
        for key, text in english.items():
            for place in range(3):
                assert (f"{{{place}}}" in text) == (f"{{{place}}}" in chinese[key]), key

    def test_who_likes_it_dark_has_it_dark(self, open_page):
        browser = open_page("plain.html")
        back = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
        colours = {}
        for scheme in ("light", "dark"):
            feature = {"name": "prefers-color-scheme", "value": scheme}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
            colours[scheme] = browser.execute_script(back)
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        assert min(colours["light"]) > 200 and max(colours["dark"]) < 60


class TestHostileNames:
    def test_do_nothing_and_stand_there_as_text(self, open_page):
        browser = open_page("hostile.html")
        for label in range(1, 2 + len(HOSTILE)):
            click(browser, f"#classes tbody tr:nth-child({label}) button")
        click(browser, "#mistakes .tile button")
        click(browser, "dialog > button")
        click(browser, "#language")
        assert browser.execute_script("return document.hacked") is None
        counts = "return ['script', 'b', 'main img'].map((name) => document.querySelectorAll(name).length)"
        scripts, bold, _ = browser.execute_script(counts)
        assert scripts == 2 and bold == 6
        assert browser.execute_script(
            "return [...document.images].every((image) => image.src.startsWith('data:image/jpeg'))"
        )
        names = class_column(browser, 1)
        assert names[0] == CLOSING
        shown = set(names)
        assert {HOSTILE[0], HOSTILE[1], HOSTILE[2], HOSTILE[4], HOSTILE[7]} <= shown
        assert {r"caf\udce9 \udcff", r"line\nbreak\tand\x1b[2J", "\\u202egnp.evil \u05e9\u05dc\u05d5\u05dd"} <= shown

    def test_cannot_turn_the_writing_direction_of_what_follows(self, open_page):
        browser = open_page("hostile.html")
        outside = (
            "const names = data.classes.map((row) => row[0]).concat(data.paths), found = [];"
            "const walk = document.createTreeWalker(document.getElementById('page'), NodeFilter.SHOW_TEXT);"
            "while (walk.nextNode()) if (names.includes(walk.currentNode.data) && "
            "walk.currentNode.parentNode.tagName !== 'BDI') found.push(walk.currentNode.data);"
            "return found"
        )
        assert browser.execute_script(outside) == []

    def test_do_not_make_the_page_wider_than_the_window(self, open_page):
        browser = open_page("hostile.html")
        assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")

    def test_a_script_that_came_in_nevertheless_would_not_run(self, open_page, place):
        """The policy of the page lets no script run but its own, whose digest it names."""
        text = (place / "plain.html").read_text(encoding="utf-8")
        (place / "broken.html").write_text(text.replace("<main", f"<script>{HACK}</script><main"), encoding="utf-8")
        browser = open_page("broken.html")
        assert browser.execute_script("return document.hacked") is None
        assert [entry["source"] for entry in browser.get_log("browser")] == ["security"]
        assert texts(browser, "#classes h2") == ["Classes"]
