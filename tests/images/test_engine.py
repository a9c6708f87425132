"""The compiled image engine: it takes everyday JPEGs only and gives Pillow's bytes; random crops and colours."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from src.images import augment as augmenting
from src.images.augment import (
    AREA,
    ASPECT,
    ATTEMPTS,
    MIRROR,
    NUMBERS,
    PLACE,
    Augmentation,
    adjust_by_pillow,
    augment,
    augment_by_pillow,
    change_colours,
    choose_crop,
    choose_reduction,
    draw_numbers,
)
from src.images.bad_images import ImageError
from src.images.decode import decode, open_image
from src.images.engine import FILTERS, Request, describe_engine, find_engine
from src.images.preprocess import Preprocess, crop_encoded, crop_for_evaluation
from tests.support.hard_images import bad_images, draw, encode, without_segment

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
engine = find_engine()
needs_engine = pytest.mark.skipif(engine is None, reason=describe_engine())


@needs_engine
class TestWhatItTakes:
    @pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
    @pytest.mark.parametrize(("width", "height"), [(1, 1), (9, 17), (64, 48), (500, 375)])
    def test_everyday_jpegs(self, width, height, subsampling):
        data = encode(draw(width, height), "JPEG", subsampling=subsampling)
        assert engine.jpeg_size(data) == (width, height)

    def test_grey_restarts_comments_and_optimised_tables(self):
        image = draw(40, 30)
        assert engine.jpeg_size(encode(image.convert("L"), "JPEG")) == (40, 30)
        odd = encode(image, "JPEG", restart_marker_rows=1, comment=b"\xff\xd9", optimize=True)
        assert engine.jpeg_size(odd) == (40, 30)

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\xff\xd8\xff\xd9",
            encode(draw(40, 30), "PNG"),
            encode(draw(40, 30), "JPEG", progressive=True),
            encode(draw(40, 30, mode="CMYK"), "JPEG"),
            encode(draw(40, 30), "JPEG")[:-2],
            encode(draw(40, 30), "JPEG") + b"\0",
            encode(draw(40, 30), "JPEG") * 2,
            without_segment(encode(draw(40, 30), "JPEG"), 0xC0),
        ],
    )
    def test_everything_else_is_pillows(self, data):
        assert engine.jpeg_size(data) is None

    @pytest.mark.parametrize("factors", [0x41, 0x42, 0x24, 0x14])
    def test_colours_of_rare_fineness_are_pillows(self, factors):
        """libjpeg-turbo 2.1.5 decodes a part of a JPEG of 4x2 samples at half its size to other pixels."""
        data = bytearray(encode(draw(40, 30), "JPEG", subsampling="4:2:0"))
        frame = data.index(b"\xff\xc0")
        assert data[frame + 11] == 0x22
        data[frame + 11] = factors
        assert engine.jpeg_size(bytes(data)) is None

    @pytest.mark.parametrize(("name", "data"), [item for item in bad_images() if item[0].endswith(".jpg")])
    def test_nothing_of_a_broken_file(self, name, data):
        with pytest.raises(ImageError) as error:
            crop_encoded(data, name, Preprocess())
        assert str(error.value).startswith(name + ": ")

    def test_no_prefix_of_a_jpeg(self):
        data = encode(draw(24, 20), "JPEG")
        assert not any(engine.jpeg_size(data[:end]) or engine.jpeg_size(data[:end] + b"\xff\xd9") for end in range(600))

    def test_a_box_outside_the_image_is_refused(self):
        data, out = encode(draw(40, 30), "JPEG"), np.zeros((3, 8, 8), np.uint8)
        assert not engine.resize_jpeg(data, Request(1, 30, 0, 20, 10, 8, 8, 0, 0, 8, 0, 0), out)

    @pytest.mark.parametrize(
        "out",
        [np.zeros((3, 8, 8), np.float32), np.zeros((8, 8, 3), np.uint8), np.zeros((3, 8, 16), np.uint8)[..., ::2]],
    )
    def test_an_array_of_another_kind_is_refused(self, out):
        with pytest.raises(ValueError, match="three contiguous planes"):
            engine.resize_jpeg(encode(draw(40, 30), "JPEG"), Request(1, 0, 0, 40, 30, 8, 8, 0, 0, 8, 0, 0), out)


def jpegs(count, seed):
    """Random JPEGs: sizes, qualities, subsamplings, restarts, grey."""
    random = np.random.default_rng(seed)
    for turn in range(count):
        width, height = (int(2 ** random.uniform(0, 9)) for _ in "wh")
        image = draw(width, height, turn)
        options = {"quality": int(random.integers(20, 100)), "subsampling": turn % 3}
        if turn % 5 == 0:
            options["restart_marker_blocks"] = int(random.integers(1, 9))
        yield encode(image.convert("L") if turn % 7 == 0 else image, "JPEG", **options)


@needs_engine
class TestPillowsBytes:
    def test_of_the_evaluations_crop(self):
        for turn, data in enumerate(jpegs(120, 1)):
            preprocess = Preprocess(33, 33 + turn % 40, ("bicubic", "bilinear")[turn % 2])
            assert engine.jpeg_size(data)
            expected = crop_for_evaluation(open_image(data, "a"), preprocess)
            np.testing.assert_array_equal(crop_encoded(data, "a", preprocess), expected)

    @pytest.mark.parametrize("side", [7, 32])
    def test_of_any_crop_mirrored_or_not_at_any_reduction(self, side):
        augmentation, preprocess = Augmentation(), Preprocess(side, side)
        ours, theirs = np.empty((2, 3, side, side), np.uint8)
        factors = set()
        for data, numbers in zip(jpegs(150, 2), draw_numbers(150, 1, 0, 0, side)):
            augment(data, "a", numbers, augmentation, preprocess, ours)
            augment_by_pillow(data, "a", numbers, augmentation, preprocess, bool(numbers[MIRROR] < 0.5), theirs)
            np.testing.assert_array_equal(ours, theirs)
            crop = choose_crop(numbers, *engine.jpeg_size(data), augmentation)
            factors.add(choose_reduction(*crop[2:], side))
        assert factors == ({1, 2, 4, 8})

    @pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
    @pytest.mark.parametrize("reduce", [1, 2, 4])
    def test_of_every_window_of_a_subsampled_image(self, subsampling, reduce):
        """Borders of a part are where the decoder looks at neighbours that were not decoded."""
        data = encode(draw(203, 150), "JPEG", subsampling=subsampling, quality=60)
        pixels = np.asarray(decode(data, "a", lambda width, height: reduce)[1]).transpose(2, 0, 1)
        out = np.empty((3, 24, 24), np.uint8)
        for left in range(0, pixels.shape[2] - 23, 3):
            for top in range(0, pixels.shape[1] - 23, 5):
                assert engine.resize_jpeg(data, Request(reduce, left, top, 24, 24, 24, 24, 0, 0, 24, 0, 0), out)
                np.testing.assert_array_equal(out, pixels[:, top : top + 24, left : left + 24])

    def test_of_colours(self):
        random = np.random.default_rng(4)
        for _ in range(60):
            planes = np.ascontiguousarray(np.asarray(draw(31, 31, int(random.integers(99)))).transpose(2, 0, 1))
            order = random.permutation(3).astype(np.int32)
            factors = random.uniform(0, 2, 3).astype(np.float32)
            expected = adjust_by_pillow(planes, order, factors)
            engine.adjust_colours(planes, order, factors)
            np.testing.assert_array_equal(planes, expected)


class TestPeers:
    """torchvision's transforms with the same parameters."""

    def test_crops_and_mirrors_like_torchvision(self):
        from benchmarks.peers import torchvision

        functional = torchvision.transforms.functional
        image = draw(300, 200)
        data = encode(image, "JPEG", quality=90)
        out = np.empty((3, 110, 110), np.uint8)
        for left, top, width, height in [(0, 0, 300, 200), (17, 31, 120, 90), (100, 20, 110, 110), (5, 5, 30, 20)]:
            numbers = np.zeros(NUMBERS)
            numbers[MIRROR] = 0.1
            for augmented, box in self.fixed_crop(numbers, data, (left, top, width, height), out):
                assert box == (left, top, width, height)
                peer = functional.resized_crop(open_image(data, "a"), top, left, height, width, [110, 110])
                np.testing.assert_array_equal(augmented, np.asarray(functional.hflip(peer)).transpose(2, 0, 1))

    def fixed_crop(self, numbers, data, box, out):
        """Augment with a crop of our choice."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(augmenting, "choose_crop", lambda *_: box)
            augment(data, "a", numbers, Augmentation(), Preprocess(110, 110), out)
            yield out, augmenting.choose_crop()

    def test_changes_colours_like_torchvision(self):
        from benchmarks.peers import torchvision

        functional = torchvision.transforms.functional
        adjust = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)
        for numbers in draw_numbers(20, 7, 0, 0, 0):
            image = draw(40, 40, int(numbers[0] * 1000))
            planes = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
            change_colours(planes, numbers, Augmentation(color_jitter=0.4))
            order = augmenting.ORDERS[int(numbers[augmenting.ORDER] * 6)]
            for which in order:
                factor = np.float32(1 + 0.4 * (2 * numbers[augmenting.COLOURS][which] - 1))
                image = adjust[which](image, float(factor))
            np.testing.assert_array_equal(planes, np.asarray(image).transpose(2, 0, 1))

    def test_draws_crops_as_torchvision_does(self):
        """The same distribution: areas, aspects and centres of many crops of an image."""
        from benchmarks.peers import torch, torchvision

        image = Image.new("RGB", (500, 375))
        torch.manual_seed(1)
        drawn = [
            torchvision.transforms.RandomResizedCrop.get_params(image, (0.08, 1), (3 / 4, 4 / 3)) for _ in range(4000)
        ]
        theirs = np.array([(left, top, width, height) for top, left, height, width in drawn], float)
        ours = np.array([choose_crop(row, 500, 375, Augmentation()) for row in draw_numbers(4000, 1, 0, 0, 0)], float)
        for values in (theirs, ours):
            values[:, :2] += values[:, 2:] / 2
        np.testing.assert_allclose(ours.mean(axis=0), theirs.mean(axis=0), rtol=0.02)
        np.testing.assert_allclose(ours.std(axis=0), theirs.std(axis=0), rtol=0.05)


class TestCrop:
    def test_the_whole_image_where_asked(self):
        assert choose_crop(np.full(NUMBERS, 0.5), 70, 30, Augmentation(random_crop=False)) == (0, 0, 70, 30)

    def test_by_hand(self):
        numbers = np.zeros(NUMBERS)
        numbers[AREA], numbers[ASPECT] = 0.5, 0.5
        numbers[PLACE] = 0.25, 0.75
        # The share is 0.08 + 0.92 / 2 = 0.54, the aspect ratio 1: the side is the root of 0.54 * 500 * 375 = 101250.
        assert choose_crop(numbers, 500, 375, Augmentation()) == (45, 43, 318, 318)

    def test_an_attempt_that_does_not_fit_is_followed_by_the_next(self):
        numbers = np.zeros(NUMBERS)
        numbers[AREA] = 1.0
        numbers[AREA][3] = 0.0
        numbers[ASPECT] = 1.0
        left, top, width, height = choose_crop(numbers, 400, 100, Augmentation())
        assert (width, height) == (round((3200 * 4 / 3) ** 0.5), round((3200 * 3 / 4) ** 0.5)) and left == top == 0

    def test_the_middle_where_none_fits(self):
        numbers = np.concatenate([np.ones(2 * ATTEMPTS), np.zeros(NUMBERS - 2 * ATTEMPTS)])
        assert choose_crop(numbers, 400, 30, Augmentation()) == (180, 0, 40, 30)
        assert choose_crop(numbers, 30, 400, Augmentation()) == (0, 180, 30, 40)
        assert choose_crop(numbers, 400, 1, Augmentation()) == (199, 0, 1, 1)
        assert choose_crop(numbers, 1, 1, Augmentation()) == (0, 0, 1, 1)

    def test_reductions(self):
        assert [
            choose_reduction(w, h, 100) for w, h in [(199, 900), (200, 200), (399, 500), (400, 799), (800, 801)]
        ] == [*(1, 2, 2, 4, 8)]

    def test_numbers_depend_on_each_of_what_they_are_drawn_from(self):
        rows = [draw_numbers(4, *key) for key in [(1, 0, 0, 0), (2, 0, 0, 0), (1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 1)]]
        assert len({row.tobytes() for row in rows}) == 5
        np.testing.assert_array_equal(rows[0], draw_numbers(4, 1, 0, 0, 0))
        assert rows[0].min() >= 0 and rows[0].max() < 1


def damaged(count):
    """JPEGs with bytes changed or cut out, most of them in the headers."""
    random = np.random.default_rng(11)
    whole = [
        encode(draw(int(random.integers(1, 40)), int(random.integers(1, 40)), turn), "JPEG", subsampling=turn % 3)
        for turn in range(12)
    ]
    for turn in range(count):
        data = bytearray(whole[turn % 12])
        header = data.index(b"\xff\xda") + 14
        for _ in range(random.integers(1, 5)):
            start = [2, data.find(b"\xff\xc4"), data.find(b"\xff\xc0"), data.find(b"\xff\xda")][random.integers(4)]
            position = int(start + random.integers(24)) if turn % 2 else int(random.integers(2, header))
            if turn % 4 == 3:
                position = int(random.integers(header, len(data)))
            data[min(position, len(data) - 3)] = random.choice([0, 1, 0x11, 0x22, 255, random.integers(256)])
        if turn % 9 == 0:
            start = int(random.integers(2, len(data)))
            del data[start : start + int(random.integers(1, 40))]
        yield bytes(data)


FUZZ = """
import sys
import numpy as np
from src.images.bad_images import ImageError
from src.images.decode import open_image
from src.images.engine import find_engine
from src.images.preprocess import Preprocess, crop_encoded, crop_for_evaluation
from tests.images.test_engine import damaged

