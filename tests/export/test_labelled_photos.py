"""Photos as somebody has them on disk, as the benchmark on real photos takes them."""

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from benchmarks.labelled_photos import arrange_photos
from benchmarks.photo_programs import write_sums
from src.common.cli import RunError
from src.images.preprocess import Preprocess
from src.weights.model_info import ModelInfo

NAMES = ("n01440764_tench.JPEG", "holiday/n01443537/1.jpg", "n01443537_goldfish.png", "n01484850.jpg", "mine.jpg")


@pytest.fixture
def photos(tmp_path):
    """A tench, two goldfish, a white shark, and one that is none of ImageNet's: labels 0, 1, 1 and 2."""
    for name in (*NAMES, "n99999999_nothing.jpg"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    (tmp_path / "photos" / "README.md").write_text("n01440764")
    return tmp_path / "photos"


@pytest.mark.parametrize("labels, expected", [("all", [0, 1, 1, 2]), ("even", [0, 2]), ("odd", [1, 1])])
def test_photos_get_the_labels_of_imagenet(labels, expected, photos, tmp_path):
    folder = arrange_photos(str(photos), str(tmp_path / "sorted"), labels)
    assert len(folder.classes) == 1000 and folder.labels.tolist() == expected
    assert all(folder.read(index) for index in range(len(folder)))


def test_fewer_photos_are_spread_over_the_classes(photos, tmp_path):
    assert arrange_photos(str(photos), str(tmp_path / "sorted"), "all", most=2).labels.tolist() == [0, 2]


def test_a_folder_without_such_photos_is_refused(photos, tmp_path):
    for path in photos.glob("**/n0*"):
        path.rename(photos / f"x{path.name[1:]}")
    with pytest.raises(RunError, match="no photo in it is of a class of ImageNet whose label is all"):
        arrange_photos(str(photos), str(tmp_path / "sorted"), "all")


def test_the_file_of_sums_tells_images_of_other_bytes_apart(tmp_path):
    """12 bytes in 5 groups of 3: each byte times its place in the group, the last group filled up with zeros."""
    info = ModelInfo("lite0", 5, preprocess=Preprocess(image_size=2, resize=2))
    write_sums(str(tmp_path / "sums.onnx"), info)
    images = np.random.default_rng(0).integers(0, 256, (3, 2, 2, 3), np.uint8)
    images[1] = images[0]
    images[1, 1, 1, 2] ^= 1
    session = onnxruntime.InferenceSession(str(tmp_path / "sums.onnx"))
    (sums,) = session.run(None, {"image": images})
    for image, found in zip(images, sums):
        values = [*image.ravel().tolist(), 0, 0, 0]
        expected = [sum((k + 1) * values[3 * group + k] for k in range(3)) for group in range(5)]
        assert found.tolist() == expected
    assert (sums[0] != sums[1]).sum() == 1
