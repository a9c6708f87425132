"""What a model file says of itself survives the file and is checked when it is read."""

import dataclasses
import json

import pytest

from src.common.cli import RunError, UsageError
from src.images.preprocess import Preprocess
from src.published.origin import Origin
from src.weights.model_info import ModelInfo, info_path

INFO = ModelInfo(
    variant="b3",
    num_classes=3,
    class_names=("cat", "dög", "猫"),
    padding="symmetric",
    norm_eps=1e-5,
    preprocess=Preprocess(300, 332, "bilinear", (1.0, 2.0, 3.0), (4.0, 5.0, 6.0)),
)


@pytest.mark.parametrize("info", [INFO, ModelInfo()])
@pytest.mark.parametrize("indent", [None, 2])
def test_json_gives_the_same_back(info, indent):
    assert ModelInfo.from_json(info.to_json(indent), "b3.onnx") == info


def test_names_stand_in_it_as_they_are():
    assert '["cat", "dög", "猫"]' in INFO.to_json()


def changed(**fields):
    return json.dumps({**json.loads(INFO.to_json()), **fields})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "b3.onnx: the description of the model is broken"),
        ("[]", "b3.onnx: the description of the model is broken"),
        ("[" * 100_000, "b3.onnx: the description of the model is broken"),
        ("{}", "b3.onnx: the description of the model is broken"),
        (changed(format=2), "b3.onnx: its description is of another format than 1; a newer program wrote it"),
        (changed(variant="b9"), "b3.onnx: the model's variant is 'b9', not one of b0"),
        (changed(padding="full"), "b3.onnx: the model's padding is 'full'"),
        (changed(num_classes=0), "b3.onnx: the model's class count is 0"),
        (changed(num_classes="3"), "b3.onnx: the model's class count is '3'"),
        (changed(num_classes=True), "b3.onnx: the model's class count is True"),
        (changed(num_classes=4), "b3.onnx: the model has 4 classes and 3 class names"),
        (changed(norm_eps=0), "b3.onnx: the model's batch-norm epsilon is 0"),
        (changed(surprise=1), "b3.onnx: the description of the model is broken"),
        (changed(preprocess=None), "b3.onnx: the preprocessing settings are None"),
        (changed(preprocess={"image_size": -1}), "b3.onnx: the preprocessing's image_size is -1"),
    ],
)
def test_what_is_wrong_is_one_sentence(text, sentence):
    with pytest.raises(RunError) as error:
        ModelInfo.from_json(text, "b3.onnx")
    assert str(error.value).startswith(sentence)


def test_an_origin_is_told_as_text():
    odd = Origin("\x1b[2Jname", "a\nplace", "\u202erevision", "0" * 64, "licence\x07")
    assert odd.describe() == (
        r"\x1b[2Jname, licence\x07, from a\nplace, revision \u202erevision, SHA-256 0000000000000000..."
    )


def test_class_names_or_numbers():
    assert INFO.class_name(2) == "猫"
    assert dataclasses.replace(INFO, class_names=None).class_name(2) == "2"


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        (["cat", "dög"], "data has 2 class folders, but b3.onnx has 3 classes"),
        (["cat", "owl", "猫"], "data: class 1 is 'owl', but b3.onnx was trained with 'dög'"),
        (["cat", "\x1b[2J", "猫"], r"data: class 1 is '\\x1b\[2J', but b3.onnx was trained with 'dög'"),
    ],
)
def test_a_folder_of_other_labels_is_refused(classes, sentence):
    with pytest.raises(UsageError, match=sentence):
        INFO.check_folder(classes, "data", "b3.onnx")


@pytest.mark.parametrize("classes", [["cat", "dög", "猫"], ["n01", "n02", "n03"]])
def test_the_same_names_or_quite_other_ones_pass(classes):
    INFO.check_folder(classes, "data", "b3.onnx")


def test_the_description_of_a_mindir_lies_beside_it():
    assert info_path("out.d/b0.mindir") == "out.d/b0.json"
    assert info_path("out.d/b0") == "out.d/b0.json"
