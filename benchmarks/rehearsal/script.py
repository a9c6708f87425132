"""python benchmarks/rehearsal/script.py train.py --device_target Ascend ...: runs a script in MindSpore's dry run.

The environment must be that of `rehearsal.run`. The dry run counts no devices, though it computes on one: it is told
that there are eight.
"""

from __future__ import annotations

import os
import runpy
import sys

import mindspore

if __name__ == "__main__":
    mindspore.hal.device_count = lambda target=None: 8
    sys.argv = sys.argv[1:]
    sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
    runpy.run_path(sys.argv[0], run_name="__main__")
