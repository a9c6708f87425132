"""All eight networks through every script, as users run them: --variant alone decides size, dropout and names."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from src.checkpoint import read_checkpoint
from src.models.scaling import VARIANTS

ROOT = Path(__file__).parent.parent
# 18 images: two steps. The smallest images that the network takes.
TINY = "--image_size 32 --batch_size 9 --epoch_size 1 --warmup_epochs 0 --lr_max 0.001".split()


def run(folder, script, *flags, code=0):
    """Run a script in `folder`; returns what it printed."""
    command = [sys.executable, ROOT / script, *map(str, flags)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1800)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def train_evaluate_export_and_infer(folder, images, variant, *flags):
    """From images to a file that classifies them; returns the checkpoint."""
    printed = run(folder, "train.py", "--dataset_path", images / "train", "--variant", variant, *TINY, *flags)
    assert f"EfficientNet-{variant.upper()}" in printed
    checkpoint = folder / "checkpoint" / "model_0" / f"Efficientnet_{variant}-rank0-1_2.ckpt"
    assert re.search(r"^epoch 1: epoch time: [\d.]+, per step time: [\d.]+, avg loss: [\d.]+", printed, re.MULTILINE)
    assert checkpoint.exists()

    evaluated = run(folder, "eval.py", "--dataset_path", images / "val", "--checkpoint_path", checkpoint)
    result = re.search(
        r"^result: \{'Loss': (.*), 'Top_1_Acc': (.*), 'Top_5_Acc': (.*)\} ckpt= ", evaluated, re.MULTILINE
    )

    for file_format in ("MINDIR", "ONNX"):
        file = folder / f"exported.{file_format.lower()}"
        run(folder, "export.py", "--checkpoint_path", checkpoint, "--file_name", file, "--file_format", file_format)
        assert file.stat().st_size > 4e6 * VARIANTS[variant].width_coeff
    inferred = run(folder, "infer_onnx.py", "--onnx_path", folder / "exported.onnx", "--dataset_path", images / "val")
    assert float(re.search(r"top-1:? ([\d.]+)", inferred)[1]) == pytest.approx(float(result[2]), abs=5e-4)
    return checkpoint


def test_converted_weights_through_every_script(few_images, tmp_path):
    """timm's weights of a larger network: converted, fine-tuned, evaluated, exported, run."""
    from tests.peers import create_peer, tensors

    peer = create_peer("timm", "b1", 1000)
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


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_through_every_script(variant, few_images, tmp_path):
    checkpoint = train_evaluate_export_and_infer(tmp_path, few_images, variant)
    assert read_checkpoint(str(checkpoint)).info.variant == variant
    other = "b1" if variant == "b0" else "b0"
    flags = ("--dataset_path", few_images / "val", "--checkpoint_path", checkpoint, "--variant", other)
    refused = run(tmp_path, "eval.py", *flags, code=2)
    assert f"--variant is {other}, but {checkpoint} was trained with {variant}" in refused


@pytest.mark.parametrize("variant", VARIANTS)
def test_image_size_and_dropout_follow_the_variant_unless_given(variant, few_images):
    import train
    from src.device import prepare_device
    from src.image_folder import read_image_folder

    device, folder = prepare_device("CPU", None), read_image_folder(str(few_images / "train"))
    flags = ["--dataset_path", folder.root, "--variant", variant]
    config = train.complete_config(train.parse_arguments(flags), device, folder, None)
    assert config.image_size == VARIANTS[variant].image_size
    assert config.dropout_rate == VARIANTS[variant].dropout_rate
    given = train.parse_arguments([*flags, "--image_size", "64", "--dropout_rate", "0.1"])
    config = train.complete_config(given, device, folder, None)
    assert (config.image_size, config.dropout_rate) == (64, 0.1)
