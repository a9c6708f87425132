"""Weights in files: what a model says of itself, checkpoints, other projects' names, conversion."""
