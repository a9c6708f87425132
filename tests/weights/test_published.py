"""Published weights by name: what they expect compared with timm, and the way into a checkpoint and a training run."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import convert_weights
from benchmarks.peers import create_peer, timm
from src.common.cli import run_cli
from src.models.family import VARIANTS
from src.published.origin import Origin
from src.published.table import PUBLISHED, SHORT_NAMES
from src.published.take import Taken
from src.weights import conversion
from src.weights.checkpoint import read_checkpoint
from src.weights.conversion import describe_published, read_pretrained
from src.weights.layouts import LAYOUTS
from src.weights.model_info import ModelInfo
from src.weights.names import parameter_shapes, to_ours, to_theirs
from src.weights.timm_settings import ARCHITECTURE, timm_preprocess
from tests.published.test_take import COMMIT, NAME, ROOT, Place
from tests.support.hub_server import HubServer
from tests.support.peer_networks import tensors
from tests.support.training_runs import checkpoint_path, finish, start

ORIGIN = Origin(
    NAME, f"timm/{NAME} on the Hugging Face hub", revision=COMMIT, sha256="0123456789abcdef" * 4, licence="apache-2.0"
)


def timms_names():
    """The weights of B0 to B7 and Lite that timm publishes: with a repository on the hub."""
    for name in timm.list_models("*efficientnet*", include_tags=True):
        member, _, tag = name.partition(".")
        if tag and ARCHITECTURE.fullmatch(member) and timm.models.get_pretrained_cfg(name).hf_hub_id:
            yield name


def test_all_that_timm_publishes_is_in_the_table_and_nothing_else():
    assert sorted(PUBLISHED) == sorted(timms_names())
    assert {ARCHITECTURE.match(name)[2] for name in PUBLISHED} == set(VARIANTS) == set(SHORT_NAMES)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_row_says_what_timm_says(name):
    row, theirs = PUBLISHED[name], timm.models.get_pretrained_cfg(name).to_dict()
    info = describe_published(row)
    assert (row.repository, row.licence) == (theirs["hf_hub_id"], theirs["license"])
    assert (info.variant, info.num_classes) == (ARCHITECTURE.match(name)[2], theirs["num_classes"])
    # From crop ratio and size to pixels, as config.json is read.
    there = timm_preprocess(theirs, info.preprocess, name)
    ours, there = dataclasses.asdict(info.preprocess), dataclasses.asdict(there)
    for key in ("mean", "std"):
        np.testing.assert_allclose(ours.pop(key), there.pop(key), rtol=1e-12)
    assert ours == there
    assert (row.top_1 is None) == (row.classes != 1000)


def test_no_accuracy_is_mistyped():
    """The sum of the same rows of timm's results-imagenet.csv."""
    assert sum(row.top_1 or 0 for row in PUBLISHED.values()) == pytest.approx(3739.342, abs=1e-6)


def test_padding_and_epsilon_are_those_of_timms_network():
    for source, name in (("timm_tf", NAME), ("timm", "efficientnet_b0.ra_in1k")):
        peer, info = create_peer(source, "b0"), describe_published(PUBLISHED[name])
        assert info.norm_eps == peer.bn1.eps
        assert info.padding == ("same" if type(peer.conv_stem).__name__ == "Conv2dSame" else "symmetric")


