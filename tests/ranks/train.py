"""Run by the ranks of test_distribute.py: train.py itself, which at its end leaves this rank's weights in a file."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import train

import numpy as np

from src.cli import run_cli
from src.training import network_weights

run_steps = train.run_steps


def run_and_keep(config, device, folder, step_cell, progress, loop):
    run_steps(config, device, folder, step_cell, progress, loop)
    np.savez("weights.npz", **network_weights(step_cell.network))


train.run_steps = run_and_keep
sys.exit(run_cli(train.main))
