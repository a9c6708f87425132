"""convert_weights.py: exactness against timm's and torchvision's networks, there and back, and files not to trust."""

import dataclasses
import io
import itertools
import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import convert_weights
from benchmarks.peers import create_peer, peer_name, random_images, randomise, timm, torch, torchvision
from src.common.cli import run_cli
from src.images.preprocess import Preprocess
from src.loss import CrossEntropySmooth
from src.models.family import VARIANTS
from src.weights.checkpoint import read_checkpoint, write_checkpoint
from src.weights.conversion import peer_call
from src.weights.layouts import LAYOUTS
from src.weights.model_info import ModelInfo
from src.weights.names import parameter_names, to_ours
from src.weights.network import build_network, load_weights
from src.weights.sources import SOURCES
from tests.support.loading import load_model
from tests.support.peer_networks import logits_of, tensors

ROOT = Path(__file__).parent.parent.parent
PEERS = ("timm", "timm_tf", "torchvision", "efficientnet_pytorch")
LITE = [(source, "lite0") for source in PEERS if source != "torchvision"]
CLASSES = 7
# Halved five times: 75, 38, 19, 10, 5, 3. Even sides are those where TensorFlow's padding differs from PyTorch's.
SIZE = 75
IMAGES = random_images(4, SIZE)


@pytest.fixture
def folder():
    """Its files go when the test ends: those of all tests would fill a disk."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@pytest.fixture(scope="module")
def b0():
    """timm's B0 of both kinds and torchvision's, with random weights, and their states."""
    return {source: randomise(create_peer(source, "b0", CLASSES), IMAGES, seed) for seed, source in enumerate(PEERS)}


@pytest.fixture(scope="module")
def b0_file(b0, tmp_path_factory):
    """timm's tf_efficientnet_b0 as a file."""
    return save(b0["timm_tf"], tmp_path_factory.mktemp("b0") / "tf_efficientnet_b0.safetensors")


def save(peer, path):
    save_file(tensors(peer), path)
    return path


def convert(source, target, *flags):
    """Run the command; returns its exit code."""
    return run_cli(convert_weights.main, ["--source", str(source), "--target", str(target), *map(str, flags)])


def evaluate(path, images=IMAGES):
    """Logits of a checkpoint of ours, computed by the network that it describes itself."""
    network, info = load_model(str(path))
    return network(ms.Tensor(images)).asnumpy(), info


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype == other[name].dtype and value.shape == other[name].shape, name
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def hint(printed):
    """The lines of Python that the command printed, run: the model that they build."""
    lines = printed.partition("written: ")[2].splitlines()[1:]
    scope = peer_modules()
    exec("\n".join(line.removeprefix("    ") for line in lines), scope)
    return scope["model"]


def peer_modules():
    """What the printed lines of Python use."""
    import efficientnet_lite_pytorch
    import efficientnet_pytorch

    modules = (timm, torchvision, efficientnet_pytorch, efficientnet_lite_pytorch)
    return {module.__name__: module for module in modules}


def check_there_and_back(source, variant, folder, capsys):
    peer = randomise(create_peer(source, variant, CLASSES), IMAGES, seed=list(VARIANTS).index(variant))
    theirs = logits_of(peer, IMAGES)
    assert 0.5 < theirs.std() < 2 and theirs.std(axis=0).mean() > 0.1, "logits of order 1 that depend on the image"
    file = save(peer, folder / f"{peer_name(source, variant)}.safetensors")

    assert convert(file, folder / "ours.ckpt") == 0
    ours, info = evaluate(folder / "ours.ckpt")
    assert (info.variant, info.num_classes) == (variant, CLASSES)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)

    capsys.readouterr()
    project = source.removesuffix("_tf")
    assert convert(folder / "ours.ckpt", folder / "back.safetensors", "--to", project) == 0
    back = load_file(folder / "back.safetensors")
    assert_same_bits(back, tensors(peer))
    again = hint(capsys.readouterr().out)
    again.load_state_dict({name: torch.from_numpy(value) for name, value in back.items()}, strict=True)
    np.testing.assert_array_equal(logits_of(again, IMAGES), theirs)


