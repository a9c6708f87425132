"""Holding out a share of each class: how many, which stay together, and the lists that keep the choice."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from src.common.cli import RunError
from src.data.image_folder import fit_classes, read_image_folder
from src.data.mindrecord_writer import convert
from src.preparation import alike
from src.preparation.split import read_split, split_by_class, write_split
from tests.support.hard_images import draw


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def noise(seed, size=(96, 72)):
    """A picture of smooth noise that looks like no other."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path):
    """Classes of 10, 5, 2 and 1 images."""
    seed = 0
    for name, count in {"ant": 10, "bee": 5, "cat": 2, "dog": 1}.items():
        for number in range(count):
            seed += 1
            save(tmp_path / "photos" / name / f"{name}{number}.jpg", noise(seed))
    return tmp_path / "photos"


def split(root, share=0.2, seed=1):
    return split_by_class(read_image_folder(str(root)), share, seed)


def held(parts):
    return {path: True for path in parts.val.paths} | {path: False for path in parts.train.paths}


def together(parts, *paths):
    """Whether these images are on one side."""
    return len({held(parts)[path] for path in paths}) == 1


class TestShares:
    @pytest.mark.parametrize(
        ("share", "expected"), [(0.2, [2, 1, 1, 0]), (0.5, [5, 3, 1, 0]), (0.01, [1, 1, 1, 0]), (0.99, [9, 4, 1, 0])]
    )
    def test_by_class_with_at_least_one_image_on_each_side(self, photos, share, expected):
        parts = split(photos, share)
        assert np.bincount(parts.val.labels, minlength=4).tolist() == expected
        assert sorted(parts.val.paths + parts.train.paths) == read_image_folder(str(photos)).paths
        assert parts.val.classes == parts.train.classes == ["ant", "bee", "cat", "dog"]

    def test_what_is_taken_keeps_its_label_and_bytes(self, photos):
        parts = split(photos)
        for part in (parts.train, parts.val):
            for index, path in enumerate(part.paths):
                assert part.classes[part.labels[index]] == path.split("/")[0]
                assert part.read(index) == (photos / path).read_bytes()

    def test_a_class_of_one_image_stays_in_training_and_is_named(self, photos):
        parts = split(photos)
        assert "dog/dog0.jpg" in parts.train.paths
        assert parts.remarks == (f"{photos}: nothing is held out of 'dog': one image, which stays in training",)

    def test_a_class_of_which_nothing_can_be_held_out_is_named(self, photos):
        shutil.copy(photos / "cat" / "cat0.jpg", photos / "cat" / "cat1.jpg")
        parts = split(photos)
        assert np.bincount(parts.val.labels, minlength=4).tolist() == [2, 1, 0, 0]
        assert any("nothing is held out of 'cat': images that all belong together" in text for text in parts.remarks)

    def test_nothing_to_hold_out(self, tmp_path):
        for name in "ab":
            save(tmp_path / name / f"{name}.jpg", noise(ord(name)))
        with pytest.raises(RunError, match="nothing can be held out of its 2 images"):
            split(tmp_path)

    @pytest.mark.parametrize("share", [0, 1, -0.1, 1.5])
    def test_shares_that_are_none(self, photos, share):
        with pytest.raises(ValueError, match="must be above 0 and below 1"):
            split(photos, share)


class TestAlwaysTheSame:
    def test_wherever_the_folder_lies(self, photos, tmp_path):
        shutil.copytree(photos, tmp_path / "elsewhere")
        assert held(split(photos)) == held(split(tmp_path / "elsewhere"))

    def test_in_a_mindrecord(self, photos, tmp_path):
        convert(read_image_folder(str(photos)), str(tmp_path / "packed"), 2)
        parts = split(tmp_path / "packed")
        assert held(parts) == held(split(photos))
        assert [parts.val.read(index) for index in range(len(parts.val))] == [
            (photos / path).read_bytes() for path in parts.val.paths
        ]

    def test_another_class_changes_nothing_about_the_others(self, photos):
        before = held(split(photos))
        for number in range(7):
            save(photos / "aaa" / f"new{number}.jpg", noise(100 + number))
        after = held(split(photos))
        assert {path: side for path, side in after.items() if not path.startswith("aaa")} == before

    def test_another_seed_holds_out_others(self, photos):
        assert len({str(sorted(split(photos, 0.5, seed).val.paths)) for seed in range(5)}) == 5


