"""Checkpoints: whole or not at all, verified, of the published size and names; the folder that keeps the newest."""

import os
import shutil

import mindspore as ms
import numpy as np
import pytest
from mindspore.train.checkpoint_pb2 import Checkpoint

from src.common.cli import RunError
from src.images.preprocess import Preprocess
from src.loss import CrossEntropySmooth
from src.models.effnet import create_network
from src.training.optimizer import OptimizerSettings, create_optimizer
from src.training.run_folder import CheckpointFolder, find_resume
from src.training.step import TrainStep, network_weights
from src.weights import checkpoint
from src.weights.checkpoint import (
    BEST_NAME,
    checkpoint_name,
    find_checkpoints,
    has_valid_checksum,
    network_shapes,
    parse_name,
    read_checkpoint,
    read_entries,
    write_checkpoint,
)
from src.weights.model_info import ModelInfo
from src.weights.network import build_network
from tests.support.loading import load_model
from tests.support.training_runs import flip_bit

INFO = ModelInfo(
    num_classes=3, class_names=("a", "b", "ü"), preprocess=Preprocess(64, 73, "bilinear", (1.0, 2.0, 3.0), (4.0,) * 3)
)


@pytest.fixture(scope="module")
def weights():
    """Random weights of `INFO`'s network."""
    random = np.random.default_rng(0)
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in network_shapes(INFO).items()}


@pytest.fixture(scope="module")
def written(weights, tmp_path_factory):
    """A checkpoint with everything."""
    path = tmp_path_factory.mktemp("checkpoints") / "whole.ckpt"
    ema = {name: value / 2 for name, value in weights.items()}
    training = {"global_step": np.array([7], np.int32), "moment.stem.conv.weight": weights["stem.conv.weight"] * 3}
    write_checkpoint(str(path), weights, INFO, ema, training, {"progress": {"step": 7}})
    return path


def test_what_is_written_is_read(written, weights):
    found = read_checkpoint(str(written))
    assert found.info == INFO
    assert found.state == {"progress": {"step": 7}}
    assert found.weights.keys() == found.ema.keys() == weights.keys()
    for name, value in weights.items():
        assert np.array_equal(found.weights[name], value) and np.array_equal(found.ema[name], value / 2)
    assert found.training["global_step"].dtype == np.int32 and found.training["global_step"] == 7
    assert np.array_equal(found.training["moment.stem.conv.weight"], weights["stem.conv.weight"] * 3)


def test_mindspore_reads_it_with_its_own_check(written, weights):
    found = ms.load_checkpoint(str(written), crc_check=True)
    assert np.array_equal(found["stem.conv.weight"].asnumpy(), weights["stem.conv.weight"])


def test_the_averaged_weights_are_taken_unless_the_raw_ones_are_asked_for(written, weights):
    for ema, factor in ((True, 0.5), (False, 1.0)):
        network, info = load_model(str(written), ema=ema)
        assert np.array_equal(network.classifier.weight.asnumpy(), weights["classifier.weight"] * np.float32(factor))
        assert not network.training and info == INFO


