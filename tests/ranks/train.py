"""Run by the ranks of test_distribute.py: train.py itself on a shallow network, which notes what this rank did.

weights.npz holds the rank's weights at its end, seen.json the numbers of the images that it trained on, in order. With
NAN_AT=rank,step in the environment the images of that rank's step (from 1) are not numbers.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import train

import numpy as np

from src.common.cli import run_cli
from src.data.listing import ImageFolder
from src.models.family import VARIANTS
from src.training import setup
from src.training.step import network_weights

# Ten blocks instead of sixteen compile in less time; drop-connect is still among them.
VARIANTS["b0"] = dataclasses.replace(VARIANTS["b0"], depth_coeff=0.5)

nan_rank, nan_step = map(int, os.environ.get("NAN_AT", "-1,-1").split(","))
run_steps = train.run_steps
read = ImageFolder.read
seen = []


def read_and_note(folder, index):
    seen.append((folder.root, int(index)))
    return read(folder, index)


def spoil_for(preprocess):
    """What makes one step's images no numbers; the others are normalised as the step itself does it."""
    mean, std = (np.array(values, np.float32).reshape(1, 3, 1, 1) for values in (preprocess.mean, preprocess.std))

    def spoil(images, labels, epoch, number):
        # Floats throughout, of which alone one can be no number: another type would compile the step again.
        images = (images.astype(np.float32) - mean) / std
        return images * np.float32(np.nan if (epoch, number) == (0, nan_step - 1) else 1), labels

    return spoil


def run_and_keep(run, loop):
    if run.device.rank == nan_rank:
        setup.create_mix = lambda *arguments: spoil_for(run.config.preprocess)
    run_steps(run, loop)
    np.savez("weights.npz", **network_weights(loop.step_cell.network))
    Path("seen.json").write_text(json.dumps([index for root, index in seen if root == run.folder.root]))


ImageFolder.read = read_and_note
train.run_steps = run_and_keep
sys.exit(run_cli(train.main))