taken = 0
preprocess = Preprocess(8, 9)
for number, data in enumerate(damaged(int(sys.argv[1]))):
    results = []
    for crop in (crop_encoded, lambda *_: crop_for_evaluation(open_image(data, "a"), preprocess, "a")):
        try:
            results.append(crop(data, "a", preprocess).tobytes())
        except ImageError as error:
            results.append(str(error))
    assert results[0] == results[1], (number, results)
    taken += find_engine().jpeg_size(data) is not None
print(taken)
"""


@needs_engine
def test_damaged_files_are_taken_and_refused_as_by_pillow():
    command = [sys.executable, "-c", FUZZ, "6000"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr[-1000:]
    assert int(result.stdout) > 1000


BATCHES = """
import hashlib, sys
from src.data.batches import Loading
from src.data.training_batches import Sampling
from src.dataset import create_dataset
from src.images.augment import Augmentation
from src.images.preprocess import Preprocess

digest = hashlib.sha256()
for train in (True, False):
    for policy in ("none", "randaugment") if train else ("none",):
        loading = Loading(Preprocess(24, 28), num_workers=1)
        sampling = Sampling(augmentation=Augmentation(auto_augment=policy))
        dataset = create_dataset(sys.argv[1], train, 4, loading=loading, sampling=sampling)
        for images, labels in dataset.create_tuple_iterator(num_epochs=1, output_numpy=True):
            digest.update(images.tobytes() + labels.tobytes())
