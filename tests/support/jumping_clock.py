"""tests/support/shallow_train.py under a clock that is set anew at each look at it, by up to a day."""

import random
import runpy
import time
from pathlib import Path

steady = time.time_ns
draw = random.Random(0)


def jump() -> int:
    return steady() + draw.randint(-86_400, 86_400) * 10**9


time.time_ns, time.time = jump, lambda: jump() / 1e9
runpy.run_path(str(Path(__file__).with_name("shallow_train.py")), run_name="__main__")