def test_a_truncated_file_is_refused_wherever_it_ends(written, tmp_path):
    """Also at the end of an entry, where what is left is a checkpoint of its own to MindSpore."""
    data = written.read_bytes()
    marks = [data.rindex(mark) for mark in (b"crc_num", b"training_state", b"model_info", b"global_step")]
    lengths = [0, 1, 100, len(data) // 2, len(data) - 1, len(data) - 10, len(data) - 17, *marks]
    lengths += [mark - offset for mark in marks for offset in range(1, 12)]
    path = tmp_path / "cut.ckpt"
    for length in lengths:
        path.write_bytes(data[:length])
        with pytest.raises(RunError) as error:
            read_checkpoint(str(path))
        assert str(error.value).startswith(str(path)) and "\n" not in str(error.value), length


def test_an_altered_bit_is_found_wherever_it_is(written, tmp_path):
    path = tmp_path / "altered.ckpt"
    for share in (0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999, 0.99999):
        shutil.copy(written, path)
        flip_bit(path, share)
        with pytest.raises(RunError, match="altered.ckpt"):
            read_checkpoint(str(path))


def test_a_file_that_is_replaced_after_its_checksum_was_read_is_refused(written, tmp_path, monkeypatch):
    path = tmp_path / "a.ckpt"
    shutil.copy(written, path)
    parse = checkpoint.parse_checkpoint

    def parse_while_another_comes(data):
        shutil.copy(written, tmp_path / "b.ckpt")
        (tmp_path / "b.ckpt").replace(path)
        return parse(data)

    monkeypatch.setattr(checkpoint, "parse_checkpoint", parse_while_another_comes)
    with pytest.raises(RunError, match="a.ckpt: the file changed while it was read"):
        read_checkpoint(str(path))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda weights: weights.pop("head.conv.weight"), "1 parameters are missing, head.conv.weight among them"),
        (lambda weights: weights.update({"classifier.bias": np.zeros(4, np.float32)}), "classifier.bias has shape"),
    ],
)
def test_weights_that_are_not_the_networks_are_refused(weights, tmp_path, change, sentence):
    changed = dict(weights)
    change(changed)
    write_checkpoint(str(tmp_path / "other.ckpt"), changed, INFO)
    with pytest.raises(RunError, match=f"other.ckpt: .*{sentence}"):
        read_checkpoint(str(tmp_path / "other.ckpt"))


def test_files_that_are_no_checkpoints_are_refused(tmp_path):
    (tmp_path / "folder.ckpt").mkdir()
    (tmp_path / "text.ckpt").write_text("text " * 1000)
    (tmp_path / "empty.ckpt").write_bytes(b"")
    ms.save_checkpoint([{"name": "a", "data": ms.Tensor([1.0])}], str(tmp_path / "another.ckpt"))
    for name, sentence in (
        ("missing.ckpt", "there is no such checkpoint"),
        ("folder.ckpt", "it is a folder"),
        ("text.ckpt", "cannot be read"),
        ("empty.ckpt", "is empty"),
        ("another.ckpt", "another network"),
    ):
        with pytest.raises(RunError, match=f"{name}: .*{sentence}"):
            read_checkpoint(str(tmp_path / name))


def test_entries_that_are_neither_tensors_nor_texts_are_refused(tmp_path):
    """As MindSpore's own format has them for hash tables."""
    content = Checkpoint()
    entry = content.value.add(tag="table")
    entry.maptensor.tensor.add(dims=[1], tensor_type="Float32", tensor_content=bytes(4))
    (tmp_path / "a.ckpt").write_bytes(content.SerializeToString())
    with pytest.raises(RunError, match="a.ckpt: the checkpoint cannot be read"):
        read_checkpoint(str(tmp_path / "a.ckpt"))


@pytest.mark.parametrize("count", [3, 5, 4000])
def test_tensors_whose_bytes_are_not_those_of_their_shape_are_refused(tmp_path, count):
    content = Checkpoint()
    tensor = content.value.add(tag="a").tensor
    tensor.dims.extend([2, 2])
    tensor.tensor_type, tensor.tensor_content = "Float32", bytes(4 * count)
    (tmp_path / "a.ckpt").write_bytes(content.SerializeToString())
    with pytest.raises(RunError, match="a.ckpt: the checkpoint cannot be read"):
        read_checkpoint(str(tmp_path / "a.ckpt"))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.int32, np.int64, np.uint8, np.bool_])
def test_tensors_are_read_as_mindspore_reads_them(tmp_path, dtype):
    path = str(tmp_path / "a.ckpt")
    values = np.arange(6).reshape(2, 3).astype(dtype)
    entries = {"a": values, "scalar": values[1, 1].copy(), "empty": values[:0]}
    ms.save_checkpoint([{"name": name, "data": ms.Tensor(value)} for name, value in entries.items()], path)
    theirs, ours = ms.load_checkpoint(path), read_entries(path)
    for name, parameter in theirs.items():
        value = parameter.asnumpy()
        assert (ours[name].dtype, ours[name].shape) == (value.dtype, value.shape)
        np.testing.assert_array_equal(ours[name], value)


