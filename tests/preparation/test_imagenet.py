"""ImageNet from small archives of the same form: what is written, what is refused, kills at any moment."""

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import pytest

from benchmarks.peers import torchvision
from scripts import prepare_imagenet
from src.common.cli import run_cli
from src.data.image_folder import read_image_folder
from src.preparation import imagenet
from src.preparation.imagenet_release import imagenet_2012
from tests.support import imagenet_files
from tests.support.imagenet_files import (
    CLASSES,
    expected_files,
    make_images,
    tar_of,
    train_archive,
    write_devkit,
    write_kaggle_folder,
    write_kaggle_zip,
    write_official,
)
from tests.support.small_disk import can_mount, run_on_small_disk

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TRAIN, VAL, KIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"


@pytest.fixture
def place(tmp_path):
    """A folder with the official archives in downloads/, and what prepares them."""
    return Place(tmp_path, write_official(tmp_path / "downloads"))


class Place:
    def __init__(self, root, release, downloads="downloads"):
        self.root, self.release = root, release
        self.downloads, self.out = root / downloads, root / "out"

    def prepare(self, *flags):
        """The exit code."""
        arguments = [str(self.downloads), str(self.out), *map(str, flags)]
        return run_cli(lambda argv: prepare_imagenet.main(argv, self.release), arguments)

    def with_sums(self):
        """Publish the sums of the archives as they are now."""
        release = imagenet_files.release_of(self.downloads, *make_images()[:2])
        self.release = release
        return self


