"""Images that are twice there are found, and others are not taken for them."""

import io

import pytest
from PIL import Image

from src.data.image_folder import read_image_folder
from src.mistakes.duplicates import find_duplicates
from tests.support import hard_images as drawn

SCENES = 40


def scene(seed, size=(300, 220)):
    """A picture with large shapes, as photos have."""
    return drawn.draw(12, 9, seed).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    """Pictures that all differ, in two classes; returns a function that adds a file and one that lists the groups."""
    for seed in range(SCENES):
        path = tmp_path / str(seed % 2) / f"{seed:02}.jpg"
        path.parent.mkdir(exist_ok=True)
        scene(seed).save(path, quality=92)

    def groups():
        listing = read_image_folder(str(tmp_path))
        found = find_duplicates(listing, range(len(listing)))
        return [([listing.paths[index] for index in group.images], group.same_bytes) for group in found]

    return tmp_path, groups


def test_pictures_that_differ_are_not_grouped(folder):
    assert folder[1]() == []


def test_the_same_bytes_are_found_across_classes(folder):
    root, groups = folder
    (root / "1" / "copy.jpg").write_bytes((root / "0" / "04.jpg").read_bytes())
    assert groups() == [(["0/04.jpg", "1/copy.jpg"], True)]


@pytest.mark.parametrize("change", ["quality", "half", "png"])
def test_nearly_the_same_picture_is_found(folder, change):
    root, groups = folder
    picture, name = scene(6), "again.jpg"
    if change == "half":
        picture = picture.resize((150, 110), Image.Resampling.LANCZOS)
    elif change == "png":
        name = "again.png"
    file = io.BytesIO()
    picture.save(file, "PNG" if change == "png" else "JPEG", **({"quality": 50} if change == "quality" else {}))
    (root / "1" / name).write_bytes(file.getvalue())
    assert groups() == [(["0/06.jpg", f"1/{name}"], False)]


def test_a_copy_of_a_copy_is_in_one_group(folder):
    root, groups = folder
    for number, quality in enumerate((90, 60, 30)):
        scene(3).save(root / "0" / f"z{number}.jpg", quality=quality)
    (root / "0" / "z3.jpg").write_bytes((root / "0" / "z2.jpg").read_bytes())
    assert groups() == [(["0/z0.jpg", "0/z1.jpg", "0/z2.jpg", "0/z3.jpg", "1/03.jpg"], False)]


def test_what_cannot_be_used_is_no_duplicate(folder):
    root, _ = folder
    for name in ("a", "b"):
        (root / "0" / f"broken_{name}.jpg").write_bytes(b"no image")
    listing = read_image_folder(str(root))
    assert [group.images for group in find_duplicates(listing, range(len(listing)))] == [(20, 21)]
    usable = [index for index, path in enumerate(listing.paths) if "broken" not in path]
    assert find_duplicates(listing, usable) == []