class TestTogether:
    def test_copies_and_copies_that_were_encoded_again(self, photos):
        """Whichever images are held out: for every seed the copies are with the original."""
        original = Image.open(photos / "ant" / "ant0.jpg")
        shutil.copy(photos / "ant" / "ant0.jpg", photos / "ant" / "copy.jpg")
        save(photos / "ant" / "other_quality.jpg", original, quality=50)
        save(photos / "ant" / "other_format.png", original)
        save(photos / "ant" / "half.webp", original.resize((48, 36), Image.Resampling.LANCZOS))
        names = ("ant0.jpg", "copy.jpg", "other_quality.jpg", "other_format.png", "half.webp")
        copies = [f"ant/{name}" for name in names]
        sides = set()
        for seed in range(12):
            parts = split(photos, 0.5, seed)
            assert together(parts, *copies)
            sides.add(held(parts)[copies[0]])
        assert sides == {True, False}
        assert f"{photos}: 5 images look like another one; those are kept on one side" in split(photos).remarks

    def test_large_photos(self, tmp_path):
        for number in range(4):
            save(tmp_path / "a" / f"{number}.jpg", draw(1600, 1200, number), quality=92)
            save(tmp_path / "a" / f"small{number}.jpg", draw(1600, 1200, number).resize((400, 300)), quality=80)
            save(tmp_path / "b" / f"other{number}.jpg", noise(number))
        for seed in range(4):
            parts = split(tmp_path, 0.5, seed)
            assert all(together(parts, f"a/{number}.jpg", f"a/small{number}.jpg") for number in range(4))
            assert np.bincount(parts.val.labels).tolist() == [4, 2]

    def test_one_picture_in_two_classes_is_named(self, photos):
        shutil.copy(photos / "ant" / "ant3.jpg", photos / "bee" / "same.jpg")
        for seed in range(6):
            assert together(split(photos, 0.5, seed), "ant/ant3.jpg", "bee/same.jpg")
        assert f"{photos}: the same picture lies in two classes: ant/ant3.jpg and bee/same.jpg" in split(photos).remarks

    def test_one_name_in_several_folders(self, photos):
        save(photos / "ant" / "raw" / "ANT4.png", noise(50))
        save(photos / "bee" / "ant4.jpg", noise(51))
        for seed in range(6):
            assert together(split(photos, 0.5, seed), "ant/ant4.jpg", "ant/raw/ANT4.png", "bee/ant4.jpg")

    def test_a_name_that_all_images_have_says_nothing(self, tmp_path):
        for number in range(40):
            save(tmp_path / "ab"[number % 2] / str(number) / "image.jpg", noise(number))
        assert np.bincount(split(tmp_path).val.labels).tolist() == [4, 4]

    def test_plain_pictures_of_other_colours_are_not_the_same(self, tmp_path):
        for number in range(20):
            save(tmp_path / "ab"[number % 2] / f"{number}.png", Image.new("RGB", (50, 50), (13 * number, 100, 100)))
        parts = split(tmp_path)
        assert np.bincount(parts.val.labels).tolist() == [2, 2] and parts.remarks == ()

    def test_broken_and_missing_files_are_left_to_training_to_name(self, photos):
        (photos / "ant" / "broken.jpg").write_bytes(b"no image")
        (photos / "ant" / "gone.jpg").symlink_to("nowhere")
        (photos / "ant" / "gone too.jpg").symlink_to("nowhere")
        parts = split(photos)
        assert len(parts.train) + len(parts.val) == 21

    def test_pairs_are_those_that_a_search_of_all_pairs_finds(self):
        random = np.random.default_rng(0)
        count = 400
        hashes = random.integers(0, 2**63, 12).astype(np.uint64)[random.integers(0, 12, count)]
        for _ in range(2):
            hashes ^= np.uint64(1) << random.integers(0, 64, count).astype(np.uint64)
        colours = random.integers(0, 256, (6, 192))[random.integers(0, 6, count)] + random.integers(-5, 6, (count, 192))
        colours = colours.clip(0, 255).astype(np.uint8)
        decoded = random.random(count) > 0.1
        prints = alike.Fingerprints([b""] * count, hashes, colours, decoded=decoded)
        found = {tuple(sorted(pair)) for pair in alike.similar_pairs(prints)}
        expected = {
            (left, right)
            for right in range(count)
            for left in range(right)
            if bin(int(hashes[left]) ^ int(hashes[right])).count("1") <= 3
            and np.abs(colours[left].astype(int) - colours[right]).mean() <= 4
            and decoded[left]
            and decoded[right]
        }
        assert found == expected and len(expected) > 50


