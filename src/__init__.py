"""EfficientNet for MindSpore: the rooms of the house, see docs/architecture.md."""

import os

# MindSpore's C++ side reads the level of its log while it loads, so it is set before any module here imports MindSpore:
# errors only, unless the user wants more.
os.environ.setdefault("GLOG_v", "3")
