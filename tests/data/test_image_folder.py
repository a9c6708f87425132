"""The labelled folder: what is listed, in which order, and what is said of folders that are none."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from src.common.cli import RunError
from src.data.image_folder import read_evaluation_folder, read_image_folder, read_training_folder

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def make(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return str(root)


class TestListing:
    def test_labels_are_the_sorted_folder_names(self, tmp_path):
        folder = read_image_folder(make(tmp_path, "b/2.jpg", "b/1.jpg", "a/3.png", "c/0.JPEG"))
        assert folder.classes == ["a", "b", "c"]
        assert folder.paths == ["a/3.png", "b/1.jpg", "b/2.jpg", "c/0.JPEG"]
        assert folder.labels.tolist() == [0, 1, 1, 2] and folder.labels.dtype == np.int32
        assert len(folder) == 4 and folder.full_path(0) == os.path.join(str(tmp_path), "a/3.png")

    def test_sorting_is_by_code_point_not_by_number_or_language(self, tmp_path):
        folder = read_image_folder(make(tmp_path, "10/a.jpg", "9/a.jpg", "B/a.jpg", "a/a.jpg", "é/a.jpg", "中/a.jpg"))
        assert folder.classes == ["10", "9", "B", "a", "é", "中"]

    def test_torchvision_numbers_the_classes_alike(self, tmp_path):
        from benchmarks.peers import torchvision

        root = make(tmp_path, "n02/b.jpg", "n02/a.jpg", "n01/x.jpg", "N3/y.jpg", "n01/deep/z.jpg")
        peer = torchvision.datasets.ImageFolder(root)
        folder = read_image_folder(root)
        assert folder.classes == peer.classes
        ours = dict(zip(map(folder.full_path, range(len(folder))), folder.labels.tolist()))
        assert ours == {os.path.join(root, path): label for path, label in peer.samples}

    def test_hidden_files_and_folders_are_passed_over(self, tmp_path):
        root = make(tmp_path, "a/1.jpg", "a/.DS_Store", "a/._1.jpg", "a/.hidden/2.jpg", ".git/x.jpg", ".DS_Store")
        assert read_image_folder(root).paths == ["a/1.jpg"]

    def test_other_files_are_passed_over(self, tmp_path):
        root = make(tmp_path, "a/1.jpg", "a/notes.txt", "a/Thumbs.db", "a/jpg", "README.md", "stray.jpg")
        assert read_image_folder(root).paths == ["a/1.jpg"]

    def test_nested_folders_belong_to_their_class_and_sort_by_path(self, tmp_path):
        folder = read_image_folder(make(tmp_path, "a/z.jpg", "a/b/1.jpg", "a/b/c/2.jpg", "b/1.jpg"))
        assert folder.paths == ["a/b/1.jpg", "a/b/c/2.jpg", "a/z.jpg", "b/1.jpg"]
        assert folder.labels.tolist() == [0, 0, 0, 1]

    def test_an_empty_class_folder_keeps_its_number(self, tmp_path):
        root = make(tmp_path, "a/1.jpg", "c/1.jpg")
        (tmp_path / "b").mkdir()
        folder = read_image_folder(root)
        assert folder.classes == ["a", "b", "c"] and folder.labels.tolist() == [0, 2]

    def test_links_to_files_and_folders_are_followed(self, tmp_path):
        make(tmp_path / "store", "1.jpg", "more/2.jpg")
        root = tmp_path / "root"
        (root / "a").mkdir(parents=True)
        (root / "a" / "link.jpg").symlink_to(tmp_path / "store" / "1.jpg")
        (root / "b").symlink_to(tmp_path / "store" / "more")
        folder = read_image_folder(str(root))
        assert folder.paths == ["a/link.jpg", "b/2.jpg"]

    def test_a_link_in_a_circle_ends(self, tmp_path):
        root = make(tmp_path, "a/1.jpg")
        (tmp_path / "a" / "again").symlink_to(tmp_path / "a")
        folder = read_image_folder(root)
        assert folder.paths == ["a/1.jpg"]

    def test_a_broken_link_is_listed_so_that_reading_it_names_it(self, tmp_path):
        root = make(tmp_path, "a/1.jpg")
        (tmp_path / "a" / "2.jpg").symlink_to(tmp_path / "missing.jpg")
        folder = read_image_folder(root)
        assert folder.paths == ["a/1.jpg", "a/2.jpg"]
        with pytest.raises(FileNotFoundError):
            folder.read(1)

    def test_a_link_to_itself_is_no_folder(self, tmp_path):
        root = make(tmp_path, "a/1.jpg")
        for link in ("b", "a/c", "a/2.jpg"):
            (tmp_path / link).symlink_to(tmp_path / link)
        folder = read_image_folder(root)
        assert folder.classes == ["a"] and folder.paths == ["a/1.jpg", "a/2.jpg"]

    @pytest.mark.parametrize("name", ["with space", "中文", "new\nline", "a'b\"c", "-x", "per%cent", "tab\there", "*"])
    def test_odd_names(self, tmp_path, name):
        folder = read_image_folder(make(tmp_path, f"{name}/{name}.jpg"))
        assert folder.classes == [name] and folder.paths == [f"{name}/{name}.jpg"]
        assert folder.read(0) == b"x"

    def test_names_that_are_no_unicode(self, tmp_path):
        path = os.path.join(os.fsencode(tmp_path), b"caf\xe9")
        os.mkdir(path)
        with open(os.path.join(path, b"\xff.jpg"), "wb") as file:
            file.write(b"x")
        folder = read_image_folder(str(tmp_path))
        assert len(folder) == 1 and folder.read(0) == b"x"


class TestRefused:
    @pytest.mark.parametrize(
        ("names", "sentence"),
        [
            ((), "there are no class folders"),
            (("1.jpg", "2.jpg"), "there are 2 images and no class folders in it; put the images of each class into"),
            ((".hidden/1.jpg",), "there are no class folders"),
            (("a/notes.txt", "b/.1.jpg"), "its 2 class folders hold no image"),
        ],
    )
    def test_a_folder_without_classes_or_images(self, tmp_path, names, sentence):
        with pytest.raises(RunError) as error:
            read_image_folder(make(tmp_path, *names))
        assert str(tmp_path) in str(error.value) and sentence in str(error.value)

    def test_a_missing_folder(self, tmp_path):
        with pytest.raises(RunError, match="there is no such folder"):
            read_image_folder(str(tmp_path / "missing"))

    def test_a_file(self, tmp_path):
        make(tmp_path, "a.jpg")
        with pytest.raises(RunError, match=r"not a folder of class folders or a list \(.csv or .tsv\)"):
            read_image_folder(str(tmp_path / "a.jpg"))

    def test_a_folder_that_may_not_be_read(self, tmp_path, monkeypatch):
        root = make(tmp_path, "a/1.jpg", "b/1.jpg")
        scan = os.scandir

        def refuse(path):
            if str(path).endswith("b"):
                raise PermissionError(13, "Permission denied", str(path))
            return scan(path)

        monkeypatch.setattr(os, "scandir", refuse)
        with pytest.raises(RunError, match=r"b: permission was denied"):
            read_image_folder(root)

    @pytest.mark.parametrize("names", [("train", "val"), ("Training", "Validation", "test"), ("train",)])
    def test_the_folder_of_train_and_val(self, tmp_path, names):
        root = make(tmp_path, *(f"{name}/{label}/1.jpg" for name in names for label in "ab"))
        sentence = f"are no classes but parts of a data set; name one of them, such as .*/{names[0]}$"
        with pytest.raises(RunError, match=sentence):
            read_image_folder(root)

    def test_train_and_val_with_images_only(self, tmp_path):
        with pytest.raises(RunError, match="train and val are no classes but parts of a data set"):
            read_image_folder(make(tmp_path, "train/1.jpg", "val/1.jpg"))

    def test_a_class_may_be_called_train(self, tmp_path):
        assert read_image_folder(make(tmp_path, "train/1.jpg", "bus/1.jpg")).classes == ["bus", "train"]
        assert read_image_folder(make(tmp_path / "other", "train/1.jpg")).classes == ["train"]

    def test_one_class_to_train_on(self, tmp_path):
        root = make(tmp_path, "cat/1.jpg", "cat/2.jpg")
        (tmp_path / "dog").mkdir()
        with pytest.raises(RunError, match="there is one class only, 'cat', and .*; add a second one"):
            read_training_folder(root)
        assert len(read_evaluation_folder(root)) == 2

    def test_a_folder_above_the_class_folders(self, tmp_path):
        root = make(tmp_path, "pets/cat/1.jpg", "pets/dog/2.jpg")
        with pytest.raises(RunError, match=f"one class only, 'pets', .* {root}/pets"):
            read_training_folder(root)


class TestRemarks:
    def test_what_is_odd_is_said_of_images_to_train_on(self, tmp_path, capsys):
        names = ("a/1.jpg", "a/2.jpg", "b/1.jpg", "c/1.jpg", "z/1.jpg", "stray.jpg", "other.PNG", "notes.txt")
        root = make(tmp_path, *names)
        for name in "defg":
            (tmp_path / name).mkdir()
        read_training_folder(root)
        assert capsys.readouterr().err.splitlines() == [
            f"warning: {root}: 2 images lie beside the class folders and are passed over",
            f"warning: {root}: 4 of its 8 classes have no image, and keep their numbers: 'd', 'e', 'f' and 1 more",
            f"warning: {root}: 3 of its 8 classes have one image only: 'b', 'c', 'z'",
        ]

    def test_in_an_evaluation_a_class_may_be_empty(self, tmp_path, capsys):
        root = make(tmp_path, "a/1.jpg")
        (tmp_path / "b").mkdir()
        read_evaluation_folder(root)
        assert capsys.readouterr().err == ""


class TestScan:
    @pytest.fixture
    def root(self, tmp_path):
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8))
        for name in ("a/1.jpg", "a/2.png", "b/3.jpg", "b/cut.jpg"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            picture.save(tmp_path / name)
        data = (tmp_path / "b/cut.jpg").read_bytes()
        (tmp_path / "b/cut.jpg").write_bytes(data[: len(data) // 2])
        (tmp_path / "b" / "text\n.png").write_bytes(b"text")
        (tmp_path / "c").mkdir()
        return tmp_path

    def run(self, *arguments):
        command = [sys.executable, "-m", "src.data.image_folder", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)

    def test_classes_counts_sizes_and_bad_files(self, root):
        result = self.run(root)
        lines = result.stdout.splitlines()
        assert result.returncode == 1 and result.stderr == ""
        assert [line.split()[0:2] + line.split()[3:] for line in lines[1:4]] == [
            ["0", "2", "a"],
            ["1", "3", "b"],
            ["2", "0", "c", "(empty)"],
        ]
        assert lines[4].startswith("3 classes, 5 images, ")
        assert lines[5:9] == [
            "width: 40 to 40 pixels, median 40",
            "height: 30 to 30 pixels, median 30",
            "formats: JPEG 2, PNG 1",
            "cannot be decoded: 2",
        ]
        assert len(lines) == 11 and "cut.jpg: " in lines[9] and "text\\n.png: " in lines[10]

    def test_a_folder_in_order(self, root):
        os.remove(root / "b/cut.jpg")
        os.remove(root / "b/text\n.png")
        result = self.run(root, "--num_workers", 1)
        assert result.returncode == 0 and result.stdout.endswith("cannot be decoded: 0\n")

    def test_wrong_use(self, tmp_path):
        result = self.run(tmp_path / "missing")
        assert result.returncode == 1 and result.stderr == f"error: {tmp_path}/missing: there is no such folder\n"
        result = self.run()
        assert result.returncode == 2 and result.stderr.startswith("error: the following arguments are required")
        result = self.run(tmp_path, "--num_workers", "0")
        assert result.returncode == 2 and "at least 1" in result.stderr


def test_ten_thousand_classes(tmp_path):
    for label in range(10000):
        os.mkdir(tmp_path / f"n{label:05}")
    for label in (0, 4999, 9999):
        (tmp_path / f"n{label:05}" / "1.jpg").write_bytes(b"x")
    folder = read_image_folder(str(tmp_path))
    assert len(folder.classes) == 10000 and folder.labels.tolist() == [0, 4999, 9999]


@pytest.mark.slow
def test_a_million_images_are_listed_within_five_seconds_and_500_megabytes(tmp_path):
    for label in range(1000):
        os.mkdir(tmp_path / f"n{label:08}")
        for index in range(1000):
            os.close(os.open(tmp_path / f"n{label:08}" / f"n{label:08}_{index}.JPEG", os.O_CREAT))
    code = (
        "import re, sys, time; from src.data.image_folder import read_image_folder; start = time.perf_counter(); "
        "count = len(read_image_folder(sys.argv[1])); seconds = time.perf_counter() - start; "
        "print(count, seconds, int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) / 1024)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout
    count, seconds, megabytes = map(float, output.split())
    print(output)
    assert count == 1_000_000 and seconds < 5 and megabytes < 500
