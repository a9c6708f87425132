"""Labelled folders packed into MindRecords: what is read back, stopped conversions, full disks, damaged shards."""

import contextlib
import json
import os
import resource
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import time

import mindspore.dataset as ds
import numpy as np
import pytest

from src.common.cli import RunError, UsageError
from src.common.files import locked_alone
from src.data import mindrecord_writer
from src.data.batches import Loading
from src.data.image_folder import read_image_folder
from src.data.mindrecord import check_images, read_mindrecord
from src.data.mindrecord_writer import convert
from src.data.training_batches import Sampling
from src.dataset import create_dataset
from src.images.preprocess import Preprocess
from tests.support.hard_images import draw, encode

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SCRIPT = os.path.join(REPOSITORY, "scripts", "convert_to_mindrecord.py")
NAMES = ["plain", "with space", "中文", "new\nline", "a'b\"c", "per%cent", "nested/deeper"]


def run(*arguments, **options):
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


def listing_of(folder):
    """All that programs ask of a listing."""
    return folder.classes, folder.paths, folder.labels.tolist(), [folder.read(index) for index in range(len(folder))]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of 43 images and other files in odd classes, an empty one among them."""
    root = tmp_path_factory.mktemp("images")
    for number in range(42):
        path = root / NAMES[number % 7] / f"{number:02} {NAMES[number % 6]}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(draw(60 + number, 50), "JPEG", quality=90))
    (root / "empty").mkdir()
    with open(os.path.join(os.fsencode(root), b"plain", b"\xff.png"), "wb") as file:
        file.write(encode(draw(30, 20), "PNG"))
    (root / "plain" / "broken.jpg").write_bytes(b"no image")
    return str(root)


@pytest.fixture(scope="module")
def packed(root, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("packed"))
    assert convert(read_image_folder(root), out, 3) == 3
    return out


class TestPacked:
    def test_classes_labels_order_and_bytes_are_the_folders(self, root, packed):
        assert listing_of(read_image_folder(packed)) == listing_of(read_image_folder(root))

    def test_a_shard_stands_for_all_of_them(self, root, packed):
        one = os.path.join(packed, "images_00002_of_00003.mindrecord")
        assert listing_of(read_image_folder(one)) == listing_of(read_image_folder(root))

    @pytest.mark.parametrize("do_train", [True, False])
    def test_batches_are_the_folders(self, root, packed, do_train):
        results = []
        for path in (root, packed):
            dataset = create_dataset(path, do_train, 8, loading=Loading(Preprocess(32, 36)), sampling=Sampling(3))
            results.append(list(dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)))
        assert len(results[0]) == len(results[1]) > 4
        for ours, theirs in zip(*results):
            np.testing.assert_array_equal(ours[0], theirs[0])
            np.testing.assert_array_equal(ours[1], theirs[1])

    def test_mindspores_own_reader_reads_it(self, root, packed):
        folder = read_image_folder(root)
        shards = sorted(os.path.join(packed, name) for name in os.listdir(packed) if name.endswith(".mindrecord"))
        dataset = ds.MindDataset(shards, ["image", "label"], shuffle=False)
        rows = {
            bytes(image): int(label) for image, label in dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)
        }
        assert rows == {folder.read(index): int(folder.labels[index]) for index in range(len(folder))}

    def test_files_may_be_read_by_whoever_may(self, packed):
        umask = os.umask(0)
        os.umask(umask)
        assert {os.stat(os.path.join(packed, name)).st_mode & 0o777 for name in os.listdir(packed)} == {0o666 & ~umask}
        assert len(os.listdir(packed)) == 6

    def test_a_bad_image_is_named_with_its_shard(self, packed, capsys):
        dataset = create_dataset(packed, False, 16, loading=Loading(Preprocess(32, 36)))
        assert sum(len(labels) for _, labels in dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)) == 44
        assert ".mindrecord:plain/broken.jpg: it is not an image" in capsys.readouterr().err

    def test_without_mindspore(self, packed):
        code = (
            "import sys; from src.data.image_folder import read_image_folder; "
            "print(len(read_image_folder(sys.argv[1]).read(0)), [m for m in ('mindspore',) if m in sys.modules])"
        )
        command = [sys.executable, "-c", code, packed]
        result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
        assert result.stdout.split()[1] == "[]"

    def test_every_checksum_is_compared_where_asked(self, packed, tmp_path):
        assert len(check_images(packed)) == 44
        shutil.copytree(packed, tmp_path / "copy")
        shard = tmp_path / "copy" / "images_00002_of_00003.mindrecord"
        folder = read_mindrecord(str(tmp_path / "copy"))
        index = int(np.flatnonzero(folder.file_of == 1)[5])
        data = bytearray(shard.read_bytes())
        data[int(folder.offsets[index]) + 100] ^= 1
        shard.write_bytes(bytes(data))
        with pytest.raises(RunError, match="the image in the shard is damaged") as error:
            check_images(str(tmp_path / "copy"))
        assert folder.full_path(index) in str(error.value)


class TestDamaged:
    @pytest.fixture
    def copy(self, packed, tmp_path):
        shutil.copytree(packed, tmp_path / "copy")
        return tmp_path / "copy"

    def refused(self, copy):
        with pytest.raises(RunError) as error:
            read_image_folder(str(copy))
        assert "\n" not in str(error.value)
        return str(error.value)

    def test_a_missing_shard(self, copy):
        os.remove(copy / "images_00002_of_00003.mindrecord")
        assert "1 of its 3 shards are missing, the first is number 2; the conversion was stopped" in self.refused(copy)

    def test_a_missing_index(self, copy):
        os.remove(copy / "images_00002_of_00003.mindrecord.db")
        assert "the shard's index is missing" in self.refused(copy)

    @pytest.mark.parametrize("content", [b"", b"no database at all" * 100])
    def test_a_damaged_index(self, copy, content):
        (copy / "images_00002_of_00003.mindrecord.db").write_bytes(content)
        assert "the shard's index is damaged" in self.refused(copy)

    @pytest.mark.parametrize("length", [0, 5, 100, 20000])
    def test_a_shard_cut_short(self, copy, length):
        path = copy / "images_00002_of_00003.mindrecord"
        path.write_bytes(path.read_bytes()[:length])
        assert "images_00002_of_00003.mindrecord: " in self.refused(copy)

    @pytest.mark.parametrize(
        "change",
        [
            lambda header, description: header.pop("header_size"),
            lambda header, description: header.update(header_size=-1),
            lambda header, description: header.update(page_size="big"),
            lambda header, description: header.update(page_size=0),
            lambda header, description: header.update(schema=[]),
            lambda header, description: header.update(schema=[3]),
            lambda header, description: description.pop("listing"),
            lambda header, description: description.update(listing=["no", "text"]),
            lambda header, description: description.pop("shards"),
            lambda header, description: description.update(shards=1 << 60),
            lambda header, description: description.update(shards=1 << 60, images=1 << 60),
            lambda header, description: description.update(shard=-1),
            lambda header, description: description.update(images=None),
            lambda header, description: description.update(images=1 << 60),
            lambda header, description: description.pop("classes"),
            lambda header, description: description.update(classes=[1, 2]),
            lambda header, description: description.update(classes={"a": 1}),
        ],
    )
    def test_a_header_without_sense(self, copy, change):
        for path in sorted(copy.glob("*.mindrecord")):
            data = path.read_bytes()
            length = struct.unpack("<Q", data[:8])[0]
            header = json.loads(data[8 : 8 + length])
            description = json.loads(header["schema"][0]["desc"])
            before = json.dumps(description)
            change(header, description)
            if json.dumps(description) != before:
                header["schema"][0]["desc"] = json.dumps(description)
            text = json.dumps(header).encode()
            path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + len(text) :])
        self.refused(copy)

    def test_a_header_that_is_nested_without_end(self, copy):
        text = b"[" * 1_000_000
        (copy / "images_00001_of_00003.mindrecord").write_bytes(struct.pack("<Q", len(text)) + text)
        assert "damaged" in self.refused(copy)

    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE INDEXES SET PAGE_ID_BLOB = -1",
            "UPDATE INDEXES SET PAGE_ID_BLOB = 1 << 60",
            "UPDATE INDEXES SET PAGE_ID_BLOB = (1 << 44)",  # times a page of a megabyte this is 0 in 64 bits
            "UPDATE INDEXES SET PAGE_OFFSET_BLOB = -8 WHERE ROW_ID = 3",
            "UPDATE INDEXES SET PAGE_OFFSET_BLOB = 1 << 40, PAGE_OFFSET_BLOB_END = 1 << 41",
            "UPDATE INDEXES SET PAGE_OFFSET_BLOB_END = PAGE_OFFSET_BLOB - 100 WHERE ROW_ID = 0",
            "UPDATE INDEXES SET PAGE_OFFSET_BLOB_END = 9223372036854775807",
            "UPDATE INDEXES SET PAGE_OFFSET_BLOB = 'text'",
            "UPDATE INDEXES SET label_0 = NULL",
            "UPDATE INDEXES SET label_0 = 1000",
            "UPDATE INDEXES SET label_0 = -1",
            "UPDATE INDEXES SET path_0 = NULL",
            "UPDATE INDEXES SET path_0 = x'ff'",
            "UPDATE INDEXES SET path_0 = '../../outside.jpg'",
            "UPDATE INDEXES SET path_0 = '/etc/passwd'",
            "UPDATE INDEXES SET path_0 = 'a/%2E%2E/b'",
            "DELETE FROM INDEXES",
            "DELETE FROM INDEXES WHERE ROW_ID = 2",
            "DROP TABLE INDEXES",
        ],
    )
    def test_an_index_without_sense(self, copy, statement):
        with contextlib.closing(sqlite3.connect(copy / "images_00002_of_00003.mindrecord.db")) as index, index:
            index.execute(statement)
        self.refused(copy)

    def test_an_index_that_never_ends(self, copy):
        columns = "ROW_ID, path_0, label_0, PAGE_ID_BLOB, PAGE_OFFSET_BLOB, PAGE_OFFSET_BLOB_END, checksum_0"
        with contextlib.closing(sqlite3.connect(copy / "images_00002_of_00003.mindrecord.db")) as index, index:
            index.execute("DROP TABLE INDEXES")
            index.execute(
                f"CREATE VIEW INDEXES ({columns}) AS WITH RECURSIVE t(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM t) "
                "SELECT n, 'a', 0, 0, 0, 9, 0 FROM t"
            )
        assert "the shard's index is damaged" in self.refused(copy)

    def test_flipped_bits_are_a_sentence_or_nothing(self, copy, packed):
        """In a header, whose checksum nobody keeps, and in an index; images have a checksum each."""
        random = np.random.default_rng(0)
        for name in ("images_00002_of_00003.mindrecord", "images_00002_of_00003.mindrecord.db"):
            whole = (copy / name).read_bytes()
            for _ in range(150):
                data = bytearray(whole)
                for place in random.integers(0, min(len(whole), 4000 if name.endswith("d") else len(whole)), 3):
                    data[place] ^= 1 << random.integers(8)
                (copy / name).write_bytes(data)
                try:
                    folder = read_image_folder(str(copy))
                    for index in range(len(folder)):
                        with contextlib.suppress(OSError):
                            folder.read(index)
                except RunError as error:
                    assert "\n" not in str(error)
            (copy / name).write_bytes(whole)
        assert listing_of(read_image_folder(str(copy))) == listing_of(read_image_folder(packed))

    def test_a_file_that_is_none(self, copy):
        (copy / "other.mindrecord").write_bytes(b"hello, I am a text" * 10)
        assert "not a MindRecord, or damaged" in self.refused(copy)

    def test_a_mindrecord_of_something_else(self, tmp_path):
        from mindspore.mindrecord import FileWriter

        writer = FileWriter(str(tmp_path / "other.mindrecord"), 1)
        writer.add_schema({"data": {"type": "bytes"}, "label": {"type": "int32"}}, "of another program")
        writer.write_raw_data([{"data": b"x", "label": 1}])
        writer.commit()
        assert "a MindRecord of data, label, not one of labelled images" in self.refused(tmp_path)

    def test_shards_of_two_conversions(self, copy, root):
        shutil.move(str(copy / "images_00002_of_00003.mindrecord"), str(copy / "kept"))
        convert(read_image_folder(root), str(copy / "two"), 2)
        for name in os.listdir(copy / "two"):
            shutil.copy(copy / "two" / name, copy / name)
        assert "its shards are of 2 conversions" in self.refused(copy)

    def test_reading_behind_the_end_is_an_error_of_that_image(self, copy):
        folder = read_mindrecord(str(copy))
        os.truncate(copy / "images_00003_of_00003.mindrecord", 70000)
        with pytest.raises(OSError, match="cut short"):
            folder.read(len(folder) - 1)


class TestConverting:
    def test_a_second_start_writes_nothing(self, root, packed, monkeypatch):
        monkeypatch.setattr(mindrecord_writer, "write_shard", lambda *_: pytest.fail("a shard was written again"))
        assert convert(read_image_folder(root), packed, 3) == 3

    def test_missing_shards_are_written(self, root, packed, tmp_path):
        out = tmp_path / "out"
        shutil.copytree(packed, out)
        kept = os.stat(out / "images_00001_of_00003.mindrecord").st_mtime_ns
        os.remove(out / "images_00002_of_00003.mindrecord")
        (out / ".writing-left").mkdir()
        convert(read_image_folder(root), str(out), 3)
        assert listing_of(read_image_folder(str(out))) == listing_of(read_image_folder(root))
        assert os.stat(out / "images_00001_of_00003.mindrecord").st_mtime_ns == kept
        assert len(os.listdir(out)) == 6

    def test_killed_and_started_again(self, tmp_path):
        random = np.random.default_rng(0)
        for number in range(60):
            path = tmp_path / "images" / f"class{number % 4}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(random.bytes(400_000))
        out = tmp_path / "out"
        kills = 0
        for _ in range(4):
            process = subprocess.Popen(
                [sys.executable, SCRIPT, str(tmp_path / "images"), str(out), "--shards", "20"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            before = len(self.shards(out))
            while process.poll() is None and len(self.shards(out)) < before + 4:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
        assert kills >= 3
        result = run(tmp_path / "images", out, "--shards", 20)
        assert result.returncode == 0 and "packed into 20 shards" in result.stdout
        assert listing_of(read_image_folder(str(out))) == listing_of(read_image_folder(str(tmp_path / "images")))
        assert len(os.listdir(out)) == 40

    def shards(self, out):
        return [name for name in os.listdir(out) if name.endswith(".mindrecord")] if out.exists() else []

    def test_shards_of_other_images_are_not_touched(self, root, packed, tmp_path):
        before = sorted((name, os.stat(os.path.join(packed, name)).st_mtime_ns) for name in os.listdir(packed))
        with pytest.raises(UsageError, match="shards of other images, or of another number"):
            convert(read_image_folder(root), packed, 4)
        assert sorted((name, os.stat(os.path.join(packed, name)).st_mtime_ns) for name in os.listdir(packed)) == before

    def test_more_shards_than_images(self, root, tmp_path):
        assert convert(read_image_folder(root), str(tmp_path / "out"), 1000) == 44
        assert listing_of(read_image_folder(str(tmp_path / "out"))) == listing_of(read_image_folder(root))

    def test_a_full_disk_is_seen_beforehand(self, root, tmp_path, monkeypatch):
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(RunError, match="the shards need 0.00 GB, but 0.00 GB are free"):
            convert(read_image_folder(root), str(tmp_path / "out"))

    def test_a_write_that_fails_leaves_no_shard(self, tmp_path):
        path = tmp_path / "images" / "a" / "1.jpg"
        path.parent.mkdir(parents=True)
        path.write_bytes(os.urandom(3_000_000))

        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

        result = run(tmp_path / "images", tmp_path / "out", preexec_fn=limit)
        lines = result.stderr.splitlines()
        assert result.returncode == 1 and "Traceback" not in result.stderr
        assert lines[-1].startswith("error: ") and "the shard could not be written" in lines[-1]
        assert self.shards(tmp_path / "out") == []

    def test_a_shard_that_is_not_what_was_meant_gets_no_name(self, root, tmp_path, monkeypatch):
        write = mindrecord_writer.write_images
        monkeypatch.setattr(
            mindrecord_writer, "write_images", lambda *arguments: [value ^ 1 for value in write(*arguments)]
        )
        with pytest.raises(RunError, match="the image in the shard is damaged"):
            convert(read_image_folder(root), str(tmp_path / "out"))
        assert self.shards(tmp_path / "out") == []

    def test_an_image_that_vanishes(self, root, tmp_path):
        shutil.copytree(root, tmp_path / "images")
        folder = read_image_folder(str(tmp_path / "images"))
        os.remove(folder.full_path(3))
        with pytest.raises(RunError, match="there is no such file") as error:
            convert(folder, str(tmp_path / "out"))
        assert folder.full_path(3) in str(error.value)

    @pytest.mark.parametrize("when", ["before", "meanwhile"])
    def test_an_empty_image_is_named(self, root, tmp_path, monkeypatch, when):
        """MindSpore's writer has no place for it and says so without its name."""
        shutil.copytree(root, tmp_path / "images")
        folder = read_image_folder(str(tmp_path / "images"))
        if when == "before":
            os.truncate(folder.full_path(3), 0)
        else:
            measure = mindrecord_writer.measure_images

            def measure_and_empty(folder):
                sizes = measure(folder)
                os.truncate(folder.full_path(3), 0)
                return sizes

            monkeypatch.setattr(mindrecord_writer, "measure_images", measure_and_empty)
        with pytest.raises(RunError, match="is empty, one of 1" if when == "before" else "changed while") as error:
            convert(folder, str(tmp_path / "out"))
        assert str(error.value).startswith(folder.full_path(3) + ": ")
        assert self.shards(tmp_path / "out") == []

    def test_two_at_once(self, root, tmp_path):
        out = tmp_path / "out"
        out.mkdir()
        with locked_alone(str(out)):
            with pytest.raises(UsageError, match="another process is writing"):
                convert(read_image_folder(root), str(out))


