"""Small archives of the form in which ImageNet is handed out: the official ones, Kaggle's zip and folder."""

import csv
import hashlib
import io
import os
import tarfile
import zipfile

import numpy as np
from scipy.io import savemat

from src.preparation.imagenet_release import Archive, Release
from tests.support.hard_images import draw, encode

CLASSES = ("n01440764", "n01739381", "n02105855")
IDS = {"n02105855": 1, "n01440764": 2, "n01739381": 3}
"""ILSVRC2012's numbers follow another order than the WordNet numbers."""
GROUP = (4, "n00001740", "a group of classes")
KIT_FOLDER = "ILSVRC2012_devkit_t12"


def make_images():
    """(training images by class and name, validation images by name, class of each validation image)."""
    train = {
        wnid: {
            f"{wnid}_{number}.JPEG": encode(draw(40 + number, 30 + place, number), "JPEG")
            for number in range(3 + 4 * place)
        }
        for place, wnid in enumerate(CLASSES)
    }
    train["n02105855"]["n02105855_2933.JPEG"] = encode(draw(20, 20), "PNG")
    train["n01739381"]["n01739381_1309.JPEG"] = encode(draw(20, 20, mode="CMYK"), "JPEG")
    val = {f"ILSVRC2012_val_{number:08}.JPEG": encode(draw(30, 30, 50 + number), "JPEG") for number in range(1, 8)}
    labels = {name: CLASSES[(2 * place + place // 4) % 3] for place, name in enumerate(sorted(val))}
    return train, val, labels


def tar_of(files, path=None):
    """A tar of {name: bytes or TarInfo}; its bytes, or written to a path."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items() if isinstance(files, dict) else files:
            member = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            if not isinstance(data, tarfile.TarInfo):
                member.size = len(data)
            tar.addfile(member, None if isinstance(data, tarfile.TarInfo) else io.BytesIO(data))
    if path:
        path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


def train_archive(train):
    """The members of ILSVRC2012_img_train.tar, in an order of their own."""
    return {f"{wnid}.tar": tar_of(dict(reversed(train[wnid].items()))) for wnid in reversed(CLASSES)}


def write_devkit(path, labels):
    """The development kit: MATLAB's file with the meaning of the class numbers, and the number of each image."""
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    rows = sorted((number, wnid, f"words of {wnid}", "gloss", 0) for wnid, number in IDS.items())
    rows.append((*GROUP, "gloss", 3))
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(rows, dtype=kinds).reshape(-1, 1)})
    truth = "".join(f"{IDS[labels[name]]}\n" for name in sorted(labels))
    members = {
        f"{KIT_FOLDER}/data/ILSVRC2012_validation_ground_truth.txt": truth.encode(),
        f"{KIT_FOLDER}/data/meta.mat": meta.getvalue(),
    }
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def release_of(folder, train, val):
    """The `Release` that the archives in a folder make up."""
    names = {
        "train": "ILSVRC2012_img_train.tar",
        "val": "ILSVRC2012_img_val.tar",
        "devkit": f"{KIT_FOLDER}.tar.gz",
    }
    archives = {
        part: Archive(name, hashlib.md5((folder / name).read_bytes()).hexdigest() if (folder / name).exists() else "")
        for part, name in names.items()
    }
    return Release(CLASSES, {"train": sum(map(len, train.values())), "val": len(val)}, archives)


def write_official(folder):
    """The three official archives in a folder; their `Release`."""
    train, val, labels = make_images()
    os.makedirs(folder, exist_ok=True)
    tar_of(train_archive(train), folder / "ILSVRC2012_img_train.tar")
    tar_of(dict(reversed(val.items())), folder / "ILSVRC2012_img_val.tar")
    write_devkit(folder / f"{KIT_FOLDER}.tar.gz", labels)
    return release_of(folder, train, val)


def kaggle_files():
    """{path: bytes} of Kaggle's download."""
    train, val, labels = make_images()
    rows = [["ImageId", "PredictionString"]]
    rows += [[name.removesuffix(".JPEG"), f"{labels[name]} 1 2 30 30 {labels[name]} 4 5 9 9 "] for name in sorted(val)]
    text = io.StringIO()
    csv.writer(text).writerows(rows[:1] + rows[:0:-1])
    images = {f"train/{wnid}/{name}": data for wnid, files in train.items() for name, data in files.items()}
    images |= {f"val/{name}": data for name, data in val.items()}
    files = {f"ILSVRC/Data/CLS-LOC/{path}": data for path, data in images.items()}
    files |= {"LOC_val_solution.csv": text.getvalue().encode(), "ILSVRC/Annotations/CLS-LOC/val/x.xml": b"<x/>"}
    files |= {"ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_00000001.JPEG": b"not unpacked"}
    return files


def write_kaggle_folder(folder):
    """Kaggle's download as it is unpacked; its `Release`."""
    for path, data in kaggle_files().items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return release_of(folder, *make_images()[:2])


def write_kaggle_zip(path, files=None):
    """Kaggle's zip; its `Release`."""
    with zipfile.ZipFile(path, "w") as archive:
        for number, (name, data) in enumerate((files or kaggle_files()).items()):
            archive.writestr(name, data, zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED)
    return release_of(path.parent, *make_images()[:2])


def expected_files(part):
    """{"class/file": bytes} that a prepared part holds."""
    train, val, labels = make_images()
    if part == "train":
        return {f"{wnid}/{name}": data for wnid, files in train.items() for name, data in files.items()}
    return {f"{labels[name]}/{name}": data for name, data in val.items()}