print(digest.hexdigest())
"""


@needs_engine
def test_without_the_engine_every_batch_is_the_same(tmp_path):
    (tmp_path / "a").mkdir()
    for number, data in enumerate(jpegs(12, 5)):
        (tmp_path / "a" / f"{number}.jpg").write_bytes(data)
    (tmp_path / "a" / "x.png").write_bytes(encode(draw(50, 40), "PNG"))
    outputs = {
        subprocess.run(
            [sys.executable, "-c", BATCHES, str(tmp_path)],
            env={**os.environ, "IMAGE_ENGINE": switch},
            capture_output=True,
            text=True,
            check=True,
            cwd=REPOSITORY,
        ).stdout
        for switch in ("", "pillow")
    }
    assert len(outputs) == 1 and len(outputs.pop()) == 65


def test_what_is_said_where_there_is_no_compiler(tmp_path):
    code = "from src.images.engine import describe_engine; print(describe_engine())"
    environment = {**os.environ, "PATH": str(tmp_path), "CC": "", "IMAGE_ENGINE": ""}
    run = {"capture_output": True, "text": True, "check": True, "cwd": REPOSITORY}
    said = subprocess.run([sys.executable, "-c", code], env=environment, **run).stdout
    assert said.startswith("decoded by Pillow, which takes longer for the same bytes (there is no C compiler;")
    said = subprocess.run([sys.executable, "-c", code], env={**os.environ, "IMAGE_ENGINE": "pillow"}, **run).stdout
    assert "(IMAGE_ENGINE is pillow;" in said


def test_filters_are_those_of_the_c_source():
    with open(os.path.join(REPOSITORY, "src", "images", "resample.h")) as file:
        source = file.read()
    for name, number in FILTERS.items():
        assert f"{name.upper()} = {number}" in source