class TestByTheCommand:
    def test_a_name_becomes_a_checkpoint_that_says_where_it_comes_from(self, tmp_path):
        peer = tensors(create_peer("timm_tf", "b0"))
        save_file(peer, tmp_path / "model.safetensors")
        target = tmp_path / "b0.ckpt"
        with HubServer((tmp_path / "model.safetensors").read_bytes()) as hub:
            place = Place(tmp_path, hub.url)
            done = self.convert(place, "b0", target)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"source: {NAME}, apache-2.0, from timm/{NAME} on the Hugging Face hub, revision {COMMIT}" in done.stdout
        checkpoint = read_checkpoint(str(target))
        origin = checkpoint.info.origin
        assert (origin.name, origin.revision, origin.licence) == (NAME, COMMIT, "apache-2.0")
        assert dataclasses.replace(checkpoint.info, origin=None) == describe_published(PUBLISHED[NAME])
        for name, value in to_ours(peer, "file").weights.items():
            np.testing.assert_array_equal(checkpoint.weights[name], value, err_msg=name)

        # The hub is gone; it stays with what is made of the checkpoint.
        target.unlink()
        assert self.convert(place, NAME, target).returncode == 0
        back = tmp_path / "back.safetensors"
        assert run_cli(convert_weights.main, ["--source", str(target), "--target", str(back), "--to", "timm"]) == 0
        assert load_file(back).keys() == peer.keys()
        assert run_cli(convert_weights.main, ["--source", str(back), "--target", str(target)]) == 0
        assert read_checkpoint(str(target)).info.origin == origin

    def convert(self, place, source, target):
        command = [sys.executable, ROOT / "convert_weights.py", "--source", source, "--target", target]
        return subprocess.run(command, env=place.environment, cwd=place.folder, capture_output=True, text=True)

    def test_weights_of_another_network_under_the_name_are_refused(self, tmp_path, capsys, monkeypatch):
        for variant, classes, found in (("b1", 1000, "b1 with 1000"), ("b0", 7, "b0 with 7")):
            path = tmp_path / f"{variant}.safetensors"
            save_file(tensors(create_peer("timm_tf", variant, classes)), path)
            monkeypatch.setattr(conversion, "take", lambda text, path=path: Taken(str(path), ORIGIN))
            target = tmp_path / "ours.ckpt"
            assert run_cli(convert_weights.main, ["--source", "b0", "--target", str(target)]) == 1
            error = capsys.readouterr().err
            assert error == (f"error: {path}: its tensors are those of {found} classes, but {NAME} is b0 with 1000\n")
            assert not target.exists()

    @pytest.mark.parametrize(
        "flags, sentence",
        [
            (["--source", "b9", "--target", "o.ckpt"], "'b9' is neither a file nor a name of published weights"),
            (["--source", "b0"], "--source and --target are both needed; --list prints the names"),
            (
                ["--source", "b0", "--target", "o.ckpt", "--architecture", "efficientnet_b0"],
                "--architecture is for files",
            ),
        ],
    )
    def test_wrong_use(self, flags, sentence, capsys):
        assert run_cli(convert_weights.main, flags) == 2
        error = capsys.readouterr().err
        assert sentence in error and error.count("\n") == 1

    def test_the_list_has_a_line_for_every_name(self, capsys):
        assert run_cli(convert_weights.main, ["--list"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines[1:-1]] == list(PUBLISHED)
        line = next(line for line in lines if line.startswith(f"{NAME} "))
        assert line.split("  ")[0] == NAME
        assert [part.strip() for part in line.split("  ") if part] == [
            *(NAME, "b0", "b0", "1000", "224 of 256, bicubic", "ImageNet's", "78.68", "apache-2.0"),
        ]


class TestInTraining:
    def test_a_run_starts_from_a_name_and_says_so(self, few_images, tmp_path, monkeypatch):
        """The narrow B0 of tests/support/shallow_train.py, which is the hub's here."""
        monkeypatch.setitem(VARIANTS, "b0", dataclasses.replace(VARIANTS["b0"], width_coeff=0.25, depth_coeff=0.5))
        generator = np.random.default_rng(0)
        shapes = parameter_shapes(VARIANTS["b0"], 1000)
        weights = {name: generator.uniform(0.1, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
        save_file(to_theirs(LAYOUTS["timm"], "b0", weights), tmp_path / "model.safetensors")
        with HubServer((tmp_path / "model.safetensors").read_bytes()) as hub:
            environment = Place(tmp_path, hub.url).environment
            flags = {"pretrained": NAME, "freeze": 1, "epoch_size": 1, "save_checkpoint_steps": None, "lr_max": None}
            code, out, err = finish(start(tmp_path, few_images / "train", environment, **flags), tmp_path)
        assert (code, err) == (0, "")
        assert f"pretrained: {NAME}, raw weights of 1000 classes; {NAME}, apache-2.0, from timm/{NAME} on the" in out
        trained = read_checkpoint(str(checkpoint_path(tmp_path, 1, 4)))
        assert trained.info.num_classes == 2
        assert (trained.info.origin.name, trained.info.origin.revision) == (NAME, COMMIT)
        assert trained.info.preprocess.mean == describe_published(PUBLISHED[NAME]).preprocess.mean
        np.testing.assert_array_equal(trained.weights["stem.conv.weight"], weights["stem.conv.weight"])

    def test_a_checkpoint_is_still_read_by_its_path(self, tmp_path, capsys):
        path = tmp_path / "b0.safetensors"
        save_file(tensors(create_peer("timm_tf", "b0", 7)), path)
        flags = ["--source", str(path), "--target", str(tmp_path / "b0.ckpt"), "--architecture", "tf_efficientnet_b0"]
        assert run_cli(convert_weights.main, flags) == 0
        assert read_pretrained(str(tmp_path / "b0.ckpt")).info.origin is None


class TestTheDescription:
    def test_carries_the_origin_and_reads_those_without(self):
        info = ModelInfo(origin=ORIGIN)
        assert ModelInfo.from_json(info.to_json(), "x") == info
        assert "origin" not in json.loads(ModelInfo().to_json()), "what earlier versions read"
        assert ModelInfo.from_json(ModelInfo().to_json(), "x") == ModelInfo()

    @pytest.mark.parametrize("origin", [3, {}, "here", {**dataclasses.asdict(ORIGIN), "name": 3}])
    def test_with_a_broken_origin_is_refused(self, origin, capsys):
        text = json.dumps({**json.loads(ModelInfo().to_json()), "origin": origin})
        assert run_cli(lambda argv: ModelInfo.from_json(text, "model.onnx")) == 1
        assert capsys.readouterr().err.startswith("error: model.onnx: the ")
