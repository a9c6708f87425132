"""All networks through every script, as users run them: --variant alone decides size, dropout and names."""

import ast
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks.peers import create_peer, random_images, randomise, timm
from src.images.preprocess import load_image
from src.models.family import VARIANTS
from src.weights.checkpoint import read_checkpoint
from src.weights.sources import SOURCES
from tests.support.peer_networks import logits_of, tensors

ROOT = Path(__file__).parent.parent.parent
# 18 images: two steps. The smallest images that the network takes.
TINY = "--image_size 32 --batch_size 9 --epoch_size 1 --warmup_epochs 0 --lr_max 0.001".split()


def run(folder, script, *flags, code=0):
    """Run a script in `folder`; returns what it printed, the error where it is to fail."""
    command = [sys.executable, ROOT / script, *map(str, flags)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1800)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else done.stdout


def train_evaluate_export_and_infer(folder, images, variant, *flags, formats=("ONNX",)):
    """From images to a file that classifies them; returns the checkpoint."""
    printed = run(folder, "train.py", "--dataset_path", images / "train", "--variant", variant, *TINY, *flags)
    assert VARIANTS[variant].title in printed
    checkpoint = folder / "checkpoint" / "model_0" / f"Efficientnet_{variant}-rank0-1_2.ckpt"
    assert re.search(r"^epoch 1: epoch time: [\d.]+, per step time: [\d.]+, avg loss: [\d.]+", printed, re.MULTILINE)
    assert checkpoint.exists()

    evaluated = run(folder, "eval.py", "--dataset_path", images / "val", "--checkpoint_path", checkpoint)
    result = ast.literal_eval(re.search(r"^result: (\{.*\}) ckpt= ", evaluated, re.MULTILINE)[1])

    for file_format in formats:
        file = folder / f"exported.{file_format.lower()}"
        run(folder, "export.py", "--checkpoint_path", checkpoint, "--file_name", file, "--file_format", file_format)
        assert file.stat().st_size > 4e6 * VARIANTS[variant].width_coeff
    flags = ("--onnx_path", "exported.onnx", "--dataset_path", images / "val", "--json")
    inferred = json.loads(run(folder, "infer_onnx.py", *flags).splitlines()[-1])
    assert (inferred["top_1"], inferred["top_5"]) == (result["Top_1_Acc"], result["Top_5_Acc"])
    assert inferred["loss"] == pytest.approx(result["Loss"], rel=1e-3)
    return checkpoint


def pixels_of(folder, source, variant, size):
    """All images of a folder as a source's weights want them but of another size; and noise, for export.py's check."""
    images = dataclasses.replace(source.describe(variant, 1000).preprocess, image_size=size, resize=round(size / 0.875))
    pixels = np.stack([load_image(str(path), images) for path in sorted(folder.rglob("*.jpg"))])
    return np.concatenate([pixels, random_images(len(pixels), size)])


def words(text):
    return set(re.findall("[a-z]+", text.lower()))


def test_converted_weights_through_every_script(few_images, tmp_path):
    """timm's weights of a larger network: converted, fine-tuned, evaluated, exported, run."""
    peer = randomise(create_peer("timm", "b1", 1000), pixels_of(few_images / "train", SOURCES["timm"], "b1", 32))
    save_file(tensors(peer), tmp_path / "efficientnet_b1.ft_in1k.safetensors")
    run(tmp_path, "convert_weights.py", "--source", "efficientnet_b1.ft_in1k.safetensors", "--target", "start.ckpt")

    frozen = ("--pretrained", "start.ckpt", "--freeze", 9)
    checkpoint = train_evaluate_export_and_infer(tmp_path, few_images, "b1", *frozen)
    trained, start = read_checkpoint(str(checkpoint)), read_checkpoint(str(tmp_path / "start.ckpt"))
    # The network and its images follow the weights; what is held fixed has not moved by a bit.
    assert (trained.info.padding, trained.info.norm_eps) == ("symmetric", 1e-5)
    assert trained.info.preprocess.mean == start.info.preprocess.mean
    assert (trained.info.num_classes, trained.info.class_names) == (2, ("0", "1"))
    for name, value in start.weights.items():
        if not name.startswith("classifier."):
            assert (trained.weights[name] == value).all(), name