class TestWrongUse:
    @pytest.mark.parametrize(
        ("arguments", "code", "sentence"),
        [
            (["{root}"], 2, "name a folder and one for the shards"),
            (["{root}", "{tmp}/out", "--check"], 2, "name a folder and one for the shards"),
            (["{root}", "{root}/out"], 2, "whose class folders it would be among"),
            (["{packed}", "{tmp}/out"], 2, "is already a MindRecord"),
            (["{root}", "--check"], 2, "is a folder of class folders or a list, not a MindRecord"),
            (["{tmp}/missing", "{tmp}/out"], 1, "there is no such folder"),
            (["{root}", "{tmp}/out", "--shards", "0"], 2, "at least 1"),
            (["{root}", "/proc/out"], 1, "/proc/out: "),
        ],
    )
    def test_is_a_sentence(self, root, packed, tmp_path, arguments, code, sentence):
        result = run(*(part.format(root=root, packed=packed, tmp=tmp_path) for part in arguments))
        assert result.returncode == code and sentence in result.stderr
        assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
        assert not os.path.exists(os.path.join(root, "out"))


def test_eval_gives_the_same_result_line(root, packed, tmp_path, capsys):
    import eval as evaluation
    from src.common.cli import run_cli
    from src.weights.checkpoint import network_shapes, write_checkpoint
    from src.weights.model_info import ModelInfo

    random = np.random.default_rng(0)
    classes = tuple(read_image_folder(root).classes)
    info = ModelInfo("b0", len(classes), classes, "same", 1e-3, Preprocess.for_image_size(32))
    weights = {name: random.uniform(-0.05, 0.1, shape) for name, shape in network_shapes(info).items()}
    path = str(tmp_path / "b0.ckpt")
    write_checkpoint(path, {name: np.abs(value).astype(np.float32) for name, value in weights.items()}, info)
    results = []
    for dataset in (root, packed):
        assert run_cli(evaluation.main, ["--dataset_path", dataset, "--checkpoint_path", path]) == 1  # broken.jpg
        results.append(capsys.readouterr().out.splitlines()[-1])
    assert results[0] == results[1] and results[0].startswith("result: {'Loss': ")
