"""Lists of labelled images: the same as the folder that they list, in every dialect, and what is wrong with them."""

import csv
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

import create_imagenet2012_label
import eval as eval_script
import infer_onnx
from benchmarks.peers import torchvision
from src.common.cli import RunError, UsageError, run_cli
from src.data.image_folder import fit_classes, read_evaluation_folder, read_held_out, read_image_folder
from src.data.image_folder import read_training_folder as read_training
from src.data.mindrecord_writer import convert
from src.images.preprocess import Preprocess
from src.models.effnet import create_network
from src.weights.checkpoint import write_checkpoint
from src.weights.model_info import ModelInfo
from tests.inference.test_infer_onnx import write_model
from tests.support import training_runs

NAMES = ("cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "owl/deep/3.png")


def listing_of(folder):
    """All that programs ask of a listing."""
    return folder.classes, folder.paths, folder.labels.tolist(), [folder.read(index) for index in range(len(folder))]


@pytest.fixture
def photos(tmp_path):
    """A folder of four files in three classes, each of other bytes."""
    for number, name in enumerate(NAMES):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % number)
    return tmp_path / "photos"


def write(photos, text, name="list.csv", encoding="utf-8"):
    """A list in the folder of the photos."""
    data = text if isinstance(text, bytes) else text.encode(encoding)
    (photos / name).write_bytes(data)
    return str(photos / name)


def rows(separator=",", part=False):
    parts = ["train", "val", "train", "test"]
    return [
        separator.join([name, name.split("/")[0], *([parts[number]] if part else [])])
        for number, name in enumerate(NAMES)
    ]


class TestSameAsTheFolder:
    @pytest.mark.parametrize("header", ["", "path,label\n", "\ufeffFile , Class\n", "label,size,path\n"])
    @pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n , \n\n"])
    def test_in_any_order_with_and_without_a_header(self, photos, header, end):
        lines = rows()[::-1]
        if header.startswith("label"):
            lines = [",".join([line.split(",")[1], "7", line.split(",")[0]]) for line in lines]
        expected = listing_of(read_image_folder(str(photos)))
        assert listing_of(read_image_folder(write(photos, header + end.join(lines) + end))) == expected

    def test_torchvision_lists_the_same(self, photos):
        ours = read_image_folder(write(photos, "\n".join(rows())))
        theirs = torchvision.datasets.ImageFolder(str(photos))
        assert ours.classes == theirs.classes
        assert [(ours.full_path(index), label) for index, label in enumerate(ours.labels)] == theirs.samples

    @pytest.mark.parametrize(
        ("name", "separator", "encoding"),
        [
            ("a.tsv", "\t", "utf-8"),
            ("A.TSV", "\t", "utf-16"),
            ("a.csv", ";", "utf-8-sig"),
            ("a.csv", "\t", "utf-16"),
            ("a.CSV", ",", "utf-8"),
        ],
    )
    def test_what_spreadsheets_write(self, photos, name, separator, encoding):
        (photos / "cat").rename(photos / "Käse, 猫")
        lines = [line.replace("cat", '"Käse, 猫"') for line in rows(separator)]
        lines = [line.replace('"Käse, 猫"/1.jpg', '"Käse, 猫/1.jpg"') for line in lines]
        lines = [line.replace('"Käse, 猫"/2.jpg', '"Käse, 猫/2.jpg"') for line in lines]
        path = write(photos, "\r\n".join([separator.join(("path", "label")), *lines]), name, encoding)
        assert listing_of(read_image_folder(path)) == listing_of(read_image_folder(str(photos)))

    @pytest.mark.parametrize("name", ["with space", "new\nline", "a'b\"c", "-x", "tab\there", "中文", "*"])
    def test_odd_names_as_pythons_csv_writes_them(self, photos, name):
        (photos / "cat").rename(photos / name)
        for suffix, dialect in ((".csv", "excel"), (".tsv", "excel-tab")):
            with open(photos / f"list{suffix}", "w", newline="", encoding="utf-8") as file:
                for path in NAMES:
                    path = path.replace("cat", name)
                    csv.writer(file, dialect).writerow([path, path.split("/")[0]])
            assert listing_of(read_image_folder(str(photos / f"list{suffix}"))) == listing_of(
                read_image_folder(str(photos))
            )

    def test_a_file_name_of_any_bytes(self, photos):
        os.rename(os.fsencode(photos / "cat" / "1.jpg"), os.path.join(os.fsencode(photos), b"cat", b"\xff.jpg"))
        path = write(photos, b"cat/\xff.jpg,cat\ndog/1.jpg,dog\n")
        assert read_image_folder(path).read(0) == b"0"

    def test_paths_from_elsewhere(self, photos, tmp_path):
        (tmp_path / "lists").mkdir()
        text = f"../photos/cat/1.jpg,a\n{photos}/dog/1.jpg,b\n..\\photos\\cat\\2.jpg,a\n"
        folder = read_image_folder(write(tmp_path / "lists", text))
        assert [folder.read(index) for index in range(3)] == [b"0", b"1", b"2"]

    def test_a_mindrecord_can_be_made_of_it(self, photos, tmp_path):
        folder = read_image_folder(write(photos, "\n".join(rows())))
        convert(folder, str(tmp_path / "packed"), 2)
        assert listing_of(read_image_folder(str(tmp_path / "packed"))) == listing_of(folder)


