"""Top-1 of recipe finetune on photos, with each of its choices changed in turn: why the recipe chooses as it does.

python benchmarks/finetune_choices.py --photos DIR

DIR holds a folder for each class. Every run trains on the same images for the same seed and is scored on the same
held-out images after the last epoch. The last two runs see a tenth of the images of every second class.
"""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from benchmarks.machine import describe_machine
from src.common.cli import RunError, create_parser, positive_int, run_cli
from src.config import read_config_file

THINNED = 10
UNEQUAL = "classes of unequal size"


def main(argv=None) -> None:
    """Train with each change for each seed; print every score, then the means as one line of JSON."""
    parser = create_parser(__doc__.splitlines()[0])
    parser.add_argument("--photos", required=True, help="folder with a folder for each class")
    parser.add_argument("--seeds", type=positive_int, default=2, help="trainings with each change (default: 2)")
    arguments = parser.parse_args(argv)
    print("machine:", describe_machine("mindspore"), flush=True)
    scores: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as work:
        run = os.path.join(work, "divided")
        first = train(["--dataset_path", arguments.photos], run, 1)
        folder = os.path.join(run, "model_0")
        lists = [os.path.join(folder, name) for name in ("train.tsv", "val.tsv")]
        # A list's paths are relative to its folder.
        thinned = thin(lists[0], os.path.join(folder, "thinned.tsv"))
        changes = list_changes(read_config_file(os.path.join(folder, "config.json")))
        for seed in range(1, arguments.seeds + 1):
            for name, flags in changes.items():
                images = thinned if name.startswith(UNEQUAL) else lists[0]
                flags = ["--dataset_path", images, "--eval_dataset_path", lists[1], *flags]
                # The first run of all is the recipe with seed 1.
                score = first if not scores else train(flags, os.path.join(work, f"{seed} {name}"), seed)
                print(f"seed {seed}, {name}: top-1 {score:.2f}%", flush=True)
                scores.setdefault(name, []).append(score)
    means = {name: round(statistics.mean(values), 2) for name, values in scores.items()}
    print(json.dumps({**means, "seeds": arguments.seeds}))


def list_changes(config: dict) -> dict[str, list[str]]:
    """Flags of each run by its name, from the values that the recipe has chosen."""
    batch, epochs, size, rate = (config[name] for name in ("batch_size", "epoch_size", "image_size", "lr_max"))
    changes = {
        "--freeze": (0, 2, 6),
        "--lr_max": (round(rate / 3, 4), round(rate * 3, 4)),
        "--lr_decay_mode": ("liner",),
        "--lr_end": (0,),
        "--warmup_epochs": (0,),
        "--norm_momentum": (0.99,),
        "--crop_scale_min": (0.08,),
        "--color_jitter": (0,),
        "--use_ema": (True,),
        "--batch_size": (batch * 2,),
        "--epoch_size": (max(1, epochs // 2),),
        "--image_size": (size // 4 * 3 // 32 * 32,),
    }
    singles = [[flag, str(value)] for flag, values in changes.items() for value in values]
    return {
        "the recipe": [],
        **{" ".join(flags): flags for flags in singles},
        "--opt rmsprop": ["--opt", "rmsprop", "--lr_max", str(rate / 15)],
        **{f"{UNEQUAL}, {kind}": ["--class_weights", kind] for kind in ("balanced", "none")},
    }


def thin(source: str, target: str) -> str:
    """Write a list with a tenth of the images of every second class, and return its path."""
    with open(source, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    rare = sorted({row["label"] for row in rows})[1::2]
    seen: dict[str, int] = {}
    with open(target, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            label = row["label"]
            seen[label] = seen.get(label, -1) + 1
            if label not in rare or seen[label] % THINNED == 0:
                writer.writerow(row)
    return target


def train(flags: list[str], out: str, seed: int) -> float:
    """Train with the recipe and these flags.

    Returns:
        Top-1 on the held-out images after the last epoch, in percent.

    Raises:
        RunError: if train.py failed.
    """
    flags = ["--recipe", "finetune", *flags, "--save_checkpoint_path", out, "--seed", str(seed)]
    flags += ["--eval_interval", "1000", "--save_checkpoint", "False", "--tensorboard", "False"]
    done = subprocess.run([sys.executable, os.path.join(ROOT, "train.py"), *flags], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RunError(f"train.py failed with exit code {done.returncode}")
    with open(os.path.join(out, "model_0", "metrics.csv"), newline="") as file:
        return 100 * float(list(csv.DictReader(file))[-1]["top_1"])


if __name__ == "__main__":
    sys.exit(run_cli(main))
