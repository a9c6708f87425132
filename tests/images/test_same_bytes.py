"""One preprocessing: the pipelines, the compiled engine, Pillow and MindSpore's operations, on hard images."""

import io
import os

import mindspore.dataset as ds
import numpy as np
import pytest
from mindspore.dataset import vision
from PIL import Image

from src.data.batches import Loading
from src.data.image_folder import read_image_folder
from src.dataset import create_dataset
from src.images.augment import Augmentation, augment, draw_numbers
from src.images.bad_images import BadImages, ImageError
from src.images.engine import describe_engine, find_engine
from src.images.preprocess import Preprocess, load_image, resized_size
from tests.support.hard_images import bad_images, write_images
from tests.support.loading import read_image

BY_PILLOW = {
    *("jpeg_odd/progressive", "jpeg_odd/progressive_grey", "jpeg_odd/cmyk", "jpeg_odd/cmyk_adobe_inverted"),
    *("jpeg_odd/ycck", "jpeg_odd/trailing", "jpeg_odd/rgb_inside", "large/progressive", "large/rgb"),
}
"""Kinds of images that the engine leaves to Pillow, beside all PNGs and other formats."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("hard")
    assert write_images(str(root)) > 300
    return read_image_folder(str(root))


def kind_of(path):
    """Such as jpeg/420 of .../jpeg/420_500x375.jpg."""
    return "/".join(os.path.splitext(path)[0].rsplit("_", 1)[0].split("/")[-2:])


def by_hand(path, preprocess):
    """The crop as Pillow gives it step by step, written apart from `src/images/preprocess.py`."""
    image = Image.open(path)
    if image.mode == "I;16":
        image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
    image = image.convert("RGB")
    height, width = resized_size(image.height, image.width, preprocess.resize)
    method = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[preprocess.interpolation]
    top, left = (height - preprocess.image_size) // 2, (width - preprocess.image_size) // 2
    pixels = np.asarray(image.resize((width, height), method))
    return pixels[top : top + preprocess.image_size, left : left + preprocess.image_size]


@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess.for_image_size(64),
        Preprocess(33, 40, "bilinear", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    ],
)
def test_evaluation_pixels_and_floats(folder, preprocess):
    floats = create_dataset(folder, False, 1, loading=Loading(preprocess))
    pixels = create_dataset(folder, False, 1, loading=Loading(preprocess, normalised=False))
    rows = zip(*(dataset.create_tuple_iterator(num_epochs=1, output_numpy=True) for dataset in (floats, pixels)))
    count = 0
    for index, ((image, label), (crop, _)) in enumerate(rows):
        path = folder.full_path(index)
        assert label[0] == folder.labels[index]
        np.testing.assert_array_equal(crop[0].transpose(1, 2, 0), by_hand(path, preprocess), path)
        np.testing.assert_array_equal(image[0], load_image(path, preprocess), path)
        expected = (crop[0].transpose(1, 2, 0).astype(np.float64) - preprocess.mean) / preprocess.std
        np.testing.assert_allclose(image[0], expected.transpose(2, 0, 1), rtol=0, atol=1e-6)
        count += 1
    assert count == len(folder) > 300


def test_evaluation_at_full_size(folder):
    preprocess = Preprocess()
    every_fifth = range(0, len(folder), 5)
    dataset = create_dataset(folder, False, 1, device_num=5, loading=Loading(preprocess, normalised=False))
    for index, (crop, _) in zip(every_fifth, dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)):
        path = folder.full_path(index)
        np.testing.assert_array_equal(crop[0].transpose(1, 2, 0), by_hand(path, preprocess), path)


@pytest.mark.skipif(find_engine() is None, reason=describe_engine())
def test_which_files_the_engine_leaves_to_pillow(folder):
    left = {kind_of(path) for index, path in enumerate(folder.paths) if not find_engine().jpeg_size(folder.read(index))}
    assert {kind for kind in left if not kind.startswith(("png/", "other/"))} == BY_PILLOW
    assert not any(kind.startswith("jpeg/") for kind in left)


def test_training_without_augmentation_sees_pillows_pixels(folder):
    augmentation, preprocess = Augmentation(random_crop=False, flip=False, color_jitter=0), Preprocess(20, 20)
    numbers, out = draw_numbers(1, 1, 0, 0, 0)[0], np.empty((3, 20, 20), np.uint8)
    for index, path in enumerate(folder.paths):
        image = Image.fromarray(read_image(folder.full_path(index)))
        if min(image.size) >= 40:
            continue  # decoded smaller, see tests/images/test_engine.py
        augment(folder.read(index), path, numbers, augmentation, preprocess, out)
        rows = image.resize((20, image.height), Image.Resampling.BILINEAR)
        expected = np.asarray(rows.resize((20, 20), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(out.transpose(1, 2, 0), expected, path)


def for_mindspore(data, path):
    """The file itself where MindSpore decodes it as Pillow does (others crash it), else an uncompressed bitmap."""
    if kind_of(path).startswith("jpeg/"):
        return data
    buffer = io.BytesIO()
    Image.fromarray(read_image(path)).save(buffer, "BMP")
    return buffer.getvalue()


def test_mindspores_own_evaluation_operations_agree(folder):
    """Decode, Resize(PILCUBIC), CenterCrop, Normalize: of the file itself where MindSpore may decode it."""
    preprocess = Preprocess(56, 64)

    def encoded():
        for index in range(len(folder)):
            data = for_mindspore(folder.read(index), folder.full_path(index))
            yield (np.frombuffer(data, np.uint8),)

    operations = [
        vision.Decode(),
        vision.Resize(preprocess.resize, vision.Inter.PILCUBIC),
        vision.CenterCrop(preprocess.image_size),
        vision.Normalize(list(preprocess.mean), list(preprocess.std)),
        vision.HWC2CHW(),
    ]
    theirs = ds.GeneratorDataset(encoded, ["image"], shuffle=False).map(operations, "image")
    for index, (image,) in enumerate(theirs.create_tuple_iterator(num_epochs=1, output_numpy=True)):
        path = folder.full_path(index)
        np.testing.assert_array_equal(image, load_image(path, preprocess), path)
    assert index == len(folder) - 1


def test_training_takes_every_image(folder, capsys):
    bad = BadImages(len(folder), 0.0)
    dataset = create_dataset(folder, True, 10, loading=Loading(Preprocess.for_image_size(32), bad=bad))
    with bad.as_sentence():
        count = sum(len(labels) for _, labels in dataset.create_tuple_iterator(num_epochs=1, output_numpy=True))
    assert count == len(folder) // 10 * 10 and len(bad) == 0
    assert "warning" not in capsys.readouterr().err


class TestRefusedAlike:
    @pytest.mark.parametrize(("name", "data"), list(bad_images()))
    def test_by_both(self, tmp_path, name, data):
        path = str(tmp_path / os.path.basename(name))
        with open(path, "wb") as file:
            file.write(data)
        with pytest.raises(ImageError) as error:
            load_image(path, Preprocess())
        numbers, out = draw_numbers(1, 1, 0, 0, 0)[0], np.empty((3, 224, 224), np.uint8)
        with pytest.raises(ImageError) as in_training:
            augment(data, path, numbers, Augmentation(), Preprocess(), out)
        for sentence in map(str, (error.value, in_training.value)):
            assert sentence.startswith(path + ": ") and "\n" not in sentence and " at 0x" not in sentence