class TestLabels:
    def test_words_are_numbered_in_sorted_order(self, photos):
        folder = read_image_folder(write(photos, "cat/1.jpg,zebra\ndog/1.jpg,Ant\ncat/2.jpg,10\n"))
        assert folder.classes == ["10", "Ant", "zebra"] and folder.labels.tolist() == [0, 1, 2]

    def test_numbers_stand_for_themselves(self, photos):
        folder = read_image_folder(write(photos, "cat/1.jpg,10\ndog/1.jpg,2\ncat/2.jpg,0\n"))
        assert folder.classes == [str(number) for number in range(11)] and folder.labels.tolist() == [0, 2, 10]

    def test_numbers_with_leading_zeros_are_words(self, photos):
        folder = read_image_folder(write(photos, "cat/1.jpg,010\ndog/1.jpg,002\n"))
        assert folder.classes == ["002", "010"]

    def test_labels_are_found_by_name_among_a_models_classes(self, photos):
        names = ("bee", "cat", "dog", "owl")
        folder = fit_classes(read_image_folder(write(photos, "\n".join(rows()[:3]))), names, 4)
        assert folder.classes == list(names) and folder.labels.tolist() == [1, 1, 2]

    def test_numbers_are_labels_of_a_model_whose_classes_have_names(self, photos):
        folder = read_image_folder(write(photos, "cat/1.jpg,0\ndog/1.jpg,2\n"))
        for names in (("bee", "cat", "dog", "owl"), None):
            fitted = fit_classes(folder, names, 4)
            assert fitted.classes == list(names or "0123") and fitted.labels.tolist() == [0, 2]

    def test_numbers_that_are_a_models_names_are_names(self, photos):
        """Class folders 0 to 10 are numbered in sorted order: 0, 1, 10, 2 and so on."""
        folder = read_image_folder(write(photos, "cat/1.jpg,10\ndog/1.jpg,2\n"))
        names = sorted(str(number) for number in range(11))
        assert fit_classes(folder, names, 11).labels.tolist() == [3, 2]

    def test_unknown_names_and_folders_stay_as_they_are(self, photos):
        folder = read_image_folder(write(photos, "\n".join(rows())))
        assert fit_classes(folder, ("cat", "dog"), 2) is folder
        folder = read_image_folder(str(photos))
        assert fit_classes(folder, ("owl", "dog", "cat"), 3) is folder


