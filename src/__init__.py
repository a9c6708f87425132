"""EfficientNet on MindSpore: what the scripts in the repository's root share."""