class TestExactness:
    @pytest.mark.parametrize(
        "source, variant",
        [
            *itertools.product(PEERS[:3], ["b0", "b1", "b2", "b3", "b4"]),
            *LITE,
            ("efficientnet_pytorch", "b0"),
            ("timm_tf", "lite4"),
        ],
    )
    def test_evaluation_agrees_and_there_and_back_is_bit_identical(self, source, variant, folder, capsys):
        check_there_and_back(source, variant, folder, capsys)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "source, variant",
        [
            *itertools.product(PEERS, ["b5", "b6", "b7"]),
            *itertools.product(["efficientnet_pytorch"], ["b1", "b2", "b3", "b4"]),
            *itertools.product(["timm_tf", "efficientnet_pytorch"], ["lite1", "lite2", "lite3"]),
        ],
    )
    def test_evaluation_of_the_largest_agrees_too(self, source, variant, folder, capsys):
        check_there_and_back(source, variant, folder, capsys)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "source, variant", [*itertools.product(PEERS, ["b0", "b1", "b2", "b3", "b4"]), *LITE, ("timm_tf", "lite4")]
    )
    def test_evaluation_agrees_at_the_published_image_size(self, source, variant, folder):
        images = random_images(2, VARIANTS[variant].image_size)
        peer = randomise(create_peer(source, variant, CLASSES), images)
        save(peer, folder / f"{peer_name(source, variant)}.safetensors")
        assert convert(folder / f"{peer_name(source, variant)}.safetensors", folder / "ours.ckpt") == 0
        np.testing.assert_allclose(evaluate(folder / "ours.ckpt", images)[0], logits_of(peer, images), atol=1e-4)

    @pytest.mark.parametrize("flaw", [{"padding": "symmetric"}, {"norm_eps": 1e-5}])
    def test_the_comparison_would_see_a_wrong_padding_or_epsilon(self, flaw, b0):
        weights = to_ours(tensors(b0["timm_tf"]), "file").weights
        network = build_network(dataclasses.replace(SOURCES["timm_tf"].describe("b0", CLASSES), **flaw))
        load_weights(network, weights)
        ours = network.set_train(False)(ms.Tensor(IMAGES)).asnumpy()
        assert abs(ours - logits_of(b0["timm_tf"], IMAGES)).max() > 1e-3

    @pytest.mark.parametrize("source", PEERS)
    def test_loss_and_every_gradient_agree_in_training(self, source, b0):
        """Without dropout and drop-connect."""
        images, labels = random_images(8, 64, seed=3), np.arange(8) % CLASSES
        state = {name: value.copy() for name, value in tensors(b0[source]).items()}
        loss, gradients = peer_gradients(source, state, images, labels)

        network = build_network(SOURCES[source].describe("b0", CLASSES), dropout_rate=0.0, drop_connect_rate=0.0)
        load_weights(network, to_ours(state, "file").weights)
        network.set_train()
        # PyTorch's smoothing gives the true class a share of it as well, ours only the others.
        smoothed = CrossEntropySmooth(0.1 * (CLASSES - 1) / CLASSES, CLASSES)
        parameters = network.trainable_params()
        step = ms.value_and_grad(lambda x, y: smoothed(network(x), y), None, parameters)
        our_loss, our_gradients = step(ms.Tensor(images), ms.Tensor(labels, ms.int32))

        assert float(our_loss.asnumpy()) == pytest.approx(loss, rel=1e-3)
        names = parameter_names(SOURCES[source].layout, VARIANTS["b0"])
        assert {names[p.name] for p in parameters} == set(gradients)
        largest = max(np.linalg.norm(gradient) for gradient in gradients.values())
        for parameter, gradient in zip(parameters, our_gradients):
            expected = gradients[names[parameter.name]]
            size = np.linalg.norm(expected)
            if re.fullmatch(r"blocks\.\d+\.project\.norm\.beta", parameter.name):
                # What a projection's norm adds to a channel, the norm after the next convolution takes away: these
                # gradients are 0, and what is computed are rounding errors.
                assert max(size, np.linalg.norm(gradient.asnumpy())) < 1e-5 * largest, parameter.name
            else:
                assert size > 1e-3 * largest
                assert np.linalg.norm(gradient.asnumpy() - expected) < 1e-3 * size, parameter.name


def peer_gradients(source, state, images, labels):
    """Loss and gradients of the peer in training mode, without dropout and drop-connect."""
    peer = create_peer(source, "b0", CLASSES)
    peer.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    logits = peer.train()(torch.from_numpy(images))
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels), label_smoothing=0.1)
    loss.backward()
    return loss.item(), {name: parameter.grad.numpy() for name, parameter in peer.named_parameters()}