class TestParts:
    def test_training_and_evaluation_take_their_own(self, photos, capsys):
        path = write(photos, "path,label,split\n" + "\n".join(rows(part=True)))
        assert read_training(path).paths == ["cat/1.jpg", "dog/1.jpg"]
        assert "the 2 images of its split train are used, not the 1 of val and 1 of test" in capsys.readouterr().err
        assert read_evaluation_folder(path).paths == ["cat/2.jpg"]
        assert len(read_image_folder(path)) == 4
        assert read_training(path).classes == read_evaluation_folder(path).classes == ["cat", "dog", "owl"]

    def test_what_a_list_holds_out_is_evaluated_while_training(self, photos):
        path = write(photos, "\n".join(rows(part=True)))
        assert read_held_out(None, read_training(path)).paths == ["cat/2.jpg"]
        assert read_held_out(str(photos), read_training(path)).paths == list(NAMES)
        assert read_held_out(None, read_training(str(photos))) is None
        assert read_held_out(None, read_training(write(photos, "\n".join(rows())))) is None

    def test_a_held_out_list_may_lack_classes(self, photos):
        training = read_training(str(photos))
        held_out = read_held_out(write(photos, rows()[2]), training)
        assert held_out.classes == training.classes and held_out.labels.tolist() == [1]
        with pytest.raises(UsageError, match=r"list.csv has other class folders than .*photos"):
            read_held_out(write(photos, "dog/1.jpg,wolf"), training)

    def test_without_val_it_is_test(self, photos):
        path = write(photos, "\n".join(rows(part=True)).replace(",val", ",Training"))
        assert read_evaluation_folder(path).paths == ["owl/deep/3.png"]

    def test_one_class_to_train_on(self, photos):
        path = write(photos, "cat/1.jpg,cat,train\ncat/2.jpg,cat,train\nowl/deep/3.png,owl,val\n")
        with pytest.raises(RunError, match=r"one class only, 'cat', .* images of the other classes \(1\) to"):
            read_training(path)
        with pytest.raises(RunError, match=r"one class only, 'owl', .*; add a second one"):
            read_training(write(photos, "owl/deep/3.png,owl\n"))

    @pytest.mark.parametrize(("part", "read"), [("test", read_training), ("train", read_evaluation_folder)])
    def test_no_image_of_the_split(self, photos, part, read):
        path = write(photos, f"cat/1.jpg,cat,{part}\ndog/1.jpg,dog,{part}\n")
        with pytest.raises(RunError, match=r"none of its 2 images is of the split"):
            read(path)


class TestRefused:
    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("", "the list is empty"),
            ("\n\n  \n", "the list is empty"),
            ("path,label\n", "the list names no image"),
            ("cat/1.jpg\n", "line 1 has 1 columns; expected path and label"),
            ("a,b,c,d\n", "line 1 has 4 columns; expected path and label"),
            ("cat/1.jpg,cat\n\ncat/2.jpg,cat,x\n", "line 3 has 3 columns, not 2 as line 1"),
            ("cat/1.jpg,cat\ncat/2.jpg,\n", "line 2 has no label"),
            ("cat/1.jpg,cat\n,cat\n", "line 2 has no path"),
            ("path,label\ncat/9.jpg,cat\ncat/1.jpg,cat\n", r"1 of its 2 files are missing \(line 2\), .* 'cat/9.jpg'"),
            ("cat/8,a\ncat/9,a\ncat,a\n", r"3 of its 3 files are missing \(lines 1, 2, 3\)"),
            ("".join(f"{n}.jpg,a\n" for n in range(9)), r"lines 1, 2, 3, 4, 5 and 4 more"),
            ("cat/1.jpg,cat\ndog/1.jpg,dog\ncat/./1.jpg,dog\n", "'cat/1.jpg' has two labels, 'cat' on line 1 and"),
            ("cat/1.jpg,cat,train\ncat/1.jpg,cat,val\n", "two splits, 'train' on line 1 and 'val' on line 2"),
            ("cat/1.jpg,cat,fold3\n", "line 1 is of the split 'fold3', expected train, val or test"),
            ('cat/1.jpg,cat\n"cat/2.jpg,cat\ndog/1.jpg,dog\n', "line 2 cannot be read, perhaps a quote is not closed"),
            ("cat/1.jpg,0\ndog/1.jpg,-1\n", "line 2 has the label -1; numbers count classes from 0"),
            ("cat/1.jpg,0\ndog/1.jpg,-0\n", "line 2 has the label -0; numbers count classes from 0"),
            ("cat/1.jpg,0\ndog/1.jpg,20240101\n", "line 2 has the label 20240101; numbers count"),
            ("cat/1.jpg,0\ndog/1.jpg,100000\n", "line 2 has the label 100000; numbers count"),
            (f"cat/1.jpg,0\ndog/1.jpg,{'9' * 5000}\n", "line 2 has the label 99999999999999999999; numbers count"),
            (b"cat/1.jpg,cat\ncat/2.jpg,K\xe4se\n", "line 2 is not UTF-8; save the list in this encoding"),
            (b"cat/1.jpg,cat\ncat/k\xe4se.jpg,cat\n", "line 2 is not UTF-8; save the list in this encoding"),
            ("cat/1.jpg,cat\n".encode("utf-16-le"), "not a list in UTF-8"),
        ],
    )
    def test_is_one_sentence_with_the_line(self, photos, text, sentence):
        path = write(photos, text)
        with pytest.raises(RunError, match=sentence) as error:
            read_image_folder(path)
        assert str(error.value).startswith(path) and "\n" not in str(error.value)

    def test_a_tsv_without_tabs(self, photos):
        with pytest.raises(RunError, match="line 1 has 1 columns"):
            read_image_folder(write(photos, "cat/1.jpg,cat\n", "list.tsv"))

    def test_a_missing_list(self, photos):
        with pytest.raises(RunError, match="no.csv: there is no such folder"):
            read_image_folder(str(photos / "no.csv"))

    def test_files_that_are_named_again_count_once(self, photos, capsys):
        folder = read_training(write(photos, "cat/1.jpg,cat\ndog/1.jpg,dog\n./cat/1.jpg,cat\n"))
        assert folder.paths == ["cat/1.jpg", "dog/1.jpg"]
        assert "line 3 name files again; each counts once" in capsys.readouterr().err


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for number in range(12):
        path = root / "abc"[number % 3] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 50, 3)).astype(np.uint8)).save(path)
    lines = [f"{path.relative_to(root)},{path.parent.name}" for path in sorted(root.rglob("*.png"))]
    (root / "all.csv").write_text("\n".join(lines))
    (root / "two.csv").write_text("\n".join(line for line in lines if not line.endswith(",a")))
    shutil.copytree(root, root.parent / "two", ignore=shutil.ignore_patterns("*.csv"), dirs_exist_ok=True)
    shutil.rmtree(root.parent / "two" / "a")
    (root.parent / "two" / "a").mkdir()
    return root