class TestLists:
    def test_a_later_run_uses_the_same_images(self, photos, tmp_path):
        parts = split(photos)
        write_split(parts, str(tmp_path))
        again = read_split(read_image_folder(str(photos)), str(tmp_path))
        assert held(again) == held(parts) and again.remarks == ()
        assert again.val.labels.tolist() == parts.val.labels.tolist()

    def test_without_lists_there_is_no_split(self, photos, tmp_path):
        assert read_split(read_image_folder(str(photos)), str(tmp_path)) is None
        write_split(split(photos), str(tmp_path))
        os.remove(tmp_path / "train.tsv")
        assert read_split(read_image_folder(str(photos)), str(tmp_path)) is None

    @pytest.mark.parametrize("name", ["with space", "中文", "new\nline", "tab\there", "a'b\"c", "-x", "10"])
    def test_they_are_lists_as_dataset_path_takes_them(self, photos, tmp_path, name):
        (photos / "bee").rename(photos / name)
        (tmp_path / "run").mkdir()
        parts = split(photos)
        write_split(parts, str(tmp_path / "run"))
        for part, folder in (("val", parts.val), ("train", parts.train)):
            listed = fit_classes(read_image_folder(str(tmp_path / "run" / f"{part}.tsv")), folder.classes, 4)
            assert listed.classes == folder.classes
            assert [(listed.read(index), label) for index, label in enumerate(listed.labels)] == [
                (folder.read(index), label) for index, label in enumerate(folder.labels)
            ]
        assert held(read_split(read_image_folder(str(photos)), str(tmp_path / "run"))) == held(parts)

    def test_names_of_any_bytes(self, photos, tmp_path):
        os.rename(os.fsencode(photos / "ant" / "ant1.jpg"), os.path.join(os.fsencode(photos), b"ant", b"\xff.jpg"))
        parts = split(photos)
        write_split(parts, str(tmp_path))
        assert held(read_split(read_image_folder(str(photos)), str(tmp_path))) == held(parts)

    def test_links_to_the_folders_change_nothing(self, photos, tmp_path):
        (tmp_path / "scratch" / "deep").mkdir(parents=True)
        (tmp_path / "run").symlink_to(tmp_path / "scratch" / "deep")
        (tmp_path / "data").symlink_to(photos)
        parts = split(photos)
        write_split(parts, str(tmp_path / "run"))
        assert held(read_split(read_image_folder(str(tmp_path / "data")), str(tmp_path / "run"))) == held(parts)
        assert len(read_image_folder(str(tmp_path / "run" / "val.tsv"))) == len(parts.val)

    def test_of_a_mindrecord(self, photos, tmp_path):
        convert(read_image_folder(str(photos)), str(tmp_path / "packed"), 2)
        parts = split(tmp_path / "packed")
        write_split(parts, str(tmp_path))
        assert held(read_split(read_image_folder(str(tmp_path / "packed")), str(tmp_path))) == held(parts)

    def test_of_a_list(self, photos, tmp_path):
        lines = [f"{path},{path.split('/')[0]}" for path in read_image_folder(str(photos)).paths]
        (photos / "all.csv").write_text("\n".join(lines))
        parts = split(photos / "all.csv")
        assert held(parts) == held(split(photos))
        write_split(parts, str(tmp_path))
        assert held(read_split(read_image_folder(str(photos / "all.csv")), str(tmp_path))) == held(parts)

    def test_an_image_that_is_gone(self, photos, tmp_path):
        parts = split(photos)
        write_split(parts, str(tmp_path))
        os.remove(photos / parts.val.paths[0])
        with pytest.raises(RunError, match=rf"val.tsv: 1 of its 4 images are not in .*{parts.val.paths[0]}"):
            read_split(read_image_folder(str(photos)), str(tmp_path))

    def test_images_that_came_later_are_in_neither_part(self, photos, tmp_path):
        parts = split(photos)
        write_split(parts, str(tmp_path))
        save(photos / "ant" / "new.jpg", noise(99))
        again = read_split(read_image_folder(str(photos)), str(tmp_path))
        assert held(again) == held(parts)
        assert again.remarks == (f"{photos}: 1 images came after the run began and are not used",)

    def test_a_full_disk_leaves_no_half_list(self, photos, tmp_path, monkeypatch):
        def full(*_, **__):
            raise OSError(28, "No space left on device")

        parts = split(photos)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="No space left"):
                write_split(parts, str(tmp_path / "run"))
        assert os.listdir(tmp_path / "run") == []