def test_a_converted_network_names_what_is_in_a_picture(few_images, tmp_path):
    """In words, and the same as timm's own network on the same pixels."""
    peer = randomise(create_peer("timm_tf", "b0", 1000), pixels_of(few_images / "val", SOURCES["timm_tf"], "b0", 64))
    save_file(tensors(peer), tmp_path / "tf_efficientnet_b0.safetensors")
    small = ("--image_size", 64, "--target", "b0.ckpt")
    run(tmp_path, "convert_weights.py", "--source", "tf_efficientnet_b0.safetensors", *small)
    run(tmp_path, "export.py", "--checkpoint_path", "b0.ckpt", "--file_name", "b0", "--file_format", "ONNX")
    image = next((few_images / "val" / "1").iterdir())
    told = json.loads(run(tmp_path, "infer_onnx.py", "--onnx_path", "b0.onnx", "--image", image, "--json"))

    pixels = load_image(str(image), read_checkpoint(str(tmp_path / "b0.ckpt")).info.preprocess)
    logits = logits_of(peer, pixels[None])[0].astype(np.float64)
    expected = np.argsort(-logits)[:5]
    assert [row["label"] for row in told["classes"]] == expected.tolist()
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    np.testing.assert_allclose([row["probability"] for row in told["classes"]], shares[expected], rtol=1e-3)
    described = timm.data.ImageNetInfo("imagenet-1k").label_descriptions()
    for row in told["classes"]:
        assert words(row["class"]) & words(described[row["label"]]), row


def test_a_lite_network_through_every_script(few_images, tmp_path):
    """EfficientNet-PyTorch's weights, fine-tuned; b0's are refused for it, and its run does not go on as b0."""
    source = SOURCES["efficientnet_pytorch"]
    peer = create_peer("efficientnet_pytorch", "lite0", 1000)
    randomise(peer, pixels_of(few_images / "train", source, "lite0", 32))
    save_file(tensors(peer), tmp_path / "efficientnet-lite0.safetensors")
    run(tmp_path, "convert_weights.py", "--source", "efficientnet-lite0.safetensors", "--target", "start.ckpt")
    checkpoint = train_evaluate_export_and_infer(
        tmp_path, few_images, "lite0", "--pretrained", "start.ckpt", formats=("MINDIR", "ONNX")
    )
    assert read_checkpoint(str(checkpoint)).info.preprocess.mean == (127.5,) * 3

    train = ("train.py", "--dataset_path", few_images / "train", *TINY)
    refused = run(tmp_path, *train, "--variant", "b0", "--pretrained", "start.ckpt", code=2)
    assert "--variant is b0, but start.ckpt was trained with lite0" in refused
    refused = run(tmp_path, *train, "--variant", "b0", "--resume", checkpoint, code=2)
    assert "--variant b0 contradicts the resumed run, which has variant lite0" in refused


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_through_every_script(variant, few_images, tmp_path):
    checkpoint = train_evaluate_export_and_infer(tmp_path, few_images, variant, formats=("MINDIR", "ONNX"))
    assert read_checkpoint(str(checkpoint)).info.variant == variant
    other = "b1" if variant == "b0" else "b0"
    flags = ("--dataset_path", few_images / "val", "--checkpoint_path", checkpoint, "--variant", other)
    refused = run(tmp_path, "eval.py", *flags, code=2)
    assert f"--variant is {other}, but {checkpoint} was trained with {variant}" in refused


@pytest.mark.parametrize("variant", VARIANTS)
def test_image_size_and_dropout_follow_the_variant_unless_given(variant, few_images):
    import train
    from src.data.image_folder import read_image_folder
    from src.runtime.device import prepare_device
    from src.training import configuration

    device, folder = prepare_device("CPU", None), read_image_folder(str(few_images / "train"))
    flags = ["--dataset_path", folder.root, "--variant", variant]
    config, _ = configuration.complete_config(train.parse_arguments(flags), device, folder, None)
    assert config.image_size == VARIANTS[variant].image_size
    assert config.dropout_rate == VARIANTS[variant].dropout_rate
    given = train.parse_arguments([*flags, "--image_size", "64", "--dropout_rate", "0.1"])
    config, _ = configuration.complete_config(given, device, folder, None)
    assert (config.image_size, config.dropout_rate) == (64, 0.1)