def test_texts_of_impossible_characters_are_refused(tmp_path):
    """MindSpore keeps texts as NumPy does, with four bytes for each character; the last one is 0x10FFFF."""
    for last, code in enumerate((0x10FFFF, 0x110000)):
        content = Checkpoint()
        entry = content.value.add(tag="model_info").tensor
        entry.tensor_type, entry.tensor_content = "str", np.array([ord("{"), code], "<u4").tobytes()
        (tmp_path / "a.ckpt").write_bytes(content.SerializeToString())
        with pytest.raises(RunError, match="cannot be read" if last else "checksum is missing"):
            read_checkpoint(str(tmp_path / "a.ckpt"))


def test_a_name_without_the_suffix_is_written_and_read(weights, tmp_path):
    write_checkpoint(str(tmp_path / "weights"), weights, INFO)
    assert read_checkpoint(str(tmp_path / "weights")).info == INFO
    assert os.listdir(tmp_path) == ["weights"]


@pytest.mark.parametrize("harm", ["cut", "altered"])
def test_what_was_not_written_whole_is_noticed_and_leaves_the_old_file(written, weights, tmp_path, monkeypatch, harm):
    """MindSpore may return from a full disk as if nothing had happened."""
    path = tmp_path / "kept.ckpt"
    shutil.copy(written, path)
    save = ms.save_checkpoint

    def save_badly(tensors, name, **settings):
        save(tensors, name, **settings)
        os.chmod(name, 0o600)  # MindSpore makes it read-only
        flip_bit(name) if harm == "altered" else os.truncate(name, os.path.getsize(name) // 2)

    monkeypatch.setattr(ms, "save_checkpoint", save_badly)
    with pytest.raises(RunError, match=f"{path}: the checkpoint could not be written whole"):
        write_checkpoint(str(path), weights, INFO)
    assert os.listdir(tmp_path) == ["kept.ckpt"]
    assert path.read_bytes() == written.read_bytes()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(written, weights, tmp_path, monkeypatch):
    path = tmp_path / "kept.ckpt"
    shutil.copy(written, path)

    def fail_late(tensors, name, **settings):
        with open(name.replace(".ckpt", ".tmp"), "wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device", name)

    monkeypatch.setattr(ms, "save_checkpoint", fail_late)
    with pytest.raises(OSError) as error:
        write_checkpoint(str(path), weights, INFO)
    assert error.value.filename == str(path)
    assert os.listdir(tmp_path) == ["kept.ckpt"]
    assert path.read_bytes() == written.read_bytes()


def test_a_checkpoint_of_1000_classes_with_optimiser_state_has_the_published_size(tmp_path):
    """The model card's 61M: weights, mean squares and momenta of 5,288,548 parameters in float32 are 60.5 MiB."""
    network = create_network("b0", num_classes=1000)
    optimizer = create_optimizer(network.trainable_params(), np.ones(10, np.float32), OptimizerSettings())
    step_cell = TrainStep(network, CrossEntropySmooth(0.1, 1000), optimizer)
    folder = CheckpointFolder(str(tmp_path), keep=5, info=ModelInfo(), rank=0, run={})
    training = {name: parameter.asnumpy() for name, parameter in step_cell.training_parameters().items()}
    path = folder.save(350, 625, False, network_weights(network), None, training, {})
    assert os.path.basename(path) == "Efficientnet_b0-rank0-350_625.ckpt"
    assert 60.5 < os.path.getsize(path) / 2**20 < 61.5
    assert has_valid_checksum(path)


@pytest.mark.parametrize("name", ["Efficientnet_b0-rank0-350_625.ckpt", "Efficientnet_b7-rank12-1_1.ckpt"])
def test_names_are_the_zoos(name):
    variant, rank, position = name.removeprefix("Efficientnet_").removesuffix(".ckpt").split("-")
    epoch, step = map(int, position.split("_"))
    assert checkpoint_name(variant, int(rank[4:]), epoch, step) == name
    assert parse_name(f"/folder/{name}") == (epoch, step)


def test_other_files_are_no_checkpoints_of_a_run(tmp_path):
    names = ["best.ckpt", "Efficientnet_b0-rank0-9_10.ckpt", "Efficientnet_b0-rank0-10_2.ckpt", "metrics.csv"]
    names += [".x.tmp-Efficientnet_b0-rank0-11_1.ckpt", "Efficientnet_b0-rank0-12_1.ckpt.bak"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    assert [os.path.basename(path) for path in find_checkpoints(str(tmp_path))] == [names[2], names[1]]
    assert find_checkpoints(str(tmp_path / "missing")) == []


class TestTheFolder:
    def save(self, folder, weights, *positions, keep=2, best=()):
        run = CheckpointFolder(str(folder), keep=keep, info=INFO, rank=0, run={})
        for position in positions:
            run.save(*position, position in best, weights, None, {}, {"at": list(position)})

    def found(self, folder):
        return sorted(name for name in os.listdir(folder))

    def names(self, *positions):
        return sorted(checkpoint_name("b0", 0, *position) for position in positions)

    def test_keeps_the_newest(self, weights, tmp_path):
        self.save(tmp_path, weights, (1, 2), (1, 4), (2, 4), (10, 4))
        assert self.found(tmp_path) == self.names((2, 4), (10, 4))

    def test_keeps_the_best_beside_them(self, weights, tmp_path):
        self.save(tmp_path, weights, (1, 4), (2, 4), (3, 4), keep=1, best=[(1, 4)])
        assert self.found(tmp_path) == sorted([*self.names((3, 4)), BEST_NAME])
        assert read_checkpoint(str(tmp_path / BEST_NAME)).state == {"progress": {"at": [1, 4]}}

    def test_a_run_that_was_sent_back_loses_neither_new_nor_later_ones(self, weights, tmp_path):
        self.save(tmp_path, weights, (8, 4), (9, 4))
        self.save(tmp_path, weights, (2, 4), (3, 4), (4, 4))
        assert self.found(tmp_path) == self.names((3, 4), (4, 4), (8, 4), (9, 4))

    def test_removes_none_before_the_next_one_is_whole(self, weights, tmp_path, monkeypatch):
        self.save(tmp_path, weights, (1, 4), keep=1)

        def fail(*arguments, **settings):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(ms, "save_checkpoint", fail)
        with pytest.raises(OSError):
            self.save(tmp_path, weights, (2, 4), keep=1)
        assert self.found(tmp_path) == self.names((1, 4))

    def test_auto_takes_the_newest_that_verifies(self, weights, tmp_path):
        self.save(tmp_path, weights, (1, 4), (2, 4), (3, 4), (4, 4), keep=9)
        flip_bit(tmp_path / checkpoint_name("b0", 0, 4, 4))
        (tmp_path / checkpoint_name("b0", 0, 3, 4)).write_bytes(b"")
        said = []
        assert find_resume("auto", str(tmp_path), said.append).state == {"progress": {"at": [2, 4]}}
        assert len(said) == 2 and "4_4.ckpt: the checkpoint is damaged" in said[0] and "3_4.ckpt: " in said[1]

    def test_auto_finds_nothing_where_there_is_nothing(self, tmp_path):
        assert find_resume("auto", str(tmp_path / "missing")) is None


def test_every_variant_is_built_from_its_description():
    for variant in ("b0", "b2"):
        info = ModelInfo(variant, 5, None, "symmetric", 1e-5)
        network = build_network(info)
        assert network.classifier.weight.shape[0] == 5
        assert network.blocks[0].depthwise.conv.pad_mode == "pad"