class TestFiles:
    """Every kind of file, each by the command."""

    def test_pth_gives_what_safetensors_gives(self, b0, b0_file, folder):
        torch.save(b0["timm_tf"].state_dict(), folder / "tf_efficientnet_b0.pth")
        assert convert(folder / "tf_efficientnet_b0.pth", folder / "a.ckpt") == 0
        assert convert(b0_file, folder / "b.ckpt") == 0
        one, other = (read_checkpoint(str(folder / name)) for name in ("a.ckpt", "b.ckpt"))
        assert one.info == other.info
        assert_same_bits(one.weights, other.weights)

    @pytest.mark.parametrize("averaged, expected", [("True", "ema"), ("False", "raw")])
    def test_timms_training_checkpoint_says_its_name_and_has_an_average(self, averaged, expected, b0, folder):
        """As timm's own CheckpointSaver writes it; the file's name says nothing."""
        import argparse

        from timm.utils import CheckpointSaver, ModelEmaV2

        model = b0["timm_tf"]
        average = ModelEmaV2(model)
        with torch.no_grad():
            average.module.conv_stem.weight.add_(1)
        saver = CheckpointSaver(
            model,
            torch.optim.RMSprop(model.parameters()),
            argparse.Namespace(model="tf_efficientnet_b0", lr=0.1),
            average,
            checkpoint_dir=str(folder),
            recovery_dir=str(folder),
        )
        saver.save_checkpoint(3, 0.5)
        assert convert(folder / "last.pth.tar", folder / "ours.ckpt", "--use_ema", averaged) == 0
        checkpoint = read_checkpoint(str(folder / "ours.ckpt"))
        kept = average.module if expected == "ema" else model
        np.testing.assert_array_equal(checkpoint.weights["stem.conv.weight"], kept.conv_stem.weight.detach().numpy())
        assert checkpoint.info.padding == "same"

    def test_torchvisions_training_checkpoint_loses_its_wrapper(self, b0, folder, capsys):
        """As its references/classification/train.py writes it."""
        model = b0["torchvision"]
        average = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
        with torch.no_grad():
            average.module.features[0][0].weight.add_(1)
        torch.save({"model": model.state_dict(), "model_ema": average.state_dict(), "epoch": 3}, folder / "model_3.pth")
        assert convert(folder / "model_3.pth", folder / "ours.ckpt") == 0
        stem = read_checkpoint(str(folder / "ours.ckpt")).weights["stem.conv.weight"]
        np.testing.assert_array_equal(stem, average.module.features[0][0].weight.detach().numpy())
        printed = capsys.readouterr().out
        assert "left out, the network does not compute with them: 1 entry, n_averaged" in printed

    def test_the_zoos_and_mindcvs_checkpoints_convert_and_evaluate_as_they_are(self, b0, folder, capsys):
        weights = to_ours(tensors(b0["timm_tf"]), "file").weights
        for project in ("zoo", "mindcv"):
            path = write_published(project, weights, folder / "published.ckpt")
            assert convert(path, folder / "ours.ckpt") == 0
            printed = capsys.readouterr().out
            assert ("5 entries, blocks.0.layers.0.expand_conv.0.weight" in printed) == (project == "zoo")
            converted, direct = (read_checkpoint(str(p)) for p in (folder / "ours.ckpt", path))
            assert converted.info == direct.info == SOURCES[project].describe("b0", CLASSES)
            assert_same_bits(converted.weights, weights)
            assert_same_bits(direct.weights, weights)

    def test_averaged_weights_go_back_unless_refused(self, b0, folder):
        info = SOURCES["timm"].describe("b0", CLASSES)
        weights = to_ours(tensors(b0["timm"]), "file").weights
        averages = {name: value + 1 for name, value in weights.items()}
        write_checkpoint(str(folder / "ours.ckpt"), weights, info, ema=averages)
        for flags, expected in (((), averages), (("--use_ema", "False"), weights)):
            assert convert(folder / "ours.ckpt", folder / "back.safetensors", "--to", "timm", *flags) == 0
            np.testing.assert_array_equal(
                load_file(folder / "back.safetensors")["conv_stem.weight"], expected["stem.conv.weight"]
            )

    def test_what_this_project_wrote_says_itself_what_it_expects(self, b0, folder):
        """Under any name, with all that no table could know."""
        images = Preprocess(96, 100, "bilinear", (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
        info = ModelInfo("b0", CLASSES, tuple("abcdefg"), "symmetric", 2e-4, images)
        weights = to_ours(tensors(b0["timm"]), "file").weights
        write_checkpoint(str(folder / "ours.ckpt"), weights, info)
        for project in ("timm", "torchvision"):
            assert convert(folder / "ours.ckpt", folder / "back.safetensors", "--to", project) == 0
            assert convert(folder / "back.safetensors", folder / "again.ckpt") == 0
            again = read_checkpoint(str(folder / "again.ckpt"))
            assert again.info == info
            assert_same_bits(again.weights, weights)

    @pytest.mark.parametrize("source, project", [("timm", "torchvision"), ("torchvision", "timm")])
    def test_weights_go_from_one_peer_to_the_other(self, source, project, b0, folder, capsys):
        save(b0[source], folder / "efficientnet_b0.safetensors")
        assert convert(folder / "efficientnet_b0.safetensors", folder / "there.safetensors", "--to", project) == 0
        model = hint(capsys.readouterr().out)
        state = {name: torch.from_numpy(value) for name, value in load_file(folder / "there.safetensors").items()}
        model.load_state_dict(state, strict=True)
        np.testing.assert_allclose(logits_of(model, IMAGES), logits_of(b0[source], IMAGES), atol=1e-5)

    @pytest.mark.parametrize(
        "name, mean",
        [
            ("efficientnet-b0-355c32eb.pth", 0.485 * 255),
            ("adv-efficientnet-b0-b64d5a18.pth", 127.5),
        ],
    )
    def test_advprops_weights_are_told_by_their_published_name(self, name, mean, b0, folder):
        torch.save(b0["efficientnet_pytorch"].state_dict(), folder / name)
        assert convert(folder / name, folder / "ours.ckpt") == 0
        info = read_checkpoint(str(folder / "ours.ckpt")).info
        assert info.preprocess.mean[0] == pytest.approx(mean)
        assert (info.preprocess.image_size, info.preprocess.resize, info.padding) == (224, 256, "same")

    def test_torchvision_has_no_lite_networks(self, folder, capsys):
        save(create_peer("timm_tf", "lite0", CLASSES), folder / "tf_efficientnet_lite0.safetensors")
        flags = ("--to", "torchvision")
        assert convert(folder / "tf_efficientnet_lite0.safetensors", folder / "there.safetensors", *flags) == 1
        assert "torchvision has no EfficientNet-Lite0" in capsys.readouterr().err
        assert not (folder / "there.safetensors").exists()

    def test_torchvision_cannot_pad_like_tensorflow_and_the_user_is_told(self, b0_file, folder, capsys):
        assert convert(b0_file, folder / "there.safetensors", "--to", "torchvision") == 0
        assert "warning: torchvision's networks have padding symmetric" in capsys.readouterr().err

    @pytest.mark.parametrize("variant", ["b0", "b4", "b5"])
    @pytest.mark.parametrize("norm_eps", [1e-5, 1e-3, 2.5e-4])
    @pytest.mark.parametrize("padding", ["same", "symmetric"])
    @pytest.mark.parametrize("project", ["timm", "torchvision", "efficientnet_pytorch"])
    def test_the_printed_call_builds_the_network_of_the_weights(self, project, padding, norm_eps, variant):
        scope = peer_modules()
        with torch.device("meta"):
            exec(peer_call(ModelInfo(variant, 10, None, padding, norm_eps), project), scope)
        modules = list(scope["model"].modules())
        assert {m.eps for m in modules if isinstance(m, torch.nn.BatchNorm2d)} == {norm_eps}
        stem = next(m for m in modules if isinstance(m, torch.nn.Conv2d))
        same = project == "efficientnet_pytorch" or (padding == "same" and project == "timm")
        assert (stem.padding == (0, 0)) == same
        assert [m.out_features for m in modules if isinstance(m, torch.nn.Linear)] == [10]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    @pytest.mark.parametrize("suffix", ["pth", "safetensors"])
    def test_other_precisions_become_float32(self, dtype, suffix, b0, folder):
        from safetensors.torch import save_file as save_torch

        state = {n: v.to(dtype) if v.is_floating_point() else v for n, v in b0["timm"].state_dict().items()}
        path = folder / f"efficientnet_b0.{suffix}"
        torch.save(state, path) if suffix == "pth" else save_torch(state, path)
        assert convert(path, folder / "ours.ckpt") == 0
        stem = read_checkpoint(str(folder / "ours.ckpt")).weights["stem.conv.weight"]
        np.testing.assert_array_equal(stem, state["conv_stem.weight"].float().numpy())


def write_published(project, weights, path):
    """A checkpoint of another MindSpore project, as MindSpore writes it: no checksum, no description."""
    names = parameter_names(LAYOUTS[project], VARIANTS["b0"])
    entries = {names[our]: value for our, value in weights.items()}
    if project == "zoo":
        first = {"0.weight": (32, 32, 1, 1), **dict.fromkeys(("1.gamma", "1.beta"), (32,))}
        first.update(dict.fromkeys(("1.moving_mean", "1.moving_variance"), (32,)))
        entries.update({f"blocks.0.layers.0.expand_conv.{n}": np.ones(s, np.float32) for n, s in first.items()})
    ms.save_checkpoint([{"name": name, "data": ms.Tensor(value)} for name, value in entries.items()], str(path))
    return path


class TestHeads:
    @pytest.mark.parametrize("source", PEERS)
    def test_a_missing_classifier_becomes_a_new_one(self, source, b0, folder, capsys):
        state = {n: v for n, v in tensors(b0[source]).items() if not n.startswith(("classifier.", "_fc."))}
        path = folder / f"{peer_name(source, 'b0')}.safetensors"
        save_file(state, path)
        assert convert(path, folder / "ours.ckpt", "--class_num", 12) == 0
        assert "without a classifier: it gets a new, untrained one for 12 classes" in capsys.readouterr().out
        checkpoint = read_checkpoint(str(folder / "ours.ckpt"))
        weight = checkpoint.weights["classifier.weight"]
        bound = 1 / 1000**0.5
        assert weight.shape == (12, 1280) and 0.9 * bound < abs(weight).max() <= bound
        assert (checkpoint.weights["classifier.bias"] == 0).all()
        assert checkpoint.info.num_classes == 12
        np.testing.assert_array_equal(
            checkpoint.weights["blocks.3.project.conv.weight"],
            to_ours(tensors(b0[source]), "file").weights["blocks.3.project.conv.weight"],
        )

    def test_a_network_without_a_head_has_imagenets_classes_but_not_their_names(self, b0, folder):
        state = {n: v for n, v in tensors(b0["timm"]).items() if not n.startswith("classifier.")}
        save_file(state, folder / "efficientnet_b0.safetensors")
        assert convert(folder / "efficientnet_b0.safetensors", folder / "ours.ckpt") == 0
        info = read_checkpoint(str(folder / "ours.ckpt")).info
        assert (info.num_classes, info.class_names) == (1000, None)

    def test_a_thousand_classes_have_imagenets_names(self, folder):
        save(create_peer("torchvision", "b0"), folder / "weights.safetensors")
        assert convert(folder / "weights.safetensors", folder / "ours.ckpt") == 0
        names = read_checkpoint(str(folder / "ours.ckpt")).info.class_names
        assert len(names) == 1000 and names[207] == "golden retriever"

    @pytest.mark.parametrize("kind", ["theirs", "ours"])
    def test_another_class_count_than_the_files_is_refused(self, kind, b0_file, folder, capsys):
        path = b0_file
        if kind == "ours":
            path = folder / "ours.ckpt"
            assert convert(b0_file, path) == 0
        assert convert(path, folder / "out.ckpt", "--class_num", 9) == 2
        assert f"--class_num is 9, but the classifier in {path} has 7" in capsys.readouterr().err
        assert not (folder / "out.ckpt").exists()


class TestNames:
    """Whether timm's weights go with TensorFlow's padding is said by a name: a flag, the file, or its surroundings."""

    def padding(self, path, folder, *flags):
        assert convert(path, folder / "ours.ckpt", *flags) == 0
        info = read_checkpoint(str(folder / "ours.ckpt")).info
        assert info.norm_eps == {"same": 1e-3, "symmetric": 1e-5}[info.padding]
        return info.padding

    def file(self, b0_file, folder, name):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(b0_file, path)
        return path

    @pytest.mark.parametrize(
        "name, padding",
        [
            ("tf_efficientnet_b0_ns-c0e6a31c.safetensors", "same"),
            ("efficientnet_b0_ra-3dd342df.safetensors", "symmetric"),
            ("my-tf_efficientnet_b0.aa_in1k.safetensors", "same"),
            ("models--timm--tf_efficientnet_b0.in1k/snapshots/8e3a/model.safetensors", "same"),
            ("models--timm--efficientnet_b0.ra_in1k/snapshots/8e3a/model.safetensors", "symmetric"),
        ],
    )
    def test_the_files_name_says_it(self, name, padding, b0_file, folder):
        assert self.padding(self.file(b0_file, folder, name), folder) == padding

    @pytest.mark.parametrize(
        "architecture, padding", [("tf_efficientnet_b0.in1k", "same"), ("efficientnet_b0", "symmetric")]
    )
    def test_the_flag_says_it_against_every_name(self, architecture, padding, b0_file, folder):
        path = self.file(b0_file, folder, "tf_efficientnet_b0.safetensors")
        assert self.padding(path, folder, "--architecture", architecture) == padding

    def test_nothing_says_it(self, b0_file, folder, capsys):
        path = self.file(b0_file, folder, "model.safetensors")
        assert convert(path, folder / "ours.ckpt") == 2
        assert (
            "have the same tensors but pad differently; say which it is with --architecture" in capsys.readouterr().err
        )
        assert not (folder / "ours.ckpt").exists()

    def test_the_hubs_config_says_it_and_what_the_images_are(self, b0_file, folder):
        path = self.file(b0_file, folder, "model.safetensors")
        images = {
            "input_size": [3, 96, 96],
            "crop_pct": 0.9,
            "interpolation": "bilinear",
            "mean": [0.5] * 3,
            "std": [0.25] * 3,
        }
        config = {"architecture": "tf_efficientnet_b0", "num_classes": 7, "pretrained_cfg": images}
        (folder / "config.json").write_text(json.dumps(config))
        assert self.padding(path, folder) == "same"
        expected = Preprocess(96, 106, "bilinear", (127.5,) * 3, (63.75,) * 3)
        assert read_checkpoint(str(folder / "ours.ckpt")).info.preprocess == expected

    def test_a_config_of_another_network_counts_for_nothing_where_a_flag_says_more(self, b0_file, folder):
        path = self.file(b0_file, folder, "model.safetensors")
        images = {"input_size": [3, 300, 300], "crop_pct": 1.0, "mean": [0.1] * 3, "std": [0.1] * 3}
        config = {"architecture": "tf_efficientnet_b3", "pretrained_cfg": images}
        (folder / "config.json").write_text(json.dumps(config))
        assert self.padding(path, folder, "--architecture", "efficientnet_b0") == "symmetric"
        info = read_checkpoint(str(folder / "ours.ckpt")).info
        assert info.preprocess == SOURCES["timm"].describe("b0", CLASSES).preprocess

    @pytest.mark.parametrize(
        "name, config, flags, code, sentence",
        [
            ("model", "tf_efficientnet_b3", (), 1, "config.json says tf_efficientnet_b3, but the tensors in"),
            ("tf_efficientnet_b1", None, (), 1, "the file's name says tf_efficientnet_b1.safetensors, but the tensors"),
            ("efficientnet_b0", "tf_efficientnet_b0", (), 2, "says otherwise; say which it is with --architecture"),
            ("x", None, ("--architecture", "efficientnet_b2"), 1, "--architecture is efficientnet_b2, but the tensors"),
            ("x", None, ("--architecture", "resnet50"), 2, "--architecture is 'resnet50', not efficientnet_b0 to b7"),
            ("x", None, ("--architecture", "efficientnet_b8"), 2, "--architecture is 'efficientnet_b8', not"),
        ],
    )
    def test_contradictions_are_refused(self, name, config, flags, code, sentence, b0_file, folder, capsys):
        path = self.file(b0_file, folder, f"{name}.safetensors")
        if config:
            (folder / "config.json").write_text(json.dumps({"architecture": config}))
        assert convert(path, folder / "ours.ckpt", *flags) == code
        assert sentence in capsys.readouterr().err
        assert not (folder / "ours.ckpt").exists()

    @pytest.mark.parametrize(
        "images",
        [
            {},
            {"input_size": 224},
            {"input_size": [3, 224, 224], "crop_pct": 0, "mean": [0.5] * 3, "std": [0.5] * 3},
            {"input_size": [3, 224, 224], "crop_pct": 1, "mean": "white", "std": [0.5] * 3},
            {"input_size": [3, 224, 224], "crop_pct": 1, "mean": [0.5] * 3, "std": [0.0] * 3},
            {"input_size": [3, 1e12, 224], "crop_pct": 1, "mean": [0.5] * 3, "std": [0.5] * 3},
        ],
    )
    def test_broken_image_settings_are_a_sentence(self, images, b0_file, folder, capsys):
        path = self.file(b0_file, folder, "model.safetensors")
        config = {"architecture": "tf_efficientnet_b0", "pretrained_cfg": images}
        (folder / "config.json").write_text(json.dumps(config))
        assert convert(path, folder / "ours.ckpt") == 1
        assert "config.json: its settings of the images are broken" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "text", ["", "[]", "{", "[" * 100_000, '{"architecture": 3}', '{"architecture": "resnet50"}']
    )
    def test_a_config_that_is_none_of_timms_is_ignored(self, text, b0_file, folder):
        path = self.file(b0_file, folder, "tf_efficientnet_b0.safetensors")
        (folder / "config.json").write_text(text)
        assert self.padding(path, folder) == "same"

    def test_flags_go_before_everything_else(self, b0_file, folder):
        flags = "--image_size 128 --crop_ratio 0.8 --interpolation bilinear --mean 1,2,3 --std 9".split()
        assert convert(b0_file, folder / "ours.ckpt", *flags) == 0
        expected = Preprocess(128, 160, "bilinear", (1.0, 2.0, 3.0), (9.0, 9.0, 9.0))
        assert read_checkpoint(str(folder / "ours.ckpt")).info.preprocess == expected

    def test_another_size_keeps_the_crop_ratio(self, b0_file, folder):
        assert convert(b0_file, folder / "ours.ckpt", "--image_size", 112) == 0
        images = read_checkpoint(str(folder / "ours.ckpt")).info.preprocess
        assert (images.image_size, images.resize) == (112, 128)


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def pickled(value):
    return pickle.dumps(value)


def saved_by_torch(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def saved_by_old_torch(value):
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


class TestHostileFiles:
    @pytest.mark.parametrize("write", [pickled, saved_by_torch, saved_by_old_torch])
    @pytest.mark.parametrize("suffix", ["pth", "pt", "bin", "pth.tar"])
    def test_a_pickle_that_would_run_code_is_refused_before_it_does(self, write, suffix, folder, capsys):
        trap = folder / "trap"
        path = folder / f"efficientnet_b0.{suffix}"
        path.write_bytes(write({"state_dict": {"conv_stem.weight": Touch(str(trap))}}))
        assert convert(path, folder / "ours.ckpt") == 1
        error = capsys.readouterr().err
        assert not trap.exists(), "the code ran"
        assert re.fullmatch(rf"error: {path}: refused, it would call _?io.open; weights need .*\n", error)
        assert os.listdir(folder) == [path.name]
        # The trap works: whoever trusts the file runs its code.
        if write is pickled:
            pickle.loads(path.read_bytes())
            assert trap.exists()

    def test_a_pickle_under_another_suffix_is_not_unpickled_either(self, folder, capsys):
        trap = folder / "trap"
        for suffix in ("ckpt", "safetensors"):
            path = folder / f"efficientnet_b0.{suffix}"
            path.write_bytes(saved_by_torch(Touch(str(trap))))
            assert convert(path, folder / "out.ckpt") == 1
            assert capsys.readouterr().err.count("\n") == 1
            assert not trap.exists() and not (folder / "out.ckpt").exists()

    def test_a_whole_model_is_refused(self, b0, folder, capsys):
        torch.save(b0["timm"], folder / "efficientnet_b0.pth")
        assert convert(folder / "efficientnet_b0.pth", folder / "ours.ckpt") == 1
        assert "refused, it would call timm.models.efficientnet.EfficientNet; weights need" in capsys.readouterr().err

    @pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
    @pytest.mark.parametrize("suffix", ["safetensors", "pth", "ckpt"])
    def test_truncated_files_are_a_sentence(self, suffix, share, b0, b0_file, folder, capsys):
        whole = b0_file
        if suffix == "pth":
            whole = folder / "whole.pth"
            torch.save(b0["timm_tf"].state_dict(), whole)
        elif suffix == "ckpt":
            whole = folder / "whole.ckpt"
            assert convert(b0_file, whole) == 0
        data = whole.read_bytes()
        cut = folder / f"tf_efficientnet_b0.{suffix}"
        cut.write_bytes(data[: int(len(data) * share)])
        capsys.readouterr()
        assert convert(cut, folder / "out.ckpt") == 1
        error = capsys.readouterr().err
        assert error.startswith(f"error: {cut}: ") and error.count("\n") == 1
        assert re.search("truncated|damaged|empty", error)
        assert {"out.ckpt"}.isdisjoint(os.listdir(folder))

    @pytest.mark.parametrize(
        "header, sentence",
        [
            (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}', "its header is not JSON"),
            (b"[]", "its header does not name tensors"),
            (b'{"__metadata__":3}', "its header does not name tensors"),
            (b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}', "damaged or truncated"),
            (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}', "damaged or truncated"),
            (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,99]}}', "damaged or truncated"),
            (b'{"a":{"dtype":"X9","shape":[1],"data_offsets":[0,4]}}', "damaged or truncated"),
            (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{}}', "the name a occurs twice"),
            (b"[" * 100000, "its header is not JSON"),
        ],
    )
    def test_safetensors_headers_that_lie(self, header, sentence, folder, capsys):
        path = folder / "efficientnet_b0.safetensors"
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
        assert convert(path, folder / "ours.ckpt") == 1
        assert sentence in capsys.readouterr().err
        assert os.listdir(folder) == [path.name]

    def test_a_header_longer_than_the_file_is_not_allocated(self, folder, capsys):
        path = folder / "efficientnet_b0.safetensors"
        path.write_bytes(b"\xff" * 8 + b"{}")
        assert convert(path, folder / "ours.ckpt") == 1
        assert "no .safetensors file, or a truncated one" in capsys.readouterr().err

    def test_a_description_that_lies_about_the_tensors(self, b0, folder, capsys):
        info = SOURCES["timm"].describe("b1", CLASSES)
        save_file(tensors(b0["timm"]), folder / "x.safetensors", {"efficientnet": info.to_json()})
        assert convert(folder / "x.safetensors", folder / "ours.ckpt") == 1
        assert "it says that it is b1 with 7 classes, but its tensors are those of b0 with 7" in capsys.readouterr().err

    def test_names_that_become_one_are_refused(self, b0, folder, capsys):
        state = tensors(b0["timm"])
        save_file({**state, "module.bn1.weight": state["bn1.weight"]}, folder / "efficientnet_b0.safetensors")
        assert convert(folder / "efficientnet_b0.safetensors", folder / "ours.ckpt") == 1
        assert "it has both bn1.weight and module.bn1.weight" in capsys.readouterr().err
        assert not (folder / "ours.ckpt").exists()


