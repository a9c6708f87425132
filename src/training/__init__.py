"""A training run: its set-up, the compiled step, the loop around it, stopping and going on."""