def files_in(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def count_files(folder):
    """Files below a folder that may be renamed meanwhile."""
    return sum(len(names) for _, _, names in os.walk(folder))


def refused(place, capsys, *pieces, flags=(), exit_code=1):
    """Preparing fails with one sentence, and leaves nothing under the parts' names."""
    code = place.prepare(*flags)
    error = capsys.readouterr().err
    assert code == exit_code and error.startswith("error: ") and error.count("\n") == 1, error
    for piece in pieces:
        assert str(piece) in error
    assert not (place.out / "train").exists() and not (place.out / "val").exists()
    return True


class TestPrepared:
    @pytest.mark.parametrize("layout", ["official", "kaggle folder", "kaggle zip", "folder of the zip"])
    def test_every_image_stands_in_its_class_unchanged(self, tmp_path, capsys, layout):
        downloads = tmp_path / "downloads"
        downloads.mkdir()
        if layout == "official":
            place = Place(tmp_path, write_official(downloads))
        elif layout == "kaggle folder":
            place = Place(tmp_path, write_kaggle_folder(downloads))
        else:
            zipped = downloads / "imagenet-object-localization-challenge.zip"
            place = Place(tmp_path, write_kaggle_zip(zipped))
            place.downloads = zipped if layout == "kaggle zip" else downloads
        assert place.prepare() == 0
        for part in ("train", "val"):
            assert files_in(place.out / part) == expected_files(part)
        assert sorted(os.listdir(place.out)) == ["train", "val"]
        said = capsys.readouterr().out
        assert "train: 23 images in 3 classes written" in said and "val: 7 images in 3 classes written" in said
        assert ("MD5 sum is right" in said) == (layout == "official")

    def test_torchvision_unpacks_the_same_folders(self, place, monkeypatch):
        from torchvision.datasets import imagenet as peer

        theirs = str(place.root / "theirs")
        shutil.copytree(place.downloads, theirs)
        names = {"train": TRAIN, "val": VAL, "devkit": KIT}
        sums = {part: (name, place.release.archives[part].md5) for part, name in names.items()}
        monkeypatch.setattr(peer, "ARCHIVE_META", sums)
        peer.parse_devkit_archive(theirs)
        peer.parse_train_archive(theirs)
        peer.parse_val_archive(theirs)
        assert place.prepare() == 0
        for part in ("train", "val"):
            assert files_in(place.out / part) == files_in(place.root / "theirs" / part)
            peers = torchvision.datasets.ImageFolder(os.path.join(theirs, part))
            ours = read_image_folder(str(place.out / part))
            assert ours.classes == peers.classes and ours.labels.tolist() == peers.targets

    @pytest.mark.parametrize("layout", ["official", "kaggle folder", "kaggle zip"])
    def test_straight_into_mindrecord(self, tmp_path, layout):
        downloads = tmp_path / ("a.zip" if layout == "kaggle zip" else "downloads")
        write = {"official": write_official, "kaggle folder": write_kaggle_folder, "kaggle zip": write_kaggle_zip}
        place = Place(tmp_path, write[layout](downloads), downloads.name)
        assert place.prepare("--form", "mindrecord", "--shards", 2) == 0
        for part in ("train", "val"):
            folder = read_image_folder(str(place.out / part))
            assert len(list((place.out / part).glob("*.mindrecord"))) == 2
            assert {path: folder.read(index) for index, path in enumerate(folder.paths)} == expected_files(part)
            assert [folder.classes[label] for label in folder.labels] == [path.split("/")[0] for path in folder.paths]
        assert place.prepare("--form", "mindrecord") == 0

    def test_odd_images_are_named(self, place, capsys):
        assert place.prepare() == 0
        said = capsys.readouterr().out
        assert "a CMYK JPEG: n01739381_1309.JPEG; a PNG: n02105855_2933.JPEG" in said

    def test_images_of_a_folder_get_a_second_name_and_take_no_space(self, tmp_path):
        place = Place(tmp_path, write_kaggle_folder(tmp_path / "downloads"))
        assert place.prepare() == 0
        for part, name in (("train", "n01440764/n01440764_1.JPEG"), ("val", "ILSVRC2012_val_00000001.JPEG")):
            source = place.downloads / "ILSVRC/Data/CLS-LOC" / part / name
            (target,) = (place.out / part).rglob(source.name)
            assert os.path.samefile(source, target)

    def test_without_hard_links_images_are_copied(self, tmp_path, monkeypatch):
        def refuse(*_):
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(os, "link", refuse)
        place = Place(tmp_path, write_kaggle_folder(tmp_path / "downloads"))
        assert place.prepare() == 0
        assert files_in(place.out / "train") == expected_files("train")
        assert files_in(place.downloads) == imagenet_files.kaggle_files()

    @pytest.mark.parametrize("part", ["train", "val"])
    def test_one_part_needs_only_its_own_files(self, place, part):
        for name in (VAL, KIT) if part == "train" else (TRAIN,):
            os.remove(place.downloads / name)
        assert place.prepare("--part", part) == 0
        assert os.listdir(place.out) == [part]

    def test_a_second_call_finds_everything_there(self, place, capsys):
        assert place.prepare() == 0
        before = {path: path.stat().st_mtime_ns for path in place.out.rglob("*")}
        assert place.prepare() == 0
        assert "23 images in 3 classes were there" in capsys.readouterr().out
        assert {path: path.stat().st_mtime_ns for path in place.out.rglob("*")} == before


class TestLabels:
    # Without names a header would be image 1.
    @pytest.mark.parametrize(
        ("header", "line"),
        [
            ("", "{wnid}"),
            ("", "{name} {wnid}"),
            ("", "{name}\t{wnid} a few words, and more"),
            ("ImageId,PredictionString\n", "{stem},{wnid} 1 2 3 4"),
            ("", "{name} {label}"),
            ("ImageId,PredictionString\n", "{stem};{label}"),
        ],
    )
    def test_lists(self, place, header, line):
        labels = make_images()[2]
        rows = [
            line.format(name=name, stem=name[:-5], wnid=labels[name], label=CLASSES.index(labels[name]))
            for name in sorted(labels)
        ]
        path = place.root / "val.txt"
        path.write_text("\ufeff" + header + "\r\n".join(rows) + "\n\n", encoding="utf-8")
        os.remove(place.downloads / KIT)
        assert place.prepare("--labels", path, "--part", "val") == 0
        assert files_in(place.out / "val") == expected_files("val")

    @pytest.mark.parametrize(
        ("change", "piece"),
        [
            (lambda rows: rows[:-1], "labels 6 validation images, not 7; image 7 has none"),
            (lambda rows: [*rows, rows[0].replace("0001.", "0099.")], "labels 8 validation images, not 7"),
            (lambda rows: [*rows, rows[0][:-9] + "n02105855"], "line 8 gives image 1 a second label"),
            (lambda rows: [rows[0], "what?", *rows[1:]], "line 2 is not an image and its class"),
            (lambda rows: [rows[0], rows[1][:-9] + "n00000000", *rows[2:]], "line 2 names 'n00000000'"),
            (lambda rows: [row[:-9] + "3" for row in rows], "line 1 names '3'"),
            (lambda rows: ["1"] * 7, "only by the development kit"),
        ],
    )
    def test_wrong_lists(self, place, capsys, change, piece):
        labels = make_images()[2]
        path = place.root / "val.txt"
        path.write_text("\n".join(change([f"{name} {labels[name]}" for name in sorted(labels)])))
        assert refused(place, capsys, path, piece, flags=("--labels", path))

    def test_what_is_no_list(self, place, capsys):
        assert refused(place, capsys, VAL, "no text", flags=("--labels", place.downloads / VAL))
        assert refused(place, capsys, "missing.txt: there is no such file", flags=("--labels", "missing.txt"))

    def test_a_development_kit_of_other_classes(self, place, capsys, monkeypatch):
        monkeypatch.setattr(imagenet_files, "IDS", {"n02105855": 1, "n01440764": 2, "n09999999": 3})
        labels = {name: "n02105855" for name in make_images()[2]}
        write_devkit(place.downloads / KIT, labels)
        assert refused(place.with_sums(), capsys, KIT, "other classes")

    def test_a_damaged_development_kit(self, place, capsys):
        path = place.downloads / KIT
        path.write_bytes(path.read_bytes()[:-40])
        assert refused(place, capsys, KIT, "its MD5 sum is", "download it again")
        assert refused(place.with_sums(), capsys, KIT, "cut short")
        tar_of({"a/data/meta.mat": b"x"}, path)
        assert refused(place.with_sums(), capsys, KIT)

    def test_without_scipy_a_list_will_do(self, place, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "scipy", None)
        assert refused(place, capsys, KIT, "pip install scipy", "--labels")


def link(name, kind, target=""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


IMAGE = "n01440764_0.JPEG"
HOSTILE = {
    "parent": ("../n01440764_9.JPEG", b"x"),
    "absolute": ("/tmp/n01440764_9.JPEG", b"x"),
    "folder": ("n01440764/n01440764_9.JPEG", b"x"),
    "symbolic link": (IMAGE, link(IMAGE, tarfile.SYMTYPE, "/etc/passwd")),
    "hard link": (IMAGE, link(IMAGE, tarfile.LNKTYPE, "n01440764_1.JPEG")),
    "device": (IMAGE, link(IMAGE, tarfile.CHRTYPE)),
    "pipe": (IMAGE, link(IMAGE, tarfile.FIFOTYPE)),
    "directory": ("n01440764", link("n01440764", tarfile.DIRTYPE)),
    "twice": ("n01440764_1.JPEG", b"x"),
    "another class": ("n01739381_77.JPEG", b"x"),
    "no class": ("n00000000_1.JPEG", b"x"),
    "line break": ("n01440764_1\n.JPEG", b"x"),
    "suffix": ("n01440764_1.JPEG.sh", b"x"),
    "other digits": ("n01440764_\u0663.JPEG", b"x"),
}


class TestHostile:
    @pytest.mark.parametrize("kind", HOSTILE)
    def test_members_of_a_class(self, place, capsys, kind):
        train = make_images()[0]
        images = [item for item in train["n01440764"].items() if item[0] != IMAGE]
        members = train_archive(train)
        members["n01440764.tar"] = tar_of([*images, HOSTILE[kind]])
        tar_of(members, place.downloads / TRAIN)
        before = files_in(place.root)
        assert refused(place.with_sums(), capsys, TRAIN, "nothing was written")
        assert files_in(place.root) == before

    @pytest.mark.parametrize(
        "member",
        [
            ("../n01440764.tar", b""),
            ("/n01440764.tar", b""),
            ("n00000000.tar", b""),
            ("n01440764", link("n01440764", tarfile.DIRTYPE)),
            ("n01440764.tar", link("n01440764.tar", tarfile.SYMTYPE, "/etc/passwd")),
            ("n01440764.tar", tar_of({"n01440764_99.JPEG": b"x"})),
        ],
    )
    def test_members_of_the_archive_of_classes(self, place, capsys, member):
        members = [*train_archive(make_images()[0]).items(), member]
        tar_of(members, place.downloads / TRAIN)
        assert refused(place.with_sums(), capsys, TRAIN, "nothing was written")

    @pytest.mark.parametrize(
        "member",
        [
            ("../ILSVRC2012_val_00000001.JPEG", b"x"),
            ("ILSVRC2012_val_00000001.JPEG", b"x"),
            ("ILSVRC2012_val_00000008.JPEG", b"x"),
            ("x", link("x", tarfile.LNKTYPE, "ILSVRC2012_val_00000001.JPEG")),
        ],
    )
    def test_members_of_the_validation_archive(self, place, capsys, member):
        tar_of([*make_images()[1].items(), member], place.downloads / VAL)
        assert refused(place.with_sums(), capsys, VAL, "nothing was written")

    @pytest.mark.parametrize(
        "name",
        [
            "ILSVRC/Data/CLS-LOC/train/../../../../evil_1.JPEG",
            "ILSVRC/Data/CLS-LOC/train/n01440764/n01739381_1.JPEG",
            "ILSVRC/Data/CLS-LOC/train/n01440764/deeper/n01440764_77.JPEG",
            "ILSVRC/Data/CLS-LOC/train/n01440764_77.JPEG",
            "ILSVRC/Data/CLS-LOC/val/n01440764/ILSVRC2012_val_00000001.JPEG",
            "ILSVRC/Data/CLS-LOC/val//etc/passwd",
        ],
    )
    def test_entries_of_a_zip(self, tmp_path, capsys, name):
        release = write_kaggle_zip(tmp_path / "a.zip", {**imagenet_files.kaggle_files(), name: b"x"})
        assert refused(Place(tmp_path, release, "a.zip"), capsys, "a.zip")

    def test_an_image_that_reaches_out_of_its_classes_tar(self, place, capsys):
        """Its header claims more bytes than the tar of its class has; the next class's would be read."""
        members = train_archive(make_images()[0])
        inner = bytearray(tar_of({"n01440764_0.JPEG": b"x" * 512}))
        inner[124:136] = b"%011o\0" % 100_000
        inner[148:156] = b" " * 8
        inner[148:156] = b"%06o\0 " % sum(inner[:512])
        members["n01440764.tar"] = bytes(inner)
        tar_of(members, place.downloads / TRAIN)
        assert refused(place.with_sums(), capsys, TRAIN)


class TestRefused:
    def test_missing_archives(self, place, capsys, tmp_path):
        os.remove(place.downloads / VAL)
        assert refused(place, capsys, f"neither {VAL}", "--part train")
        os.remove(place.downloads / KIT)
        write_official(place.downloads)
        os.remove(place.downloads / KIT)
        assert refused(place, capsys, KIT, "is missing", "--labels")
        place.downloads = tmp_path / "nowhere"
        assert refused(place, capsys, "nowhere: there is no such file or folder")

    @pytest.mark.parametrize("name", [TRAIN, VAL])
    @pytest.mark.parametrize("share", [0, 0.3, 0.5, 0.9])
    def test_a_truncated_archive(self, place, capsys, name, share):
        data = (place.downloads / name).read_bytes()
        (place.downloads / name).write_bytes(data[: int(len(data) * share)])
        assert refused(place, capsys, name, flags=["--part", "train" if name == TRAIN else "val"])

    def test_an_archive_that_ends_after_a_whole_class(self, place, capsys):
        members = train_archive(make_images()[0])
        del members["n02105855.tar"]
        tar_of(members, place.downloads / TRAIN)
        assert refused(place.with_sums(), capsys, TRAIN, "it holds 11 images in 2 classes, not 23 in 3")

    def test_a_flipped_bit_is_found_by_the_sum_and_nothing_is_kept(self, place, capsys):
        path = place.downloads / TRAIN
        data = bytearray(path.read_bytes())
        data[data.find(b"\xff\xd8") + 200] ^= 1
        path.write_bytes(data)
        assert refused(place, capsys, TRAIN, "its MD5 sum is", place.release.archives["train"].md5)
        assert os.listdir(place.out) == []

    def test_what_is_no_archive(self, place, capsys):
        (place.downloads / TRAIN).write_bytes(b"<html>log in first</html>" * 100)
        assert refused(place, capsys, TRAIN, "not a tar archive")

    def test_damaged_images_of_a_zip(self, tmp_path, capsys):
        place = Place(tmp_path, write_kaggle_zip(tmp_path / "a.zip"), "a.zip")
        data = bytearray((tmp_path / "a.zip").read_bytes())
        data[data.find(b"\xff\xd8") + 200] ^= 1
        (tmp_path / "a.zip").write_bytes(data)
        assert refused(place, capsys, "a.zip:n", "it is damaged")
        (tmp_path / "a.zip").write_bytes(data[:-100])
        assert refused(place, capsys, "a.zip: it is not a zip")

    def test_a_compressed_tar(self, place, capsys):
        place.downloads = place.downloads / KIT
        assert refused(place, capsys, "unpack it and name the folder that holds ILSVRC/")

    def test_a_zip_or_folder_that_lacks_an_image(self, tmp_path, capsys):
        files = imagenet_files.kaggle_files()
        del files["ILSVRC/Data/CLS-LOC/train/n01440764/n01440764_1.JPEG"]
        place = Place(tmp_path, write_kaggle_zip(tmp_path / "a.zip", files), "a.zip")
        assert refused(place, capsys, "it holds 22 images in 3 classes, not 23 in 3")
        place = Place(tmp_path, write_kaggle_folder(tmp_path / "downloads"))
        os.remove(place.downloads / "LOC_val_solution.csv")
        assert refused(place, capsys, "LOC_val_solution.csv: there is no such file")

    @pytest.mark.parametrize("form", ["folders", "mindrecord"])
    def test_a_target_that_holds_something_else_is_left_alone(self, place, capsys, form):
        (place.out / "train" / "cat").mkdir(parents=True)
        (place.out / "train" / "cat" / "1.jpg").write_bytes(b"mine")
        assert place.prepare("--form", form) == 2
        assert "out/train: it is there and holds something else" in capsys.readouterr().err
        assert files_in(place.out) == {"train/cat/1.jpg": b"mine"}

    def test_an_image_that_was_changed_afterwards_is_noticed(self, place, capsys):
        assert place.prepare() == 0
        path = place.out / "val" / next(iter(expected_files("val")))
        path.write_bytes(path.read_bytes()[:-1])
        assert place.prepare() == 2 and "holds something else" in capsys.readouterr().err

    def test_a_file_as_target(self, place, capsys):
        place.out.write_bytes(b"mine")
        assert place.prepare() == 1
        assert "out: it is a file" in capsys.readouterr().err and place.out.read_bytes() == b"mine"

    def test_a_target_among_the_images(self, tmp_path, capsys):
        place = Place(tmp_path, write_kaggle_folder(tmp_path / "downloads"))
        place.out = place.downloads / "ILSVRC/Data/CLS-LOC"
        assert place.prepare() == 2 and "from which the images come" in capsys.readouterr().err

    @pytest.mark.skipif(not can_mount(), reason="needs a file system of its own")
    def test_a_full_disk_is_noticed_before_anything_is_written(self, place):
        disk, kept = place.root / "disk", place.root / "kept"
        disk.mkdir()
        kept.mkdir()
        result = run_on_small_disk(command(place, disk), disk, "40k", kept, cwd=REPOSITORY)
        assert result.returncode == 1 and result.stderr.count("\n") == 1, result.stderr
        assert "the images need 0.00 GB" in result.stderr
        assert not files_in(kept)

    def test_a_disk_that_fills_up_on_the_way(self, place, capsys, monkeypatch):
        """Another program takes the space; the same command goes on when there is some again."""
        with monkeypatch.context() as patch:
            import builtins

            real = builtins.open

            def full(path, mode="r", *rest, **options):
                if "x" in mode and str(path).endswith("n01739381_3.JPEG"):
                    raise OSError(28, "No space left on device")
                return real(path, mode, *rest, **options)

            patch.setattr(builtins, "open", full)
            assert refused(place, capsys, "n01739381_3.JPEG: there is no space left on the device")
        assert place.prepare() == 0
        assert files_in(place.out / "train") == expected_files("train")

    def test_a_part_that_was_begun_from_another_file(self, place, capsys, monkeypatch):
        def stop(*_, **__):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(imagenet, "holds", stop)
            assert place.prepare() == 130
        capsys.readouterr()
        sentence = "begun here from another file, or in another form"
        assert refused(place, capsys, sentence, flags=["--form=mindrecord"], exit_code=2)
        os.utime(place.downloads / TRAIN, (1, 1))
        assert refused(place, capsys, "begun here from another file", exit_code=2)

    def test_two_at_once(self, place, capsys):
        from src.common.files import locked

        place.out.mkdir()
        with locked(str(place.out)):
            assert refused(place, capsys, "another process is writing to it", exit_code=2)

    def test_flags(self, place, capsys):
        assert place.prepare("--shards", 2) == 2 and "--form mindrecord only" in capsys.readouterr().err
        assert place.prepare("--form", "tfrecord") == 2


def command(place, out):
    """A process of its own that prepares, slowly enough to be killed on the way."""
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from scripts import prepare_imagenet\n"
        "from src.common.cli import run_cli\n"
        "from src.preparation import class_folders\n"
        "from tests.support.imagenet_files import make_images, release_of\n"
        "release = release_of(Path(sys.argv[1]), *make_images()[:2])\n"
        "sys.exit(run_cli(lambda argv: prepare_imagenet.main(argv, release), sys.argv[1:]))\n"
    )
    return [sys.executable, "-c", code, str(place.downloads), str(out)]


class TestKilled:
    def test_a_half_image_is_written_again(self, place, monkeypatch):
        """What a kill in the middle of a write leaves: the beginning of a file, under its own name."""

        def stop(*_, **__):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(imagenet, "holds", stop)
            assert place.prepare("--part", "val") == 130
        (aside,) = place.out.iterdir()
        paths = sorted(path for path in aside.rglob("*") if path.is_file())
        paths[0].write_bytes(paths[0].read_bytes()[:5])
        os.remove(paths[1])
        kept = paths[2].stat().st_mtime_ns
        assert place.prepare("--part", "val") == 0
        assert files_in(place.out / "val") == expected_files("val")
        assert (place.out / "val" / paths[2].relative_to(aside)).stat().st_mtime_ns == kept

    def test_killed_again_and_again(self, tmp_path):
        """SIGKILL after random times, in a part of many images: in the end every image is there, and whole."""
        numbers = range(6000)
        images = {f"n01440764_{number}.JPEG": os.urandom(2000 + number) for number in numbers}
        downloads = tmp_path / "downloads"
        downloads.mkdir()
        tar_of({"n01440764.tar": tar_of(images)}, downloads / TRAIN)
        code = (
            "import sys\nfrom scripts import prepare_imagenet\nfrom src.common.cli import run_cli\n"
            "from src.preparation.imagenet_release import Archive, Release\n"
            f"release = Release(('n01440764',), {{'train': {len(images)}}}, {{'train': Archive({TRAIN!r}, "
            f"{imagenet.file_md5(str(downloads / TRAIN))!r}), 'val': Archive('', ''), 'devkit': Archive('', '')}})\n"
            "sys.exit(run_cli(lambda argv: prepare_imagenet.main(argv, release), sys.argv[1:]))\n"
        )
        arguments = [sys.executable, "-c", code, str(downloads), str(tmp_path / "out"), "--part", "train"]
        kills = seen = 0
        for attempt in range(8):
            process = subprocess.Popen(arguments, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            # As soon as it has written something more, and a little later each time.
            while process.poll() is None and count_files(tmp_path / "out") <= seen:
                time.sleep(0.001)
            time.sleep(0.002 * attempt)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += process.returncode == -signal.SIGKILL
            seen = count_files(tmp_path / "out")
        assert kills >= 2
        assert subprocess.run(arguments, cwd=REPOSITORY, capture_output=True).returncode == 0
        assert files_in(tmp_path / "out") == {f"train/n01440764/{name}": data for name, data in images.items()}


def test_the_release_is_the_published_one():
    """Against torchvision's sums and the class names of its weights."""
    from torchvision.datasets.imagenet import ARCHIVE_META

    release = imagenet_2012()
    assert {part: (archive.name, archive.md5) for part, archive in release.archives.items()} == ARCHIVE_META
    assert len(release.classes) == 1000 and list(release.classes) == sorted(release.classes)
    assert release.images == {"train": 1281167, "val": 50000}
