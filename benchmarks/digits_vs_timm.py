"""Top-1 of B0 on the digits, trained by timm in PyTorch and by train.py with the same settings, over several seeds."""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import numpy as np

from benchmarks.machine import describe_machine
from scripts.quickstart import DEFAULT_EPOCHS, RECIPE
from src.common.cli import ArgumentParser, RunError, positive_int, run_cli
from src.config import Config
from src.data.image_folder import read_image_folder
from src.images.preprocess import load_image
from src.lr_generator import get_lr
from src.preparation.digits import write_digits

# The quickstart's recipe on timm's network: it pads symmetrically and has PyTorch's batch norm.
SETTINGS = {**RECIPE, "padding": "symmetric", "norm_eps": 1e-5, "norm_momentum": 0.9}


def main(argv=None) -> None:
    """Train alternately, and print both sides' scores and the JSON line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=positive_int, default=3, help="trainings of each side")
    parser.add_argument("--epochs", type=positive_int, default=DEFAULT_EPOCHS, help="of each training")
    arguments = parser.parse_args(argv)
    print("machine:", describe_machine("mindspore", "torch", "timm"), flush=True)
    warmup = min(SETTINGS["warmup_epochs"], arguments.epochs)
    config = Config(**{**SETTINGS, "epoch_size": arguments.epochs, "warmup_epochs": warmup, "class_num": 10})
    scores = {"ours": [], "timm": []}
    with tempfile.TemporaryDirectory() as folder:
        digits = os.path.join(folder, "digits")
        write_digits(digits)
        for seed in range(1, arguments.seeds + 1):
            for side, train in (("ours", train_here), ("timm", train_in_timm)):
                began = time.perf_counter()
                top_1 = train(digits, os.path.join(folder, f"{side}_{seed}"), config, seed)
                scores[side].append(top_1)
                seconds = time.perf_counter() - began
                print(f"seed {seed}, {side}: top-1 {top_1:.2f}% after {seconds:.0f} s", flush=True)
    means = {side: round(statistics.mean(values), 2) for side, values in scores.items()}
    print(json.dumps({**means, "seeds": arguments.seeds}))


def train_here(digits: str, out: str, config: Config, seed: int) -> float:
    """Train with train.py.

    Returns:
        float, top-1 of the last epoch on the held-out digits, in percent.

    Raises:
        RunError: if it failed.
    """
    flags = {name: getattr(config, name) for name in [*SETTINGS, "epoch_size"]}
    flags.update(dataset_path=f"{digits}/train", eval_dataset_path=f"{digits}/val", save_checkpoint_path=out)
    flags.update(seed=seed, save_checkpoint=False, tensorboard=False, eval_interval=config.epoch_size)
    command = [sys.executable, os.path.join(ROOT, "train.py")]
    command += [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    done = subprocess.run(command, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise RunError(f"train.py failed with exit code {done.returncode}")
    with open(os.path.join(out, "model_0", "metrics.csv"), newline="") as file:
        return 100 * float(list(csv.DictReader(file))[-1]["top_1"])


def train_in_timm(digits: str, out: str, config: Config, seed: int) -> float:
    """Train timm's efficientnet_b0 with timm's optimiser and loss and torchvision's crops.

    Returns:
        float, top-1 of the last epoch on the held-out digits, in percent.
    """
    from benchmarks.peers import timm, torch, torchvision

    torch.manual_seed(seed)
    # After the peers' import, which makes timm's possible.
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2

    settings = {"drop_rate": 0.2, "drop_path_rate": config.drop_connect_rate}
    model = timm.create_model("efficientnet_b0", num_classes=config.class_num, **settings).train()
    optimizer = create_optimizer_v2(
        model,
        "rmsproptf",
        lr=config.lr_max,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        eps=config.opt_eps,
        alpha=config.opt_decay,
    )
    loss_function = LabelSmoothingCrossEntropy(config.label_smooth_factor)
    transform = torchvision.transforms.Compose(
        [
            torchvision.transforms.RandomResizedCrop(
                config.image_size, (config.crop_scale_min, 1.0), (1 / config.crop_aspect_max, config.crop_aspect_max)
            ),
            torchvision.transforms.PILToTensor(),
            torchvision.transforms.Lambda(lambda pixels: (pixels - config.mean[0]) / config.std[0]),
        ]
    )
    images = torchvision.datasets.ImageFolder(f"{digits}/train", transform)
    loader = torch.utils.data.DataLoader(images, config.batch_size, shuffle=True, drop_last=True)
    rates = get_lr(
        config.lr_init,
        config.lr_end,
        config.lr_max,
        config.warmup_epochs,
        config.epoch_size,
        len(loader),
        config.lr_decay_mode,
    )
    step = 0
    for _ in range(config.epoch_size):
        for batch, labels in loader:
            for group in optimizer.param_groups:
                group["lr"] = float(rates[step])
            optimizer.zero_grad()
            loss_function(model(batch), labels).backward()
            optimizer.step()
            step += 1
    return evaluate_peer(model.eval(), f"{digits}/val", config)


def evaluate_peer(model, path: str, config: Config) -> float:
    """Top-1 of a PyTorch model in percent, on the pixels that our own evaluation sees."""
    from benchmarks.peers import torch

    folder = read_image_folder(path)
    hits = 0
    with torch.no_grad():
        for start in range(0, len(folder), config.batch_size):
            indices = range(start, min(start + config.batch_size, len(folder)))
            batch = np.stack([load_image(folder.full_path(index), config.preprocess) for index in indices])
            found = model(torch.from_numpy(batch)).argmax(1).numpy()
            hits += int((found == folder.labels[indices.start : indices.stop]).sum())
    return 100 * hits / len(folder)


if __name__ == "__main__":
    sys.exit(run_cli(main))
