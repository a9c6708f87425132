"""The evaluation's preprocessing: senseless settings, files that are no images, Pillow's and torchvision's pixels."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from src.common.cli import RunError
from src.images.bad_images import ImageError
from src.images.decode import MAX_PIXELS, open_image
from src.images.preprocess import (
    Preprocess,
    crop_encoded,
    crop_for_evaluation,
    load_image,
    normalise,
    resized_size,
)
from tests.support.loading import read_image


def noise(width, height, mode="RGB", seed=0):
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (7, 9, 3)).astype(np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


class TestSettings:
    def test_defaults_are_those_of_b0(self):
        assert Preprocess().to_dict() == {
            "image_size": 224,
            "resize": 256,
            "interpolation": "bicubic",
            "mean": [127.5, 127.5, 127.5],
            "std": [127.5, 127.5, 127.5],
        }

    @pytest.mark.parametrize(("size", "resize"), [(224, 256), (64, 73), (240, 274), (300, 343), (380, 434), (600, 686)])
    def test_resize_follows_the_image_size(self, size, resize):
        assert Preprocess.for_image_size(size).resize == resize

    def test_a_crop_ratio_of_one_resizes_to_the_image_size(self):
        assert Preprocess.for_image_size(224, 1.0).resize == 224

    def test_settings_survive_json(self):
        settings = Preprocess(300, 331, "bilinear", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
        assert Preprocess.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings

    def test_lists_and_whole_numbers_become_tuples_of_floats(self):
        assert Preprocess(mean=[1, 2, 3]) == Preprocess(mean=(1.0, 2.0, 3.0))
        assert hash(Preprocess(mean=[1, 2, 3])) == hash(Preprocess(mean=(1.0, 2.0, 3.0)))

    @pytest.mark.parametrize(
        ("settings", "sentence"),
        [
            ({"image_size": 0}, "image_size is 0, not a whole number from 1"),
            ({"image_size": -5}, "image_size is -5"),
            ({"image_size": 224.0}, "image_size is 224.0"),
            ({"image_size": True}, "image_size is True"),
            ({"image_size": "224"}, "image_size is '224'"),
            ({"image_size": 10**9, "resize": 10**9}, "image_size is 1000000000"),
            ({"resize": 200}, "resize is 200, not a whole number from 224"),
            ({"resize": None}, "resize is None"),
            ({"interpolation": "cubic"}, "interpolation is 'cubic', not bicubic or bilinear"),
            ({"interpolation": ["bicubic"]}, "interpolation is"),
            ({"mean": (1.0, 2.0)}, "not three numbers"),
            ({"mean": 127.5}, "mean is 127.5, not three numbers"),
            ({"mean": "127"}, "mean is '127', not three numbers"),
            ({"mean": (float("nan"), 0.0, 0.0)}, "not three numbers"),
            ({"std": (float("inf"), 1.0, 1.0)}, "not three numbers"),
            ({"std": (1.0, 0.0, 1.0)}, "std is (1.0, 0.0, 1.0); it must be above 0"),
            ({"std": (1.0, -1.0, 1.0)}, "above 0"),
            ({"std": None}, "std is None"),
            ({"crop": 3}, "no setting 'crop'"),
        ],
    )
    def test_values_that_make_no_sense_are_refused(self, settings, sentence):
        with pytest.raises(RunError) as error:
            Preprocess.from_dict(settings)
        assert sentence in str(error.value)

    @pytest.mark.parametrize("settings", [None, [], "bicubic", 3])
    def test_settings_that_are_no_names_are_refused(self, settings):
        with pytest.raises(RunError, match="not names with values"):
            Preprocess.from_dict(settings)


class TestPixels:
    @pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
    @pytest.mark.parametrize(
        ("width", "height"),
        [(500, 375), (375, 500), (64, 64), (1, 1), (2, 300), (300, 2), (97, 31), (224, 224), (256, 341), (1000, 257)],
    )
    def test_the_crop_is_what_pillow_gives_step_by_step(self, width, height, interpolation):
        image = noise(width, height)
        preprocess = Preprocess(56, 64, interpolation)
        new_height, new_width = resized_size(height, width, 64)
        method = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[interpolation]
        resized = np.asarray(image.resize((new_width, new_height), method))
        top, left = (new_height - 56) // 2, (new_width - 56) // 2
        expected = resized[top : top + 56, left : left + 56]
        np.testing.assert_array_equal(crop_for_evaluation(image, preprocess), expected)
        np.testing.assert_array_equal(crop_for_evaluation(np.asarray(image), preprocess), expected)

    @pytest.mark.parametrize("kind", ["JPEG", "PNG"])
    @pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (97, 31), (64, 65), (65, 64)])
    def test_the_crop_of_a_file_is_what_pillow_gives_step_by_step(self, width, height, kind):
        """By the compiled engine, where there is one; with borders of an even and of an odd number of pixels."""
        data = encoded(noise(width, height), kind)
        for size in (56, 57):
            new_height, new_width = resized_size(height, width, 64)
            resized = np.asarray(Image.open(io.BytesIO(data)).resize((new_width, new_height), Image.Resampling.BICUBIC))
            top, left = (new_height - size) // 2, (new_width - size) // 2
            expected = resized[top : top + size, left : left + size]
            np.testing.assert_array_equal(crop_encoded(data, "a", Preprocess(size, 64)), expected)

    @pytest.mark.parametrize(("width", "height"), [(500, 375), (333, 500), (640, 480), (100, 80), (501, 377)])
    def test_the_crop_is_torchvisions(self, width, height):
        from benchmarks.peers import torchvision

        transforms = torchvision.transforms
        image = noise(width, height)
        resize = transforms.Resize(256, transforms.InterpolationMode.BICUBIC)
        resized = resize(image)
        assert (resized.height, resized.width) == resized_size(height, width, 256)
        # torchvision rounds half of an odd border to even, we round it down: compare an even number of columns.
        even = transforms.CenterCrop((256, 224 + resized.width % 2 if resized.width > 256 else 256))(resized)
        expected = np.asarray(even)[16:240]
        if resized.width <= resized.height:
            expected = np.asarray(transforms.CenterCrop((224 + resized.height % 2, 224))(resized))
        np.testing.assert_array_equal(crop_for_evaluation(image, Preprocess()), expected[:224, :224])

    def test_normalising_is_by_channel_in_float32(self):
        crop = np.arange(2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 3)
        preprocess = Preprocess(2, 2, mean=(1.0, 2.0, 3.0), std=(2.0, 4.0, 8.0))
        expected = np.array(
            [
                [[-0.5, 1.0], [2.5, 4.0]],
                [[-0.25, 0.5], [1.25, 2.0]],
                [[-0.125, 0.25], [0.625, 1.0]],
            ],
            np.float32,
        )
        result = normalise(crop, preprocess)
        assert result.dtype == np.float32 and result.flags.c_contiguous
        np.testing.assert_array_equal(result, expected)

    def test_default_normalising_maps_to_minus_one_and_one(self):
        crop = np.array([0, 255, 51], np.uint8).reshape(1, 1, 3)
        result = normalise(crop, Preprocess(1, 1))
        np.testing.assert_allclose(result.ravel(), [-1, 1, -0.6], atol=1e-7)

    def test_loading_a_file_gives_the_networks_input(self, tmp_path):
        noise(100, 80).save(tmp_path / "a.png")
        image = load_image(str(tmp_path / "a.png"), Preprocess(32, 36))
        assert image.shape == (3, 32, 32) and image.dtype == np.float32


class TestModes:
    """Every mode becomes RGB as Pillow's `convert` does it."""

    def test_greyscale_is_repeated(self, tmp_path):
        noise(20, 10, "L").save(tmp_path / "a.png")
        image = read_image(str(tmp_path / "a.png"))
        assert image.shape == (10, 20, 3)
        assert (image[..., 0] == image[..., 1]).all() and (image[..., 0] == image[..., 2]).all()

    def test_alpha_is_dropped(self):
        image = noise(20, 10)
        image.putalpha(0)
        np.testing.assert_array_equal(np.asarray(open_image(encoded(image), "a")), np.asarray(noise(20, 10)))

    def test_sixteen_bits_are_scaled_to_eight(self):
        ramp = np.linspace(0, 65535, 200).astype(np.uint16).reshape(10, 20)
        result = np.asarray(open_image(encoded(Image.fromarray(ramp)), "a"))[..., 0]
        np.testing.assert_array_equal(result, ramp // 256)

    def test_beyond_sixteen_bits_is_white_and_below_0_black(self):
        values = np.array([[70_000, 65_535], [-70_000, 256]], np.int32)
        result = np.asarray(open_image(encoded(Image.fromarray(values), "TIFF"), "a"))[..., 0]
        np.testing.assert_array_equal(result, [[255, 255], [0, 1]])

    def test_the_exif_orientation_is_ignored(self):
        image = noise(20, 10)
        exif = Image.Exif()
        exif[0x0112] = 6
        assert open_image(encoded(image, "JPEG", exif=exif), "a").size == (20, 10)


class TestBadFiles:
    def check(self, data, words, tmp_path):
        path = tmp_path / "broken.jpg"
        path.write_bytes(data)
        with pytest.raises(ImageError) as error:
            load_image(str(path), Preprocess(32, 32))
        assert str(path) in str(error.value) and words in str(error.value)
        assert "\n" not in str(error.value)

    def test_an_empty_file(self, tmp_path):
        self.check(b"", "is empty", tmp_path)

    def test_a_text(self, tmp_path):
        self.check(b"hello, I am a text\n" * 50, "not an image that can be decoded", tmp_path)

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF"])
    def test_a_truncated_image(self, tmp_path, kind):
        data = encoded(noise(200, 100), kind)
        self.check(data[: len(data) // 2], "not an image that can be decoded", tmp_path)

    def test_a_jpeg_without_its_last_quarter(self, tmp_path):
        data = encoded(noise(400, 300), "JPEG")
        self.check(data[: len(data) * 3 // 4], "truncated", tmp_path)

    def test_a_file_that_is_missing(self, tmp_path):
        with pytest.raises(ImageError, match="there is no such file"):
            load_image(str(tmp_path / "missing.jpg"), Preprocess(32, 32))

    def test_a_folder(self, tmp_path):
        with pytest.raises(ImageError, match="it is a directory"):
            load_image(str(tmp_path), Preprocess(32, 32))

    def test_a_decompression_bomb_is_refused_before_it_is_decoded(self, tmp_path):
        # 20,000 x 20,000 pixels of one colour: some hundred kilobytes as a file, 1.2 GB as pixels.
        data = encoded(Image.new("1", (20000, 20000)), "PNG")
        assert len(data) < 200_000 and 20000 * 20000 > MAX_PIXELS
        self.check(data, "it has 400000000 pixels; the limit is 100000000", tmp_path)
        self.check(encoded(Image.new("1", (12000, 10000))), "12000 x 10000 pixels", tmp_path)

    def test_a_sliver_that_would_become_huge_is_refused(self, tmp_path):
        self.check(encoded(Image.new("L", (1, 5000))), "too elongated", tmp_path)

    def test_random_damage_gives_an_image_or_a_sentence(self):
        random = np.random.default_rng(5)
        originals = [encoded(noise(60, 40), kind) for kind in ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF")]
        refused = 0
        for turn in range(300):
            data = bytearray(originals[turn % len(originals)])
            for position in random.integers(0, len(data), 1 + turn % 7):
                data[position] = random.integers(256)
            try:
                assert open_image(bytes(data), "a.jpg").mode == "RGB"
            except ImageError as error:
                refused += 1
                assert str(error).startswith("a.jpg: ")
        assert refused > 30


def test_neither_mindspore_nor_pytorch_is_imported():
    code = (
        "import sys, src.images.preprocess, src.data.image_folder; "
        "print([m for m in ('mindspore', 'torch') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