class TestWrongUse:
    @pytest.mark.parametrize(
        "create, sentence",
        [
            (
                lambda: timm.create_model("resnet18"),
                "it is no EfficientNet of timm, torchvision, EfficientNet-PyTorch, the",
            ),
            (lambda: timm.create_model("efficientnet_es"), "blocks.0.0.conv_exp.weight"),
            (lambda: timm.create_model("efficientnet_b1_pruned"), "has shape"),
            (lambda: torchvision.models.mobilenet_v2(), "it is none of EfficientNet B0 to B7 or Lite0 to Lite4"),
        ],
    )
    def test_other_networks(self, create, sentence, folder, capsys):
        path = folder / "efficientnet_b1.safetensors"
        save(create(), path)
        assert convert(path, folder / "ours.ckpt") == 1
        error = capsys.readouterr().err
        assert sentence in error and error.startswith(f"error: {path}: ") and error.count("\n") == 1
        assert os.listdir(folder) == [path.name]

    def test_a_failed_conversion_leaves_an_older_file_as_it_was(self, folder):
        save(timm.create_model("resnet18"), folder / "efficientnet_b0.safetensors")
        (folder / "ours.ckpt").write_text("older")
        assert convert(folder / "efficientnet_b0.safetensors", folder / "ours.ckpt") == 1
        assert (folder / "ours.ckpt").read_text() == "older"

    @pytest.mark.parametrize(
        "source, target, flags, code, sentence",
        [
            ("none.safetensors", "o.ckpt", (), 1, "none.safetensors: there is no such file"),
            (".", "o.ckpt", (), 1, "there is no such file"),
            ("a.h5", "o.ckpt", (), 2, "ends in .safetensors, .pth, .pt, .bin or .ckpt"),
            ("a.safetensors", "o.pth", (), 2, "the name of this file ends in .ckpt"),
            ("a.safetensors", "o.ckpt", ("--to", "timm"), 2, "the name of this file ends in .safetensors"),
            ("a.safetensors", "o.safetensors", ("--to", "keras"), 2, ", not 'keras'"),
            ("a.safetensors", "a.safetensors", ("--to", "timm"), 2, "--source and --target are the same file"),
            ("a.safetensors", "o.ckpt", ("--mean", "x"), 2, "expected a number, or three separated by commas"),
            ("a.safetensors", "o.ckpt", ("--std", "0"), 2, "--std must be above 0"),
            ("a.safetensors", "o.ckpt", ("--image_size", "8"), 2, "--image_size"),
            ("a.safetensors", "o.ckpt", ("--use_ema", "perhaps"), 2, "expected True or False"),
            ("a.safetensors", "o.ckpt", ("--batch_size", "8"), 2, "unrecognized arguments"),
        ],
    )
    def test_is_a_sentence(self, source, target, flags, code, sentence, folder, capsys):
        (folder / "a.safetensors").write_bytes(b"x")
        (folder / "a.h5").write_bytes(b"x")
        assert convert(folder / source, folder / target, *flags) == code
        error = capsys.readouterr().err
        assert sentence in error and error.count("\n") == 1
        assert sorted(os.listdir(folder)) == ["a.h5", "a.safetensors"]

    def test_architecture_is_for_timms_weights_only(self, b0, b0_file, folder, capsys):
        save(b0["torchvision"], folder / "a.safetensors")
        assert convert(b0_file, folder / "ours.ckpt") == 0
        for name in ("a.safetensors", "ours.ckpt"):
            assert convert(folder / name, folder / "o.ckpt", "--architecture", "efficientnet_b0") == 2
            assert "--architecture is for timm's weights" in capsys.readouterr().err

    def test_a_target_that_cannot_be_written(self, b0_file, folder, capsys):
        (folder / "file").write_text("")
        assert convert(b0_file, folder / "file" / "ours.ckpt") == 1
        assert capsys.readouterr().err.startswith("error: ")
        (folder / "ours.ckpt").mkdir()
        assert convert(b0_file, folder / "ours.ckpt") == 1
        assert "it is a directory" in capsys.readouterr().err
        assert sorted(os.listdir(folder)) == ["file", "ours.ckpt"]

    @pytest.mark.parametrize("suffix", ["pth", "safetensors"])
    def test_pytorch_is_not_needed(self, suffix, b0, b0_file, folder):
        """In an interpreter that has no PyTorch."""
        (folder / "torch.py").write_text("raise ImportError('not installed')")
        source = b0_file
        if suffix == "pth":
            source = folder / "tf_efficientnet_b0.pth"
            torch.save(b0["timm_tf"].state_dict(), source)
        command = [sys.executable, ROOT / "convert_weights.py", "--source", source, "--target", folder / "ours.ckpt"]
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert (run.returncode, run.stderr) == (0, "")
        assert (folder / "ours.ckpt").exists()
