"""Batch norm folded into the convolution before it: less work for the same function. NumPy only."""

from __future__ import annotations

import numpy as np

from src.weights.names import NORM_PARTS, Weights


def fold_batch_norm(weights: Weights, norm_eps: float) -> Weights:
    """Replace every batch norm by a scaled convolution weight and a bias.

    `gamma * (conv(x) - mean) / sqrt(variance + eps) + beta` is a convolution with weight `conv.weight * scale` and
    bias `beta - mean * scale`, where `scale = gamma / sqrt(variance + eps)` for each output channel. Computed in
    float64, so that rounding to float32 happens once.

    Args:
        weights: parameters under the network's names; `X.conv` is followed by `X.norm`.
        norm_eps: epsilon of the batch norms.

    Returns:
        dict without the norms' parameters, with `X.conv.bias` in addition; all others are the same arrays.
    """
    folded = {}
    for name, value in weights.items():
        layer, _, part = name.rpartition(".")
        if layer.endswith(".norm") and part in NORM_PARTS:
            continue
        norm = layer[: -len("conv")] + "norm"
        if part != "weight" or f"{norm}.gamma" not in weights:
            folded[name] = value
            continue
        mean, variance, gamma, beta = (weights[f"{norm}.{part}"].astype(np.float64) for part in NORM_PARTS)
        scale = gamma / np.sqrt(variance + norm_eps)
        folded[name] = (value.astype(np.float64) * scale.reshape(-1, 1, 1, 1)).astype(np.float32)
        folded[f"{layer}.bias"] = (beta - mean * scale).astype(np.float32)
    return folded