class TestPrograms:
    """A list in place of the folder that it lists: the same lines of result."""

    def outputs(self, main, capsys, *flags):
        assert run_cli(main, [str(flag) for flag in flags]) == 0
        return capsys.readouterr().out

    def test_eval(self, images, capsys, tmp_path):
        info = ModelInfo("b0", 3, tuple("abc"), "same", 1e-3, Preprocess.for_image_size(32))
        weights = {
            name: value.asnumpy() for name, value in create_network("b0", num_classes=3).parameters_dict().items()
        }
        write_checkpoint(str(tmp_path / "a.ckpt"), weights, info)
        for folder, listed in ((images, "all.csv"), (images.parent / "two", "two.csv")):
            results = [
                self.outputs(eval_script.main, capsys, "--dataset_path", path, "--checkpoint_path", tmp_path / "a.ckpt")
                for path in (folder, images / listed)
            ]
            assert results[0] == results[1]

    def test_infer_onnx(self, images, capsys, tmp_path):
        info = ModelInfo("b0", 3, tuple("abc"), "same", 1e-3, Preprocess.for_image_size(32))
        write_model(tmp_path / "a.onnx", info)
        flags = ("--onnx_path", tmp_path / "a.onnx", "--json", "--dataset_path")
        for folder, listed in ((images, "all.csv"), (images.parent / "two", "two.csv")):
            results = [
                json.loads(self.outputs(infer_onnx.main, capsys, *flags, path)) for path in (folder, images / listed)
            ]
            ours, theirs = ({key: value for key, value in result.items() if "second" not in key} for result in results)
            assert ours == theirs

    def test_labels_for_the_program_in_cpp(self, images, capsys, tmp_path):
        for path in (images, images / "all.csv"):
            flags = ("--img_path", path, "--label_path", tmp_path / f"{path.name}.json")
            self.outputs(create_imagenet2012_label.main, capsys, *flags)
        assert (tmp_path / "all.csv.json").read_bytes() == (tmp_path / f"{images.name}.json").read_bytes()

    def test_train(self, few_images, tmp_path):
        """The same batches and the same held-out images, and so the same losses and scores as from the folders."""
        lines = ["path,label,split"]
        for part in ("train", "val"):
            folder = read_image_folder(str(few_images / part))
            lines += [
                f"{folder.full_path(index)},{path.split('/')[0]},{part}" for index, path in enumerate(folder.paths)
            ]
        (tmp_path / "list").mkdir()
        (tmp_path / "folder").mkdir()
        (tmp_path / "list" / "a.csv").write_text("\n".join(lines))
        flags = {"epoch_size": 1, "warmup_epochs": 0}
        ours = training_runs.run(tmp_path / "list", tmp_path / "list" / "a.csv", **flags)
        theirs = training_runs.run(
            tmp_path / "folder", few_images / "train", eval_dataset_path=few_images / "val", **flags
        )
        assert ours[0] == theirs[0] == 0, ours[2]
        histories = [
            list(csv.DictReader((tmp_path / name / "checkpoint" / "model_0" / "metrics.csv").open()))
            for name in ("list", "folder")
        ]
        assert [row["eval_loss"] for row in histories[0]] == [row["eval_loss"] for row in histories[1]] != [""]
